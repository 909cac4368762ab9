//! `cargo xtask suite`: what `deploy/suites/cpu.toml` measures, on this machine. Makes the one file that no
//! registry carries, SmolLM2 in Q8_0, from the Q4_1 file that one does.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{assets, install, root, stages, target_dir};

/// The file that the suite names.
const MODEL: &str = "SmolLM2-135M-Instruct.Q8_0.gguf";
/// The text that quality is measured on.
const TEXT: &str = "moby-dick.txt";

/// Runs the suite with flags of `loadtest suite`; without `--out` into `target/suite/cpu`.
pub fn run(flags: &[String]) -> Result<()> {
    let suites = root().join("deploy/suites");
    let folder = target_dir().join("suite");
    std::fs::create_dir_all(&folder)?;
    let assets = assets::fetch()?;
    let model = folder.join(MODEL);
    if !model.exists() {
        let python = install::python("python-gguf", &suites.join("requirements.txt"))?;
        let source = assets.join("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
        let mut make = Command::new(python);
        make.arg(suites.join("requantize.py"))
            .args([&source, &model]);
        install::run(make.env("PYTHONDONTWRITEBYTECODE", "1"))?;
    }
    let text = folder.join(TEXT);
    if !text.exists() {
        std::fs::copy(assets.join("texts").join(TEXT), text).context("cannot copy the text")?;
    }
    stages::build()?;
    let mut suite = Command::new(target_dir().join("release/loadtest"));
    suite.arg("suite").arg(suites.join("cpu.toml"));
    // The folder of results is meant from where the user is.
    let here = std::env::current_dir()?;
    match flags {
        [] => suite.arg("--out").arg(folder.join("cpu")),
        [flag, out] if flag == "--out" => suite.arg("--out").arg(here.join(out)),
        [flag] if flag == "--plan" => suite.arg("--plan"),
        _ => bail!("cargo xtask suite [--plan | --out FOLDER]"),
    };
    install::run(suite.current_dir(folder))
}
