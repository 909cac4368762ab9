//! The deploy stage: what lies under `deploy/`, tried with the programs it is written for.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::{check, deploy, schemas};
use crate::{assets, dist, install, target_dir};

/// Runs every check of `deploy/`.
pub fn run() -> Result<()> {
    check()?;
    schemas::check()?;
    dist::check()?;
    prometheus()?;
    install::debian("systemd-analyze", "systemd")?;
    script("systemd.py", &[])?;
    install::service("nginx", "nginx-light")?;
    install::service("haproxy", "haproxy")?;
    let loadtest = binary("loadtest");
    script("proxies.py", &["--loadtest".as_ref(), loadtest.as_os_str()])
}

/// The configuration, the rules and the boards, by promtool and by a server that scrapes ours.
fn prometheus() -> Result<()> {
    install::service("prometheus", "prometheus")?;
    let promtool = |what: &[&str]| {
        let mut command = Command::new("promtool");
        command.current_dir(deploy("prometheus")).args(what);
        install::run(&mut command)
    };
    promtool(&["check", "config", "prometheus.yml"])?;
    promtool(&[
        "check",
        "rules",
        "--lint=all",
        "--lint-fatal",
        "rules/octet.yml",
    ])?;
    promtool(&["test", "rules", "tests/octet.yml", "tests/octet-slow.yml"])?;
    let minilm = assets::fetch()?.join("minilm");
    script(
        "prometheus.py",
        &["--embedding-model".as_ref(), minilm.as_os_str()],
    )
}

/// A test script of `deploy/tests`, against the built server.
fn script(name: &str, args: &[&OsStr]) -> Result<()> {
    println!("-- {name}");
    let mut command = Command::new("python3");
    command
        .arg(deploy("tests").join(name))
        .arg("--octet")
        .arg(binary("octet"))
        .args(args)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    install::run(&mut command)
}

fn binary(name: &str) -> PathBuf {
    target_dir().join("release").join(name)
}
