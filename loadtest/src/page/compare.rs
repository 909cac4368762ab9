//! Configurations against the first: who was faster, by how much, and whether to believe it.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::data::Run;
use super::facts;
use super::group::Group;
use super::metric::Metric;
use super::ratio::{self, Bar};
use super::reasons;
use super::tagged::Of;
use crate::contrast::{Contrast, Finding, MIN_PAIRS, MIN_RUNS, holm, paired, unpaired};
use crate::interval::Interval;

/// How the runs of two sides belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Design {
    /// Made by turns.
    Pairs(usize),
    /// Only the same load.
    Apart(usize, usize),
}

/// One side against the first: its headline metrics as speeds, so that above one is faster.
struct Duel<'a> {
    first: &'a Group,
    second: &'a Group,
    /// Which group of the page the second is, counted from one.
    number: usize,
    design: Design,
    found: Vec<(Metric, Option<Contrast>)>,
    /// Why the two did not do the same work.
    obstacles: Vec<String>,
}

impl<'a> Duel<'a> {
    /// All sides against the first.
    fn all(groups: &'a [Group], metrics: &[Metric]) -> Vec<Self> {
        let others = (2..).zip(&groups[1..]);
        others
            .map(|(number, second)| Self::new(&groups[0], second, number, metrics))
            .collect()
    }

    fn new(first: &'a Group, second: &'a Group, number: usize, metrics: &[Metric]) -> Self {
        let pairs = pairs(first, second);
        let mut found: Vec<(Metric, Option<Contrast>)> = metrics
            .iter()
            .map(|metric| (*metric, speed(*metric, first, second, &pairs)))
            .collect();
        let mut ps: Vec<Option<f64>> = found.iter().map(|(_, c)| c.and_then(|c| c.p)).collect();
        holm(&mut ps);
        for ((_, contrast), p) in found.iter_mut().zip(ps) {
            if let Some(contrast) = contrast {
                contrast.p = p;
            }
        }
        let design = match &pairs {
            Some(pairs) => Design::Pairs(pairs.len()),
            None => Design::Apart(first.counted().len(), second.counted().len()),
        };
        let obstacles = obstacles(first, second);
        Self {
            first,
            second,
            number,
            design,
            found,
            obstacles,
        }
    }

    fn counted(&self) -> impl Iterator<Item = &Run> {
        [self.first, self.second]
            .into_iter()
            .flat_map(Group::counted)
    }

    fn warned(&self) -> usize {
        self.counted()
            .filter(|run| run.verdict == "warning")
            .count()
    }

    fn main(&self) -> Option<Contrast> {
        self.found[0].1
    }

    fn finding(&self) -> Finding {
        self.main()
            .map_or(Finding::TooFew, |contrast| contrast.finding)
    }
}

/// Valid runs of both sides with one number in one series.
fn pairs<'a>(first: &'a Group, second: &'a Group) -> Option<Vec<(&'a Run, &'a Run)>> {
    let (first, second) = (first.counted(), second.counted());
    let partner = |run: &'a Run| {
        let other = second.iter().find(|other| run.is_pair_of(other))?;
        Some((run, *other))
    };
    let pairs: Vec<_> = first.into_iter().filter_map(partner).collect();
    (!pairs.is_empty()).then_some(pairs)
}

fn speed(
    metric: Metric,
    first: &Group,
    second: &Group,
    pairs: &Option<Vec<(&Run, &Run)>>,
) -> Option<Contrast> {
    let (slow, fast) = match pairs {
        Some(pairs) => {
            let values = pairs
                .iter()
                .map(|(a, b)| Some((metric.of(a)?, metric.of(b)?)));
            values.collect::<Option<Vec<_>>>()?.into_iter().unzip()
        }
        None => (first.values(metric)?, second.values(metric)?),
    };
    let compare = if pairs.is_some() { paired } else { unpaired };
    if metric.is_rate() {
        compare(&slow, &fast)
    } else {
        compare(&fast, &slow)
    }
}

fn obstacles(first: &Group, second: &Group) -> Vec<String> {
    let mut found = Vec::new();
    for group in [first, second] {
        if !group.is_valid() {
            found.push(format!("no run of {} is valid", group.name));
        }
    }
    let digests = |group: &Group| -> BTreeSet<String> {
        let counted = group.counted();
        counted
            .iter()
            .map(|run| run.load.workload_sha256.clone())
            .collect()
    };
    let (one, other) = (digests(first), digests(second));
    if one.is_disjoint(&other) {
        found.push("they were not asked the same (the digests of their requests differ)".into());
    }
    if first.runs[0].load.arrival != second.runs[0].load.arrival {
        found.push("their requests did not arrive in the same way".into());
    }
    if !facts::is_one_machine(&first.runs[0], &second.runs[0]) {
        found.push("they ran on different machines".into());
    }
    found
}

/// The same as lines of text.
pub fn summary(groups: &[Group]) -> String {
    let metrics = Metric::headlines(groups);
    let mut lines = Vec::new();
    for duel in Duel::all(groups, &metrics) {
        lines.push(format!(
            "{} against {}, times as fast:",
            duel.second.name, duel.first.name
        ));
        lines.extend(
            duel.obstacles
                .iter()
                .map(|obstacle| format!("  not comparable: {obstacle}")),
        );
        for (metric, contrast) in &duel.found {
            let Some(contrast) = contrast else { continue };
            let range = contrast.interval.map_or_else(String::new, |i| {
                format!("{} to {}", times(i.low), times(i.high))
            });
            let (ratio, found) = (times(contrast.ratio), word(contrast.finding));
            lines.push(format!(
                "  {:<26}{ratio:>8}  {range:<16}{found}",
                metric.name()
            ));
        }
    }
    lines.join("\n")
}

/// The top of the page.
pub fn verdicts(groups: &[Group]) -> Markup {
    let metrics = Metric::headlines(groups);
    html! { @for duel in &Duel::all(groups, &metrics) { (verdict(duel)) (bars(duel)) } }
}

/// The top of the page without its picture.
pub fn finding(groups: &[Group]) -> Markup {
    let metrics = Metric::headlines(groups);
    html! { @for duel in &Duel::all(groups, &metrics) { (verdict(duel)) } }
}

fn verdict(duel: &Duel) -> Markup {
    let (a, b) = (&duel.first.name, &duel.second.name);
    let class = match duel.finding() {
        _ if !duel.obstacles.is_empty() => "bad",
        _ if duel.warned() > 0 => "fair",
        Finding::Different | Finding::Same => "good",
        Finding::NotShown | Finding::TooFew => "fair",
    };
    html! {
        section class={ "verdict " (class) } {
            p class="headline" {
                @if duel.obstacles.is_empty() { (sentence(duel)) }
                @else { strong { "Not comparable: " (a) " and " (b) } }
            }
            @for obstacle in &duel.obstacles { p { (obstacle) "." } }
            p { (believe(duel)) }
            (reasons::of_all(&[duel.first, duel.second]))
        }
    }
}

/// Who was faster, by how much.
fn sentence(duel: &Duel) -> Markup {
    let (a, b) = (&duel.first.name, &duel.second.name);
    let metric = duel.found[0].0;
    let Some(contrast) = duel.main() else {
        return html! { strong { "Nothing to compare" } ": a run has no " (metric.name().to_lowercase()) "." };
    };
    let what = if metric == Metric::OutputTokens {
        "output tokens per second"
    } else {
        "the speed of answers"
    };
    let size = html! { (times(contrast.ratio)) " times the " (what.trim_start_matches("the ")) (range(contrast.interval)) };
    match contrast.finding {
        Finding::Different if contrast.ratio > 1.0 => {
            html! { strong { (b) " is faster than " (a) } ": " (size) "." }
        }
        Finding::Different => html! { strong { (b) " is slower than " (a) } ": " (size) "." },
        Finding::Same => {
            html! { strong { (a) " and " (b) " are equally fast within 3 %" } ": " (size) "." }
        }
        Finding::NotShown => {
            html! { strong { "No difference is shown between " (a) " and " (b) } ": " (b) " had " (size) ", so it may be faster or slower." }
        }
        Finding::TooFew => {
            html! { strong { "Too few runs to tell " (a) " from " (b) } ": " (b) " had " (size) ", which may be chance." }
        }
    }
}

/// Whether to believe it.
fn believe(duel: &Duel) -> Markup {
    let (warned, counted) = (duel.warned(), duel.counted().count());
    let runs = duel.first.runs.iter().chain(&duel.second.runs);
    let failed: u64 = runs.map(|run| run.requests.failed).sum();
    let failed = usize::try_from(failed).unwrap_or(usize::MAX);
    let excluded = duel.first.excluded().count() + duel.second.excluded().count();
    let basis = match duel.design {
        Design::Pairs(1) => "one pair of runs".to_owned(),
        Design::Pairs(n) => format!("{n} pairs of runs made by turns"),
        Design::Apart(1, 1) => "one run of each".to_owned(),
        Design::Apart(n, m) => format!("{n} and {m} runs, not made by turns"),
    };
    html! {
        "From " strong { (basis) } @match warned {
            0 => " with no warnings.",
            _ if warned == counted => { ", " strong { "all with warnings" } "." },
            _ => { ", " strong { (warned) " of " (counted) " runs with warnings" } "." },
        }
        @if failed > 0 { " " strong { (plural(failed, "request")) " failed" } "." }
        @if excluded > 0 { " " (plural(excluded, "invalid run")) " left out." }
        @if duel.finding() == Finding::TooFew && duel.obstacles.is_empty() {
            " A comparison takes " (MIN_PAIRS) " pairs made by turns (" code { "loadtest compare" } "), or "
            (MIN_RUNS) " runs of each (" code { "--repeats 5" } ")."
        }
    }
}

fn bars(duel: &Duel) -> Markup {
    let bars = duel.found.iter().filter_map(|(metric, contrast)| {
        let contrast = (*contrast)?;
        let sides = [(duel.first, 1), (duel.second, duel.number)];
        let values = sides.map(|(group, number)| match group.summary(*metric) {
            Some((value, _)) => metric.tagged(Of::Mean(number), value),
            None => html! { "–" },
        });
        Some(Bar {
            name: metric.name(),
            values,
            contrast,
        })
    });
    let bars: Vec<Bar> = bars.collect();
    let lowest = match duel.design {
        Design::Pairs(n) if n < 20 => Some(2.0 / f64::from(1u32 << n)),
        _ => None,
    };
    html! {
        (ratio::draw(&duel.first.name, &duel.second.name, &bars))
        details {
            summary { "The numbers, and what p says" }
            div class="wide" tabindex="0" { table {
                thead { tr { th {} th { (duel.first.name) } th { (duel.second.name) } th { "times as fast" } th { "95 % interval" } th { "finding" } th { "p" } } }
                tbody { @for bar in &bars { tr {
                    th { (bar.name) } td { (bar.values[0]) } td { (bar.values[1]) }
                    td { (times(bar.contrast.ratio)) }
                    td { @match bar.contrast.interval { Some(i) => { (times(i.low)) " to " (times(i.high)) } None => "–" } }
                    td { (word(bar.contrast.finding)) }
                    td { @match bar.contrast.p { Some(p) => (format!("{p:.3}")) , None => "–" } }
                } } }
            } }
            p class="note" {
                "Means over runs; ratios are geometric means. The interval decides: it leaves out 1 (different), lies within 3 % of it "
                "(the same) or neither (not shown). p comes from the exact permutation of signs (pairs) or sides, adjusted for four metrics "
                "by Holm's method."
                @if let Some(p) = lowest { " With so few pairs the least that the first of four can reach is " (format!("{:.3}", (4.0 * p).min(1.0))) "." }
            }
        }
    }
}

/// A finding in one word or two.
pub fn word(finding: Finding) -> &'static str {
    match finding {
        Finding::Different => "different",
        Finding::Same => "same within 3 %",
        Finding::NotShown => "not shown",
        Finding::TooFew => "too few runs",
    }
}

fn plural(n: usize, what: &str) -> String {
    match n {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        _ => format!("{n} {what}s"),
    }
}

fn range(interval: Option<Interval>) -> Markup {
    html! { @if let Some(i) = interval { " (95 % interval " (times(i.low)) " to " (times(i.high)) ")" } }
}

/// A ratio with as many digits as it is worth.
pub fn times(ratio: f64) -> String {
    match ratio {
        100.0.. => format!("{ratio:.0}"),
        10.0.. => format!("{ratio:.1}"),
        _ => format!("{ratio:.2}"),
    }
}

/// What the configurations have in common and what they do not.
pub fn differences(groups: &[Group]) -> Markup {
    let rows = facts::table(groups);
    let (same, different): (Vec<_>, Vec<_>) = rows
        .iter()
        .partition(|(_, values)| values.windows(2).all(|v| v[0] == v[1]));
    let (partial, different): (Vec<_>, Vec<_>) = different
        .into_iter()
        .partition(|(_, values)| values.iter().any(|value| value == "–"));
    let several = |rows: &[&(String, Vec<String>)]| {
        html! {
            div class="wide" tabindex="0" { table class="facts" {
                thead { tr { th {} @for group in groups { th { (group.name) } } } }
                tbody { @for (name, values) in rows { tr { th { (name) } @for value in values { td { (value) } } } } }
            } }
        }
    };
    html! {
        section {
            h2 { "What differs between them" }
            @if different.is_empty() { p { "Nothing that is known." } }
            @else { (several(&different)) }
            @if !partial.is_empty() { details { summary { "What only some of them say" } (several(&partial)) } }
            details {
                summary { "What is the same" }
                div class="wide" tabindex="0" { table class="facts" { tbody { @for (name, values) in &same { tr { th { (name) } td { (values[0]) } } } } } }
            }
        }
    }
}
