//! Sequence, Scheduler, BlockManager and the engine thread.
