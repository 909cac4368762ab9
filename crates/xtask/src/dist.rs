//! `cargo xtask dist`: the archive that a release consists of, to be unpacked below `/usr/local`. The
//! same inputs give the same bytes.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{install, kernels, root, sbom, target_dir};

/// Where a file of the archive comes from.
enum Source {
    /// A built program.
    Program(&'static str),
    /// What `octet` prints when it is called so.
    Printed(&'static [&'static str]),
    /// A file of the workspace.
    File(&'static str),
    /// What the programs are built from.
    Materials,
}
use Source::{File, Materials, Printed, Program};

/// Sorted by path.
const LAYOUT: &[(&str, Source)] = &[
    ("bin/loadtest", Program("loadtest")),
    ("bin/octet", Program("octet")),
    (
        "lib/systemd/system/octet.service",
        File("deploy/systemd/octet.service"),
    ),
    (
        "lib/systemd/system/octet.socket",
        File("deploy/systemd/octet.socket"),
    ),
    (
        "share/bash-completion/completions/octet",
        Printed(&["completions", "bash"]),
    ),
    ("share/doc/octet/CHANGELOG.md", File("CHANGELOG.md")),
    ("share/doc/octet/LICENSE", File("LICENSE")),
    ("share/doc/octet/README.md", File("README.md")),
    ("share/doc/octet/SECURITY.md", File("SECURITY.md")),
    ("share/doc/octet/octet.cdx.json", Materials),
    ("share/doc/octet/openapi.yaml", File("openapi.yaml")),
    (
        "share/fish/vendor_completions.d/octet.fish",
        Printed(&["completions", "fish"]),
    ),
    ("share/man/man1/octet.1", File("deploy/man/octet.1")),
    (
        "share/octet/cuda.conf",
        File("deploy/systemd/octet.service.d/cuda.conf"),
    ),
    (
        "share/zsh/site-functions/_octet",
        Printed(&["completions", "zsh"]),
    ),
];

/// Builds the programs, CUDA kernels inside, and writes the archive with its checksum.
pub fn run() -> Result<()> {
    kernels::run(false)?;
    let packages = ["--package", "octet", "--package", "loadtest", "--bins"];
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build
        .args(["build", "--release", "--locked"])
        .args(packages);
    install::run(build.current_dir(root()))?;
    let archive = write()?;
    let path = target_dir().join("dist").join(format!("{}.tar.gz", name()));
    let line = format!("{:x}  {}.tar.gz\n", Sha256::digest(&archive), name());
    std::fs::write(path.with_extension("gz.sha256"), &line)?;
    std::fs::write(&path, archive)?;
    println!("{}\n{line}", path.display());
    Ok(())
}

/// Puts the archive together from built programs, twice, and looks into it, with the schemas beside this Python;
/// returns its path.
pub fn check(python: &Path) -> Result<PathBuf> {
    let archive = write()?;
    if archive != write()? {
        bail!("two archives of the same files differ");
    }
    let dir = target_dir().join("dist/unpacked");
    std::fs::remove_dir_all(&dir).ok();
    std::fs::create_dir_all(&dir)?;
    let path = dir.with_file_name("checked.tar.gz");
    std::fs::write(&path, archive)?;
    let mut unpack = Command::new("tar");
    unpack.args(["--strip-components=1", "-xzf"]).arg(&path);
    install::run(unpack.current_dir(&dir))?;
    let mut found = Vec::new();
    files(&dir, &dir, &mut found)?;
    found.sort();
    if found
        != LAYOUT
            .iter()
            .map(|(path, _)| (*path).to_owned())
            .collect::<Vec<_>>()
    {
        bail!("the archive holds {found:?}");
    }
    for (words, wanted) in [
        (
            &["--version"][..],
            format!("octet {}", env!("CARGO_PKG_VERSION")),
        ),
        (
            &["man"],
            std::fs::read_to_string(dir.join("share/man/man1/octet.1"))?,
        ),
    ] {
        let printed = printed(&dir.join("bin/octet"), words)?;
        if !String::from_utf8_lossy(&printed).starts_with(&wanted) {
            bail!(
                "octet {} does not print what the archive says",
                words.join(" ")
            );
        }
    }
    let bash = dir.join("share/bash-completion/completions/octet");
    install::run(Command::new("bash").arg("-n").arg(bash))?;
    sbom::check(&dir.join("share/doc/octet/octet.cdx.json"), python)?;
    println!("the archive: {} files, the same bytes twice", found.len());
    Ok(path)
}

fn name() -> String {
    format!("octet-{}-x86_64-linux", env!("CARGO_PKG_VERSION"))
}

/// The archive's bytes.
fn write() -> Result<Vec<u8>> {
    let dist = target_dir().join("dist");
    let top = dist.join(name());
    std::fs::remove_dir_all(&top).ok();
    for (path, source) in LAYOUT {
        let (bytes, mode) = read(source)?;
        let path = top.join(path);
        std::fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
        std::fs::write(&path, bytes)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    }
    // Nothing of the machine goes in: order, times, owners and the modes of folders are fixed.
    let mut tar = Command::new("tar")
        .args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0"])
        .args(["--numeric-owner", "--mode=u+w,go-w,a+rX", "--format=gnu"])
        .args(["-cf", "-", &name()])
        .current_dir(&dist)
        .stdout(Stdio::piped())
        .spawn()?;
    let pipe = tar.stdout.take().context("standard output is piped")?;
    let gzip = Command::new("gzip").arg("--no-name").stdin(pipe).output()?;
    if !tar.wait()?.success() || !gzip.status.success() {
        bail!("tar or gzip failed");
    }
    Ok(gzip.stdout)
}

fn read(source: &Source) -> Result<(Vec<u8>, u32)> {
    let program = |name: &str| target_dir().join("release").join(name);
    let file = |path: PathBuf| std::fs::read(&path).with_context(|| path.display().to_string());
    Ok(match source {
        Program(name) => (file(program(name))?, 0o755),
        Printed(words) => (printed(&program("octet"), words)?, 0o644),
        File(path) => (file(root().join(path))?, 0o644),
        Materials => (sbom::text()?.into_bytes(), 0o644),
    })
}

fn printed(program: &Path, words: &[&str]) -> Result<Vec<u8>> {
    let out = Command::new(program)
        .args(words)
        .output()
        .with_context(|| format!("cannot start {}; build it first", program.display()))?;
    if !out.status.success() {
        bail!("{} {} failed", program.display(), words.join(" "));
    }
    Ok(out.stdout)
}

/// Paths below a folder.
fn files(top: &Path, dir: &Path, found: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files(top, &path, found)?;
        } else {
            found.push(path.strip_prefix(top)?.display().to_string());
        }
    }
    Ok(())
}
