//! `cargo xtask gpu pack`: one archive for a machine with a GPU, which needs nothing but the driver there; and
//! what can be known of it here: it unpacks, is complete, and each of its steps gets as far as the driver.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

use crate::stages::cargo;
use crate::{install, kernels, root, target_dir};

/// What a rented machine fetches in seconds.
const MAX_BYTES: u64 = 60_000_000;
/// All steps, when each takes what it may.
const MAX_SECONDS: u64 = 600;
/// Steps without which a GPU's answers and speed are not known.
const STEPS: [&str; 11] = [
    "conform",
    "guard",
    "check",
    "repeat",
    "sanitizer-memcheck",
    "time",
    "step",
    "bars",
    "eval-int8",
    "served-int8-128",
    "served-f16-128",
];

/// Compiles kernels and programs and packs them.
///
/// # Errors
/// What does not build, or an archive that has grown too large.
pub fn pack() -> Result<PathBuf> {
    kernels::run(false)?;
    install::run(&mut cargo(&[
        "build",
        "--release",
        "--locked",
        "--bins",
        "--examples",
        "-p",
        "octet",
        "-p",
        "loadtest",
        "-p",
        "backend-cuda",
    ]))?;
    let (target, sources) = (target_dir(), root().join("kernels/cuda"));
    let folder = target.join("gpu/octet-gpu");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(folder.join("kernels"))?;
    for program in ["octet", "loadtest", "examples/gpu"] {
        strip(&target.join("release").join(program), &folder)?;
    }
    for file in ["resources.txt", "gpu/run.sh", "gpu/bars.py"] {
        copy(&sources.join(file), &folder)?;
    }
    for entry in std::fs::read_dir(target.join("kernels/cuda"))? {
        copy(&entry?.path(), &folder.join("kernels"))?;
    }
    std::fs::rename(
        folder.join("kernels/sources.sha256"),
        folder.join("sources.sha256"),
    )?;
    let commit = Command::new("git")
        .args(["rev-parse", "HEAD"])
        .current_dir(root())
        .output()?;
    std::fs::write(folder.join("commit"), commit.stdout)?;
    let archive = target.join("gpu/octet-gpu.tar.gz");
    let mut tar = Command::new("tar");
    tar.arg("-czf").arg(&archive).arg("-C");
    install::run(tar.arg(target.join("gpu")).arg("octet-gpu"))?;
    let bytes = std::fs::metadata(&archive)?.len();
    ensure!(
        bytes <= MAX_BYTES,
        "{} has {bytes} bytes, {MAX_BYTES} are allowed",
        archive.display()
    );
    println!("{} ({:.1} MB)", archive.display(), bytes as f64 / 1e6);
    Ok(archive)
}

/// Packs, unpacks elsewhere, and runs what a machine without a GPU can run of it.
///
/// # Errors
/// A bundle that is not complete, or a step that ends before the driver is asked.
pub fn check() -> Result<()> {
    let archive = pack()?;
    let elsewhere = std::env::temp_dir().join(format!("octet-gpu-{}", std::process::id()));
    std::fs::create_dir_all(&elsewhere)?;
    let result = unpacked(&archive, &elsewhere);
    std::fs::remove_dir_all(&elsewhere)?;
    result
}

fn unpacked(archive: &Path, elsewhere: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    install::run(tar.arg("-xzf").arg(archive).arg("-C").arg(elsewhere))?;
    let folder = elsewhere.join("octet-gpu");
    let plan = script(&folder, &["--plan"])?;
    let text = String::from_utf8_lossy(&plan.stdout).into_owned();
    ensure!(plan.status.success(), "run.sh --plan: {text}");
    for step in STEPS {
        ensure!(
            text.lines()
                .any(|line| line.starts_with(&format!("{step} "))),
            "run.sh has no step {step}:\n{text}"
        );
    }
    let limits = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    let seconds: u64 = limits.sum();
    ensure!(
        seconds <= MAX_SECONDS,
        "the steps may take {seconds} s, {MAX_SECONDS} are allowed"
    );
    let broken = folder.join("loadtest");
    let kept = folder.join("kept");
    std::fs::rename(&broken, &kept)?;
    let incomplete = script(&folder, &["--plan"])?;
    ensure!(
        incomplete.status.code() == Some(2),
        "run.sh does not notice that a program is missing"
    );
    std::fs::rename(&kept, &broken)?;
    if has_driver() {
        println!("this machine has an NVIDIA driver: the bundle is left to be run by hand");
        return Ok(());
    }
    let dry = script(&folder, &["--dry"])?;
    let text = String::from_utf8_lossy(&dry.stdout);
    ensure!(dry.status.success(), "run.sh --dry:\n{text}");
    let reached = text.matches("reached the driver").count();
    ensure!(reached >= 10, "{reached} steps reached the driver:\n{text}");
    let run = script(&folder, &[])?;
    let text = String::from_utf8_lossy(&run.stderr);
    ensure!(
        run.status.code() == Some(3) && text.contains("no NVIDIA driver"),
        "run.sh without a driver ends with {:?}: {text}",
        run.status.code()
    );
    println!("{reached} steps reach the driver; without one the bundle says so");
    Ok(())
}

fn has_driver() -> bool {
    let found = Command::new("nvidia-smi").arg("-L").output();
    found.is_ok_and(|output| output.status.success())
}

fn script(folder: &Path, args: &[&str]) -> Result<Output> {
    Command::new("bash")
        .arg("run.sh")
        .args(args)
        .current_dir(folder)
        .output()
        .context("cannot start bash")
}

/// Copies a program without its symbols, which are a third of it.
fn strip(program: &Path, folder: &Path) -> Result<()> {
    let name = program.file_name().context("a program has a name")?;
    let mut strip = Command::new("strip");
    install::run(strip.arg("-o").arg(folder.join(name)).arg(program))
}

fn copy(from: &Path, folder: &Path) -> Result<()> {
    let name = from.file_name().context("a file has a name")?;
    std::fs::copy(from, folder.join(name)).with_context(|| format!("{}", from.display()))?;
    Ok(())
}
