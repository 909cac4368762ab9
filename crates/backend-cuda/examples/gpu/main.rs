//! On a real GPU: whether it answers as the definition and the CPU do, and how fast it is. Runs from the
//! archive of `cargo xtask gpu pack`; needs the driver and nothing else.
//!
//! `gpu conform` runs the conformance suite and compares replayed with computed steps, and `gpu guard` runs it again with every buffer poisoned and fenced;
//! `gpu check` compares each instruction with the PTX manual, and bits; `gpu repeat` repeats steps beside a busy stream; `gpu time` times kernels, cuBLASLt's beside them where it is installed, and `gpu step` whole steps of three models whose weights
//! are made on the device. Without a GPU all end with 3 and say why. The tests of this crate run the same code
//! on the emulated device.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the figures are what the program is for"
)]

mod check;
mod clock;
mod cublaslt;
mod decoder;
mod graphs;
mod guarded;
mod inputs;
mod repeat;
mod step;
mod time;
mod wrappers;
mod wrappers_wgmma;

use std::process::ExitCode;

use backend::Result;
use backend_cuda::driver::{Gpu, find};
use backend_cuda::{CudaBackend, Precision};

use clock::Clock;

/// Names under which cuBLASLt is installed, newest first.
const CUBLASLT: [&str; 4] = [
    "libcublasLt.so.13",
    "libcublasLt.so.12",
    "libcublasLt.so.11",
    "libcublasLt.so",
];

const COMMANDS: &str = "conform|guard|check|repeat|time|step";

fn main() -> ExitCode {
    let command = std::env::args().nth(1).unwrap_or_default();
    if !COMMANDS.split('|').any(|known| known == command) {
        eprintln!("gpu {COMMANDS}, not {command:?}");
        return ExitCode::from(2);
    }
    let gpu = match find().map(|found| found.into_iter().next()) {
        Ok(Some(gpu)) => gpu,
        Ok(None) => return none("the NVIDIA driver lists no GPU"),
        Err(reason) => return none(&reason),
    };
    let open = || Gpu::open(&gpu);
    // The same with every launch behind the end of the one before.
    let mut plain = gpu.clone();
    plain.properties.dependent_launches = false;
    let in_order = || Gpu::open(&plain);
    let in_order: Option<&dyn Fn() -> Result<Gpu>> = match gpu.properties.dependent_launches {
        true => Some(&in_order),
        false => None,
    };
    let say = &mut |line: String| println!("{line}");
    match run(&command, &open, in_order, say) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(
    command: &str,
    open: &(dyn Fn() -> Result<Gpu> + Sync),
    in_order: Option<&dyn Fn() -> Result<Gpu>>,
    say: &mut dyn FnMut(String),
) -> Result<bool> {
    match command {
        "conform" => Ok(check::conform(open, &check::SUITES, say)?
            & graphs::conform(open, &graphs::Sizes::REAL, say)?),
        "guard" => guarded::conform(open, &check::SUITES, say),
        "check" => check::check(open, &check::PRODUCTS, say),
        "repeat" => repeat::repeat(open, &repeat::Sizes::REAL, say),
        "time" => {
            let sizes = time::Sizes::REAL;
            let ours = time::time(open()?, &Clock::watch(), &sizes, say)?;
            let target = &mut CudaBackend::new(open()?, Precision::Int8);
            let timer: cublaslt::Timer<'_> =
                &mut |target, call| time::seconds(target, sizes.seconds, call);
            cublaslt::compare(&CUBLASLT, target, &ours, (sizes.rotated, timer), say)
        }
        _ => {
            step::steps(
                open,
                in_order,
                &Clock::watch(),
                &decoder::MODELS,
                &step::Sizes::REAL,
                say,
            )?;
            Ok(true)
        }
    }
}

fn none(reason: &str) -> ExitCode {
    eprintln!("no GPU to run on: {reason}");
    ExitCode::from(3)
}
