//! Everything about a configuration that is not on the first screen.

use maud::{Markup, html};

use super::data::{Cost, Run, milliseconds, number};
use super::facts;
use super::group::Group;
use super::machine;
use super::tagged::{Of, count, tagged};
use super::traffic;
use crate::report::LengthsBy;
use crate::stats::Percentile;

/// Everything else about the configuration at this place on the page.
pub fn details(place: usize, group: &Group, named: bool) -> Markup {
    let first = &group.runs[0];
    let of = Of::Run(place, 1);
    html! {
        section {
            h2 { "What was run" @if named { ": " (group.name) } }
            @if let Some(command) = &first.target.command { pre { (command) } }
            @if !first.tool.command.is_empty() { pre { (first.tool.command) } }
            @if named { details { summary { "Model, load, machine and server" } (known(of, first)) } } @else { (known(of, first)) }
            (cost(place, group))
            @if let [run] = &group.runs[..] {
                (of_run(of, run))
            } @else {
                (all_gaps(group))
                @for (i, run) in group.runs.iter().enumerate() {
                    details { summary { "Run " (i + 1) } (of_run(Of::Run(place, i + 1), run)) }
                }
            }
        }
    }
}

/// The tables of a run.
fn of_run(of: Of, run: &Run) -> Markup {
    html! {
        (latency_table(of, run)) (traffic::table(of, run)) (outcome_table(of, run)) (checks_table(of, run)) (traffic::in_window(of, run))
    }
}

/// All that is known of the first run apart from its speed.
fn known(of: Of, first: &Run) -> Markup {
    let facts = facts::of_run(first);
    // The commands stand above.
    let above = [facts::COMMAND, facts::SERVER_COMMAND];
    let facts = facts
        .iter()
        .filter(|(name, _)| !above.contains(&name.as_str()));
    html! {
            dl {
                @for (name, value) in facts { dt { (name) } dd { (value) } }
                dt { "started" } dd { (first.started) }
                dt { "window" } dd { (tagged(of, "window.seconds", first.window.seconds, &format!("{} s", number(first.window.seconds)))) }
                dt { "lengths" } dd {
                    "mean prompt " (mean_length(of, "prompt_mean", first.lengths.prompt_mean)) ", mean output "
                    (mean_length(of, "output_mean", first.lengths.output_mean)) " tokens"
                }
                @if let Some(load) = first.host.load_before {
                    dt { "load before" } dd { (tagged(of, "host.load_before", load, &number(load))) }
                }
                (machine::facts(of, first))
                @if let Some(words) = prompt_lengths(first) { dt { "lengths of prompts" } dd { (words) } }
                @if let Some(again) = &first.lengths.retokenised { dt { "tokenised again" } dd {
                    (count(of, "lengths.retokenised.answers", again.answers)) " answers of "
                    (count(of, "lengths.retokenised.by_usage", again.by_usage)) " tokens by usage make "
                    (count(of, "lengths.retokenised.of_text", again.of_text)) "; no number rests on it"
                } }
                @if let Some(test) = &first.client.self_test { dt { "the client" } dd { (test.words()) } }
            }
    }
}

fn mean_length(of: Of, key: &str, mean: Option<f64>) -> Markup {
    match mean {
        Some(mean) => tagged(of, &format!("lengths.{key}"), mean, &number(mean)),
        None => html! { "–" },
    }
}

/// What the lengths of prompts rest on, and what came of it; none of a run that does not say.
fn prompt_lengths(run: &Run) -> Option<String> {
    let by = match run.load.lengths_by? {
        LengthsBy::TokenIds => "given as token ids",
        LengthsBy::Tokenizer => "made to measure with the server's /tokenize",
        LengthsBy::Usage => "aimed at by the usage of two answers",
        LengthsBy::Flag => "aimed at by --tokens-per-word",
        LengthsBy::Assumption => "one token for each word was assumed",
    };
    let (exact, all) = (run.lengths.prompts_as_asked?, run.latency.e2e.n);
    let off = match run.lengths.prompt_off_max? {
        0 => "by usage all are as long as was asked".to_owned(),
        most => format!(
            "by usage {exact} of {all} are as long as was asked, the others off by {most} tokens at most"
        ),
    };
    Some(format!("{by}; {off}"))
}

/// What a million tokens cost, as the mean over runs.
fn cost(place: usize, group: &Group) -> Markup {
    let counted = group.counted();
    let costs: Vec<&Cost> = counted.iter().filter_map(|run| run.cost.as_ref()).collect();
    let Some(first) = costs.first().filter(|_| costs.len() == counted.len()) else {
        return html! {};
    };
    let mean = |key: &str, of: &dyn Fn(&Cost) -> f64| {
        let value = costs.iter().map(|cost| of(cost)).sum::<f64>() / costs.len() as f64;
        tagged(
            Of::Mean(place),
            &format!("cost.{key}"),
            value,
            &number(value),
        )
    };
    let price = &first.price;
    html! {
        h3 { "Cost of a million tokens" }
        @if let Some(reason) = costs.iter().find_map(|cost| cost.not_stated.as_ref()) {
            p { "Not stated: " (reason) "." }
        } @else {
            table {
                thead { tr { th { "machine in use" } th { "output tokens" } th { "prompt and output tokens" } } }
                tbody { @for (i, line) in first.uses.iter().enumerate() { tr {
                    th { (number(line.share * 100.0)) " %" }
                    td { (mean(&format!("uses.{i}.per_million_output_tokens"), &|cost| cost.uses[i].per_million_output_tokens)) }
                    td { (mean(&format!("uses.{i}.per_million_total_tokens"), &|cost| cost.uses[i].per_million_total_tokens)) }
                } } }
            }
        }
        p class="note" { "At " (mean("price.per_hour", &|cost| cost.price.per_hour)) " an hour" @if !price.note.is_empty() { " (" (price.note) ")" } ", at this load." }
    }
}

/// Gaps between events over all runs: their histograms are added, their percentiles are not averaged.
fn all_gaps(group: &Group) -> Markup {
    let gaps = group.gaps().summary();
    let value = |p: Percentile| match p {
        Percentile::Seconds(value) => milliseconds(Some(value)),
        _ => "–".to_owned(),
    };
    let row = [
        ("p50", gaps.p50),
        ("p90", gaps.p90),
        ("p99", gaps.p99),
        ("p99.9", gaps.p999),
    ];
    html! {
        @if gaps.n > 0 {
            p {
                "Gaps between events, all runs in one histogram of " (gaps.n) ":"
                @for (name, p) in row { " " (name) " " (value(p)) "," }
                " longest " (milliseconds(gaps.max)) "."
            }
        }
    }
}

fn latency_table(of: Of, run: &Run) -> Markup {
    let l = &run.latency;
    let ttfo = l.ttfo.as_ref();
    let ttfo = ttfo.map(|ttfo| {
        (
            "time to first output, after any reasoning",
            "latency.ttfo",
            ttfo,
        )
    });
    let rows = [
        ("time per output token", "latency.tpot", &l.tpot),
        ("gap between events", "latency.chunk_gap", &l.chunk_gap),
        ("longest stall", "latency.longest_stall", &l.longest_stall),
        ("whole answer", "latency.e2e", &l.e2e),
        (
            "send lag of the client",
            "client.send_lag",
            &run.client.send_lag,
        ),
    ];
    let time = |key: String, seconds: Option<f64>| match seconds {
        Some(value) => tagged(of, &key, value, &milliseconds(seconds)),
        None => html! { "–" },
    };
    html! {
        h3 { "Latency" }
        div class="wide" tabindex="0" {
            table {
                thead { tr { th { "" } @for name in ["n", "mean", "p50", "p90", "p95", "p99", "max"] { th { (name) } } } }
                tbody {
                    @for (name, key, s) in [("time to first token", "latency.ttft", &l.ttft)].into_iter().chain(ttfo).chain(rows) {
                        tr {
                            th { (name) } td { (count(of, &format!("{key}.n"), s.n)) }
                            @for (part, value) in [("mean", s.mean), ("p50", s.p50), ("p90", s.p90), ("p95", s.p95), ("p99", s.p99), ("max", s.max)] {
                                td { (time(format!("{key}.{part}"), value)) }
                            }
                        }
                    }
                }
            }
        }
        p class="note" { "A percentile that so few samples cannot bound is shown as –." }
    }
}

fn outcome_table(of: Of, run: &Run) -> Markup {
    html! {
        h3 { "Outcomes" }
        table { tbody {
            @for (name, outcome) in &run.outcomes { tr { th { (name) } td { (count(of, &format!("outcomes.{name}.count"), outcome.count)) } } }
            @for (name, outcome) in &run.outcomes_retried {
                tr { th { (name) ", sent again" } td { (count(of, &format!("outcomes_retried.{name}.count"), outcome.count)) } }
            }
        } }
    }
}

/// One number, or the range that failures leave open.
fn client_side(of: Of, i: usize, client: (f64, Option<f64>)) -> Markup {
    let end = |n: usize, value: f64| {
        tagged(
            of,
            &format!("server.checks.{i}.client.{n}"),
            value,
            &number(value),
        )
    };
    match client {
        (low, Some(high)) if low == high => end(0, low),
        (low, Some(high)) => html! { (end(0, low)) " to " (end(1, high)) },
        (low, None) => html! { "at least " (end(0, low)) },
    }
}

fn checks_table(of: Of, run: &Run) -> Markup {
    html! {
        h3 { "Counts of the client against counts of the server" }
        @if let Some(reason) = &run.server.not_available {
            p { "Not compared: " (reason) }
        }
        div class="wide" tabindex="0" {
            table {
                thead { tr { th { "check" } th { "client" } th { "server" } th { "verdict" } } }
                tbody {
                    @for (i, check) in run.server.checks.iter().enumerate() {
                        tr class=(check.verdict) {
                            th { (check.id) " " (check.what) }
                            td { (client_side(of, i, check.client)) }
                            td { @match check.server {
                                Some(value) => (tagged(of, &format!("server.checks.{i}.server"), value, &number(value))),
                                None => "–",
                            } }
                            td { (check.verdict.replace('_', " ")) }
                        }
                    }
                }
            }
        }
    }
}
