//! Tools the tests need. Debian packages are installed only after asking; `CI=true` means yes.

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{is_ci, target_dir};

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
    println!("{program} is missing");
    install_package(package)?;
    if !on_path(program) {
        bail!("{package} was installed but {program} is still missing");
    }
    Ok(())
}

/// As [`debian`], for a package that also starts a service of its own: that is turned off again.
pub fn service(program: &str, package: &str) -> Result<()> {
    if on_path(program) {
        return Ok(());
    }
    debian(program, package)?;
    if Path::new("/run/systemd/system").exists() {
        run(&mut privileged(&["systemctl", "disable", "--now", program]))?;
    }
    Ok(())
}

/// Installs a Debian package, after asking where somebody can answer.
fn install_package(package: &str) -> Result<()> {
    if !is_ci() && !confirm(&format!("Install the Debian package {package}?"))? {
        bail!("install the Debian package {package}");
    }
    run(&mut privileged(&["apt-get", "update", "-qq"]))?;
    let install = ["apt-get", "install", "-y", "-qq", package];
    run(privileged(&install).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// The files of a Debian package, unpacked under the target folder and not installed.
pub fn unpacked(package: &str) -> Result<PathBuf> {
    let dir = target_dir().join("debian").join(package);
    let files = dir.join("files");
    if files.is_dir() {
        return Ok(files);
    }
    std::fs::create_dir_all(&dir)?;
    let mut download = Command::new("apt-get");
    download
        .args(["download", "-qq", package])
        .current_dir(&dir);
    if run(&mut download).is_err() {
        run(&mut privileged(&["apt-get", "update", "-qq"]))?;
        run(&mut download)?;
    }
    let archive = std::fs::read_dir(&dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|ext| ext == "deb"))
        .with_context(|| format!("apt-get downloaded no {package}"))?;
    let unfinished = dir.join("unfinished");
    run(Command::new("dpkg-deb")
        .arg("-x")
        .args([&archive, &unfinished]))?;
    std::fs::rename(unfinished, &files)?;
    Ok(files)
}

/// A command that needs the rights of root.
pub fn privileged(words: &[&str]) -> Command {
    let sudo: &[&str] = if is_root() { &[] } else { &["sudo"] };
    let words = [sudo, words].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

/// A Python environment of that name under the target folder with the given requirements installed;
/// returns its interpreter.
pub fn python(name: &str, requirements: &Path) -> Result<PathBuf> {
    debian("python3", "python3")?;
    let dir = target_dir().join(name);
    let interpreter = dir.join("bin/python");
    let stamp = dir.join("requirements.txt");
    let wanted = std::fs::read(requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    if std::fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(interpreter);
    }
    let mut make = Command::new("python3");
    make.args(["-m", "venv", "--clear"]).arg(&dir);
    if run(&mut make).is_err() {
        // Debian ships the interpreter without this module.
        install_package("python3-venv")?;
        run(&mut make)?;
    }
    run(Command::new(&interpreter)
        .args(["-m", "pip", "install", "-q", "-r"])
        .arg(requirements))?;
    std::fs::write(&stamp, wanted)?;
    Ok(interpreter)
}

/// A folder of that name under the target folder with the packages of a `package.json` installed.
pub fn node(name: &str, package: &Path) -> Result<PathBuf> {
    debian("npm", "npm")?;
    let dir = target_dir().join(name);
    let stamp = dir.join("installed.json");
    let wanted =
        std::fs::read(package).with_context(|| format!("cannot read {}", package.display()))?;
    if std::fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(dir);
    }
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("package.json"), &wanted)?;
    let install = ["install", "--silent", "--no-audit", "--no-fund"];
    run(Command::new("npm").args(install).current_dir(&dir))?;
    std::fs::write(&stamp, wanted)?;
    Ok(dir)
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Servers lie where not everybody's path leads.
    let mut dirs = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    dirs.any(|dir| dir.join(program).is_file())
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
