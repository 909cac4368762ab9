//! Tasks of the workspace: the one test command, what it installs, and the tidy rules.
//!
//! `cargo xtask test` is what continuous integration runs; everything else here is one of its stages.
#![expect(
    clippy::print_stdout,
    reason = "a command line tool reports on standard output"
)]

mod assets;
mod clients;
mod deploy;
mod dist;
mod gpu;
mod install;
mod kernels;
mod mutants;
mod nvrtc;
mod packages;
mod pictures;
mod sbom;
mod stages;
mod suite;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;

const USAGE: &str = "\
cargo xtask <command>

  test [STAGE…]   run every test, or only the named stages
  stages          list the stages of `test`
  kernels         compile the CUDA kernels for every architecture and check what they take;
                  --update rewrites the report
  gpu pack        make the archive that runs tests and measurements on a machine with a GPU
  mutants [NAME…] put mistakes into the CUDA kernels; each must make a test fail
  tidy            check the rules that the compiler does not
  figures         draw the pictures of docs/quantisation.md from the bundled model and SmolLM2
  pictures        draw the README's pictures from a conversation and load tests on this machine
  suite           measure the bundled model, SmolLM2 and llama.cpp's server where it is installed, in about
                  half an hour, into target/suite/cpu (--out FOLDER, --plan)
  dashboards      write the Grafana boards, Prometheus rules and start-up files of deploy/
  dist            write the archive of a release into target/dist
  assets          fetch the model files that tests use into target/assets";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.first().map(String::as_str) {
        Some("test") => stages::run(&args[1..]),
        Some("stages") => stages::list(),
        Some("kernels") => kernels::run(args.get(1).is_some_and(|arg| arg == "--update")),
        Some("gpu") if args.get(1).is_some_and(|arg| arg == "pack") => gpu::pack().map(drop),
        Some("mutants") => mutants::run(&args[1..]),
        Some("tidy") => tidy::run(),
        Some("suite") => suite::run(&args[1..]),
        Some("dashboards") => deploy::write(),
        Some("figures") => figures(),
        Some("pictures") => pictures::run(),
        Some("dist") => dist::run(),
        Some("assets") => assets::fetch().map(|dir| println!("{}", dir.display())),
        _ => {
            println!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Draws the pictures that real tensors make.
fn figures() -> Result<()> {
    let assets = assets::fetch()?;
    let mut draw = stages::cargo(&["run", "--release", "--locked", "-q", "-p", "figures", "--"]);
    draw.arg("docs/images")
        .arg(assets.join("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
        .arg(assets.join("texts/moby-dick.txt"));
    install::run(&mut draw)
}

/// The root of the workspace.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the crate lies two folders below the root")
}

/// Where cargo builds to.
fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Whether nobody is there to be asked, and nothing may be skipped.
fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}
