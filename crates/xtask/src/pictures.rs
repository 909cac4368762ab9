//! `cargo xtask pictures`: the README's pictures of the chat page and of a load test's report, from a real
//! conversation and real runs. What they show of speed is this machine's, so it should have nothing else
//! to do.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::clients::Server;
use crate::{assets, install, root, stages, target_dir};

/// The load that both precisions get, six times each: enough requests for a 95th percentile.
const LOAD: [&str; 9] = [
    "--users",
    "4",
    "--requests",
    "60",
    "--prompt-tokens",
    "64",
    "--output-tokens",
    "12",
    "--ignore-eos",
];

/// Draws both.
pub fn run() -> Result<()> {
    install::debian("chromium", "chromium")?;
    let clients = root().join("crates/server/tests/clients");
    let python = install::python("python", &clients.join("requirements.txt"))?;
    stages::build()?;
    let draw = |name: &str, size: &str, from: [&str; 2]| {
        let out = root().join("docs/images").join(name);
        let mut draw = Command::new(&python);
        draw.arg(clients.join("pictures.py")).args(from);
        draw.arg("--out").arg(out).args(["--size", size]);
        install::run(draw.env("PYTHONDONTWRITEBYTECODE", "1"))
    };
    let server = Server::start(&[])?;
    draw("chat", "1120x740", ["--url", &server.url])?;
    drop(server);
    let page = report()?;
    let address = format!("file://{}", page.display());
    draw("report", "1120x680", ["--page", &address])
}

/// Measures SmolLM2 in bfloat16 and in 8 bits by turns; the page that compares them.
fn report() -> Result<PathBuf> {
    let results = target_dir().join("pictures");
    if results.exists() {
        std::fs::remove_dir_all(&results)?;
    }
    let model = assets::fetch()?.join("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    let model = model.display().to_string();
    let serve = |quantization: &str| {
        // The client has a core of its own.
        let flags = ["--model", &model, "-q", quantization, "--threads", "1"];
        Server::start(&flags.map(str::to_owned))
    };
    let (bf16, int8) = (serve("bf16")?, serve("auto")?);
    let mut compare = Command::new(target_dir().join("release/loadtest"));
    compare
        .arg("compare")
        .arg(format!("bf16={}", bf16.url))
        .arg(format!("int8={}", int8.url))
        .args(LOAD)
        .arg("--results")
        .arg(&results);
    install::run(&mut compare)?;
    let mut made = std::fs::read_dir(&results)?;
    let folder = made.next().context("the comparison left a folder")??;
    Ok(folder.path().join("report.html"))
}
