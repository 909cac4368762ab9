//! `octet eval` through the real binary: the report is complete, and the precisions keep what the
//! README and the tiers promise.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Runs `octet eval` and reads what it wrote.
fn eval(name: &str, args: &[&str]) -> Value {
    let json = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.json"));
    let output = Command::new(env!("CARGO_BIN_EXE_octet"))
        .arg("eval")
        .args(args)
        .arg("--json")
        .arg(&json)
        .output()
        .expect("the binary starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let table = String::from_utf8_lossy(&output.stdout);
    for line in ["perplexity ratio", "KL divergence, mean", "tier"] {
        assert!(table.contains(line), "{line} is missing in\n{table}");
    }
    let text = std::fs::read(&json).expect("the report is written");
    serde_json::from_slice(&text).expect("the report is JSON")
}

fn number(report: &Value, pointer: &str) -> f64 {
    let found = report.pointer(pointer).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("{pointer} is missing in {report:#}"))
}

/// An asset that `cargo xtask assets` fetches. None where it is absent; continuous integration must
/// have it.
fn asset(file: &str) -> Option<PathBuf> {
    let assets = std::env::var_os("OCTET_ASSETS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/assets"),
        PathBuf::from,
    );
    let path = assets.join(file);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("CI").is_none(), "{file} is missing");
    eprintln!("skipped: `cargo xtask assets` fetches {file}");
    None
}

#[test]
fn the_floor_is_exactly_zero() {
    let report = eval("floor", &["-q", "f32", "--tokens", "500"]);
    assert_eq!(number(&report, "/summary/divergence/max"), 0.0);
    assert_eq!(number(&report, "/summary/perplexity_ratio/value"), 1.0);
    assert_eq!(report["verdict"]["tier"], "exact-like");
    assert!(number(&report, "/summary/tokens") >= 500.0);
}

fn is_accurate(report: &Value) -> bool {
    ["exact-like", "accurate"].contains(&report["verdict"]["tier"].as_str().expect("a name"))
}

#[test]
fn the_bundled_model_keeps_its_score_in_8_bits() {
    for precision in ["auto", "int8"] {
        let name = format!("bundled-{precision}");
        let report = eval(&name, &["-q", precision, "--tokens", "4000"]);
        let score = |form: &str| number(&report, &format!("/held_out/{form}/right"));
        let prompts = number(&report, "/held_out/tested/prompts");
        let lost = score("reference") - score("tested");
        assert!(lost <= 0.01 * prompts, "{lost} answers lost of {prompts}");
        assert!(is_accurate(&report), "{precision}: {:#}", report["verdict"]);
    }
}

/// What a user gets who asks for nothing, on real weights: the limits are those of tier accurate for
/// models below 10^9 weights.
#[test]
fn the_default_is_accurate() {
    let model = asset("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    let (Some(model), Some(text)) = (model, asset("texts/moby-dick.txt")) else {
        return;
    };
    let (model, text) = (model.display().to_string(), text.display().to_string());
    let report = eval(
        "smollm2-default",
        &[&*model, "--tokens", "2048", "--text", &*text],
    );
    assert!(is_accurate(&report), "{:#}", report["summary"]);
    assert_eq!(report["precision"], "int8-blocks");
}

#[test]
fn bfloat16_is_hardly_to_be_told_from_32_bits() {
    let model = asset("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    let (Some(model), Some(text)) = (model, asset("texts/moby-dick.txt")) else {
        return;
    };
    let (model, text) = (model.display().to_string(), text.display().to_string());
    let args = [&*model, "-q", "bf16", "--tokens", "512", "--text", &*text];
    let report = eval("smollm2-bf16", &args);
    assert_eq!(report["verdict"]["tier"], "exact-like");
    assert_eq!(number(&report, "/summary/tokens"), 512.0);
    // Prose of the 19th century: far from fluent, far from noise.
    let perplexity = number(&report, "/summary/reference_perplexity/value");
    assert!((10.0..100.0).contains(&perplexity), "{perplexity}");
}

#[test]
fn what_cannot_be_scored_is_refused() {
    for (args, expected) in [
        (&["--text", "/does/not/exist"][..], "cannot read --text"),
        (&["--tokens", "0"], "--tokens 0"),
        (&["--window", "3"], "--window 3"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_octet"))
            .arg("eval")
            .args(args)
            .output()
            .expect("the binary starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && stderr.contains(expected),
            "{stderr}"
        );
    }
}
