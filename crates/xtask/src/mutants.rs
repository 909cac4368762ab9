//! Mistakes put into the CUDA kernels one at a time: each must make a test fail. A detector that no
//! mutant exercises counts as missing, and so does a line that no test notices.
//!
//! A mutant's kernels are compiled with the emulator into a library of their own, which the tests of
//! `backend-cuda` open instead of what they were linked with.

mod dependent;
mod list;
mod warpgroups;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{root, target_dir};
use list::{MUTANTS, Mutant, Suite};

/// As the build of the emulator has them, with checks.
const FLAGS: &[&str] = &[
    "-std=c++20",
    "-O1",
    "-fPIC",
    "-march=x86-64-v3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fwrapv",
    "-fno-strict-aliasing",
    "-fno-exceptions",
    "-w",
];
const CHECKS: &[&str] = &[
    "-DEMU_PROFILE=checked_80",
    "-fno-tree-vectorize",
    "-fno-tree-loop-distribute-patterns",
    "-ftrivial-auto-var-init=pattern",
    "-fsanitize=thread",
    "--param=tsan-instrument-func-entry-exit=0",
    "--param=tsan-distinguish-volatile=1",
];
/// All of it, on two cores; a run that takes longer has grown beyond what every change can wait for.
const BUDGET: Duration = Duration::from_secs(600);

/// How one mutant ended.
enum Outcome {
    /// With the line of the first failure.
    Caught(String),
    Survived,
}

/// Runs the named mutants, or all.
///
/// # Errors
/// A mutant that survives, a stale text, unchanged kernels that fail, or too much time.
pub fn run(names: &[String]) -> Result<()> {
    let is_wanted = |m: &&Mutant| names.is_empty() || names.iter().any(|name| name == m.name);
    let all = MUTANTS.iter().chain(warpgroups::MUTANTS);
    let all = all.chain(dependent::MUTANTS);
    let mutants: Vec<&Mutant> = all.filter(is_wanted).collect();
    let start = Instant::now();
    let work = target_dir().join("mutants");
    std::fs::create_dir_all(&work)?;
    let tests = test_binary()?;
    let runtime = compile_runtime(&work)?;
    let suites = [
        Suite::Products,
        Suite::Attention,
        Suite::Rows,
        Suite::Padding,
        Suite::Sampler,
        Suite::Tables,
        Suite::Wide,
        Suite::Warpgroups,
        Suite::Dependent,
    ];
    let is_met = |suite: &Suite| mutants.iter().any(|mutant| mutant.suite == *suite);
    for suite in suites.into_iter().filter(is_met) {
        let library = compile(&work, &runtime, suite, None)?;
        let output = test(&tests, &library, suite)?;
        ensure!(
            output.status.success(),
            "the kernels as they are fail {suite:?}:\n{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
    let survivors = run_all(&work, &runtime, &tests, &mutants)?;
    let seconds = start.elapsed().as_secs_f32();
    println!(
        "{} of {} mutants caught in {seconds:.0} s",
        mutants.len() - survivors.len(),
        mutants.len()
    );
    if !survivors.is_empty() {
        bail!("mutants that no test notices: {}", survivors.join(", "));
    }
    ensure!(start.elapsed() < BUDGET, "mutants took {seconds:.0} s");
    Ok(())
}

fn run_all(
    work: &Path,
    runtime: &[PathBuf],
    tests: &Path,
    mutants: &[&'static Mutant],
) -> Result<Vec<&'static str>> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = try_one(work, runtime, tests, mutant);
                    results
                        .lock()
                        .expect("no worker panics")
                        .push((mutant, outcome));
                }
            });
        }
    });
    let mut survivors = Vec::new();
    for (mutant, outcome) in results.into_inner().expect("no worker panics") {
        match outcome.with_context(|| format!("mutant {}", mutant.name))? {
            Outcome::Caught(how) => println!("  {:<24} {how}", mutant.name),
            Outcome::Survived => {
                println!("  {:<24} SURVIVED", mutant.name);
                survivors.push(mutant.name);
            }
        }
    }
    Ok(survivors)
}

fn try_one(work: &Path, runtime: &[PathBuf], tests: &Path, mutant: &Mutant) -> Result<Outcome> {
    let library = compile(work, runtime, mutant.suite, Some(mutant))?;
    let output = test(tests, &library, mutant.suite)?;
    std::fs::remove_file(&library)?;
    if output.status.success() {
        return Ok(Outcome::Survived);
    }
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text
        .lines()
        .skip_while(|line| !line.contains("panicked at"))
        .nth(1);
    let line = line.unwrap_or("the process ended").trim();
    Ok(Outcome::Caught(line.chars().take(150).collect()))
}

/// The tests that every mutant meets.
fn test_binary() -> Result<PathBuf> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["test", "--release", "--locked", "-p", "backend-cuda"])
        .args(["--test", "emulated", "--no-run", "--message-format=json"])
        .current_dir(root())
        .output()?;
    let lines = output.stdout.split(|byte| *byte == b'\n');
    let messages = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let path = messages
        .filter(|message| message["target"]["name"] == "emulated")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    path.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

fn test(tests: &Path, library: &Path, suite: Suite) -> Result<Output> {
    Ok(Command::new(tests)
        .args(suite.tests())
        .args(["--exact", "--test-threads=1"])
        .env("OCTET_EMULATOR", library)
        .output()?)
}

/// The emulator itself, which no mutant changes.
fn compile_runtime(work: &Path) -> Result<Vec<PathBuf>> {
    let folder = root().join("kernels/cuda/emu");
    ["emu", "shadow", "warpgroup"]
        .iter()
        .map(|name| {
            let object = work.join(name).with_extension("o");
            let mut command = Command::new("g++");
            command.args(FLAGS).arg("-O2").arg("-c");
            command.arg(folder.join(name).with_extension("cpp"));
            succeed(command.arg("-o").arg(&object))?;
            Ok(object)
        })
        .collect()
}

/// The kernels of a suite, changed or not, as a library.
fn compile(
    work: &Path,
    runtime: &[PathBuf],
    suite: Suite,
    mutant: Option<&Mutant>,
) -> Result<PathBuf> {
    let name = mutant.map_or_else(|| format!("{suite:?}"), |mutant| mutant.name.to_owned());
    let folder = work.join(&name);
    let emulator = folder.join("emu");
    std::fs::create_dir_all(&emulator)?;
    let sources = root().join("kernels/cuda");
    for entry in std::fs::read_dir(&sources)? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        if !file.ends_with(".cu") && !file.ends_with(".cuh") {
            continue;
        }
        let mut text = std::fs::read_to_string(&path)?;
        if let Some(mutant) = mutant.filter(|mutant| mutant.file == file) {
            let count = text.matches(mutant.text).count();
            ensure!(count == 1, "its text stands {count} times in {file}");
            text = text.replace(mutant.text, mutant.replacement);
        }
        std::fs::write(folder.join(&*file), text)?;
    }
    std::fs::copy(sources.join("emu/emu.h"), emulator.join("emu.h"))?;
    let all = std::fs::read_to_string(sources.join("emu/kernels.cpp"))?;
    let is_wanted = |line: &&str| {
        let file = line.strip_prefix("#include \"../");
        file.is_none_or(|file| suite.files().iter().any(|wanted| file.starts_with(wanted)))
    };
    let wanted: Vec<&str> = all.lines().filter(is_wanted).collect();
    let main = emulator.join("kernels.cpp");
    std::fs::write(&main, wanted.join("\n") + "\n")?;
    let library = work.join(format!("{name}.so"));
    let mut command = Command::new("g++");
    command.args(FLAGS).args(CHECKS).arg(suite.arch());
    command.arg("-c").arg(&main);
    let object = folder.join("kernels.o");
    succeed(command.arg("-o").arg(&object))?;
    // Without the compiler's own run-time library for the checks: the emulator answers them.
    let mut command = Command::new("g++");
    command.args(["-shared", "-Wl,-Bsymbolic"]).arg(&object);
    succeed(command.args(runtime).arg("-o").arg(&library))?;
    Ok(library)
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.output().context("cannot start g++")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
