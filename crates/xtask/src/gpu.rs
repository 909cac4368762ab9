//! `cargo xtask gpu pack`: one archive for a machine with a GPU, which needs nothing but the driver there.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{install, kernels, root, target_dir};

/// What a rented machine fetches in seconds.
const MAX_BYTES: u64 = 60_000_000;

/// Compiles kernels and programs and packs them.
///
/// # Errors
/// What does not build, or an archive that has grown too large.
pub fn pack() -> Result<()> {
    kernels::run(false)?;
    install::run(
        Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--release", "--locked", "--bins"])
            .args(["-p", "octet", "-p", "loadtest"])
            .current_dir(root()),
    )?;
    install::run(
        Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--release", "--locked"])
            .args(["-p", "backend-cuda", "--example", "gpu"])
            .current_dir(root()),
    )?;
    let target = target_dir();
    let folder = target.join("gpu/octet-gpu");
    std::fs::create_dir_all(&folder)?;
    let copy = |from: &Path| -> Result<()> {
        let name = from.file_name().context("a file has a name")?;
        std::fs::copy(from, folder.join(name)).with_context(|| format!("{}", from.display()))?;
        Ok(())
    };
    copy(&target.join("release/octet"))?;
    copy(&target.join("release/loadtest"))?;
    copy(&target.join("release/examples/gpu"))?;
    copy(&target.join("kernels/cuda/sources.sha256"))?;
    copy(&root().join("kernels/cuda/resources.txt"))?;
    copy(&root().join("kernels/cuda/gpu/run.sh"))?;
    copy(&root().join("kernels/cuda/gpu/bars.py"))?;
    let commit = Command::new("git")
        .args(["rev-parse", "HEAD"])
        .current_dir(root())
        .output()?;
    std::fs::write(folder.join("commit"), commit.stdout)?;
    let archive = target.join("gpu/octet-gpu.tar.gz");
    install::run(
        Command::new("tar")
            .arg("-czf")
            .arg(&archive)
            .arg("-C")
            .arg(target.join("gpu"))
            .arg("octet-gpu"),
    )?;
    let bytes = std::fs::metadata(&archive)?.len();
    ensure!(
        bytes <= MAX_BYTES,
        "{} has {bytes} bytes, {MAX_BYTES} are allowed",
        archive.display()
    );
    println!("{} ({:.1} MB)", archive.display(), bytes as f64 / 1e6);
    Ok(())
}
