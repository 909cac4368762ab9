//! A suite over tiny stand-ins, killed in the middle and resumed.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

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
expected_start_s = 1
[server.absent]
command = ["no-such-server"]
ready = "/"
start_s = 1
expected_start_s = 1
[[model]]
name = "dolly"
source = "FOLDER/dolly"
server = "octet"
precisions = ["bf16", "int8"]
shape = { layers = 4, hidden = 60, vocabulary = 96 }
[[model]]
name = "stablelm"
source = "FOLDER/stablelm"
server = "octet"
precisions = ["bf16", "int8"]
[[model]]
name = "oasst"
source = "FOLDER/oasst"
server = "octet"
precisions = ["bf16", "int8"]
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
name = "dolly"
source = ""
server = "absent"
precisions = ["q8_0"]
[[load]]
name = "solo"
flags = "--requests 3 --prompt-tokens 8 --output-tokens 4 --ignore-eos"
repeats = 2
expected_s = 1
[[load]]
name = "rate"
search = true
flags = "--slo ttft=10s --rate 20 --requests 3 --duration 200ms --max-probes 1 --prompt-tokens 8 --output-tokens 4 --ignore-eos"
repeats = 1
expected_s = 1
[[compare]]
name = "8 bits against 16"
cells = ["dolly bf16 on octet", "dolly int8 on octet"]
names = ["16 bits", "8 bits"]
flags = "--requests 3 --prompt-tokens 8 --output-tokens 4 --ignore-eos"
pairs = 2
expected_s = 1
"#;

/// The tokens that tell each family's prompt format.
const FAMILIES: [(&str, &[&str]); 3] = [
    ("dolly", &["### Instruction:", "### End"]),
    ("stablelm", &["<|SYSTEM|>", "<|USER|>", "<|ASSISTANT|>"]),
    ("oasst", &["<|prompter|>", "<|assistant|>"]),
];

/// A GPT-NeoX stand-in with the tokens of a family and room for the client's calibration.
fn stand_in(folder: &Path, tokens: &[&str]) {
    let from =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/fixtures/gpt-neox");
    std::fs::create_dir_all(folder).unwrap();
    std::fs::copy(
        from.join("model.safetensors"),
        folder.join("model.safetensors"),
    )
    .unwrap();
    let read = |name: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(from.join(name)).unwrap()).unwrap()
    };
    let mut config = read("parallel.tf5.json");
    config["max_position_embeddings"] = 1024.into();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut tokenizer = read("tokenizer.json");
    let first = tokenizer["model"]["vocab"].as_object().unwrap().len();
    let added = tokens.iter().enumerate().map(|(i, token)| {
        json!({"id": first + i, "content": token, "special": true, "single_word": false,
               "lstrip": false, "rstrip": false, "normalized": false})
    });
    tokenizer["added_tokens"] = added.collect();
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    // A prompt format needs an end token.
    let settings = json!({"eos_token": "w2"});
    std::fs::write(folder.join("tokenizer_config.json"), settings.to_string()).unwrap();
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
    let file = folder.path().join("suite.toml");
    let out = folder.path().join("results");
    for (name, tokens) in FAMILIES {
        stand_in(&folder.path().join(name), tokens);
    }
    let text = SUITE.replace("FOLDER", folder.path().to_str().unwrap());
    std::fs::write(&file, text).unwrap();

    let mut first = suite(&file, &out).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(first.stdout.take().unwrap()).lines();
    // The first of two runs of the second cell has been made.
    let second = "  dolly int8 on octet, solo: ";
    assert!(
        lines.any(|line| line.unwrap().starts_with(second)),
        "{second}"
    );
    first.kill().unwrap();
    first.wait().unwrap();
    let left = std::fs::read_to_string(out.join(".lock")).unwrap();
    assert_eq!(running(&left).len(), 1, "{left}");
    let cells = files(&out, "cell.json");
    assert_eq!(cells.len(), 1, "{cells:?}");
    let runs = files(&out, "run.json");
    assert!(runs.len() >= 3, "{runs:?}");
    let kept: Vec<Vec<u8>> = runs.iter().map(|run| std::fs::read(run).unwrap()).collect();

    let again = suite(&file, &out).output().unwrap();
    let told = String::from_utf8(again.stdout).unwrap();
    assert_eq!(
        again.status.code(),
        Some(1),
        "one cell fails: {told}{}",
        String::from_utf8_lossy(&again.stderr)
    );
    assert!(told.contains("dolly bf16 on octet: done before"), "{told}");
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
    let expected = [
        "done",
        "done",
        "done",
        "done",
        "done",
        "done",
        "does_not_fit",
        "failed",
        "not_there",
        "done",
    ];
    assert_eq!(status, expected, "{told}");
    let runs = |cell: &Value| cell["runs"].as_array().unwrap().len();
    assert!(cells[..6].iter().all(|cell| runs(cell) == 2) && runs(&cells[9]) == 4);
    for cell in &cells[..6] {
        let search = &cell["searches"][0];
        assert_eq!(search["load"], "rate");
        assert_eq!(search["page"], "rate/report.html");
        // A client without a core of its own sends late, which ends a search, too.
        let stop = search["stop"].as_str().unwrap();
        assert!(
            ["max_probes", "ceiling", "solo_fails"].contains(&stop),
            "{stop}"
        );
        assert!(search["rate"].as_f64().is_none_or(|rate| rate == 20.0));
    }
    let refusal = "does not fit: 22.1 GiB + KV against 0.9 GiB";
    assert_eq!(cells[6]["reason"], refusal);
    assert!(!cells[7]["reason"].as_str().unwrap().is_empty());
    let page = std::fs::read_to_string(out.join("index.html")).unwrap();
    for words in [
        refusal,
        "not possible here: no-such-server",
        "Too few runs to tell 16 bits from 8 bits",
        "Highest rate within the limits",
        "stablelm, solo on octet",
        "failed: ",
    ] {
        assert!(page.contains(words), "{words} in {page}");
    }
    let link = page
        .split("href=\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next());
    assert!(out.join(link.unwrap()).is_file(), "{link:?}");
    let later = std::fs::read_to_string(out.join(".lock")).unwrap();
    for servers in [left, later] {
        assert_eq!(running(&servers), Vec::<&str>::new(), "still running");
    }
}

/// Processes of this number and start that still run, of those that a suite's lock names.
fn running(lock: &str) -> Vec<&str> {
    let start = |stat: &str| {
        stat.rsplit(") ")
            .next()
            .and_then(|rest| rest.split(' ').nth(19).map(str::to_owned))
    };
    let runs = |line: &&str| {
        let pid = line.split(' ').next().unwrap();
        let now = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        now.is_ok_and(|now| start(&now) == start(line))
    };
    lock.lines().filter(runs).collect()
}
