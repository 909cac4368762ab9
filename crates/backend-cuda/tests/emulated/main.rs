//! The backend on the emulated device: the conformance suite, bits against the CPU target, and the
//! bundled model's answers. Every kernel runs from the files that the device compiler reads.

mod bits;
mod bundle;
mod choice;
mod conformance;
mod dependent;
mod device;
mod model;
mod sampler;
mod tuning;
mod warpgroups;
