//! Rules that the compiler does not check: the top level, which crate may depend on which, where
//! versions, environment variables, features and unsafe code may stand, whether links lead somewhere, and
//! which packages of others are used.

mod links;
mod policy;
mod promises;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::root;

/// Everything that may lie at the top level and is not hidden.
const TOP_LEVEL: &[&str] = &[
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "crates",
    "deny.toml",
    "deploy",
    "docs",
    "kernels",
    "loadtest",
    "openapi.yaml",
    "target",
];

/// The workspace crates each crate may name in its manifest, directly. Dependencies point down.
const DIRECTIONS: &[(&str, &[&str])] = &[
    (
        "octet",
        &[
            "backend",
            "backend-cpu",
            "backend-cuda",
            "bundled",
            "encoder",
            "engine",
            "gateway",
            "kernels-cpu",
            "metrics",
            "model",
        ],
    ),
    (
        "gateway",
        &["backend", "encoder", "engine", "metrics", "model"],
    ),
    ("encoder", &["metrics", "model"]),
    ("engine", &["backend", "metrics", "model"]),
    ("model", &["backend", "quant"]),
    ("backend-cpu", &["backend", "kernels-cpu", "quant"]),
    ("backend-cuda", &["backend", "quant"]),
    ("backend", &["quant"]),
    ("cuda-driver", &["cuda-emulation"]),
    ("cuda-emulation", &[]),
    ("kernels-cpu", &["quant"]),
    (
        "figures",
        &["backend", "bundled", "gateway", "model", "quant"],
    ),
    ("quant", &[]),
    ("bundled", &[]),
    ("metrics", &[]),
    ("xtask", &["metrics"]),
    ("loadtest", &[]),
];

/// Outside packages that a crate must not name: the reason it is kept free of them.
const BANNED: &[(&str, &[&str], &str)] = &[
    (
        "gateway",
        &[
            "candle-core",
            "candle-nn",
            "candle-transformers",
            "half",
            "rayon",
        ],
        "the gateway knows nothing of tensors",
    ),
    (
        "engine",
        &["axum", "hyper", "serde_json", "tokenizers", "minijinja"],
        "the engine knows nothing of HTTP or text",
    ),
    (
        "model",
        &["cudarc", "wgpu"],
        "the model knows nothing of devices",
    ),
    (
        "backend",
        &["candle-core"],
        "the trait names no tensor library",
    ),
];

/// Files that may hold unsafe code. The trainer's one call of a matrix product goes through a library
/// whose interface is raw pointers.
const UNSAFE: &[&str] = &[
    "kernels/cpu/",
    "crates/backend-cpu/src/team",
    "crates/bundled/src/train/matmul.rs",
    "crates/xtask/src/nvrtc.rs",
    "kernels/cuda/emu/",
    "kernels/cuda-driver/",
    "crates/backend-cuda/src/driver.rs",
    "crates/backend-cuda/examples/gpu/cublaslt.rs",
    "crates/model/src/mapped",
];

/// Files that may read environment variables or flags.
const ENVIRONMENT: &[&str] = &[
    "crates/server/",
    "crates/xtask/",
    "loadtest/",
    "crates/bundled/src/bin",
    "crates/figures/src/main.rs",
    "kernels/cuda/emu/src/",
    "kernels/cuda-driver/src/",
    "/build.rs",
    "/examples/",
    "/tests",
    "tests.rs",
];

/// Checks every rule and reports all violations at once.
pub fn run() -> Result<()> {
    let mut violations = Vec::new();
    top_level(&mut violations)?;
    manifests(&mut violations)?;
    for file in files(root(), ".rs")? {
        source(&file, &mut violations)?;
    }
    links::check(&mut violations)?;
    policy::check(&mut violations)?;
    promises::check(&mut violations)?;
    if violations.is_empty() {
        return Ok(());
    }
    for violation in &violations {
        println!("  {violation}");
    }
    bail!("{} violations", violations.len());
}

fn top_level(violations: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(root())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str()) {
            violations.push(format!("{name} does not belong at the top level"));
        }
    }
    for name in TOP_LEVEL.iter().filter(|name| **name != "target") {
        if !root().join(name).exists() {
            violations.push(format!("{name} is missing at the top level"));
        }
    }
    Ok(())
}

fn manifests(violations: &mut Vec<String>) -> Result<()> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .context("cannot start cargo metadata")?;
    let metadata: Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata wrote no JSON")?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let ours: BTreeSet<&str> = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .collect();
    for name in &ours {
        if DIRECTIONS.iter().all(|(known, _)| known != name) {
            violations.push(format!(
                "{name} has no row in the table of dependency directions"
            ));
        }
    }
    for package in packages {
        let name = package["name"].as_str().context("a package has a name")?;
        let dependencies: Vec<&str> = package["dependencies"]
            .as_array()
            .context("a package lists its dependencies")?
            .iter()
            .filter(|dependency| dependency["kind"].is_null())
            .filter_map(|dependency| dependency["name"].as_str())
            .collect();
        let allowed = DIRECTIONS
            .iter()
            .find(|(known, _)| *known == name)
            .map_or(&[][..], |(_, allowed)| allowed);
        for dependency in &dependencies {
            if ours.contains(dependency) && !allowed.contains(dependency) {
                violations.push(format!("{name} must not depend on {dependency}"));
            }
            if let Some((_, _, reason)) = BANNED
                .iter()
                .find(|(known, banned, _)| *known == name && banned.contains(dependency))
            {
                violations.push(format!("{name} must not depend on {dependency}: {reason}"));
            }
        }
        let manifest = package["manifest_path"]
            .as_str()
            .context("a package has a manifest")?;
        let text = std::fs::read_to_string(manifest)?;
        for line in text.lines().filter(|line| line.contains("version = \"")) {
            violations.push(format!(
                "{name}: versions stand in the workspace manifest only: {line}"
            ));
        }
    }
    Ok(())
}

fn source(path: &Path, violations: &mut Vec<String>) -> Result<()> {
    let relative = path
        .strip_prefix(root())
        .unwrap_or(path)
        .to_string_lossy()
        .replace('\\', "/");
    if relative.starts_with("crates/xtask/src/tidy") {
        return Ok(());
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {relative}"))?;
    let may = |places: &[&str]| places.iter().any(|place| relative.contains(place));
    for (number, line) in text.lines().enumerate() {
        let mut violation =
            |what: &str| violations.push(format!("{relative}:{}: {what}", number + 1));
        if line.contains("allow(unsafe_code)") && !may(UNSAFE) {
            violation("unsafe code is not allowed here");
        }
        if line.contains("cfg(feature")
            && !(relative.starts_with("crates/server/") || relative.starts_with("kernels/"))
        {
            violation("features are decided in the server and under kernels/");
        }
        if (line.contains("env::var") || line.contains("env::args"))
            && !may(ENVIRONMENT)
            && !in_tests(&text, number)
        {
            violation("only the server reads flags or the environment");
        }
        if line.contains("#[ignore") {
            violation("a test is never ignored");
        }
        if line.contains("candle") && relative.starts_with("crates/model/src/decoder") {
            violation("the forward pass names no candle type");
        }
        for mark in ["TODO", "FIXME", "XXX", "unimplemented!", "todo!"] {
            if line.contains(mark) {
                violation(&format!("{mark} marks unfinished work"));
            }
        }
    }
    Ok(())
}

/// Whether a line lies below the `#[cfg(test)]` of its file.
fn in_tests(text: &str, number: usize) -> bool {
    text.lines()
        .take(number)
        .any(|line| line.trim() == "#[cfg(test)]")
}

/// Every file with this ending, outside hidden folders and what is built.
fn files(dir: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            files.extend(self::files(&path, ending)?);
        } else if name.ends_with(ending) {
            files.push(path);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_workspace_is_tidy() {
        super::run().expect("see the violations above");
    }
}
