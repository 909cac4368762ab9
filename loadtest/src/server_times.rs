//! What the server's own histograms say of times over a run: how its first tokens and the gaps between
//! tokens are spread, and where the time of an answer went.

use serde::{Deserialize, Serialize};

use crate::clock::seconds;
use crate::metric_map::{Names, ServerKind};
use crate::record::RequestRecord;
use crate::scrape::Delta;

/// A histogram's growth over a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Buckets {
    /// Upper edges in seconds, rising; above the last one there is one more bucket.
    pub edges: Vec<f64>,
    /// Observations in each bucket, that above the last edge included.
    pub counts: Vec<u64>,
}

/// Where the time of a mean answer went, in seconds. The server's parts begin when it had read the request's
/// head; what its end-to-end time has beyond them is not explained by them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Stages {
    /// Answers on both sides.
    pub answers: u64,
    /// By the client, from the planned start to the first byte sent.
    pub send_lag: f64,
    /// By the client, from the first byte sent to the last token.
    pub sent_to_last: f64,
    /// By the server, from the request's head to the last token.
    pub server: f64,
    /// Of that, before the first step.
    pub queue: f64,
    /// Of that, from there to the first token.
    pub prefill: f64,
    /// Of that, from there to the last token.
    pub decode: f64,
}

/// The server's histograms over a run, warm-up included; none where it has none.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ServerTimes {
    /// Time to the first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft: Option<Buckets>,
    /// Time between tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub itl: Option<Buckets>,
    /// The parts of an answer's time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stages: Option<Stages>,
}

impl ServerTimes {
    /// Whether the server has none of it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads what grew while `records` came about.
    pub fn new(kind: ServerKind, delta: &Delta<'_>, records: &[RequestRecord]) -> Self {
        let map = kind.map();
        Self {
            ttft: first(map.ttft, |name| Buckets::of(delta, name)),
            itl: first(map.itl, |name| Buckets::of(delta, name)),
            stages: Stages::new(kind, delta, records),
        }
    }
}

impl Buckets {
    fn of(delta: &Delta<'_>, name: &str) -> Option<Self> {
        let cumulative = delta.cumulative(name)?;
        let mut before = 0.0;
        let counts = cumulative.iter().map(|(_, count)| {
            let own = count - before;
            before = *count;
            own.max(0.0).round() as u64
        });
        let counts: Vec<u64> = counts.collect();
        let edges = cumulative.iter().map(|(edge, _)| *edge);
        let edges: Vec<f64> = edges.filter(|edge| edge.is_finite()).collect();
        (counts.len() == edges.len() + 1 && counts.iter().any(|n| *n > 0))
            .then_some(Self { edges, counts })
    }
}

impl Stages {
    /// None unless both sides saw the same answers: means of different ones have no difference.
    fn new(kind: ServerKind, delta: &Delta<'_>, records: &[RequestRecord]) -> Option<Self> {
        let map = kind.map();
        let mean = |names: Names| first(names, |name| delta.mean(name));
        let counted = first(map.e2e, |name| delta.count(name))?;
        let (mut answers, mut send_lag, mut sent_to_last) = (0u32, 0.0, 0.0);
        for record in records.iter().filter(|r| r.outcome.is_success()) {
            let Some(sent) = record.t_send else {
                continue;
            };
            // An answer without anything to read is known when it ends.
            let last = record.stream.t_last.unwrap_or(record.t_end);
            answers += 1;
            send_lag += seconds(record.send_lag()?);
            sent_to_last += seconds(last.saturating_sub(sent));
        }
        let is_the_same = answers > 0 && counted == f64::from(answers);
        let n = f64::from(answers);
        is_the_same.then_some(Self {
            answers: answers.into(),
            send_lag: send_lag / n,
            sent_to_last: sent_to_last / n,
            server: mean(map.e2e)?,
            queue: mean(map.queue_time)?,
            prefill: mean(map.prefill_time)?,
            decode: mean(map.decode_time)?,
        })
    }

    /// What the client waited beyond the server's own time: connection, network, and reading.
    pub fn transport(&self) -> f64 {
        self.sent_to_last - self.server
    }

    /// What no part of the server's time explains, such as reading and tokenising the request.
    pub fn unexplained(&self) -> f64 {
        self.server - self.queue - self.prefill - self.decode
    }
}

fn first<T>(names: Names, of: impl Fn(&str) -> Option<T>) -> Option<T> {
    names.iter().find_map(|name| of(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Outcome;
    use crate::record::tests::{failure, success};
    use crate::scrape::{Snapshot, names};

    /// A histogram whose buckets below 0.1, below 0.5 and above have these many.
    fn histogram(name: &str, counts: [u32; 3], sum: f64) -> String {
        let [a, b, c] = counts;
        format!(
            "{name}_bucket{{le=\"0.5\"}} {}\n{name}_bucket{{le=\"0.1\"}} {a}\n\
             {name}_bucket{{le=\"+Inf\"}} {total}\n{name}_count {total}\n{name}_sum {sum}\n",
            a + b,
            total = a + b + c
        )
    }

    fn times(before: &str, after: &str, records: &[RequestRecord]) -> ServerTimes {
        let [before, after] = [before, after].map(|text| Snapshot::parse(text).unwrap());
        let delta = Delta {
            before: &before,
            after: &after,
        };
        ServerTimes::new(ServerKind::Octet, &delta, records)
    }

    #[test]
    fn buckets_are_what_grew() {
        let before = histogram(names::TTFT, [5, 0, 1], 9.0);
        let after = histogram(names::TTFT, [7, 1, 4], 9.0);
        let found = times(&before, &after, &[]).ttft.unwrap();
        let grown = Buckets {
            edges: vec![0.1, 0.5],
            counts: vec![2, 1, 3],
        };
        assert_eq!(found, grown);
        assert_eq!(times(&after, &after, &[]).ttft, None, "nothing grew");
        assert_eq!(times("x 1\n", "x 2\n", &[]), ServerTimes::default());
    }

    #[test]
    fn the_parts_of_an_answer_add_up_to_what_the_client_waited() {
        let parts = |n: u32| {
            let map = ServerKind::Octet.map();
            let sums = [
                (map.e2e, 0.9),
                (map.queue_time, 0.1),
                (map.prefill_time, 0.2),
                (map.decode_time, 0.5),
            ];
            let text =
                sums.map(|(names, mean)| histogram(names[0], [n, 0, 0], mean * f64::from(n)));
            text.concat()
        };
        let mut records = vec![
            success(0, 0, 7, 3),
            success(1, 50, 7, 3),
            failure(2, 60, 500, Outcome::Http5xx),
        ];
        for record in &mut records[..2] {
            record.stream.t_last = Some(record.t_send.unwrap() + 1_000_000_000);
        }
        let found = times(&parts(0), &parts(2), &records).stages.unwrap();
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} is not {b}");
        close(found.transport(), 0.1);
        close(found.unexplained(), 0.1);
        let known = found.queue + found.prefill + found.decode;
        let all = known + found.transport() + found.unexplained();
        close(all, found.sent_to_last);
        // Three answers of the server are not the two of the client.
        assert_eq!(times(&parts(0), &parts(3), &records).stages, None);
        assert_eq!(times(&parts(0), &parts(0), &[]).stages, None);
    }
}
