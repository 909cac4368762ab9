//! What a run does, resolved once from the command line and passed by value.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::args::{Args, Cache};
use crate::exchange::Timeouts;
use crate::lengths::Lengths;
use crate::slo::Slo;
use crate::target::HttpUrl;
use crate::workload::Api;

/// Measured requests when neither a number nor a duration is given.
const DEFAULT_REQUESTS: u64 = 100;

/// How requests arrive.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
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
}

/// A resolved run.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address of the server.
    pub url: HttpUrl,
    /// Address of its metrics.
    pub metrics_url: HttpUrl,
    /// Key of the server.
    pub api_key: Option<String>,
    /// Model to ask for, if not the first one listed.
    pub model: Option<String>,
    /// Endpoint.
    pub api: Api,
    /// How requests arrive.
    pub arrival: Arrival,
    /// Measured requests after which the run stops.
    pub requests: Option<u64>,
    /// Length of the window.
    pub duration: Option<Duration>,
    /// Requests before the window.
    pub warmup: u64,
    /// Seed of every draw.
    pub seed: u64,
    /// Prompt lengths.
    pub prompt_tokens: Lengths,
    /// Output lengths.
    pub output_tokens: Lengths,
    /// Go on after the end-of-sequence token.
    pub ignore_eos: bool,
    /// Sampling temperature.
    pub temperature: f64,
    /// Prefix cache policy.
    pub cache: Cache,
    /// Tokens per word, if not asked from the server.
    pub tokens_per_word: Option<f64>,
    /// Limits of a good request.
    pub slo: Option<Slo>,
    /// Time limits.
    pub timeouts: Timeouts,
    /// Show no progress.
    pub quiet: bool,
}

impl TryFrom<Args> for Config {
    type Error = anyhow::Error;

    fn try_from(args: Args) -> Result<Self> {
        let url = HttpUrl::parse_base(&args.url)?;
        let metrics_url = match &args.metrics_url {
            Some(text) => HttpUrl::parse(text)?,
            None => url.join("/metrics"),
        };
        let arrival = match args.rate {
            Some(rate) => Arrival::Poisson {
                rate,
                max_in_flight: args.max_in_flight,
            },
            None => Arrival::Closed {
                users: args.users.unwrap_or(1),
            },
        };
        let requests = args
            .requests
            .or(args.duration.is_none().then_some(DEFAULT_REQUESTS));
        Ok(Self {
            url,
            metrics_url,
            api_key: args.api_key,
            model: args.model,
            api: args.api,
            arrival,
            requests,
            duration: args.duration,
            warmup: args.warmup,
            seed: args.seed,
            prompt_tokens: args.prompt_tokens,
            output_tokens: args.output_tokens,
            ignore_eos: args.ignore_eos,
            temperature: args.temperature,
            cache: args.cache,
            tokens_per_word: args.tokens_per_word,
            slo: args.slo,
            timeouts: Timeouts {
                connect: args.timeout_connect,
                head: args.timeout_head,
                first: args.timeout_first,
                gap: args.timeout_gap,
                total: args.timeout_total,
            },
            quiet: args.quiet,
        })
    }
}
