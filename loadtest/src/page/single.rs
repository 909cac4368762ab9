//! The top of a page about one configuration.

use maud::{Markup, html};

use super::data::{Run, Sample};
use super::ends;
use super::group::Group;
use super::metric::{Latency, Metric, Quantile};
use super::reasons;
use super::tagged::{Of, count, tagged};
use crate::interval::{Interval, within_run};

/// A page about one configuration has one group.
const MEAN: Of = Of::Mean(1);
const SUM: Of = Of::Sum(1);

/// What came out, in words, and whether to believe it.
pub fn verdict(group: &Group) -> Markup {
    let run = &group.runs[0];
    let (counted, excluded) = (group.counted(), group.excluded().count());
    let warned = counted.iter().any(|run| run.verdict == "warning");
    let (word, class) = match (group.is_valid(), warned || excluded > 0) {
        (true, false) => ("valid", "good"),
        (true, true) => ("valid, with warnings", "fair"),
        (false, _) => ("not valid", "bad"),
    };
    let [failed, measured] = [|r: &&Run| r.requests.failed, |r: &&Run| r.requests.measured]
        .map(|of| counted.iter().map(of).sum::<u64>());
    let value = |metric: Metric| {
        let (value, _) = group.summary(metric)?;
        Some(metric.tagged(MEAN, value))
    };
    let rate = value(Metric::OutputTokens);
    let ttft = value(Metric::Latency(Latency::Ttft, Quantile::P50));
    html! {
        section class={ "verdict " (class) } {
            p class="headline" {
                (run.target.model) " gave " strong { @if let Some(rate) = rate { (rate) } }
                " to " (run.load.arrival.words())
                @if let Some(ttft) = ttft { "; half of the first tokens came within " strong { (ttft) } }
                "."
            }
            p {
                (count(SUM, "requests.succeeded", measured - failed)) " of " (count(SUM, "requests.measured", measured)) " requests succeeded. The measurement is " strong { (word) }
                @if group.runs.len() > 1 { ": " (counted.len()) " of " (group.runs.len()) " runs count" }
                @else { ": one run, which says nothing about the next one (" code { "--repeats 5" } " does)" }
                "."
            }
            (reasons::of_group(group))
        }
    }
}

pub fn tiles(group: &Group) -> Markup {
    let groups = std::slice::from_ref(group);
    let latencies = [Latency::Ttft, Latency::Tpot, Latency::E2e];
    html! {
        section class="tiles" {
            (tile(group, Metric::OutputTokens, None))
            @if group.runs[0].goodput.is_some() { (tile(group, Metric::Goodput, None)) }
            @for latency in latencies {
                (tile(group, Metric::Latency(latency, Quantile::P50), Some(latency.highest(groups))))
            }
        }
    }
}

/// A metric with its interval, and one of its tail.
fn tile(group: &Group, metric: Metric, tail: Option<Metric>) -> Markup {
    let words = |metric: Metric| match group.summary(metric) {
        Some((value, _)) => metric.tagged(MEAN, value),
        None => html! { "–" },
    };
    let interval = match group.summary(metric) {
        Some((_, Some(interval))) => html! {
            (metric.tagged_ends(1, interval)) ", 95 % over " (group.counted().len()) " runs (t)"
        },
        _ => match median_within(group, metric) {
            Some(interval) => {
                html! { (ends(metric, interval)) ", 95 % within this run only (bootstrap of blocks)" }
            }
            None => html! { "one run, no interval" },
        },
    };
    html! {
        div class="tile" {
            p class="name" { (metric.name()) }
            p class="value" { (words(metric)) }
            p class="note" { (interval) }
            @if let (Metric::Goodput, [run]) = (metric, &group.runs[..]) { p class="note" { (kept(run)) } }
            @if let Some(tail) = tail.filter(|tail| *tail != metric) {
                p class="note" { (tail.name()) ": " (words(tail)) }
            }
        }
    }
}

/// The share of the requests that kept the limits.
fn kept(run: &Run) -> Markup {
    let Some(goodput) = &run.goodput else {
        return html! {};
    };
    let share = &goodput.attainment;
    let percent = |key: &str, share: f64| {
        let key = format!("goodput.attainment.{key}");
        tagged(MEAN, &key, share, &format!("{:.1} %", share * 100.0))
    };
    html! {
        "limits kept by " @match share.value { Some(value) => (percent("value", value)), None => "–" }
        " (" (percent("low", share.low)) " to " (percent("high", share.high)) ", Wilson)"
    }
}

/// The interval of a median as far as one run knows it.
fn median_within(group: &Group, metric: Metric) -> Option<Interval> {
    let (Metric::Latency(latency, Quantile::P50), [run]) = (metric, &group.runs[..]) else {
        return None;
    };
    let value = |s: &Sample| match latency {
        Latency::Ttft => s.ttft,
        Latency::Tpot => s.tpot,
        Latency::E2e => s.e2e,
    };
    let moments = run.samples.iter().filter_map(|s| Some((s.t, value(s)?)));
    let moments: Vec<(f64, f64)> = moments.collect();
    let answer = run.latency.e2e.p95.or(run.latency.e2e.max)?;
    within_run(&moments, run.window.seconds, answer, 0.5)
}
