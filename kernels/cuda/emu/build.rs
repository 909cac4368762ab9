//! Compiles the emulator once and the kernels once per profile, with g++ (its hooks are what the checks
//! hang on).

use std::path::Path;

/// Name, architecture, and whether every load and store is reported.
const PROFILES: [(&str, &str, bool); 6] = [
    ("fast_80", "800", false),
    ("checked_80", "800", true),
    ("fast_75", "750", false),
    ("checked_75", "750", true),
    ("fast_90", "900", false),
    ("checked_90", "900", true),
];

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    for file in files(folder).chain(files(&folder.join(".."))) {
        let path = file.path();
        let is_source = |extension| ["cu", "cuh", "cpp", "h"].contains(&extension);
        if path
            .extension()
            .and_then(|e| e.to_str())
            .is_some_and(is_source)
        {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    // New files.
    println!("cargo::rerun-if-changed=kernels.cpp");
    for (name, arch, checked) in PROFILES {
        let mut build = compiler();
        build
            .file(folder.join("kernels.cpp"))
            .define("PTX_ARCH", arch)
            .define("EMU_PROFILE", name)
            .flag("-fno-tree-vectorize")
            .flag("-fno-tree-loop-distribute-patterns")
            .flag("-ftrivial-auto-var-init=pattern");
        if checked {
            report_accesses(&mut build);
        }
        build.compile(&format!("cuda_kernels_{name}"));
    }
    let mut faults = compiler();
    report_accesses(&mut faults);
    faults
        .file(folder.join("faults.cpp"))
        .define("PTX_ARCH", "900")
        .flag("-Wno-unused-parameter")
        .compile("cuda_faults");
    compiler()
        .file(folder.join("emu.cpp"))
        .file(folder.join("shadow.cpp"))
        .file(folder.join("warpgroup.cpp"))
        .opt_level(3)
        .compile("cuda_emulator");
}

/// Every load and store calls the emulator.
fn report_accesses(build: &mut cc::Build) {
    build
        .flag("-fsanitize=thread")
        .flag("--param=tsan-instrument-func-entry-exit=0")
        .flag("--param=tsan-distinguish-volatile=1");
}

fn compiler() -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .compiler("g++")
        .std("c++20")
        .opt_level(2)
        .debug(false)
        .flag("-march=x86-64-v3")
        .flag("-ffp-contract=off")
        .flag("-fno-math-errno")
        .flag("-fwrapv")
        .flag("-fno-strict-aliasing")
        .flag("-fno-exceptions")
        .flag("-Wno-unused-function");
    build
}
