use serde_json::{Value, json};

use super::data::Run;
use super::group::Group;
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
        "schema": 1, "kind": "run", "tool": {"version": "0.1.0", "command": "loadtest --users 8 --requests 9"},
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

/// A page without the tags that name the keys of its numbers.
fn bare(page: &str) -> String {
    let mut parts = page.split("<data ");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(part.split_once('>').expect("a tag ends").1);
    }
    text.replace("</data>", "")
}

fn group(name: &str, value: &Value) -> Group {
    Group::new(vec![run(name, value)])
}

#[test]
fn a_page_needs_nothing_from_elsewhere_and_is_always_the_same() {
    for n in [0, 1, 2, 1000] {
        let runs = [group("first", &result(n))];
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
fn the_self_test_of_the_client_stands_beside_what_the_run_needed() {
    for (sustained, words) in [
        (
            json!(12_800.0),
            "was not the bottleneck: it read 900 token events a second and had kept up with 12800 before",
        ),
        (json!(800.0), "may be the bottleneck: it read 900"),
        (json!(null), "had kept up with no load in its test before"),
    ] {
        let mut tested = result(3);
        tested["client"]["self_test"] =
            json!({"sustained_events_per_second": sustained, "used_events_per_second": 900.0});
        let page = render(&[group("tested", &tested)]);
        assert!(page.contains(words), "{words}");
    }
    assert!(!render(&[group("not", &result(3))]).contains("the bottleneck"));
}

#[test]
fn a_hundred_thousand_requests_make_a_small_page() {
    let page = render(&[group("large", &result(100_000))]);
    assert!(page.len() < 1 << 20, "{} bytes", page.len());
}

#[test]
fn six_configurations_of_a_hundred_thousand_requests_fit_one_page() {
    let one = group("one", &result(100_000));
    let name = |i: u32| Group {
        name: i.to_string(),
        ..one.clone()
    };
    let groups: Vec<Group> = (0..6).map(name).collect();
    let page = render(&groups);
    assert!(page.len() < 1 << 20, "{} bytes", page.len());
}

#[test]
fn runs_that_differ_have_bands_and_one_run_has_none() {
    let mut repeats = side("a", 0, &SLOW);
    for run in &mut repeats.runs {
        run.latency.chunk_gap_counts = vec![(1000, 5), (2000, 3)];
    }
    let page = render(std::slice::from_ref(&repeats));
    assert_eq!(page.matches("<polygon class=\"band s0\"").count(), 3);
    assert!(page.contains("Bands are 95 % intervals"));
    let single = render(&[Group::new(vec![repeats.runs[0].clone()])]);
    assert!(!single.contains("<polygon") && !single.contains("Bands are"));
    // Both have the numbers behind every chart.
    for page in [page, single] {
        let charts = page.matches("<svg viewBox").count();
        assert_eq!(charts, 7);
        assert_eq!(page.matches("<summary>Numbers</summary>").count(), charts);
    }
}

#[test]
fn failures_stand_at_the_upper_edge_where_they_were_to_start() {
    let mut value = result(40);
    assert!(!render(&[group("a", &value)]).contains("failed, where they were to start"));
    value["failures"] = json!([{"t": 1.5, "outcome": "http_5xx"}, {"t": 2.5, "outcome": "cut"}]);
    let page = render(&[group("a", &value)]);
    assert_eq!(page.matches("<path class=\"stroke\"").count(), 2);
    assert!(page.contains("a: failed: 2") && page.contains("failed, where they were to start"));
    // The place has no height: the axis is as without it, and the table leaves it out.
    assert!(page.contains("<th>a: failed</th><td>1.50</td><td></td>"));
}

#[test]
fn the_style_of_a_page_has_every_rule_and_no_comment() {
    let page = render(&[group("a", &result(2))]);
    let (_, rest) = page.split_once("<style>").unwrap();
    let (style, _) = rest.split_once("</style>").unwrap();
    let whole = include_str!("style.css");
    assert!(!style.contains("/*") && style.len() < whole.len() * 9 / 10);
    assert_eq!(style.matches('{').count(), whole.matches('{').count());
    for kept in [
        "content:\"● \"",
        "linear-gradient(90deg,var(--c) 62%,transparent 0)",
        ".charts + .charts",
    ] {
        let kept = kept.replace(" + ", "+");
        assert!(style.replace(" + ", "+").contains(&kept), "{kept}: {style}");
    }
}

#[test]
fn what_warns_stands_under_the_finding_once_and_takes_its_green() {
    let mut warned = side("b", 1, &FAST);
    for (i, run) in warned.runs.iter_mut().enumerate() {
        run.verdict = "warning".into();
        run.reasons = vec![
            format!("memory at {i}.5 GB/s"),
            "the client woke late".into(),
        ];
    }
    let page = render(&[side("a", 0, &SLOW), warned.clone()]);
    assert!(
        page.contains("<strong>6 of 12 runs with warnings</strong>"),
        "{page}"
    );
    assert!(page.contains("<li>memory at 0.5 GB/s (6 of 12 runs; numbers of the first)</li>"));
    assert!(page.contains("<li>the client woke late (6 of 12 runs)</li>"));
    assert!(page.contains("class=\"verdict fair\"") && !page.contains("class=\"verdict good\""));
    let page = render(&[warned]);
    assert!(page.contains("<li>memory at 0.5 GB/s (run 1; with other numbers 2, 3, 4, 5, 6)</li>"));
    assert!(page.contains("<li>the client woke late (runs 1, 2, 3, 4, 5, 6)</li>"));
}

#[test]
fn a_closed_loop_says_that_it_hides_queueing_and_what_littles_law_says() {
    let mut value = result(40);
    value["rates"]["users_by_little"] = json!(8.4);
    value["rates"]["offered_requests"] = json!(10.5);
    value["latency"]["ttfo"] = summary(40, 0.5);
    value["server"]["in_window"] = json!({"from": 0.0, "to": 2.5, "grown": {"finished": 25.0},
                                          "means": {"queue_seconds": 0.25, "batch_size": 3.5}});
    let page = bare(&render(&[group("a", &value)]));
    assert!(page.contains("Closed loop of 8 users, which hides queueing"));
    assert!(
        page.contains("their mean time are 8.40; by Little's law they should be the 8"),
        "{page}"
    );
    assert!(page.contains("10.5 requests a second were asked for and 10 answered"));
    assert!(page.contains("<th>answers that ended</th><td>25</td><td>10</td>"));
    assert!(page.contains("<th>time in the queue</th><td></td><td></td><td>250 ms</td>"));
    assert!(
        page.contains(
            "<th>time to first output, after any reasoning</th><td>40</td><td>500 ms</td>"
        )
    );
    let old = render(&[group("a", &result(40))]);
    assert!(
        !old.contains("Little")
            && !old.contains("first output")
            && !old.contains("in the window</h3>")
    );
    value["load"]["arrival"] = json!({"kind": "poisson", "rate": 10.0});
    let page = render(&[group("a", &value)]);
    assert!(page.contains("Open loop") && !page.contains("hides queueing"));
}

#[test]
fn half_of_an_interval_has_the_unit_and_the_digits_of_its_value() {
    use super::metric::{Latency, Metric, Quantile};
    let ttft = Metric::Latency(Latency::Ttft, Quantile::P50);
    assert_eq!(ttft.plus_minus(1.53, 0.0441), "1.53 ± 0.04 s");
    assert_eq!(ttft.plus_minus(0.001, 0.000_185), "1.0 ± 0.2 ms");
    assert_eq!(ttft.plus_minus(0.192, 0.0737), "192 ± 74 ms");
    assert_eq!(
        Metric::OutputTokens.plus_minus(129.0, 1.23),
        "129 ± 1 tokens/s"
    );
    assert_eq!(
        Metric::OutputTokens.plus_minus(129.0, 0.02),
        "129 ± 0.02 tokens/s"
    );
    assert_eq!(
        Metric::CompletedRequests.plus_minus(2.62, 0.6426),
        "2.62 ± 0.64 /s"
    );
}

#[test]
fn foreign_text_stays_text() {
    let mut hostile = result(3);
    hostile["target"]["model"] = json!("<script>alert(1)</script>");
    hostile["reasons"] = json!(["</style><img src=x onerror=alert(1)>"]);
    let page = render(&[group("\"><b>name", &hostile)]);
    assert!(!page.contains("<script") && !page.contains("<img") && !page.contains("<b>"));
}

#[test]
fn different_requests_are_not_compared_in_silence() {
    let (first, mut second) = (result(5), result(5));
    second["rates"]["output_tokens"] = json!(2469.0);
    let page = render(&[group("a", &first), group("b", &second)]);
    assert!(page.contains("2.00 times the output") && !page.contains("Not comparable"));
    second["load"]["workload_sha256"] = json!("other");
    let page = render(&[group("a", &first), group("b", &second)]);
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

/// Runs of one side of a comparison with these outputs per second; latencies fall as the output rises.
fn side(name: &str, side: u32, outputs: &[f64]) -> Group {
    let runs = (1..).zip(outputs).map(|(repeat, output)| {
        let mut value = result(40);
        value["name"] = json!(name);
        value["series"] = json!({"id": "s", "side": side, "repeat": repeat, "of": outputs.len()});
        value["rates"]["output_tokens"] = json!(output);
        value["load"]["workload_sha256"] = json!(format!("seed {repeat}"));
        value["load"]["seed"] = json!(repeat);
        value["reasons"] = json!([]);
        value["verdict"] = json!("valid");
        for metric in ["ttft", "tpot", "e2e"] {
            value["latency"][metric]["p50"] = json!(10.0 / output);
            value["latency"][metric]["p90"] = json!(20.0 / output);
        }
        run("file", &value)
    });
    Group::new(runs.collect())
}

const SLOW: [f64; 6] = [100.0, 103.0, 98.0, 101.0, 99.0, 102.0];
const FAST: [f64; 6] = [184.0, 190.0, 181.0, 188.0, 179.0, 186.0];
const NOISY: [f64; 6] = [104.0, 85.0, 121.0, 93.0, 116.0, 88.0];

#[test]
fn a_comparison_says_who_was_faster_by_how_much_and_from_what() {
    let page = render(&[side("f32", 0, &SLOW), side("int8", 1, &FAST)]);
    for said in [
        "<strong>int8 is faster than f32</strong>: 1.84 times the output tokens per second",
        "(95 % interval 1.82 to 1.86)",
        "<strong>6 pairs of runs made by turns</strong> with no warnings",
        "class=\"ratio faster\"",
        "class=\"verdict good\"",
    ] {
        assert!(page.contains(said), "{said}");
    }
    assert!(!page.contains("class=\"ratio open\"") && !page.contains("Not comparable"));
    let back = render(&[side("int8", 0, &FAST), side("f32", 1, &SLOW)]);
    assert!(back.contains("<strong>f32 is slower than int8</strong>: 0.54 times"));
}

#[test]
fn what_is_not_shown_is_never_called_equal() {
    let page = render(&[side("a", 0, &SLOW), side("b", 1, &NOISY)]);
    assert!(page.contains("No difference is shown between a and b"));
    assert!(page.contains("class=\"ratio open\"") && !page.contains("class=\"ratio equal\""));
    assert!(page.contains("class=\"verdict fair\"") && !page.contains("equally"));
    let few = render(&[side("a", 0, &SLOW[..3]), side("b", 1, &FAST[..3])]);
    assert!(few.contains("Too few runs to tell a from b") && few.contains("6 pairs made by turns"));
    assert!(!few.contains("class=\"ratio faster\""));
    let same = render(&[
        side("a", 0, &SLOW),
        side("b", 1, &SLOW.map(|v| v * 1.0 + 0.0)),
    ]);
    assert!(same.contains("equally fast within 3 %") && same.contains("class=\"ratio equal\""));
}

#[test]
fn invalid_runs_are_shown_and_not_counted() {
    let mut group = side("a", 0, &SLOW);
    group.runs[2].verdict = "invalid".into();
    group.runs[2].reasons = vec!["R1 requests: the counts differ".into()];
    group.runs[2].rates.output_tokens = 1e6;
    let page = render(std::slice::from_ref(&group));
    assert!(page.contains("5 of 6 runs count"));
    assert!(page.contains("invalid, left out: R1 requests: the counts differ"));
    // The mean of the other five is 101, their interval by SciPy 99.04 to 102.96.
    assert!(page.contains("101 tokens/s") && bare(&page).contains("99.0 tokens/s to 103 tokens/s"));
    let page = render(&[group, side("b", 1, &FAST)]);
    assert!(
        page.contains("5 pairs of runs made by turns") && page.contains("1 invalid run left out")
    );
    let mut bad = side("a", 0, &SLOW);
    bad.runs
        .iter_mut()
        .for_each(|run| run.verdict = "invalid".into());
    let page = render(&[bad, side("b", 1, &FAST)]);
    assert!(page.contains("Not comparable") && page.contains("no run of a is valid"));
}

#[test]
fn other_machines_and_arrivals_are_not_compared_in_silence() {
    for change in [
        |group: &mut Group| group.runs[0].host.cores = 8,
        |group: &mut Group| {
            group.runs[0].load.arrival = super::data::Arrival::Poisson { rate: 2.0 }
        },
    ] {
        let mut other = side("b", 1, &FAST);
        change(&mut other);
        let page = render(&[side("a", 0, &SLOW), other]);
        assert!(page.contains("Not comparable") && page.contains("class=\"verdict bad\""));
    }
}

#[test]
fn what_was_seen_of_the_machine_stands_on_the_page() {
    let mut value = result(20);
    assert!(!render(&[group("a", &value)]).contains("memory read by all cores"));
    value["calibration"] = json!({"memory_read_bytes_per_second": {"before": 27.1e9, "after": 26.4e9},
                                  "drift": 0.026, "drift_limit": 0.05});
    let range = |min: f64, mean: f64, max: f64| json!({"min": min, "mean": mean, "max": max});
    value["gpus"] = json!([{"index": 0, "samples": 60, "clock_hertz": range(1.4e9, 1.5e9, 1.7e9),
                            "power_watts": range(90.0, 140.0, 150.0), "throttled": {"power cap": 0.25}},
                           {"index": 1, "samples": 60, "throttled": {}}]);
    let page = render(&[group("a", &value)]);
    for words in [
        "27.1 GB/s</data> before",
        "26.4 GB/s</data> after",
        "1500 MHz</data> (1400 to 1700)",
        "140 W</data> (90 to 150)",
        "held back by power cap in 25 % of the looks",
        "GPU 1, once a second</dt><dd>never held back",
    ] {
        assert!(page.contains(words), "{words}: {page}");
    }
}

#[test]
fn what_only_one_run_knows_of_its_machine_makes_it_no_other() {
    let gpu = |name: &str| crate::scene::Gpu {
        name: name.into(),
        driver: "535.129.03".into(),
        memory_bytes: Some(23028 << 20),
        power_limit_watts: Some(150.0),
    };
    let mut groups = [side("a", 0, &SLOW), side("b", 1, &FAST)];
    for run in groups.iter_mut().flat_map(|group| &mut group.runs) {
        run.host.cores = 4;
    }
    groups[1].runs[0].host.gpus = vec![gpu("NVIDIA A10")];
    groups[1].runs[0].host.container_cores = Some(1.5);
    groups[1].runs[0].host.load_before = Some(0.25);
    let page = render(&groups);
    assert!(!page.contains("Not comparable"));
    assert!(page.contains("NVIDIA A10, 22 GiB, at most 150 W, driver 535.129.03"));
    assert!(page.contains("<th>machine: container, cores</th><td>–</td><td>1.50</td>"));
    groups[0].runs[0].host.gpus = vec![gpu("NVIDIA L4")];
    assert!(render(&groups).contains("they ran on different machines"));
}

#[test]
fn runs_of_configurations_stand_on_one_plane() {
    let groups = [side("a", 0, &SLOW), side("b", 1, &FAST)];
    let page = render(&groups);
    for title in [
        "Output of the server (tokens per second) against what one user sees",
        "Time to first token (median) against answers per second",
    ] {
        assert!(page.contains(title), "{title}");
        assert!(!render(&groups[..1]).contains(title), "{title} of one");
    }
}

#[test]
fn what_differs_is_listed() {
    let mut other = side("b", 1, &FAST);
    for run in &mut other.runs {
        run.target.version = Some(json!({"name": "octet", "build": {"commit": "abc123"}}));
    }
    let page = render(&[side("a", 0, &SLOW), other]);
    assert!(page.contains("<th>server: build: commit</th><td>–</td><td>abc123</td>"));
}

#[test]
fn cost_is_shown_with_its_price_or_with_the_reason_why_not() {
    let mut value = result(40);
    let line = |share: f64| json!({"share": share, "per_million_output_tokens": 2.0 / share, "per_million_total_tokens": 0.5});
    value["cost"] =
        json!({"price": {"per_hour": 0.72, "note": "EUR, today"}, "uses": [line(1.0), line(0.5)]});
    let page = bare(&render(&[group("a", &value)]));
    assert!(
        page.contains("<th>50 %</th><td>4</td><td>0.5000</td>")
            && page.contains("0.7200 an hour (EUR, today)")
    );
    value["cost"] =
        json!({"price": {"per_hour": 0.72, "note": ""}, "uses": [], "not_stated": "no limits"});
    assert!(render(&[group("a", &value)]).contains("Not stated: no limits."));
}

#[test]
fn the_line_of_equal_speed_is_always_drawn() {
    for factor in [0.02, 0.5, 1.0, 1.1, 3.0, 50.0] {
        let page = render(&[side("a", 0, &SLOW), side("b", 1, &SLOW.map(|v| v * factor))]);
        assert_eq!(page.matches("class=\"one\"").count(), 4, "{factor}");
    }
}

#[test]
fn what_client_and_server_recorded_of_times_is_drawn_and_older_results_do_without() {
    let titles = [
        "Where the time of an answer went",
        "Was the client in time?",
        "a, by the server",
        "lengths of prompts",
    ];
    let old = render(&[group("a", &result(20))]);
    assert!(titles.iter().all(|title| !old.contains(title)));

    let mut value = result(20);
    value["client"]["lags"] = json!({"slice_seconds": 0.5, "send_lag_max": [0.001, null, 0.002],
                                     "runtime_lag_max": [null, 0.003, 0.001]});
    value["client"]["send_lag_limit"] = json!(0.001);
    value["latency"]["chunk_gap_counts"] = json!([[1000, 5], [2000, 3]]);
    let buckets = json!({"edges": [0.001, 0.01, 0.1], "counts": [1, 2, 3, 0]});
    // The decode is longer than what is left of the server's whole time.
    let stages = json!({"answers": 20, "send_lag": 0.001, "sent_to_last": 0.1, "server": 0.09, "queue": 0.01,
                        "prefill": 0.02, "decode": 0.07});
    value["server"]["times"] = json!({"ttft": buckets, "itl": buckets, "stages": stages});
    value["load"]["lengths_by"] = json!("usage");
    value["lengths"]["prompts_as_asked"] = json!(18);
    value["lengths"]["prompt_off_max"] = json!(3);
    let page = render(&[group("a", &value), group("b", &result(20))]);
    for title in titles {
        assert!(page.contains(title), "{title}");
    }
    assert_eq!(page.matches("class=\"line outline s0\"").count(), 2);
    let stages = "client before sending 1.0 ms, on the way 10.0 ms, not explained −10.0 ms, queue 10.0 ms, \
                  prefill 20.0 ms, decode 70.0 ms";
    assert!(page.contains(stages), "{page}");
    // What is less than nothing has no width.
    assert!(page.contains("width=\"0.00%\"") && !page.contains("NaN"));
    assert!(page.contains("18 of 20 are as long as was asked, the others off by 3 tokens at most"));
}
