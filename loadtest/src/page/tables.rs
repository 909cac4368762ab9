//! Numbers of configurations beside each other, and of their runs one by one.

use maud::{Markup, html};

use super::group::Group;
use super::metric::{Latency, Metric, Quantile};
use super::tagged::{Of, count};

/// The numbers of all groups in one table.
pub fn side_by_side(groups: &[Group]) -> Markup {
    let mut metrics = vec![
        Metric::OutputTokens,
        Metric::OfferedRequests,
        Metric::CompletedRequests,
    ];
    if groups.iter().any(|group| group.runs[0].goodput.is_some()) {
        metrics.push(Metric::Goodput);
    }
    for latency in [Latency::Ttft, Latency::Tpot, Latency::E2e] {
        for quantile in [Quantile::P50, Quantile::P95, Quantile::P99] {
            metrics.push(Metric::Latency(latency, quantile));
        }
    }
    let all = metrics.len();
    metrics.retain(|metric| is_known(groups, *metric));
    let failed = |group: &Group| -> u64 { group.runs.iter().map(|r| r.requests.failed).sum() };
    html! {
        section {
            h2 { "Side by side" }
            div class="wide" tabindex="0" { table {
                thead { tr { th {} @for group in groups { th { (group.name) } } } }
                tbody {
                    @for metric in &metrics {
                        tr { th { (metric.name()) } @for (i, group) in groups.iter().enumerate() { td { (cell(group, Of::Mean(i + 1), *metric)) } } }
                    }
                    tr { th { "Failed requests" } @for (i, group) in groups.iter().enumerate() { td { (count(Of::Total(i + 1), "requests.failed", failed(group))) } } }
                    tr { th { "Runs counted" } @for group in groups { td { (group.counted().len()) " of " (group.runs.len()) } } }
                }
            } }
            p class="note" {
                "± is half of the 95 % interval (t) of the mean over runs."
                @if metrics.len() < all { " Percentiles that no side's samples can bound are left out." }
            }
        }
    }
}

fn is_known(groups: &[Group], metric: Metric) -> bool {
    groups.iter().any(|group| group.summary(metric).is_some())
}

fn cell(group: &Group, of: Of, metric: Metric) -> Markup {
    match group.summary(metric) {
        None => html! { "–" },
        Some((value, None)) => metric.tagged(of, value),
        Some((value, Some(i))) => metric.tagged_plus_minus(of, value, value - i.low),
    }
}

/// The runs of the group of this number one by one: no mean hides the worst of them.
pub fn run_table(number: usize, group: &Group) -> Markup {
    let mut metrics = vec![
        Metric::OutputTokens,
        Metric::Latency(Latency::Ttft, Quantile::P50),
        Metric::Latency(Latency::Ttft, Quantile::P99),
        Metric::Latency(Latency::Tpot, Quantile::P50),
        Metric::Latency(Latency::E2e, Quantile::P50),
    ];
    metrics.retain(|metric| group.runs.iter().any(|run| metric.of(run).is_some()));
    let counted = group.counted();
    let slowest = counted
        .iter()
        .min_by(|a, b| a.rates.output_tokens.total_cmp(&b.rates.output_tokens));
    html! {
        section {
            h2 { "Run by run: " (group.name) }
            div class="wide" tabindex="0" { table {
                thead { tr { th { "run" } th { "seed" } @for metric in &metrics { th { (metric.name()) } } th { "failed" } th { "verdict" } } }
                tbody { @for (i, run) in group.runs.iter().enumerate() {
                    @let of = Of::Run(number, i + 1);
                    tr class=(if run.is_valid() { "" } else { "fail" }) {
                        th {
                            @match &run.link { Some(link) => a href=(link) { "run " (i + 1) }, None => { "run " (i + 1) } }
                            @if slowest.is_some_and(|slowest| std::ptr::eq(*slowest, run)) { " (least output)" }
                        }
                        td { (count(of, "load.seed", run.load.seed)) }
                        @for metric in &metrics { td { @match metric.of(run) { Some(value) => (metric.tagged(of, value)), None => "–" } } }
                        td { (count(of, "requests.failed", run.requests.failed)) }
                        @if run.is_valid() { td { (run.verdict) } }
                        @else { td class="why" { (run.verdict) ", left out: " (run.reasons.join("; ")) } }
                    }
                } }
            } }
        }
    }
}
