//! What becomes of a cell at higher rates: the probes of its searches, and its open loops of one rate.

use super::super::data::Run;
use super::super::group::Group;
use super::super::metric::{Latency, Metric, Quantile};
use super::super::rates::{Ladder, Tried};
use super::Row;
use crate::interval;
use crate::search::Over;

/// The rates of some cells, and the limit of their first token if it is the same in all.
pub fn all(rows: &[&Row]) -> (Vec<Ladder>, Option<f64>) {
    let (mut ladders, mut limits) = (Vec::new(), Vec::new());
    for row in rows {
        for (ladder, limit) in of_cell(row) {
            ladders.push(ladder);
            limits.push(limit);
        }
    }
    limits.dedup();
    let limit = match limits[..] {
        [limit] => limit,
        _ => None,
    };
    (ladders, limit)
}

/// A ladder for each search; open loops under the same limit are further rungs of the first, others a ladder of
/// their own.
fn of_cell(row: &Row) -> Vec<(Ladder, Option<f64>)> {
    let side = &row.cell.sides[0];
    let name = format!("{} on {}", side.precision, side.server);
    let searches = row.searches.iter().filter(|s| s.over == Over::Rate);
    let mut ladders: Vec<(Ladder, Option<f64>)> = searches
        .map(|search| {
            let ladder = Ladder {
                name: name.clone(),
                ..search.ladder()
            };
            (ladder, search.ttft_limit())
        })
        .collect();
    for (tried, limit) in row.loads.iter().filter_map(open_loop) {
        match ladders.iter_mut().find(|(_, other)| *other == limit) {
            Some((ladder, _)) => ladder.tried.push(tried),
            None => {
                let ladder = Ladder {
                    name: name.clone(),
                    over: Over::Rate,
                    tried: vec![tried],
                };
                ladders.push((ladder, limit));
            }
        }
    }
    for (ladder, _) in &mut ladders {
        ladder.tried.sort_by(|a, b| a.level.total_cmp(&b.level));
    }
    ladders
}

/// The means over the runs of an open loop of one rate with limits, and the limit of its first token.
fn open_loop(group: &Group) -> Option<(Tried, Option<f64>)> {
    let rate = group.runs[0].load.arrival.rate()?;
    let mean = |metric: Metric| group.summary(metric).map(|(value, _)| value);
    let counted = group.counted();
    let over = |of: &dyn Fn(&Run) -> Option<f64>| {
        let values: Option<Vec<f64>> = counted.iter().map(|run| of(run)).collect();
        values.map(|values| interval::mean(&values))
    };
    let tried = Tried {
        level: over(&|run| run.rates.offered_requests).unwrap_or(rate),
        completed: mean(Metric::CompletedRequests)?,
        good: mean(Metric::Goodput)?,
        ttft_p50: mean(Metric::Latency(Latency::Ttft, Quantile::P50)),
        ttft_p99: mean(Metric::Latency(Latency::Ttft, Quantile::P99)),
        cost: over(&|run| Some(run.cost.as_ref()?.uses.first()?.per_million_output_tokens)),
    };
    let slo = group.runs[0].goodput.as_ref()?.slo.as_ref();
    group
        .is_valid()
        .then(|| (tried, slo.and_then(|slo| slo.ttft_seconds)))
}
