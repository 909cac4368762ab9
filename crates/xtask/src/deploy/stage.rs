//! The deploy stage: what lies under `deploy/`, tried with the programs it is written for.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::{check, deploy, schemas};
use crate::{assets, dist, install, root, target_dir};

/// Runs every check of `deploy/`.
pub fn run() -> Result<()> {
    check()?;
    schemas::check()?;
    rented_machine()?;
    prometheus()?;
    install::debian("bwrap", "bubblewrap")?;
    install::debian("buildah", "buildah")?;
    let busybox = install::unpacked("busybox-static")?.join("bin/busybox");
    let busybox = busybox.display().to_string();
    as_root(&["python3", "-B"], "image.py", &["--busybox", &busybox])?;
    install::debian("systemd-analyze", "systemd")?;
    against_server("systemd.py", &[])?;
    install::debian("systemd-nspawn", "systemd-container")?;
    install::debian("curl", "curl")?;
    as_root(&["unshare", "--mount", "python3", "-B"], "machine.py", &[])?;
    install::service("nginx", "nginx-light")?;
    install::service("haproxy", "haproxy")?;
    let loadtest = binary("loadtest");
    against_server("overload.py", &["--loadtest".as_ref(), loadtest.as_ref()])?;
    against_server("proxies.py", &["--loadtest".as_ref(), loadtest.as_ref()])
}

/// The archive of a release, and the script that installs it.
fn rented_machine() -> Result<()> {
    let archive = dist::check(&schemas::python()?)?;
    let model = root().join("crates/bundled/model");
    for program in ["curl", "openssl"] {
        install::debian(program, program)?;
    }
    script(
        "install.py",
        &[
            "--archive".as_ref(),
            archive.as_ref(),
            "--model".as_ref(),
            model.as_ref(),
        ],
    )
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
    against_server(
        "prometheus.py",
        &["--embedding-model".as_ref(), minilm.as_os_str()],
    )
}

/// A test script that starts the built server.
fn against_server(name: &str, args: &[&OsStr]) -> Result<()> {
    let octet = binary("octet");
    script(
        name,
        &[&["--octet".as_ref(), octet.as_ref()], args].concat(),
    )
}

/// A test script of `deploy/tests`.
fn script(name: &str, args: &[&OsStr]) -> Result<()> {
    println!("-- {name}");
    let mut command = Command::new("python3");
    command
        .arg(deploy("tests").join(name))
        .args(args)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    install::run(&mut command)
}

/// A test script that starts the built server, and may mount and enter what others must not.
fn as_root(start: &[&str], name: &str, args: &[&str]) -> Result<()> {
    println!("-- {name}");
    let script = deploy("tests").join(name).display().to_string();
    let octet = binary("octet").display().to_string();
    let script = [script.as_str(), "--octet", &octet];
    install::run(&mut install::privileged(&[start, &script, args].concat()))
}

fn binary(name: &str) -> PathBuf {
    target_dir().join("release").join(name)
}
