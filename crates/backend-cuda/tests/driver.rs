//! The real device code over the driver's stand-in: the conformance suite, swapped blocks included, whose copies
//! happen as late as a driver may let them.

use backend::conformance::Tolerances;
use backend_cuda::driver::{Gpu, find};
use backend_cuda::{CudaBackend, Precision};

/// The bounds of the CPU's 8-bit precisions: a narrow matrix under an outlier errs by a tenth.
const INT8: Tolerances = Tolerances {
    linear_f32: 0.2,
    linear_bf16: 0.2,
    linear_f16: 0.2,
    attention_bf16: 1e-2,
    ..Tolerances::F32
};

fn gpu() -> CudaBackend<Gpu> {
    cuda_driver::install().expect("the stand-in was built");
    let found = find().expect("the stand-in is found");
    assert_eq!(found[0].properties.name, "emulated");
    let gpu =
        Gpu::open(&found[0]).expect("kernels that `cargo xtask kernels` compiled are built in");
    CudaBackend::new(gpu, Precision::Int8)
}

backend::conformance_suite!(gpu(), INT8);
