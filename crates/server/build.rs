//! Notes the source revision for `octet_build_info` and `/version`.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=OCTET_COMMIT");
    println!("cargo:rerun-if-changed=build.rs");
    if let Some(commit) = std::env::var("OCTET_COMMIT").ok().or_else(from_git) {
        println!("cargo:rustc-env=OCTET_COMMIT={commit}");
    }
}

/// The commit checked out here; none outside a checkout or without git. Runs again only when another
/// commit is checked out.
fn from_git() -> Option<String> {
    let head = PathBuf::from(git(&["rev-parse", "--git-path", "HEAD"])?);
    let branch = git(&["symbolic-ref", "-q", "HEAD"])
        .and_then(|branch| git(&["rev-parse", "--git-path", &branch]))
        .map(PathBuf::from);
    for path in [Some(head), branch].into_iter().flatten() {
        // A packed branch has no file of its own; cargo would take that as a change every time.
        if Path::new(&path).exists() {
            println!("cargo:rerun-if-changed={}", path.display());
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}
