//! How well the client kept its plan: whether what was measured may be the client and not the server.

use serde::{Deserialize, Serialize};

use super::Latency;
use crate::clock::{Nanos, seconds};
use crate::driver::RunResult;
use crate::effort::{Effort, Lag};
use crate::record::RequestRecord;
use crate::stats::{Percentile, Sample, Summary};

/// The send lag that is always allowed, in seconds.
const SEND_LAG_FLOOR: f64 = 0.001;
/// The 99th percentile of the runtime's lag that is allowed, in seconds; its timer is one millisecond fine.
const RUNTIME_LAG_LIMIT: f64 = 0.002;
/// Cores that the client may use.
const CORES_LIMIT: f64 = 0.6;
/// Slices of the window whose largest lags are kept.
const LAG_SLICES: u64 = 60;

/// How well the client kept its plan.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ClientQuality {
    /// From the planned start to the first byte sent.
    pub send_lag: Summary,
    /// What its 99th percentile may be: 1 ms, or 1 % of the median TTFT.
    pub send_lag_limit: f64,
    /// Time spent opening connections, over requests that had to.
    pub connect: Summary,
    /// How late the client's runtime woke, looked at every 10 ms.
    pub runtime_lag: Summary,
    /// What its 99th percentile may be.
    pub runtime_lag_limit: f64,
    /// Processor time of the client, in cores. It reads all streams on one.
    pub cores: Option<f64>,
    /// What that may be.
    pub cores_limit: f64,
    /// Share of the token-bearing events that one read brought together with the one before: many of
    /// them are many at once from the server, or a client that reads late.
    pub bundled_events: Option<f64>,
    /// How late it was in the course of the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lags: Option<Lags>,
    /// What the client can do by its self-test, against what the run needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub self_test: Option<SelfTested>,
}

impl ClientQuality {
    pub(super) fn new(
        measured: &[&RequestRecord],
        latency: &Latency,
        effort: &Effort,
        window: (Nanos, Nanos),
    ) -> Self {
        let sum = |value: fn(&RequestRecord) -> u64| measured.iter().map(|r| value(r)).sum::<u64>();
        let events = sum(|r| r.stream.events);
        let bundled = sum(|r| r.stream.bundled);
        let send_lag: Sample = measured.iter().filter_map(|r| r.send_lag()).collect();
        let connect: Sample = measured
            .iter()
            .map(|r| r.connect)
            .filter(|t| *t > 0)
            .collect();
        let median = if let Percentile::Seconds(median) = latency.ttft.p50 {
            median
        } else {
            0.0
        };
        Self {
            send_lag: send_lag.summary(),
            send_lag_limit: (median * 0.01).max(SEND_LAG_FLOOR),
            connect: connect.summary(),
            runtime_lag: effort
                .lags
                .iter()
                .map(|lag| lag.late)
                .collect::<Sample>()
                .summary(),
            runtime_lag_limit: RUNTIME_LAG_LIMIT,
            cores: effort.cores,
            cores_limit: CORES_LIMIT,
            bundled_events: (events > 0).then(|| bundled as f64 / events as f64),
            lags: Lags::new(measured, effort, window),
            self_test: None,
        }
    }

    /// Whether the client, and not the server, may be what was measured.
    pub fn may_be_the_bottleneck(&self) -> bool {
        self.is_late() || self.is_sluggish() || self.is_busy() || self.is_beyond_its_test()
    }

    /// Whether the client's runtime woke too late to stamp what it read.
    pub(super) fn is_sluggish(&self) -> bool {
        matches!(self.runtime_lag.p99, Percentile::Seconds(p99) if p99 > self.runtime_lag_limit)
    }

    /// Whether the run had more events than those with which the client had kept up.
    pub(super) fn is_beyond_its_test(&self) -> bool {
        self.self_test.is_some_and(|test| {
            let sustained = test.sustained_events_per_second;
            sustained.is_some_and(|sustained| test.used_events_per_second > sustained)
        })
    }

    /// Whether the client used more of its processor than leaves it in time.
    pub(super) fn is_busy(&self) -> bool {
        self.cores.is_some_and(|cores| cores > self.cores_limit)
    }

    /// Whether the client's own delay is more than a small share of what it measured: the 99th
    /// percentile of its send lag, or without one its maximum, exceeds the limit.
    pub fn is_late(&self) -> bool {
        worst(&self.send_lag).is_some_and(|worst| worst > self.send_lag_limit)
    }

    /// How late requests were sent, and how late the client woke, in seconds.
    pub(super) fn delays(&self) -> (f64, f64) {
        let seconds = |lags| worst(lags).unwrap_or(0.0);
        (seconds(&self.send_lag), seconds(&self.runtime_lag))
    }
}

/// The 99th percentile, or the largest where there are too few for one.
fn worst(lags: &Summary) -> Option<f64> {
    match lags.p99 {
        Percentile::Seconds(p99) => Some(p99),
        _ => lags.max,
    }
}

/// Token events per second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SelfTested {
    /// The most with which the client kept up before the run; none where it kept up with nothing.
    pub sustained_events_per_second: Option<f64>,
    /// What it read in the window, on average.
    pub used_events_per_second: f64,
}

impl SelfTested {
    pub(super) fn new(sustained: Option<f64>, result: &RunResult) -> Self {
        let events = result.records.iter().map(|r| r.stream.events_in_window);
        let (start, end) = result.window;
        Self {
            sustained_events_per_second: sustained,
            used_events_per_second: events.sum::<u64>() as f64
                / seconds(end - start).max(f64::MIN_POSITIVE),
        }
    }
}

/// The client's delays over the window: the largest in each of its equal slices, in seconds, none where a
/// slice has none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Lags {
    /// Length of a slice.
    pub slice_seconds: f64,
    /// From the planned start to the first byte sent, by planned start.
    pub send_lag_max: Vec<Option<f64>>,
    /// How late the client's runtime woke.
    pub runtime_lag_max: Vec<Option<f64>>,
}

impl Lags {
    fn new(
        measured: &[&RequestRecord],
        effort: &Effort,
        (start, end): (Nanos, Nanos),
    ) -> Option<Self> {
        let slice = (end - start).div_ceil(LAG_SLICES).max(1);
        let largest = |lags: &mut dyn Iterator<Item = Lag>| {
            let mut slices: Vec<Option<f64>> = vec![None; LAG_SLICES as usize];
            for Lag { due, late } in lags.filter(|lag| (start..end).contains(&lag.due)) {
                let place = &mut slices[((due - start) / slice) as usize];
                // Finer than a microsecond is of no use, and takes room.
                let late = (late + 500) / 1000;
                *place = Some(place.unwrap_or(0.0).max(late as f64 / 1e6));
            }
            slices
        };
        let sent = measured.iter().filter_map(|record| {
            let late = record.send_lag()?;
            let due = record.t_plan;
            Some(Lag { due, late })
        });
        (end > start).then(|| Self {
            slice_seconds: seconds(slice),
            send_lag_max: largest(&mut sent.into_iter()),
            runtime_lag_max: largest(&mut effort.lags.iter().copied()),
        })
    }
}
