//! Whether a run was in a steady state: a server that is asked for more than it can do falls behind, and
//! its latencies then state how long it was measured, not how fast it is.

use crate::clock::{Nanos, seconds};
use crate::interval::t_p975;
use crate::record::{Phase, RequestRecord};

/// Equal parts of the window.
const BLOCKS: usize = 10;

/// Growth over the window, as a share of the mean, below which nobody cares.
const SMALLEST_GROWTH: f64 = 0.1;
/// Fewer requests than this say nothing about the parts of a window.
const MIN_REQUESTS: usize = 100;

/// What grew over the window `[start, end)` beyond doubt; nothing when the sample is too small to say.
/// `in_flight` gives the mean number of requests in flight in a part of the window.
pub fn growing(
    records: &[RequestRecord],
    window: (Nanos, Nanos),
    in_flight: impl Fn((Nanos, Nanos)) -> f64,
) -> Vec<&'static str> {
    growing_by(records, window, RequestRecord::ttft, in_flight)
}

/// The same where `ttft` says what the time to the first token of a request is.
pub fn growing_by(
    records: &[RequestRecord],
    (start, end): (Nanos, Nanos),
    ttft: impl Fn(&RequestRecord) -> Option<Nanos>,
    in_flight: impl Fn((Nanos, Nanos)) -> f64,
) -> Vec<&'static str> {
    let measured = || records.iter().filter(|r| r.phase == Phase::Measured);
    if measured().count() < MIN_REQUESTS || end - start < BLOCKS as Nanos {
        return Vec::new();
    }
    let border = |block: usize| start + (end - start) / BLOCKS as Nanos * block as Nanos;
    let busy: [f64; BLOCKS] = std::array::from_fn(|i| in_flight((border(i), border(i + 1))));
    let ttft = measured().filter_map(|r| Some((r.t_plan, seconds(ttft(r)?))));
    let mut found = Vec::new();
    if grows(&busy) {
        found.push("requests in flight");
    }
    if blocks(ttft, (start, border(BLOCKS)))
        .as_ref()
        .is_some_and(grows)
    {
        found.push("time to first token");
    }
    found
}

/// Whether, in a window that is still open, both the requests in flight and the time to the first token have grown.
/// `in_flight` are looks at the former; `records` are those that have ended. The latter is looked at up to the
/// latest start of them: later ones have not had the time to be slow.
pub fn is_overloaded(
    in_flight: &[(Nanos, f64)],
    records: &[RequestRecord],
    (start, now): (Nanos, Nanos),
) -> bool {
    let measured = || records.iter().filter(|r| r.phase == Phase::Measured);
    let latest = measured().map(|r| r.t_plan + 1).max().unwrap_or(start);
    if measured().count() < MIN_REQUESTS {
        return false;
    }
    let first_tokens = measured().filter_map(|r| Some((r.t_plan, seconds(r.ttft()?))));
    let busy = blocks(in_flight.iter().copied(), (start, now));
    let ttft = blocks(first_tokens, (start, latest));
    [busy, ttft]
        .iter()
        .all(|blocks| blocks.as_ref().is_some_and(grows))
}

/// Means of values in equal parts of a stretch of time; none where one of them has no value.
fn blocks(
    values: impl Iterator<Item = (Nanos, f64)>,
    (start, end): (Nanos, Nanos),
) -> Option<[f64; BLOCKS]> {
    let length = (end.saturating_sub(start) / BLOCKS as Nanos).max(1);
    let mut sums = [(0u32, 0.0); BLOCKS];
    for (at, value) in values.filter(|(at, _)| (start..end).contains(at)) {
        let block = ((at - start) / length).min(BLOCKS as Nanos - 1);
        let (n, sum) = &mut sums[block as usize];
        (*n, *sum) = (*n + 1, *sum + value);
    }
    let all = sums.iter().all(|(n, _)| *n > 0);
    all.then(|| sums.map(|(n, sum)| sum / f64::from(n)))
}

/// Whether the slope of a least-squares line is above zero with its whole 95 % interval, and the line
/// climbs by more than a tenth of the mean.
fn grows(blocks: &[f64; BLOCKS]) -> bool {
    let n = BLOCKS as f64;
    let mid = (n - 1.0) / 2.0;
    let level = blocks.iter().sum::<f64>() / n;
    let points = || (0..BLOCKS).map(|i| (i as f64 - mid, blocks[i] - level));
    let spread: f64 = points().map(|(x, _)| x * x).sum();
    let slope = points().map(|(x, y)| x * y).sum::<f64>() / spread;
    let rest: f64 = points().map(|(x, y)| (y - slope * x).powi(2)).sum();
    let error = (rest / (n - 2.0) / spread).sqrt();
    slope - t_p975(n - 2.0) * error > 0.0 && slope * (n - 1.0) > SMALLEST_GROWTH * level
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::success;

    #[test]
    fn a_line_grows_and_noise_does_not() {
        let blocks = |f: fn(usize) -> f64| grows(&std::array::from_fn(f));
        assert!(blocks(|i| 1.0 + i as f64));
        assert!(!blocks(|i| 20.0 - i as f64));
        assert!(!blocks(|_| 3.0));
        assert!(
            !blocks(|i| 100.0 + 0.5 * i as f64),
            "growth nobody cares for"
        );
        assert!(!blocks(|i| [
            5.0, 9.0, 4.0, 8.0, 6.0, 5.0, 9.0, 5.0, 8.0, 7.0
        ][i]));
    }

    /// A zigzag of height h on a slope of 1 leaves a slope of 1 - 0.0606 h with a standard error of
    /// 0.1212 h, computed by hand.
    #[test]
    fn the_interval_decides() {
        let zigzag = |h: f64| {
            grows(&std::array::from_fn(|i| {
                i as f64 + if i % 2 == 0 { h } else { -h }
            }))
        };
        assert!(zigzag(2.0));
        assert!(!zigzag(4.0));
    }

    #[test]
    fn a_backlog_is_named() {
        let end = 1_000_000;
        let mut records: Vec<_> = (0..200).map(|i| success(i, i * 5000, 7, 2)).collect();
        let flat = |_| 4.0;
        assert!(growing(&records, (0, end), flat).is_empty());
        for record in &mut records {
            record.stream.t_first = Some(record.t_plan + record.t_plan / 2 + 1);
        }
        assert_eq!(growing(&records, (0, end), flat), ["time to first token"]);
        let climbing = |(from, _): (Nanos, Nanos)| from as f64;
        let both = ["requests in flight", "time to first token"];
        assert_eq!(growing(&records, (0, end), climbing), both);
        records.truncate(99);
        assert!(growing(&records, (0, end), climbing).is_empty(), "too few");
    }
}
