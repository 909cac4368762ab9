//! What a precision costs in quality, as a command of the suite says.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Side;
use super::serve::{fill, find};

const QUALITY: &str = "quality.json";

/// Runs the command that measures quality, unless its result is there.
pub fn score(side: Side<'_>, folder: &Path) -> Result<()> {
    let file = folder.join(QUALITY);
    let [program, words @ ..] = &side.model.quality[..] else {
        return Ok(());
    };
    let Some(program) = find(program).filter(|_| !file.is_file()) else {
        return Ok(());
    };
    let partial = folder.join("quality.part");
    let json = partial.display().to_string();
    let words = words.iter().map(|word| fill(word, side, ("{json}", &json)));
    let run = Command::new(program)
        .args(words.filter(|word| !word.is_empty()))
        .stdin(Stdio::null())
        .output()?;
    if !run.status.success() {
        bail!("quality: {}", String::from_utf8_lossy(&run.stderr).trim());
    }
    Ok(std::fs::rename(partial, file)?)
}

pub fn quality_of(folder: &Path) -> Result<Option<Value>> {
    let path = folder.join(QUALITY);
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path)?;
    let value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    Ok(Some(value))
}
