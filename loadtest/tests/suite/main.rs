//! A suite over tiny stand-ins in the cells of the A10's, killed in the middle and resumed.

mod stand_ins;
#[path = "../tagged/mod.rs"]
mod tagged;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use stand_ins::StandIn;

const SUITE: &str = r#"
schema = 1
name = "stand-ins"
dry_run = true
[machine]
name = "NVIDIA A10, 24 GB with ECC"
memory_gib = 22.4
utilization = 0.9
workspace_gib = 0.5
price_per_hour = 0.75
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
name = "dolly-v2-3b"
source = "FOLDER/dolly"
server = "octet"
precisions = ["bf16", "int8"]
shape = { layers = 32, hidden = 2560, vocabulary = 50280 }
[[model]]
name = "dolly-v2-7b"
source = "FOLDER/dolly"
server = "octet"
precisions = ["bf16", "int8"]
shape = { layers = 32, hidden = 4096, vocabulary = 50280 }
[[model]]
name = "dolly-v2-12b"
source = "FOLDER/dolly"
server = "octet"
precisions = ["f16", "int8"]
shape = { layers = 36, hidden = 5120, vocabulary = 50280 }
[[model]]
name = "oasst-pythia-12b"
source = "FOLDER/oasst"
server = "octet"
precisions = ["f16", "int8"]
shape = { layers = 36, hidden = 5120, vocabulary = 50288 }
[[model]]
name = "stablelm-tuned-alpha-3b"
source = "FOLDER/stablelm"
server = "octet"
precisions = ["bf16", "int8"]
shape = { layers = 16, hidden = 4096, vocabulary = 50688 }
[[model]]
name = "stablelm-tuned-alpha-7b"
source = "FOLDER/stablelm"
server = "octet"
precisions = ["bf16", "int8"]
shape = { layers = 16, hidden = 6144, vocabulary = 50432 }
[[model]]
name = "broken"
source = "nowhere/at/all"
server = "octet"
precisions = ["int8"]
[[model]]
name = "dolly-v2-3b"
source = ""
server = "absent"
precisions = ["q8_0"]
[[model]]
name = "vast"
source = "FOLDER/vast.gguf"
server = "octet"
precisions = ["int8"]
[[load]]
name = "solo"
flags = "--requests 3 --prompt-tokens 8 --output-tokens 4 --ignore-eos"
repeats = 2
expected_s = 1
[[load]]
name = "open"
models = ["stablelm-tuned-alpha-7b"]
flags = "--rate 40 --requests 12 --slo ttft=10s,attainment=0.5 --prompt-tokens 8 --output-tokens 4 --ignore-eos"
repeats = 1
expected_s = 1
[[load]]
name = "rate"
models = ["dolly-v2-3b", "oasst-pythia-12b", "stablelm-tuned-alpha-7b"]
search = true
flags = "--slo ttft=10s --rate 20 --requests 3 --duration 200ms --max-probes 1 --prompt-tokens 8 --output-tokens 4 --ignore-eos"
repeats = 1
expected_s = 1
[[load]]
name = "most users"
models = ["stablelm-tuned-alpha-7b"]
search = true
flags = "concurrency --slo ttft=10s --users 2 --requests 3 --duration 200ms --max-probes 1 --prompt-tokens 8 --output-tokens 4 --ignore-eos"
repeats = 1
expected_s = 1
[[compare]]
name = "8 bits against 16"
cells = ["dolly-v2-3b bf16 on octet", "dolly-v2-3b int8 on octet"]
names = ["16 bits", "8 bits"]
flags = "--requests 3 --prompt-tokens 8 --output-tokens 4 --ignore-eos"
pairs = 2
expected_s = 1
"#;

fn suite(file: &Path, out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.arg("suite").arg(file).arg("--out").arg(out);
    let own = file.with_file_name("bin");
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", own.display()));
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
    for stand_in in &stand_ins::ALL {
        stand_in.write(&folder.path().join(stand_in.name));
    }
    stand_ins::gpu(&folder.path().join("bin"));
    // It has no bytes, only a size.
    let vast = std::fs::File::create(folder.path().join("vast.gguf")).unwrap();
    vast.set_len(8 << 40).unwrap();
    let text = SUITE.replace("FOLDER", folder.path().to_str().unwrap());
    std::fs::write(&file, text).unwrap();

    // Time for the first five cells.
    let mut first = suite(&file, &out);
    let first = first.args(["--budget", "20s"]).stdout(Stdio::piped());
    let mut first = first.spawn().unwrap();
    let mut lines = BufReader::new(first.stdout.take().unwrap()).lines();
    // The first of two runs of the second cell has been made.
    let second = "  dolly-v2-3b int8 on octet, solo: ";
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

    interrupt(&file, &out);
    refuse_another_driver(&file, &out);

    let again = suite(&file, &out).output().unwrap();
    let told = String::from_utf8(again.stdout).unwrap();
    assert_eq!(
        again.status.code(),
        Some(1),
        "one cell fails: {told}{}",
        String::from_utf8_lossy(&again.stderr)
    );
    assert!(
        told.contains("dolly-v2-3b bf16 on octet: done before"),
        "{told}"
    );
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
    let (done, no) = ("done", "does_not_fit");
    let expected = [
        [done, done, done, done],
        [no, done, no, done],
        [done, done, done, done],
        ["failed", "not_there", "no_room", done],
    ];
    assert_eq!(status, expected.as_flattened(), "{told}");
    let runs = |cell: &Value| cell["runs"].as_array().unwrap().len();
    let is_done = |cell: &&Value| cell["status"] == "done";
    let done: Vec<&Value> = cells[..15].iter().filter(is_done).collect();
    let made: Vec<usize> = done.iter().map(|cell| runs(cell)).collect();
    assert_eq!(made, [2, 2, 2, 2, 2, 2, 2, 2, 3, 3], "ten cells");
    assert_eq!(runs(&cells[15]), 4);
    let searches = done.iter().filter_map(|cell| cell["searches"].as_array());
    let searches: Vec<&Value> = searches.flatten().collect();
    assert_eq!(searches.len(), 7);
    for search in searches {
        // A client without a core of its own may be late.
        let stop = search["stop"].as_str().unwrap();
        assert!(
            ["max_probes", "ceiling", "solo_fails"].contains(&stop),
            "{stop}"
        );
        let (level, highest) = match search["load"].as_str().unwrap() {
            "rate" => ("rate", 20.0),
            _ => ("users", 2.0),
        };
        assert!(search[level].as_f64().is_none_or(|found| found == highest));
        let load = search["load"].as_str().unwrap().replace(' ', "-");
        assert_eq!(search["page"], format!("{load}/report.html"));
    }
    let refusal = "does not fit: 22.1 GiB + KV against 20.2 GiB";
    assert_eq!(
        (&cells[4]["reason"], &cells[6]["reason"]),
        (&refusal.into(), &refusal.into())
    );
    assert!(!cells[12]["reason"].as_str().unwrap().is_empty());
    let room = cells[14]["reason"].as_str().unwrap();
    assert!(room.ends_with("8192.5 GiB are needed"), "{room}");
    for cell in &done {
        let name = cell["name"].as_str().unwrap();
        let is_its = |stand_in: &&StandIn| name.starts_with(stand_in.name);
        let stand_in = stand_ins::ALL.iter().find(is_its).unwrap();
        check_cell(&out.join(cell["folder"].as_str().unwrap()), stand_in);
    }
    check_cut(&out.join(cells[0]["folder"].as_str().unwrap()));
    assert_eq!(summary["cut"], Value::Null, "the last call had no budget");
    let page = std::fs::read_to_string(out.join("index.html")).unwrap();
    check_numbers(&page, &out, &summary);
    for words in [
        refusal,
        "<strong>Dry run</strong>",
        "not run: ",
        "not possible here: no-such-server",
        "Too few runs to tell 16 bits from 8 bits",
        "Highest load within the limits",
        "the client tested itself, and kept up with",
        "Price of a million output tokens",
        "stablelm-tuned-alpha-7b, solo on octet",
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

/// An interrupt ends the step that is being made, and begins no other.
fn interrupt(file: &Path, out: &Path) {
    let mut child = suite(file, out).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first_run = "  stablelm-tuned-alpha-7b bf16 on octet, solo: ";
    assert!(lines.any(|line| line.unwrap().starts_with(first_run)));
    let pid = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &pid]).status();
    assert!(sent.unwrap().success());
    let told: Vec<String> = lines.map(Result::unwrap).collect();
    let says_so = |line: &String| line.contains("stopped; the same command goes on");
    assert!(told.iter().any(says_so), "{told:?}");
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let servers = std::fs::read_to_string(out.join(".lock")).unwrap();
    assert_eq!(running(&servers), Vec::<&str>::new(), "still running");
    let summary = std::fs::read_to_string(out.join("summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert!(summary["left"].as_u64().unwrap() > 3, "{summary}");
}

/// Results of another driver do not come beside these.
fn refuse_another_driver(file: &Path, out: &Path) {
    let path = out.join("versions.json");
    let versions = std::fs::read_to_string(&path).unwrap();
    assert!(versions.contains("commit"), "{versions}");
    std::fs::write(&path, versions.replace("535.129.03", "550.1")).unwrap();
    let mixed = suite(file, out).output().unwrap();
    let error = String::from_utf8_lossy(&mixed.stderr).into_owned();
    assert_eq!(mixed.status.code(), Some(2), "{error}");
    assert!(
        error.contains("GPU is NVIDIA A10, driver 535.129.03"),
        "{error}"
    );
    assert!(error.contains("--allow-mixed"), "{error}");
    std::fs::write(path, versions).unwrap();
}

/// Every number of the page of the suite is that of its summary or the mean of the runs below a folder.
fn check_numbers(page: &str, out: &Path, summary: &Value) {
    let tags = tagged::tags(page);
    for tag in &tags {
        let Some(folder) = tag.of.strip_prefix("below ") else {
            assert_eq!(tag.of, "summary");
            tag.check(tagged::at(summary, &tag.key));
            continue;
        };
        let runs = files(&out.join(folder), "run.json");
        let read = |run: &PathBuf| -> Value {
            serde_json::from_str(&std::fs::read_to_string(run).unwrap()).unwrap()
        };
        let runs: Vec<Value> = runs.iter().map(read).collect();
        let is_any_valid = runs.iter().any(|run| run["verdict"] != "invalid");
        let counted = |run: &&Value| !is_any_valid || run["verdict"] != "invalid";
        let values = runs.iter().filter(counted);
        let values: Vec<f64> = values.map(|run| tagged::at(run, &tag.key)).collect();
        tag.check(values.iter().sum::<f64>() / values.len() as f64);
    }
    let of = |key: &str| tags.iter().filter(|tag| tag.key == key).count();
    assert_eq!(
        of("rates.output_tokens"),
        12,
        "ten cells, two of them with two loads"
    );
    let rates = tags.iter().filter(|tag| tag.key.ends_with(".rate"));
    let cells = summary["cells"].as_array().unwrap().iter();
    let searches = cells.filter_map(|cell| cell["searches"].as_array());
    let found = searches.flatten().filter(|found| found["rate"].is_number());
    assert_eq!(rates.count(), found.count(), "rates that were found");
}

/// What a cell keeps of its server, of the GPU, and of the family of its model.
fn check_cell(folder: &Path, stand_in: &StandIn) {
    let log = std::fs::read_to_string(folder.join("server.log")).unwrap();
    assert!(log.contains("completion_tokens=4"), "{}", stand_in.name);
    let run = std::fs::read_to_string(folder.join("solo/1/run.json")).unwrap();
    let run: Value = serde_json::from_str(&run).unwrap();
    let context = &run["target"]["model_card"]["max_model_len"];
    assert_eq!(*context, stand_in.context);
    let around_a_question = run["load"]["tokens_per_word"]["overhead"].as_f64().unwrap();
    assert_eq!(
        around_a_question, stand_in.format_tokens,
        "{}",
        stand_in.name
    );
    let command = run["target"]["command"].as_str().unwrap();
    assert!(command.starts_with("octet serve "), "{command}");
    assert!(command.ends_with("--port PORT --threads 1 --kv-cache-memory 64MiB"));
    let page = std::fs::read_to_string(folder.join("solo/1/report.html")).unwrap();
    assert!(page.contains(&format!("<pre>{command}</pre>")));
    assert_eq!(run["tool"]["dry_run"], true);
    let throttled = &run["gpus"][0]["throttled"];
    assert_eq!(throttled["temperature, by the driver"], 1.0, "{run}");
    let reasons = run["reasons"].as_array().unwrap().iter();
    let told: Vec<&str> = reasons.map(|reason| reason.as_str().unwrap()).collect();
    let held_back = |reason: &&str| reason.starts_with("GPU 0 was held back");
    assert!(told.iter().any(held_back), "{told:?}");
    let test = &run["client"]["self_test"];
    assert!(test["used_events_per_second"].is_number(), "{test}");
    for page in files(folder, "report.html") {
        let page = std::fs::read_to_string(page).unwrap();
        assert!(page.contains("<main class=\"dry\">"), "{}", stand_in.name);
    }
}

/// Every page that was made under a budget says what that left out.
fn check_cut(folder: &Path) {
    let pages = files(folder, "report.html");
    assert_eq!(pages.len(), 4, "{pages:?}");
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        let words = "The suite was given 20 seconds, which leave out: ";
        let left_out = text.split(words).nth(1).expect("the page says so");
        let left_out = left_out.split("</p>").next().unwrap();
        assert!(!left_out.contains("dolly-v2-7b int8"), "{left_out}");
        assert!(left_out.contains("stablelm-tuned-alpha-7b bf16 on octet"));
        assert!(left_out.ends_with("8 bits against 16."), "{left_out}");
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
