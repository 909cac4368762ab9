//! Tools the tests need. Debian packages are installed only after asking; `CI=true` means yes.

use std::io::{BufRead, IsTerminal, Write};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::is_ci;

/// Runs a command and fails with its name when it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// Makes sure that `program` can be started, installing the Debian package that holds it if need be.
pub fn debian(program: &str, package: &str) -> Result<()> {
    if on_path(program) {
        return Ok(());
    }
    if !is_ci()
        && !confirm(&format!(
            "{program} is missing. Install the Debian package {package}?"
        ))?
    {
        bail!("{program} is missing; install the Debian package {package}");
    }
    let mut apt = Vec::new();
    if !is_root() {
        apt.push("sudo");
    }
    apt.push("apt-get");
    run(Command::new(apt[0]).args(&apt[1..]).args(["update", "-qq"]))?;
    run(Command::new(apt[0])
        .args(&apt[1..])
        .args(["install", "-y", "-qq", package])
        .env("DEBIAN_FRONTEND", "noninteractive"))?;
    if !on_path(program) {
        bail!("{package} was installed but {program} is still missing");
    }
    Ok(())
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn is_root() -> bool {
    Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|out| out.stdout.trim_ascii() == b"0")
}

fn confirm(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    print!("{question} [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
