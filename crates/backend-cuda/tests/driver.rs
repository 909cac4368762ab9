//! The real device code over the driver's stand-in: the conformance suite, swapped blocks included, whose copies
//! happen as late as a driver may let them.

#[path = "../examples/gpu/cublaslt.rs"]
mod cublaslt;

use std::path::Path;
use std::process::Command;

use backend::conformance::{TestBackend, Tolerances};
use backend_cuda::device::{Arg, Device, Launch};
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

/// Copies in every direction, memory that is freed under them, and a captured launch: what is read back is what was
/// written.
#[test]
fn what_is_copied_arrives() {
    let target = gpu();
    let device = target.device();
    let bytes: Vec<u8> = (0..=255).cycle().take(1024).collect();
    let buffer = |purpose| device.alloc(bytes.len(), purpose).expect("memory");
    let (a, b, c) = (buffer("a"), buffer("b"), buffer("c"));
    device.upload(&a, 0, &bytes).expect("copies");
    let host = || device.host_alloc(bytes.len(), "host").expect("memory");
    let (first, second) = (host(), host());
    // Out, over the host, and back; what the first is freed under is a copy from it.
    device.swap_out((&a, 0), (&first, 0), 1024).expect("copies");
    device
        .copy_on_host((&first, 0), (&second, 0), 1024)
        .expect("copies");
    device.swap_in((&first, 0), (&b, 0), 1024).expect("copies");
    drop(first);
    device.swap_in((&second, 0), (&c, 0), 1024).expect("copies");
    drop(second);
    let third = host();
    device.swap_out((&c, 0), (&third, 0), 1024).expect("copies");
    drop(third);
    let args = [
        Arg::Buffer(&a, 0),
        Arg::Buffer(&b, 0),
        Arg::Int(256),
        Arg::Int(256),
        Arg::Int(256),
    ];
    let launch = Launch {
        kernel: "add",
        threads: 256,
        grid: [1, 1, 1],
        dynamic_bytes: 0,
        args: &args,
    };
    device.begin_capture().expect("nothing runs");
    device.launch(&launch).expect("a kernel");
    let graph = device.end_capture().expect("it was begun");
    device.replay(&graph).expect("it runs");
    let read = |buffer| {
        let mut found = vec![0; 1024];
        device.download(buffer, 0, &mut found).expect("copies");
        found
    };
    let floats = |bytes: &[u8]| -> Vec<f32> {
        let (words, _) = bytes.as_chunks::<4>();
        words.iter().map(|word| f32::from_le_bytes(*word)).collect()
    };
    let doubled: Vec<f32> = floats(&bytes).iter().map(|x| x + x).collect();
    let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    assert!(floats(&read(&a)).iter().zip(&doubled).all(same));
    assert_eq!((read(&b), read(&c)), (bytes.clone(), bytes));
}

/// The same with each wait in turn that waits for nothing: every one is missed, by wrong bytes or by a copy that meets
/// freed memory.
#[test]
fn no_wait_of_the_device_can_be_left_out() {
    let noted = Path::new(env!("CARGO_TARGET_TMPDIR")).join("waits");
    std::fs::remove_file(&noted).ok();
    let run = |ignored: usize| {
        Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "what_is_copied_arrives"])
            .env("OCTET_EMULATED_IGNORED_WAIT", ignored.to_string())
            .env("OCTET_EMULATED_WAITS", &noted)
            .output()
            .expect("it starts")
    };
    assert!(run(0).status.success(), "with all waits everything arrives");
    let count = std::fs::metadata(&noted).expect("they were noted").len() as usize;
    // One after the upload, one for the copy on the host, one for each of three freed parts, three for what is read.
    assert_eq!(count, 8);
    let survivors: Vec<usize> = (1..=count)
        .filter(|wait| run(*wait).status.success())
        .collect();
    assert!(survivors.is_empty(), "waits {survivors:?} are not missed");
}

/// The quick ones of the tests above on compute capability 9.0, where the driver is asked to let every launch begin
/// before the one before has ended, captured ones too.
#[test]
fn launches_begin_early_on_compute_capability_9_0() {
    const QUICK: [&str; 5] = [
        "what_is_copied_arrives",
        "fusions_equal_primitives",
        "linear_matches_reference",
        "experts_match_reference",
        "sampled_rows_do_not_depend_on_each_other",
    ];
    let noted = Path::new(env!("CARGO_TARGET_TMPDIR")).join("early");
    let run = |capability: &str| {
        std::fs::remove_file(&noted).ok();
        let output = Command::new(std::env::current_exe().expect("this program"))
            .arg("--exact")
            .args(QUICK)
            .env("OCTET_EMULATED_CAPABILITY", capability)
            .env("OCTET_EMULATED_DEPENDENT", &noted)
            .output()
            .expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{capability}: {text}");
        std::fs::metadata(&noted).map_or(0, |file| file.len())
    };
    assert!(run("9.0") > 100, "launches were early");
    assert_eq!(run("8.0"), 0, "no launch was early");
}

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
