//! What `deploy/` holds beyond hand-written files: dashboards and alert rules, written from the
//! metric definitions, start-up files of rented machines, and the tests of all of it.

mod boards;
mod cloud;
mod kubernetes;
#[cfg(test)]
mod manual;
mod panels;
mod promql;
mod rules;
mod schemas;
mod stage;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::root;

pub use stage::run;

/// A generated file: its place below the root and its text.
struct Generated {
    path: &'static str,
    text: String,
}

fn generated() -> Result<Vec<Generated>> {
    let mut files = boards::files()?;
    files.push(rules::file()?);
    files.extend(cloud::files()?);
    Ok(files)
}

/// Writes every generated file.
pub fn write() -> Result<()> {
    for file in generated()? {
        let path = root().join(file.path);
        let dir = path.parent().context("a file lies in a folder")?;
        std::fs::create_dir_all(dir)?;
        std::fs::write(&path, file.text)?;
        println!("{}", file.path);
    }
    Ok(())
}

/// Fails when a committed file differs from what would be written.
fn check() -> Result<()> {
    let mut stale = Vec::new();
    for file in generated()? {
        let committed = std::fs::read_to_string(root().join(file.path)).unwrap_or_default();
        if committed != file.text {
            stale.push(file.path);
        }
    }
    if !stale.is_empty() {
        bail!("run `cargo xtask dashboards`: stale {}", stale.join(", "));
    }
    Ok(())
}

/// A folder or file below `deploy/`.
fn deploy(path: &str) -> PathBuf {
    root().join("deploy").join(path)
}

#[cfg(test)]
mod tests;
