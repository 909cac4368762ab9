//! A run judged once more without the client's own delay. Latencies are counted from the plan, so a client that is late
//! makes a server look slower than it is, by at most that delay: what fails without it too is the server's failure.

use serde::{Deserialize, Serialize};

use super::traffic::in_flight;
use crate::clock::Nanos;
use crate::give_up::{Bound, Early, bound};
use crate::outcome::Outcome;
use crate::record::{Phase, RequestRecord};
use crate::slo::{Delay, Share, Slo};
use crate::steady;

/// What a run shows when the delay of each request's sending, and what its stamps may be late by, are taken off its
/// times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WithoutDelay {
    /// How late requests were sent: the 99th percentile, or the largest where there are too few for one.
    pub send_lag_seconds: f64,
    /// The same of the client's wakings, which is taken off as what any stamp may be late by.
    pub stamp_lag_seconds: f64,
    /// The share of the planned requests that keep every limit so.
    pub attainment: Share,
    /// Of a run that ended early because too many requests missed a limit: the bound, where as many miss it so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_of_reach: Option<Bound>,
    /// What grows over the window so.
    pub growing: Vec<String>,
}

impl WithoutDelay {
    /// Of the records of a run with its window, which ended `early` or not.
    pub(super) fn new(
        slo: Slo,
        records: &[RequestRecord],
        window: (Nanos, Nanos),
        early: Option<Early>,
        (send_lag_seconds, stamp_lag_seconds): (f64, f64),
    ) -> Self {
        let stamping = (stamp_lag_seconds * 1e9).round() as Nanos;
        let is_kept = |record: &RequestRecord| {
            let sending = record.send_lag().unwrap_or(0);
            slo.is_kept_but_for(record, Delay { sending, stamping })
        };
        let measured = || records.iter().filter(|r| r.phase == Phase::Measured);
        let good = measured().filter(|r| is_kept(r)).count() as u64;
        // What was under way when a run ended early missed nothing yet.
        let ended = measured().filter(|r| r.outcome != Outcome::Unfinished);
        let missed = ended.filter(|r| !is_kept(r)).count() as u64;
        let out_of_reach = match early {
            Some(Early::OutOfReach(found)) => bound(missed, found.planned, found.wanted),
            _ => None,
        };
        Self {
            send_lag_seconds,
            stamp_lag_seconds,
            attainment: Share::new(good, measured().count() as u64),
            out_of_reach,
            growing: growing_from_sending(records, window),
        }
    }

    /// The delay, for a sentence.
    pub fn words(&self) -> String {
        let milliseconds = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
        format!(
            "the client sent late by p99 {} and woke late by {}",
            milliseconds(self.send_lag_seconds),
            milliseconds(self.stamp_lag_seconds)
        )
    }
}

/// What grows when each time to the first token is counted from the first byte sent.
fn growing_from_sending(records: &[RequestRecord], window: (Nanos, Nanos)) -> Vec<String> {
    let in_flight = |part| in_flight(records, part).0;
    let found = steady::growing_by(records, window, RequestRecord::ttft_from_send, in_flight);
    found.into_iter().map(str::to_owned).collect()
}
