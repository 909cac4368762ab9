//! CpuBackend: its own buffers, our kernels, one worker team.
