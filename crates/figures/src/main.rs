//! `figures OUT [MODEL TEXT]`: draws the pictures of the bundled model, and of another one, into a folder.
#![expect(
    clippy::print_stdout,
    reason = "a command line tool reports on standard output"
)]

use std::path::Path;

use anyhow::{Context, Result, bail};
use figures::{Study, granularities};
use model::Checkpoint;

/// Tokens of the text that go through the model.
const TOKENS: usize = 256;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (out, other) = match args.as_slice() {
        [out] => (Path::new(out), None),
        [out, model, text] => (Path::new(out), Some((Path::new(model), Path::new(text)))),
        _ => bail!("figures OUT [MODEL TEXT]"),
    };
    write(out, "granularity", &granularities())?;
    save(out, "bundled", &Study::bundled()?)?;
    if let Some((model, text)) = other {
        let checkpoint = Checkpoint::open(model)?;
        let text = std::fs::read_to_string(text)
            .with_context(|| format!("cannot read {}", text.display()))?;
        let file = model.file_stem().context("the model is a file")?;
        let name = file.to_string_lossy();
        let (name, _) = name.split_once('.').unwrap_or((&name, ""));
        let study = Study::of_text(name, &checkpoint, &text, TOKENS)?;
        save(out, &name.to_lowercase(), &study)?;
    }
    Ok(())
}

/// Writes a study's pictures and prints its figures.
fn save(out: &Path, prefix: &str, study: &Study) -> Result<()> {
    for (name, picture) in study.pictures() {
        write(out, &format!("{prefix}-{name}"), &picture)?;
    }
    println!("{}", study.tables());
    Ok(())
}

fn write(out: &Path, name: &str, picture: &str) -> Result<()> {
    let path = out.join(name).with_extension("svg");
    std::fs::write(&path, picture).with_context(|| format!("cannot write {}", path.display()))
}
