//! How requests arrive, as it is asked for and as it stands in the results.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a ramp gets from its first rate to its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum RampShape {
    /// By the same number of requests per second in every second.
    Linear,
    /// By the same factor in every second.
    Exponential,
}

/// How requests arrive.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Arrival {
    /// Users who each wait for their answer before they ask again.
    Closed {
        /// Number of users.
        users: u32,
    },
    /// Poisson arrivals that nothing holds back.
    Poisson {
        /// Requests per second.
        rate: f64,
        /// Requests in flight beyond which one is shed.
        max_in_flight: usize,
    },
    /// Gaps that follow a gamma distribution.
    Gamma {
        /// Requests per second.
        rate: f64,
        /// Shape of the distribution: gaps vary by `1 / sqrt(burstiness)` of their mean. One is Poisson,
        /// below one requests come in bursts.
        burstiness: f64,
        /// Requests in flight beyond which one is shed.
        max_in_flight: usize,
    },
    /// The same gap between all requests.
    Constant {
        /// Requests per second.
        rate: f64,
        /// Requests in flight beyond which one is shed.
        max_in_flight: usize,
    },
    /// Poisson arrivals whose rate changes: exploration, since no part of it is a steady state.
    Ramp {
        /// Requests per second at the start.
        from: f64,
        /// Requests per second at the end.
        to: f64,
        /// Time between the two.
        seconds: f64,
        /// The way between them.
        shape: RampShape,
        /// Requests in flight beyond which one is shed.
        max_in_flight: usize,
    },
    /// The times and lengths of a recorded trace.
    Trace {
        /// Requests in it.
        requests: u64,
        /// How much faster than recorded it is played.
        speed: f64,
        /// Requests in flight beyond which one is shed.
        max_in_flight: usize,
    },
}

impl Arrival {
    /// Requests per second that are asked for, where that is one number.
    pub fn rate(&self) -> Option<f64> {
        match *self {
            Self::Poisson { rate, .. } | Self::Gamma { rate, .. } | Self::Constant { rate, .. } => {
                Some(rate)
            }
            Self::Closed { .. } | Self::Ramp { .. } | Self::Trace { .. } => None,
        }
    }

    /// Requests in flight beyond which one is shed; none in a closed loop.
    pub fn max_in_flight(&self) -> Option<usize> {
        match *self {
            Self::Closed { .. } => None,
            Self::Poisson { max_in_flight, .. }
            | Self::Gamma { max_in_flight, .. }
            | Self::Constant { max_in_flight, .. }
            | Self::Ramp { max_in_flight, .. }
            | Self::Trace { max_in_flight, .. } => Some(max_in_flight),
        }
    }
}

impl fmt::Display for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { users } => write!(f, "closed loop (queueing is hidden), {users} users"),
            Self::Poisson { rate, .. } => write!(f, "open loop, Poisson arrivals at {rate}/s"),
            Self::Gamma {
                rate, burstiness, ..
            } => write!(
                f,
                "open loop, gamma arrivals at {rate}/s with burstiness {burstiness}"
            ),
            Self::Constant { rate, .. } => write!(f, "open loop, one request every 1/{rate} s"),
            Self::Ramp {
                from, to, seconds, ..
            } => write!(f, "open loop, from {from}/s to {to}/s in {seconds} s"),
            Self::Trace {
                requests, speed, ..
            } => write!(
                f,
                "open loop, a trace of {requests} requests at {speed}× speed"
            ),
        }
    }
}
