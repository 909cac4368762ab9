//! Embeds what `cargo xtask kernels` compiled: the folder is `kernels/cuda` under the target folder, or
//! `OCTET_CUDA_KERNELS`. Without it, or when it was made from other sources, the table is empty and the
//! program says so when it looks for GPUs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-env-changed=OCTET_CUDA_KERNELS");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    let folder = std::env::var_os("OCTET_CUDA_KERNELS")
        .map_or_else(|| target(&out).join("kernels/cuda"), PathBuf::from);
    // A folder that does not exist would make every build run this again.
    std::fs::create_dir_all(&folder)?;
    println!("cargo::rerun-if-changed={}", folder.display());
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/cuda");
    let current = hash(&sources)?;
    let compiled = std::fs::read_to_string(folder.join("sources.sha256")).unwrap_or_default();
    let is_current = compiled.trim() == current;
    if !compiled.is_empty() && !is_current {
        println!(
            "cargo::warning=the compiled CUDA kernels are of other sources and are left out; run `cargo xtask kernels`"
        );
    }
    let mut table = format!("pub(crate) const SOURCES: &str = \"{current}\";\n");
    table.push_str("pub(crate) static IMAGES: &[Image] = &[\n");
    for path in files(&folder, &["cubin", "ptx"])? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !is_current {
            continue;
        }
        let bytes = path.canonicalize()?;
        writeln!(
            table,
            "    Image {{ file: {name:?}, bytes: include_bytes!({:?}) }},",
            bytes.display()
        )?;
    }
    table.push_str("];\n");
    std::fs::write(out.join("images.rs"), table)?;
    Ok(())
}

/// The nearest folder above that cargo marks as its own.
fn target(out: &Path) -> PathBuf {
    out.ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").exists())
        .unwrap_or(out)
        .to_owned()
}

/// Of every source file by name; `cargo xtask kernels` computes the same.
fn hash(folder: &Path) -> Result<String, Box<dyn std::error::Error>> {
    use sha2::{Digest, Sha256};
    let mut hasher = Sha256::new();
    for path in files(folder, &["cu", "cuh"])? {
        println!("cargo::rerun-if-changed={}", path.display());
        hasher.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hasher.update(std::fs::read(&path)?);
    }
    let digest = hasher.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Files of a folder with these extensions, by name.
fn files(folder: &Path, extensions: &[&str]) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        if extensions.contains(&&*extension) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
