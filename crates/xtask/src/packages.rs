//! The packages that the workspace is made of, as cargo resolves them for the machines a release is for.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::stages::cargo;

/// The machines that a release is for.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Every package of the lock file that is built for [`TARGET`].
#[derive(Deserialize)]
pub struct Graph {
    /// Ours and those of others.
    pub packages: Vec<Package>,
    resolve: Resolve,
}

/// A package.
#[derive(Deserialize)]
pub struct Package {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// What it says of its licence.
    pub license: Option<String>,
    /// Where it comes from; nothing for our own.
    pub source: Option<String>,
    /// One line about it.
    pub description: Option<String>,
    id: String,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

#[derive(Deserialize)]
struct EdgeKind {
    kind: Option<String>,
}

impl Package {
    /// `name@version`.
    pub fn spec(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }
}

impl Graph {
    /// Asks cargo.
    pub fn read() -> Result<Self> {
        let mut command = cargo(&["metadata", "--format-version", "1", "--locked"]);
        command.args(["--filter-platform", TARGET]);
        Ok(serde_json::from_str(&printed(&mut command)?)?)
    }

    /// Who names whom in a manifest, and whether for more than tests.
    pub fn edges(&self) -> impl Iterator<Item = (&Package, &Package, bool)> {
        let by_id = |id: &str| self.packages.iter().find(|package| package.id == id);
        self.resolve.nodes.iter().flat_map(move |node| {
            node.deps.iter().filter_map(move |edge| {
                let is_built = edge
                    .dep_kinds
                    .iter()
                    .any(|kind| kind.kind.as_deref() != Some("dev"));
                Some((by_id(&node.id)?, by_id(&edge.pkg)?, is_built))
            })
        })
    }
}

/// What the named packages of ours are built from, themselves included, each as `name@version`. Of optional
/// packages `cargo metadata` also lists those that are not used; this does not.
pub fn built_from(roots: &[&str]) -> Result<BTreeSet<String>> {
    let mut command = cargo(&["tree", "--locked", "--edges", "normal,build"]);
    command.args(["--target", TARGET, "--prefix", "none", "--format", "{p}"]);
    // A release has the features of its own packages, whatever the environment says of others.
    command.env_remove("CARGO_RESOLVER_FEATURE_UNIFICATION");
    for root in roots {
        command.args(["--package", root]);
    }
    let lines = printed(&mut command)?;
    let specs = lines.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
        Some(format!("{name}@{version}"))
    });
    Ok(specs.collect())
}

fn printed(command: &mut Command) -> Result<String> {
    let output = command.output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}
