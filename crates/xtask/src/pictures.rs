//! `cargo xtask pictures`: the README's pictures of the chat page and of a load test's report, from a real
//! conversation and real runs. What they show of speed is this machine's, so it should have nothing else
//! to do.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::clients::Server;
use crate::{assets, install, root, stages, target_dir};

/// Runs of each precision, in turns, so that a drift of the machine meets both.
const ROUNDS: usize = 3;

/// What is compared: the file's name and `--quantization`.
const PRECISIONS: [(&str, &str); 2] = [("bf16", "bf16"), ("int8", "auto")];

/// Draws both.
pub fn run() -> Result<()> {
    install::debian("chromium", "chromium")?;
    let clients = root().join("crates/server/tests/clients");
    let python = install::python(&clients.join("requirements.txt"))?;
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
    draw("report", "1120x900", ["--page", &address])
}

/// Measures SmolLM2 in bfloat16 and in 8 bits; the page that compares them.
fn report() -> Result<PathBuf> {
    let folder = target_dir().join("pictures");
    std::fs::create_dir_all(&folder)?;
    let model = assets::fetch()?.join("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    let mut files = Vec::new();
    for round in 0..ROUNDS {
        for (name, quantization) in PRECISIONS {
            let file = folder.join(format!("{name}-{round}.json"));
            measure(&model, quantization, &file)?;
            files.push(file);
        }
    }
    let page = folder.join("report.html");
    let mut report = Command::new(target_dir().join("release/loadtest"));
    report.arg("report").args(files).arg("-o").arg(&page);
    install::run(&mut report)?;
    Ok(page)
}

/// One run. The client has a core of its own.
fn measure(model: &Path, quantization: &str, file: &Path) -> Result<()> {
    let model = model.display().to_string();
    let flags = ["--model", &model, "-q", quantization, "--threads", "1"];
    let server = Server::start(&flags.map(str::to_owned))?;
    let load = [
        "--quiet",
        "--ignore-eos",
        "--users",
        "4",
        "--requests",
        "64",
        "--prompt-tokens",
        "64",
        "--output-tokens",
        "24",
    ];
    let mut run = Command::new(target_dir().join("release/loadtest"));
    run.args(["--url", &server.url]).args(load);
    install::run(run.arg("--json").arg(file))
}
