//! The client's counts against the server's. A check passes, fails, or says that it is not
//! possible; a check without data never passes. An exact check that fails makes the run invalid,
//! a soft one warns.

mod peers;

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

use crate::clock::seconds;
use crate::outcome::Outcome;
use crate::record::{Reach, RequestRecord};
use crate::scrape::{Delta, names};
use crate::workload::Api;

/// How far apart client and server may be about the requests in flight: this share of them, or one.
const IN_FLIGHT_SHARE: f64 = 0.05;
const IN_FLIGHT_FLOOR: f64 = 1.0;
/// How far apart their curves of the time to the first token may be.
const CURVE_GAP: f64 = 0.05;
/// By how much the client may see a first token later, besides a scrape's round trip, in seconds.
const ON_THE_WAY: f64 = 0.005;

/// What a failed check means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Strength {
    /// The run is invalid.
    Exact,
    /// The run carries a warning.
    Soft,
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The counts agree.
    Pass,
    /// An exact check does not hold.
    Fail,
    /// A soft check does not hold.
    Warn,
    /// A side is missing.
    NotPossible,
}

/// One comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Check {
    /// Short name of the check, `R1` to `R11`.
    pub id: &'static str,
    /// What is compared.
    pub what: String,
    /// What a failure means.
    pub strength: Strength,
    /// The least and the greatest value that the client's records allow; no greatest value where a
    /// failed request may have been computed to an unknown extent.
    pub client: (f64, Option<f64>),
    /// The server's difference, none where it has no such metric.
    pub server: Option<f64>,
    /// The result.
    pub verdict: Verdict,
}

/// All comparisons of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Reconciliation {
    /// The comparisons in order.
    pub checks: Vec<Check>,
    /// The server answered requests of others meanwhile, so no count can be exact.
    pub not_exclusive: bool,
}

impl Reconciliation {
    /// Compares the requests in flight inside the window, where the server was asked often enough: the
    /// client's mean over time with the server's over scrapes.
    pub fn in_flight(&mut self, own: f64, server: Option<f64>) {
        let allowed = (own * IN_FLIGHT_SHARE).max(IN_FLIGHT_FLOOR);
        let is_near = |server: f64| (server - own).abs() <= allowed;
        let at = self
            .checks
            .iter()
            .position(|c| c.id == "R9" || c.id == "R10");
        let check = Check {
            id: "R8",
            what: "requests in flight, mean".into(),
            strength: Strength::Soft,
            client: ((own - allowed).max(0.0), Some(own + allowed)),
            server,
            verdict: match server {
                None => Verdict::NotPossible,
                Some(server) if is_near(server) => Verdict::Pass,
                Some(_) => Verdict::Warn,
            },
        };
        self.checks.insert(at.unwrap_or(self.checks.len()), check);
    }

    /// Compares what a server said of its version before the run and after it, where it said so.
    pub fn version(&mut self, before: Option<&Value>, after: Option<&Value>) {
        let (Some(before), Some(after)) = (before, after) else {
            return;
        };
        let changes = f64::from(u8::from(before != after));
        let at = self.checks.iter().position(|c| c.id == "R11");
        let check = Check {
            id: "R10",
            what: "changes of the version".into(),
            strength: Strength::Exact,
            client: (0.0, Some(0.0)),
            server: Some(changes),
            verdict: match before == after {
                true => Verdict::Pass,
                false => Verdict::Fail,
            },
        };
        self.checks.insert(at.unwrap_or(self.checks.len()), check);
    }

    /// Whether an exact check failed.
    pub fn has_failed(&self) -> bool {
        self.checks
            .iter()
            .any(|check| check.verdict == Verdict::Fail)
    }

    /// Compares all `records` of a run, warm-up included, with what the server counted meanwhile.
    pub fn new(records: &[RequestRecord], delta: &Delta<'_>, api: Api) -> Self {
        let client = ClientCounts { records };
        let requests = client.answered();
        let not_exclusive = foreign_requests(delta, api, requests);
        let mut checks = Checks {
            delta,
            exact: if not_exclusive {
                Strength::Soft
            } else {
                Strength::Exact
            },
            list: Vec::new(),
        };
        checks.requests(&client, api, requests);
        checks.finish_reasons(&client);
        checks.tokens(&client);
        checks.histograms(&client);
        checks.work(&client);
        checks.identity(&client);
        checks.at_rest();
        Self {
            checks: checks.list,
            not_exclusive,
        }
    }
}

/// From `low` to `high`, both possible.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Range {
    low: f64,
    high: Option<f64>,
}

impl Range {
    fn exactly(value: f64) -> Self {
        Self {
            low: value,
            high: Some(value),
        }
    }

    fn up_to(low: u64, more: u64) -> Self {
        Self {
            low: low as f64,
            high: Some((low + more) as f64),
        }
    }

    fn contains(&self, value: f64) -> bool {
        value >= self.low && self.high.is_none_or(|high| value <= high)
    }
}

/// Counts over the client's records. A request whose answer was not read to its end leaves open
/// what the server counted for it.
struct ClientCounts<'a> {
    records: &'a [RequestRecord],
}

impl ClientCounts<'_> {
    fn count(&self, predicate: impl Fn(&RequestRecord) -> bool) -> u64 {
        self.records
            .iter()
            .filter(|record| predicate(record))
            .count() as u64
    }

    fn sum(&self, value: impl Fn(&RequestRecord) -> u64) -> u64 {
        self.records.iter().map(value).sum()
    }

    /// Requests that the server answered, and at most those whose answer never came.
    fn answered(&self) -> Range {
        let certain = self.count(|r| matches!(r.reach, Reach::Partial | Reach::Complete));
        Range::up_to(certain, self.count(|r| r.reach == Reach::Unknown))
    }

    /// Requests of which the server may have computed something that the client cannot count.
    fn uncertain(&self) -> u64 {
        self.count(|r| match r.reach {
            Reach::NotSent => false,
            Reach::Unknown | Reach::Partial => true,
            Reach::Complete => !r.outcome.is_refusal() && r.stream.usage.is_none(),
        })
    }

    /// A sum over answers with usage: exact while every other request was certainly not computed.
    fn tokens(&self, value: impl Fn(&RequestRecord) -> u64) -> Range {
        let low = self.sum(value) as f64;
        Range {
            low,
            high: (self.uncertain() == 0).then_some(low),
        }
    }

    /// Answers that end in `reason`, and at most those whose end the client did not see.
    fn finished(&self, reason: &str) -> Range {
        let certain = self.count(|r| r.reach == Reach::Complete && reported(r) == Some(reason));
        let open = self.count(|r| match r.reach {
            Reach::NotSent => false,
            Reach::Unknown | Reach::Partial => true,
            // A server error may have failed a sequence or come before there was one.
            Reach::Complete => reported(r).is_none() && !r.outcome.is_refusal(),
        });
        Range::up_to(certain, open)
    }
}

/// The finish reason that the server counted, as far as the answer tells.
fn reported(record: &RequestRecord) -> Option<&str> {
    match &record.stream.error {
        Some(_) => Some("error"),
        None => record.stream.finish_reason.as_deref(),
    }
}

fn foreign_requests(delta: &Delta<'_>, api: Api, own: Range) -> bool {
    let answered = |path: &str| {
        delta
            .counter(names::REQUESTS, &[("endpoint", path)])
            .unwrap_or(0.0)
    };
    [Api::Chat, Api::Completions].into_iter().any(|other| {
        let expected = if other == api {
            own.high.unwrap_or(f64::INFINITY)
        } else {
            0.0
        };
        answered(other.path()) > expected
    })
}

struct Checks<'a> {
    delta: &'a Delta<'a>,
    /// How much a check weighs that is exact when the server had no other client.
    exact: Strength,
    list: Vec<Check>,
}

impl Checks<'_> {
    fn add(
        &mut self,
        id: &'static str,
        what: impl Into<String>,
        client: Range,
        server: Option<f64>,
    ) {
        self.add_as(self.exact, id, what, client, server);
    }

    fn add_as(
        &mut self,
        strength: Strength,
        id: &'static str,
        what: impl Into<String>,
        client: Range,
        server: Option<f64>,
    ) {
        let verdict = match (server, strength) {
            (None, _) => Verdict::NotPossible,
            (Some(value), _) if client.contains(value) => Verdict::Pass,
            (Some(_), Strength::Exact) => Verdict::Fail,
            (Some(_), Strength::Soft) => Verdict::Warn,
        };
        self.list.push(Check {
            id,
            what: what.into(),
            strength,
            client: (client.low, client.high),
            server,
            verdict,
        });
    }

    fn counter(&self, name: &str) -> Option<f64> {
        self.delta.counter(name, &[])
    }

    fn requests(&mut self, client: &ClientCounts<'_>, api: Api, answered: Range) {
        let endpoint = ("endpoint", api.path());
        let server = self.delta.counter(names::REQUESTS, &[endpoint]);
        self.add("R1", "requests answered", answered, server);
        let mut codes: Vec<String> =
            self.delta
                .after
                .label_values(names::REQUESTS, "code", &[endpoint]);
        codes.extend(
            client
                .records
                .iter()
                .filter_map(|r| r.status)
                .map(|status| status.to_string()),
        );
        codes.sort_unstable();
        codes.dedup();
        for code in codes {
            let own = |r: &RequestRecord| r.status.is_some_and(|status| status.to_string() == code);
            // A request that the client left may be counted under the status of a closed client.
            let certain = client.count(|r| r.reach == Reach::Complete && own(r));
            let open = client.count(|r| r.reach == Reach::Unknown || r.reach == Reach::Partial);
            let server = self
                .delta
                .counter(names::REQUESTS, &[endpoint, ("code", &code)]);
            self.add(
                "R2",
                format!("answers with status {code}"),
                Range::up_to(certain, open),
                server,
            );
        }
    }

    fn finish_reasons(&mut self, client: &ClientCounts<'_>) {
        let mut reasons = self
            .delta
            .after
            .label_values(names::FINISHED, "finish_reason", &[]);
        reasons.extend(
            client
                .records
                .iter()
                .filter_map(|r| r.stream.finish_reason.clone()),
        );
        reasons.sort_unstable();
        reasons.dedup();
        for reason in reasons {
            let server = self
                .delta
                .counter(names::FINISHED, &[("finish_reason", &reason)]);
            self.add(
                "R2",
                format!("finished by {reason}"),
                client.finished(&reason),
                server,
            );
        }
        let certain =
            client.count(|r| matches!(r.outcome, Outcome::Refused429 | Outcome::Refused503(_)));
        // A prompt beyond the context is a 400 and a rejection; other 400s are not.
        let open = client.count(|r| {
            r.outcome == Outcome::Http4xx || matches!(r.reach, Reach::Unknown | Reach::Partial)
        });
        self.add(
            "R2",
            "refused",
            Range::up_to(certain, open),
            self.counter(names::REJECTED),
        );
    }

    fn tokens(&mut self, client: &ClientCounts<'_>) {
        let prompt = client.tokens(RequestRecord::prompt_tokens);
        self.add(
            "R3",
            "prompt tokens",
            prompt,
            self.counter(names::PROMPT_TOKENS),
        );
        let output = client.tokens(RequestRecord::output_tokens);
        self.add(
            "R4",
            "generated tokens",
            output,
            self.counter(names::GENERATION_TOKENS),
        );
        let cached = client.tokens(RequestRecord::cached_tokens);
        self.add(
            "R5",
            "cached prompt tokens",
            cached,
            self.counter(names::CACHED_TOKENS),
        );
    }

    fn histograms(&mut self, client: &ClientCounts<'_>) {
        self.ttft_mean(client);
        let first = client.tokens(|r| u64::from(r.output_tokens() > 0));
        self.add(
            "R7",
            "first tokens (TTFT count)",
            first,
            self.delta.count(names::TTFT),
        );
        let between = client.tokens(|r| r.output_tokens().saturating_sub(1));
        self.add(
            "R7",
            "tokens after the first (ITL count)",
            between,
            self.delta.count(names::ITL),
        );
        let ended = client.tokens(|r| u64::from(r.stream.usage.is_some()));
        self.add(
            "R7",
            "answers (E2E count)",
            ended,
            self.delta.count(names::E2E),
        );
    }

    /// The client sees the first token later than the server, by no more than the way to it.
    fn ttft_mean(&mut self, client: &ClientCounts<'_>) {
        let times: Vec<f64> = client
            .records
            .iter()
            .filter_map(|r| r.ttft_from_send())
            .map(seconds)
            .collect();
        if times.is_empty() {
            return;
        }
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        let allowed = seconds(self.delta.after.round_trip) + ON_THE_WAY;
        let range = Range {
            low: mean - allowed,
            high: Some(mean),
        };
        self.add_as(
            Strength::Soft,
            "R6",
            "mean TTFT in seconds",
            range,
            self.delta.mean(names::TTFT),
        );
        let curve = self.delta.curve(names::TTFT);
        let gap = curve.map(|curve| curve_gap(&times, &curve, allowed));
        let close = Range {
            low: 0.0,
            high: Some(CURVE_GAP),
        };
        self.add_as(Strength::Soft, "R6", "gap between TTFT curves", close, gap);
    }

    /// Tokens that the steps computed. More than the answers needed is recomputation, which
    /// preemptions explain.
    fn work(&mut self, client: &ClientCounts<'_>) {
        let needed = client.tokens(|r| {
            r.prompt_tokens().saturating_sub(r.cached_tokens())
                + r.output_tokens().saturating_sub(1)
        });
        let preemptions = self.counter(names::PREEMPTIONS).unwrap_or(0.0);
        let range = Range {
            high: needed.high.filter(|_| preemptions == 0.0),
            ..needed
        };
        let computed = self.counter(names::STEP_TOKENS);
        let again = computed.map_or(0.0, |computed| computed - needed.low);
        let what = match (again > 0.0 && needed.high.is_some(), preemptions) {
            (false, _) => "tokens computed".to_owned(),
            (true, 0.0) => format!("tokens computed, {again} of them not explained"),
            (true, n) => format!("tokens computed, {again} again after {n} preemptions"),
        };
        self.add_as(Strength::Soft, "R9", what, range, computed);
    }

    fn identity(&mut self, client: &ClientCounts<'_>) {
        let both = [self.delta.before, self.delta.after];
        let changes = |same: bool| Some(f64::from(u8::from(!same)));
        let none = Range::exactly(0.0);
        let has = |name: &str| {
            both.iter()
                .all(|snapshot| !snapshot.series(name).is_empty())
        };
        let same = |name: &str| both[0].series(name) == both[1].series(name);
        let build = has(names::BUILD_INFO)
            .then(|| changes(same(names::BUILD_INFO)))
            .flatten();
        self.add_as(Strength::Exact, "R10", "changes of the build", none, build);
        let is_same_process = self.delta.first_decrease().is_none() && same(names::PROCESS_START);
        self.add_as(
            Strength::Exact,
            "R10",
            "restarts of the server",
            none,
            changes(is_same_process),
        );
        let models: BTreeSet<&str> = client
            .records
            .iter()
            .filter_map(|r| r.stream.model.as_deref())
            .collect();
        if !models.is_empty() {
            self.add_as(
                Strength::Exact,
                "R10",
                "models that answered",
                Range::exactly(1.0),
                Some(models.len() as f64),
            );
        }
    }

    fn at_rest(&mut self) {
        let none = Range::exactly(0.0);
        for (name, what) in [
            (names::RUNNING, "still running"),
            (names::WAITING, "still waiting"),
            (names::BLOCKS_USED, "cache blocks still owned"),
        ] {
            self.add("R11", what, none, self.delta.after.value(name, &[]));
        }
    }
}

/// The largest share by which the server's curve leaves the room between the client's and the client's
/// moved by `allowed`: the client sees every first token later than the server, by no more than that.
fn curve_gap(times: &[f64], curve: &[(f64, f64)], allowed: f64) -> f64 {
    let share = |limit: f64| {
        let below = times.iter().filter(|time| **time <= limit).count();
        below as f64 / times.len() as f64
    };
    let gap = |(edge, server): &(f64, f64)| {
        let (least, most) = (share(*edge), share(edge + allowed));
        (least - server).max(server - most).max(0.0)
    };
    curve.iter().map(gap).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests;
