use serde_json::{Value, json};

use super::data::Run;
use super::render;

fn summary(n: u64, value: f64) -> Value {
    json!({"n": n, "mean": value, "p50": value, "p90": value * 2.0, "p95": null, "p99": null,
           "p999": null, "max": value * 3.0})
}

/// The result of a run with `n` successes.
fn result(n: u64) -> Value {
    let samples: Vec<Value> = (0..n)
        .map(|i| {
            let x = i as f64 / 10.0;
            json!({"t": x, "ttft": 0.01 + x / 1e3, "tpot": 0.002, "e2e": 0.1 + x, "prompt_tokens": 7 * i,
                   "output_tokens": 5})
        })
        .collect();
    let latency = summary(n, 0.01);
    json!({
        "schema": 1, "kind": "run",
        "target": {"url": "http://127.0.0.1:8000", "endpoint": "/v1/chat/completions", "model": "m"},
        "load": {"arrival": {"kind": "closed", "users": 8}, "requests": n, "duration_seconds": null,
                 "warmup": 0, "seed": 0, "prompt_tokens": 64, "output_tokens": "uniform:8..64",
                 "ignore_eos": true, "temperature": 0.0, "workload_sha256": "abc"},
        "window": {"seconds": 2.5},
        "requests": {"measured": n, "succeeded": n, "failed": 0},
        "outcomes": {"ok": {"count": n}},
        "lengths": {"prompt_mean": 64.0, "output_mean": 30.0},
        "rates": {"completed_requests": 10.0, "output_tokens": 1234.5},
        "latency": {"ttft": latency, "tpot": latency, "chunk_gap": latency, "longest_stall": latency,
                    "e2e": latency},
        "client": {"send_lag": latency},
        "server": {"not_available": null, "checks": [
            {"id": "R1", "what": "requests answered", "client": [n, n], "server": n, "verdict": "pass"},
            {"id": "R9", "what": "tokens computed", "client": [1, null], "server": null,
             "verdict": "not_possible"}]},
        "samples": samples, "verdict": "warning", "reasons": ["the client sent late"],
    })
}

fn run(name: &str, value: &Value) -> Run {
    Run::parse(&value.to_string(), name.into()).expect("a result")
}

#[test]
fn a_page_needs_nothing_from_elsewhere_and_is_always_the_same() {
    for n in [0, 1, 2, 1000] {
        let runs = [run("first", &result(n))];
        let page = render(&runs);
        assert_eq!(page, render(&runs));
        for outside in ["src=", "href=", "@import", "url(", "<script", "<link"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(
            !page.contains("NaN") && !page.contains("inf"),
            "{n} requests"
        );
        assert_eq!(
            page.matches("<svg").count(),
            page.matches("<title>").count() - 1
        );
        assert!(page.contains("1234") && page.contains("the client sent late"));
        assert!(page.contains("--users 8 --requests"));
    }
}

#[test]
fn a_hundred_thousand_requests_make_a_small_page() {
    let page = render(&[run("large", &result(100_000))]);
    assert!(page.len() < 1 << 20, "{} bytes", page.len());
}

#[test]
fn foreign_text_stays_text() {
    let mut hostile = result(3);
    hostile["target"]["model"] = json!("<script>alert(1)</script>");
    hostile["reasons"] = json!(["</style><img src=x onerror=alert(1)>"]);
    let page = render(&[run("\"><b>name", &hostile)]);
    assert!(!page.contains("<script") && !page.contains("<img") && !page.contains("<b>"));
}

#[test]
fn different_requests_are_not_compared_in_silence() {
    let (first, mut second) = (result(5), result(5));
    second["rates"]["output_tokens"] = json!(2469.0);
    let page = render(&[run("a", &first), run("b", &second)]);
    assert!(page.contains("(2.00×)") && !page.contains("Not comparable"));
    second["load"]["workload_sha256"] = json!("other");
    let page = render(&[run("a", &first), run("b", &second)]);
    assert!(page.contains("Not comparable"));
}

#[test]
fn other_files_are_refused() {
    for text in ["", "{}", "[]", "{\"schema\":1}"] {
        assert!(Run::parse(text, String::new()).is_err(), "{text}");
    }
    let mut other = result(1);
    other["schema"] = json!(2);
    assert!(Run::parse(&other.to_string(), String::new()).is_err());
}
