//! `cargo xtask test`: the stages in order, each with its seconds; the first failure does not hide
//! the others.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::{assets, clients, deploy, gpu, install, kernels, mutants, root, target_dir, tidy};

struct Stage {
    name: &'static str,
    what: &'static str,
    run: fn() -> Result<()>,
}

const STAGES: &[Stage] = &[
    Stage {
        name: "fmt",
        what: "formatting",
        run: fmt,
    },
    Stage {
        name: "tidy",
        what: "layout, dependency directions, banned words, links of pages, packages in use",
        run: tidy::run,
    },
    Stage {
        name: "assets",
        what: "real model files for the tests",
        run: || assets::fetch().map(|_| ()),
    },
    Stage {
        name: "kernels",
        what: "CUDA kernels for every architecture, and what they take",
        run: || kernels::run(false),
    },
    Stage {
        name: "build",
        what: "the binaries",
        run: build,
    },
    Stage {
        name: "fuzz",
        what: "the fuzz targets compile",
        run: fuzz,
    },
    Stage {
        name: "clippy",
        what: "lints, warnings denied",
        run: clippy,
    },
    Stage {
        name: "unit",
        what: "every Rust test",
        run: unit,
    },
    Stage {
        name: "mutants",
        what: "mistakes in the CUDA kernels, each of which a test must notice",
        run: || mutants::run(&[]),
    },
    Stage {
        name: "gpu",
        what: "the bundle for machines with a GPU, as far as the driver",
        run: gpu::check,
    },
    Stage {
        name: "clients",
        what: "SDKs, the chat page in a browser and the load test against the binary",
        run: clients::run,
    },
    Stage {
        name: "deploy",
        what: "what deploy/ holds, under the programs it is for",
        run: deploy::run,
    },
    Stage {
        name: "docs",
        what: "documentation, warnings denied",
        run: docs,
    },
];

/// Lists the stages.
pub fn list() -> Result<()> {
    for stage in STAGES {
        println!("{:8} {}", stage.name, stage.what);
    }
    Ok(())
}

/// Runs the named stages, or all.
pub fn run(names: &[String]) -> Result<()> {
    if let Some(unknown) = names
        .iter()
        .find(|name| STAGES.iter().all(|stage| stage.name != **name))
    {
        bail!("{unknown} is not a stage; see `cargo xtask stages`");
    }
    let wanted = STAGES
        .iter()
        .filter(|stage| names.is_empty() || names.iter().any(|name| name == stage.name));
    let (mut passed, mut failed) = (0, Vec::new());
    for stage in wanted {
        println!("== {}: {}", stage.name, stage.what);
        let start = Instant::now();
        let result = (stage.run)();
        let seconds = start.elapsed().as_secs_f32();
        match result {
            Ok(()) => {
                passed += 1;
                println!("== {}: ok, {seconds:.1} s\n", stage.name);
            }
            Err(error) => {
                failed.push(stage.name);
                println!("== {}: FAILED, {seconds:.1} s: {error:#}\n", stage.name);
            }
        }
    }
    println!("{passed} passed, {} failed", failed.len());
    if failed.is_empty() {
        Ok(())
    } else {
        bail!("failed stages: {}", failed.join(", "))
    }
}

/// Cargo in the root of the workspace.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

fn fmt() -> Result<()> {
    install::run(&mut cargo(&["fmt", "--all", "--check"]))
}

/// Builds the binaries.
pub fn build() -> Result<()> {
    install::run(&mut cargo(&[
        "build",
        "--release",
        "--workspace",
        "--bins",
        "--locked",
    ]))
}

/// Checks the fuzz targets, which are a package of their own; `model/tests/damage.rs` runs what they run.
fn fuzz() -> Result<()> {
    let package = root().join("crates/model/fuzz");
    // The versions that everything else has.
    std::fs::copy(root().join("Cargo.lock"), package.join("Cargo.lock"))?;
    install::run(
        cargo(&["check", "--bins", "--manifest-path"])
            .arg(package.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(target_dir().join("fuzz")),
    )
}

fn clippy() -> Result<()> {
    install::run(&mut cargo(&[
        "clippy",
        "--release",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]))
}

fn unit() -> Result<()> {
    let assets = assets::fetch()?;
    install::debian("curl", "curl")?;
    install::run(
        cargo(&[
            "test",
            "--release",
            "--workspace",
            "--locked",
            "--no-fail-fast",
        ])
        .env("OCTET_ASSETS", assets),
    )
}

fn docs() -> Result<()> {
    install::run(
        cargo(&[
            "doc",
            "--release",
            "--workspace",
            "--no-deps",
            "--locked",
            "--document-private-items",
        ])
        .env("RUSTDOCFLAGS", "-D warnings"),
    )
}
