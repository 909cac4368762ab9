//! The real device code over the driver's stand-in: the conformance suite, swapped blocks included, whose copies
//! happen as late as a driver may let them.

#[path = "../examples/gpu/cublaslt.rs"]
mod cublaslt;

use backend::conformance::{TestBackend, Tolerances};
use backend_cuda::device::Device;
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

/// A process may have several streams, as this one has while its tests run.
#[test]
fn a_capture_holds_up_no_other_thread() {
    let captures = gpu();
    captures.device().begin_capture().expect("nothing runs");
    let copies = || gpu().upload(1, 3, &[1.0, 2.0, 3.0]);
    std::thread::spawn(move || drop(copies()))
        .join()
        .expect("its stream captures nothing");
    captures.device().end_capture().expect("it was begun");
}

/// What is timed on a GPU is the product: NVIDIA's interface as the stand-in holds us to it.
#[test]
fn the_bar_computes_the_exact_product() {
    let ours = [
        ([1, 64, 128], 1.0),
        ([5, 192, 64], 1.0),
        ([33, 8, 260], 1.0),
        // No multiple of four.
        ([3, 8, 30], 1.0),
    ];
    let mut target = gpu();
    let mut said = Vec::new();
    let timer: cublaslt::Timer<'_> = &mut |target, call| {
        target.device().begin_capture()?;
        let captured = call(target, 1);
        let graph = target.device().end_capture()?;
        captured?;
        target.device().replay(&graph)?;
        target.device().synchronize()?;
        Ok(2.0)
    };
    let names = [cuda_driver::library().expect("the stand-in was built")];
    let are_right = cublaslt::compare(&names, &mut target, &ours, (40_000, timer), &mut |line| {
        said.push(line);
    });
    assert!(are_right.expect("it computes"), "{said:#?}");
    let exact = said.iter().filter(|line| line.contains("exact"));
    assert_eq!(exact.count(), 3, "{said:#?}");
    assert!(said[0].ends_with("2.00 times as fast"), "{said:#?}");
    assert!(said[3].contains("status 15"), "{said:#?}");
}

#[test]
fn a_machine_without_the_bar_says_so() {
    let mut said = Vec::new();
    let timer: cublaslt::Timer<'_> = &mut |_, _| Ok(1.0);
    let names = ["libnowhere.so.13"];
    let outcome = cublaslt::compare(&names, &mut gpu(), &[], (1, timer), &mut |line| {
        said.push(line);
    });
    assert!(outcome.expect("nothing fails"));
    assert_eq!(said, ["cuBLASLt: not present"]);
}
