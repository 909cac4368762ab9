//! `octet bench` on the bundled model: what its table and file hold, and what it refuses.

use std::process::{Command, Output};

use serde_json::{Value, json};

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_octet"))
        .arg("bench")
        .args(arguments)
        .output()
        .expect("octet starts")
}

#[test]
fn every_combination_has_a_row_with_shares_of_what_the_machine_did() {
    let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/bench.json");
    let flags = "--prompt-tokens 24 --generate-tokens 4 --batch 1 --batch 3 --repetitions 2 --json";
    let arguments: Vec<&str> = flags.split(' ').chain([file]).collect();
    let output = bench(&arguments);
    let table = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{table}");
    assert!(table.contains("This machine between the tests"), "{table}");

    let report: Value =
        serde_json::from_slice(&std::fs::read(file).expect("a file")).expect("JSON");
    let number = |value: &Value| value.as_f64().expect("a number");
    let machine = |name: &str| ["min", "max"].map(|end| number(&report[name][end]));
    let [slowest, fastest] = machine("read_gb_per_second");
    assert!(0.0 < slowest && slowest <= fastest, "{report}");
    let rows = report["rows"].as_array().expect("rows");
    let tests = rows.iter().map(|row| json!([row["test"], row["batch"]]));
    let expected = json!([["prefill", 1], ["decode", 1], ["prefill", 3], ["decode", 3]]);
    assert_eq!(tests.collect::<Value>(), expected);
    for row in rows {
        let [min, median, max] =
            ["min", "median", "max"].map(|of| number(&row[format!("tokens_per_second_{of}")]));
        assert!(0.0 < min && min <= median && median <= max, "{row}");
        let reads = row["share_of_memory_read"].as_f64();
        assert_eq!(reads.is_some(), row["test"] == "decode", "{row}");
        assert!(reads.is_none_or(|share| share > 0.0), "{row}");
        // Where the machine has an instruction for it, a share; it is of the same precision as the model.
        let ops = row["share_of_multiply_adds"].as_f64();
        assert_eq!(ops.is_some(), !report["int8_gops"].is_null(), "{row}");
    }
}

#[test]
fn what_leaves_nothing_to_measure_is_refused() {
    for (flags, reason) in [
        ("--generate-tokens 1", "leaves nothing to time"),
        (
            "--prompt-tokens 0 --generate-tokens 0",
            "leave nothing to measure",
        ),
        ("--repetitions 0", "--repetitions 0 is below 1"),
        ("--batch 0", "--batch 0 is below 1"),
        ("--prompt-tokens 99999", "99999"),
    ] {
        let output = bench(&flags.split(' ').collect::<Vec<_>>());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && error.contains(reason),
            "{flags}: {error}"
        );
    }
}
