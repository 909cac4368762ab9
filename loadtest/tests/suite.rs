//! A suite over tiny stand-ins, killed in the middle and resumed.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

const SUITE: &str = r#"
schema = 1
name = "stand-ins"
[machine]
name = "small"
memory_gib = 1.0
utilization = 0.9
workspace_gib = 0.1
[server.octet]
command = ["octet", "serve", "{source}", "-q", "{precision}", "-a", "{name}", "--port", "{port}", "--threads", "1", "--kv-cache-memory", "64MiB"]
ready = "/health/ready"
start_s = 60
[server.absent]
command = ["no-such-server"]
ready = "/"
start_s = 1
[[model]]
name = "neox"
source = "FOLDER"
server = "octet"
precisions = ["bf16", "int8"]
shape = { layers = 4, hidden = 60, vocabulary = 96 }
[[model]]
name = "12b"
source = "nowhere"
server = "octet"
precisions = ["f16"]
shape = { layers = 36, hidden = 5120, vocabulary = 50280 }
[[model]]
name = "broken"
source = "nowhere/at/all"
server = "octet"
precisions = ["int8"]
[[model]]
name = "neox"
source = ""
server = "absent"
precisions = ["q8_0"]
[[load]]
name = "solo"
flags = "--api completions --requests 3 --prompt-tokens 8 --output-tokens 4 --ignore-eos"
repeats = 2
expected_s = 1
"#;

/// A GPT-NeoX stand-in with room for the client's calibration.
fn stand_in(folder: &Path) {
    let from =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/fixtures/gpt-neox");
    std::fs::create_dir_all(folder).unwrap();
    for name in ["model.safetensors", "tokenizer.json"] {
        std::fs::copy(from.join(name), folder.join(name)).unwrap();
    }
    let text = std::fs::read_to_string(from.join("parallel.tf5.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["max_position_embeddings"] = 1024.into();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

fn suite(file: &Path, out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.arg("suite").arg(file).arg("--out").arg(out);
    command
}

fn files(out: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![out.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.ends_with(name) => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_suite_that_was_killed_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (model, file) = (folder.path().join("neox"), folder.path().join("suite.toml"));
    let out = folder.path().join("results");
    stand_in(&model);
    std::fs::write(&file, SUITE.replace("FOLDER", model.to_str().unwrap())).unwrap();

    let mut first = suite(&file, &out).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(first.stdout.take().unwrap()).lines();
    let second = "neox int8 on octet: begins";
    assert!(lines.any(|line| line.unwrap() == second), "{second}");
    first.kill().unwrap();
    first.wait().unwrap();
    let before = files(&out, "cell.json");
    assert_eq!(before.len(), 1, "{before:?}");
    let runs = files(before[0].parent().unwrap(), "run.json");
    assert_eq!(runs.len(), 2);
    let kept: Vec<Vec<u8>> = runs.iter().map(|run| std::fs::read(run).unwrap()).collect();

    let again = suite(&file, &out).output().unwrap();
    let told = String::from_utf8(again.stdout).unwrap();
    assert_eq!(
        again.status.code(),
        Some(1),
        "one cell fails: {told}{}",
        String::from_utf8_lossy(&again.stderr)
    );
    assert!(told.contains("neox bf16 on octet: done before"), "{told}");
    for (run, bytes) in runs.iter().zip(kept) {
        assert_eq!(std::fs::read(run).unwrap(), bytes, "{run:?} was run twice");
    }
    let summary = std::fs::read_to_string(out.join("summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    let cells = summary["cells"].as_array().unwrap();
    let status: Vec<_> = cells
        .iter()
        .map(|cell| cell["status"].as_str().unwrap())
        .collect();
    let expected = ["done", "done", "does_not_fit", "failed", "not_there"];
    assert_eq!(status, expected, "{told}");
    assert!(
        cells[..2]
            .iter()
            .all(|cell| cell["runs"].as_array().unwrap().len() == 2)
    );
    assert!(
        cells[2]["reason"]
            .as_str()
            .unwrap()
            .contains("22.1 GiB + KV against 0.9 GiB")
    );
    assert!(!cells[3]["reason"].as_str().unwrap().is_empty());
    assert!(out.join("index.html").exists());
    assert_eq!(servers_of(&out), Vec::<PathBuf>::new(), "still running");
}

/// Processes that a suite over this folder started.
fn servers_of(out: &Path) -> Vec<PathBuf> {
    let wanted = format!("LOADTEST_SUITE_FOLDER={}", out.display());
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_ours = |process: &PathBuf| {
        let variables = std::fs::read(process.join("environ")).unwrap_or_default();
        variables
            .split(|byte| *byte == 0)
            .any(|variable| variable == wanted.as_bytes())
    };
    processes
        .map(|entry| entry.path())
        .filter(is_ours)
        .collect()
}
