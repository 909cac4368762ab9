//! `cargo xtask kernels`: every CUDA kernel for every architecture, by the compiler library of one wheel,
//! on a machine without CUDA; and the report of what each takes of a multiprocessor.
//!
//! Binaries go to `kernels/cuda` under the target folder, where `backend-cuda`'s build finds them, beside a
//! fingerprint of the sources they were made from. The report is compared with the committed one:
//! a spilled register, or a kernel that no longer fits, fails here before a device sees it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::nvrtc::{Compiled, Nvrtc};
use crate::{assets, root, target_dir};

/// Architectures with a binary of their own.
const BINARIES: [&str; 5] = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90"];
/// The files for instructions that one part alone has, and what they are compiled for instead.
const HOPPER: ([&str; 2], &str, &str) = (
    ["gemm_i8_wgmma.cu", "wrappers_wgmma.cu"],
    "sm_90a",
    "compute_90a",
);
/// What drivers compile for parts that are newer than these.
const PTX: &str = "compute_80";
/// From where on every kernel waits for those launched before it.
const DEPENDENT: &str = "compute_90";
/// Registers of a multiprocessor, and the most of one thread.
const REGISTERS: u32 = 65_536;
/// Static shared memory of any block.
const MAX_STATIC_SHARED: u32 = 49_152;

/// What one kernel takes on one architecture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Resources {
    registers: u32,
    shared: u32,
    spills: u32,
}

/// Instructions that must stand in the PTX of a file: a wrapper whose instruction changed unnoticed would
/// still compile.
const EXPECTED: &[(&str, &[&str])] = &[
    (
        "gemm_i8_tile.cu",
        &[
            "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32",
            "cp.async.cg.shared.global",
            "cp.async.wait_group 2",
            "red.global.add.s32",
            "ld.global.cg.s32",
        ],
    ),
    (
        "gemm_i8_stream.cu",
        &[
            "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32",
            "ld.global.nc.L1::no_allocate.L2::128B.v4.u32",
        ],
    ),
    (
        "gemm_16_tile.cu",
        &[
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        ],
    ),
    (
        "gemm_w8a16_tile.cu",
        &[
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
            "prmt.b32",
            "sub.rn.f16x2",
        ],
    ),
    (
        "wrappers.cu",
        &[
            "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32",
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
            "cp.async.cg.shared.global",
            "cp.async.wait_group 1",
            "red.global.add.s32",
            "ld.global.cg.s32",
            "ld.global.nc.L1::no_allocate.L2::128B.v4.u32",
            "dp4a.s32.s32",
            "cvt.rn.f16.f32",
            "cvt.f32.f16",
            "shfl.sync.bfly.b32",
        ],
    ),
    (
        "gemm_i8_wgmma.cu",
        &[
            "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8",
            "wgmma.fence.sync.aligned",
            "wgmma.commit_group.sync.aligned",
            "wgmma.wait_group.sync.aligned 1",
            "wgmma.wait_group.sync.aligned 0",
            "fence.proxy.async.shared::cta",
            "cp.async.cg.shared.global",
            "cp.async.wait_group 1",
        ],
    ),
    (
        "wrappers_wgmma.cu",
        &[
            "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8",
            "fence.proxy.async.shared::cta",
        ],
    ),
    ("attention.cu", &["dp4a.s32.s32"]),
];

/// Compiles everything and checks the report; with `update`, writes it instead.
///
/// # Errors
/// A kernel that does not compile, breaks a rule, or takes other resources than the report says.
pub fn run(update: bool) -> Result<()> {
    let folder = root().join("kernels/cuda");
    let nvrtc = Nvrtc::open(&assets::fetch_nvrtc()?)?;
    let out = target_dir().join("kernels/cuda");
    std::fs::create_dir_all(&out)?;
    let headers = read_all(&folder, "cuh")?;
    let (mut report, mut images) = (BTreeMap::new(), Vec::new());
    let sources = read_all(&folder, "cu")?;
    for (name, source) in &sources {
        let stem = name.trim_end_matches(".cu");
        let is_hopper = HOPPER.0.contains(&name.as_str());
        let binaries = if is_hopper {
            &[HOPPER.1][..]
        } else {
            &BINARIES
        };
        for &arch in binaries {
            let compiled = compile(&nvrtc, name, source, &headers, arch)?;
            for (kernel, found) in resources(&compiled.log)? {
                check(&kernel, arch, &found)?;
                report.insert((kernel, arch), found);
            }
            let image = format!("{stem}.{arch}.cubin");
            write(&out.join(&image), &compiled.code)?;
            images.push(image);
        }
        let text = if is_hopper { HOPPER.2 } else { PTX };
        let compiled = compile(&nvrtc, name, source, &headers, text)?;
        let ptx = String::from_utf8_lossy(&compiled.code);
        instructions(name, &ptx)?;
        if is_hopper {
            every_kernel_waits(name, &ptx)?;
        } else {
            ensure!(
                !ptx.contains("griddepcontrol"),
                "{name}: PTX for {PTX} waits"
            );
            let newer = compile(&nvrtc, name, source, &headers, DEPENDENT)?;
            every_kernel_waits(name, &String::from_utf8_lossy(&newer.code))?;
        }
        // Parts that are newer have none of these instructions: there is nothing to compile for them.
        if !is_hopper {
            let image = format!("{stem}.ptx");
            write(&out.join(&image), &compiled.code)?;
            images.push(image);
        }
    }
    remove_others(&out, &images)?;
    write(
        &out.join("sources.sha256"),
        fingerprint(&sources, &headers).as_bytes(),
    )?;
    let text = render(&report);
    let path = folder.join("resources.txt");
    if update {
        std::fs::write(&path, text)?;
    } else if std::fs::read_to_string(&path).unwrap_or_default() != text {
        std::fs::write(out.join("resources.txt"), text)?;
        bail!(
            "kernels take other resources than kernels/cuda/resources.txt says; look at {} and run \
             `cargo xtask kernels --update` when that is meant",
            out.join("resources.txt").display()
        );
    }
    println!(
        "{} files for {} architectures and one PTX each, {} of them for {} alone, in {}",
        sources.len(),
        BINARIES.len(),
        HOPPER.0.len(),
        HOPPER.1,
        out.display()
    );
    Ok(())
}

fn compile(
    nvrtc: &Nvrtc,
    name: &str,
    source: &str,
    headers: &[(String, String)],
    arch: &str,
) -> Result<Compiled> {
    let options = [
        format!("--gpu-architecture={arch}"),
        "--std=c++17".to_owned(),
        "--ptxas-options=-v".to_owned(),
    ];
    let compiled = nvrtc
        .compile(name, source, headers, &options)
        .with_context(|| format!("{name} for {arch}"))?;
    ensure!(
        // The latter: products of a warpgroup that the assembler makes wait for each other.
        !compiled.log.contains("warning") && !compiled.log.contains("Performance Loss"),
        "{name} for {arch}:\n{}",
        compiled.log
    );
    Ok(compiled)
}

/// Removes what an earlier version of the sources left.
fn remove_others(folder: &Path, known: &[String]) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_image = name.ends_with(".cubin") || name.ends_with(".ptx");
        if is_image && !known.iter().any(|known| *known == name) {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Writes what has changed: an untouched file starts no build.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|known| known == bytes) {
        return Ok(());
    }
    Ok(std::fs::write(path, bytes)?)
}

/// Of every source file by name; the build script of `backend-cuda` computes the same.
fn fingerprint(sources: &[(String, String)], headers: &[(String, String)]) -> String {
    let mut files: Vec<_> = sources.iter().chain(headers).collect();
    files.sort();
    let mut hasher = Sha256::new();
    for (name, text) in files {
        hasher.update(name);
        hasher.update(text);
    }
    let digest = hasher.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Files of the folder with this extension, by name.
fn read_all(folder: &Path, extension: &str) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            files.push((name.into_owned(), std::fs::read_to_string(&path)?));
        }
    }
    files.sort();
    Ok(files)
}

/// Reads the assembler's report: kernels by name.
fn resources(log: &str) -> Result<Vec<(String, Resources)>> {
    let mut found: Vec<(String, Resources)> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default();
            found.push((name.to_owned(), Resources::default()));
            continue;
        }
        let Some((_, kernel)) = found.last_mut() else {
            continue;
        };
        if let Some(spills) = number_before(line, " bytes spill stores") {
            kernel.spills = kernel.spills.max(spills);
        }
        if let Some(registers) = number_before(line, " registers") {
            kernel.registers = registers;
            kernel.shared = number_before(line, " bytes smem").unwrap_or(0);
        }
    }
    ensure!(!found.is_empty(), "the assembler reported no kernel: {log}");
    Ok(found)
}

fn number_before(line: &str, what: &str) -> Option<u32> {
    let (before, _) = line.split_once(what)?;
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// Threads of a block, by the naming of the kernels: the tiles of four warps are the smaller ones.
fn threads(kernel: &str) -> u32 {
    let small = ["_16x64", "_32x64", "_64x64", "_64x128"];
    match kernel {
        "sample_rows" => 512,
        _ if kernel.starts_with("wrapper_") => 32,
        _ if small.iter().any(|size| kernel.ends_with(size)) => 128,
        _ => 256,
    }
}

fn check(kernel: &str, arch: &str, found: &Resources) -> Result<()> {
    ensure!(
        found.spills == 0,
        "{kernel} on {arch} spills {} bytes",
        found.spills
    );
    let registers = found.registers.next_multiple_of(8) * threads(kernel);
    ensure!(
        registers <= REGISTERS,
        "{kernel} on {arch}: {registers} registers for one block"
    );
    ensure!(
        found.shared <= MAX_STATIC_SHARED,
        "{kernel} on {arch}: {} bytes of shared memory",
        found.shared
    );
    Ok(())
}

fn instructions(file: &str, ptx: &str) -> Result<()> {
    for (_, expected) in EXPECTED.iter().filter(|(name, _)| *name == file) {
        for instruction in *expected {
            ensure!(
                ptx.contains(instruction),
                "{file}: no {instruction} in its PTX"
            );
        }
    }
    ensure!(
        !ptx.contains(".approx"),
        "{file}: an approximate instruction, whose bits differ between devices"
    );
    Ok(())
}

/// Each entry point waits for the kernels before it, once, and lets the next one begin behind that.
fn every_kernel_waits(file: &str, ptx: &str) -> Result<()> {
    let kernels: Vec<&str> = ptx.split(".entry ").skip(1).collect();
    ensure!(!kernels.is_empty(), "{file}: no entry point in its PTX");
    for kernel in kernels {
        let name = kernel.split('(').next().unwrap_or_default().trim();
        let waits = kernel.find("griddepcontrol.wait");
        let lets = kernel.find("griddepcontrol.launch_dependents");
        ensure!(
            waits.is_some() && lets > waits,
            "{file}: {name} does not wait for the kernels before it and then let the next begin"
        );
    }
    Ok(())
}

fn render(report: &BTreeMap<(String, &str), Resources>) -> String {
    let mut text = String::from(
        "# Registers of a thread and bytes of static shared memory; nothing spills. Written by\n\
         # `cargo xtask kernels --update`.\n",
    );
    for ((kernel, arch), found) in report {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{kernel:<28} {arch:<7} {:>3} {:>6}",
            found.registers, found.shared
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : Compiling entry function 'a' for 'sm_80'
ptxas info    : Function properties for a
ptxas         .     24 bytes stack frame, 20 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 24 bytes cumulative stack size, 16512 bytes smem, 436 bytes cmem[0]
ptxas info    : Compiling entry function 'b' for 'sm_80'
ptxas info    : Function properties for b
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 16 registers, used 0 barriers, 376 bytes cmem[0]";

    #[test]
    fn the_report_is_read_and_spills_are_refused() {
        let found = resources(LOG).expect("two kernels");
        assert_eq!(found[0].0, "a");
        let a = Resources {
            registers: 128,
            shared: 16_512,
            spills: 20,
        };
        assert_eq!(found[0].1, a);
        assert_eq!((found[1].1.registers, found[1].1.shared), (16, 0));
        assert!(check("a", "sm_80", &a).is_err());
        assert!(check("b", "sm_80", &found[1].1).is_ok());
        assert!(resources("").is_err());
    }

    #[test]
    fn a_kernel_that_does_not_wait_is_refused() {
        let waits =
            ".visible .entry a(\n) {\ngriddepcontrol.wait;\ngriddepcontrol.launch_dependents;\n}\n";
        assert!(every_kernel_waits("x.cu", waits).is_ok());
        let early = waits
            .replace("wait;", "x;")
            .replace("launch_dependents", "wait");
        for wrong in [
            String::new(),
            format!("{waits}.visible .entry b(\n) {{\n}}\n"),
            early,
        ] {
            assert!(every_kernel_waits("x.cu", &wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn kernels_that_cannot_start_are_refused() {
        let large = Resources {
            registers: 255,
            shared: 0,
            spills: 0,
        };
        assert!(check("x_tile_64x64", "sm_80", &large).is_ok());
        let shared = Resources {
            shared: 50_000,
            ..large
        };
        assert!(check("x", "sm_80", &shared).is_err());
    }
}
