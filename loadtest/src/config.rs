//! What a run does, resolved once from the command line and passed by value.

use std::time::Duration;

use std::sync::Arc;

use anyhow::{Context, Result, bail};

use crate::args::{Args, ArrivalKind, Cache, Connections, Warmup};
use crate::arrival::{Arrival, RampShape};
use crate::content::{Content, Prefix};
use crate::cost::Price;
use crate::exchange::Timeouts;
use crate::lengths::Lengths;
use crate::metric_map::ServerKind;
use crate::report::Cut;
use crate::self_test::Known;
use crate::slo::Slo;
use crate::target::HttpUrl;
use crate::trace::Trace;
use crate::transport::Protocol;
use crate::workload::Api;
use crate::workload_file::{FileArrival, WorkloadFile, dataset_content};

/// How long the server may take to come to rest.
const REST: Duration = Duration::from_secs(10);
/// Measured requests when neither a number nor a duration is given.
const DEFAULT_REQUESTS: u64 = 100;
/// Prompt and output length when neither is given.
const DEFAULT_LENGTH: Lengths = Lengths::Fixed(64);

/// A resolved run.
#[derive(Debug, Clone)]
pub struct Config {
    /// What the run is called on pages, if not by its model.
    pub name: Option<String>,
    /// The command line without secrets, for the results.
    pub command: String,
    /// Addresses of the servers, which get conversations in turn.
    pub urls: Vec<HttpUrl>,
    /// Addresses of their metrics.
    pub metrics_urls: Vec<HttpUrl>,
    /// Whose metrics they are, where that is said.
    pub target_kind: Option<ServerKind>,
    /// Key of the server.
    pub api_key: Option<String>,
    /// Model to ask for, if not the first one listed.
    pub model: Option<String>,
    /// Endpoint.
    pub api: Api,
    /// How requests arrive.
    pub arrival: Arrival,
    /// Whether as many requests leave as the rate says for the time.
    pub exact_count: bool,
    /// Measured requests after which the run stops.
    pub requests: Option<u64>,
    /// Length of the window.
    pub duration: Option<Duration>,
    /// What goes before the window, where that is said.
    pub warmup: Option<Warmup>,
    /// Time over which the users of a closed loop start.
    pub ramp_up: Duration,
    /// Seed of every draw.
    pub seed: u64,
    /// Kinds of conversations.
    pub contents: Vec<Content>,
    /// The trace that is played.
    pub trace: Option<Arc<Trace>>,
    /// Sampling temperature.
    pub temperature: f64,
    /// Prefix cache policy.
    pub cache: Cache,
    /// Tokens per word, if not asked from the server.
    pub tokens_per_word: Option<f64>,
    /// Limits of a good request.
    pub slo: Option<Slo>,
    /// Whether the server's tokenizer is asked, so that lengths are exact. Sides of a comparison do not ask: one that has
    /// none would get other prompts than the other.
    pub asks_tokenizer: bool,
    /// How long the server may take to come to rest before and after the run.
    pub rest: Duration,
    /// Whether the run ends once those are out of reach.
    pub may_give_up: bool,
    /// Price of the server's machine.
    pub price: Option<Price>,
    /// What becomes of connections.
    pub connections: Connections,
    /// What they speak.
    pub protocol: Protocol,
    /// How often a request that failed before its first token is sent again.
    pub retries: u32,
    /// Time limits.
    pub timeouts: Timeouts,
    /// What is known of what the client can do.
    pub self_test: Known,
    /// Whether memory is read before and after the run, where the machine is the server's.
    pub watches_machine: bool,
    /// Whether its GPUs are looked at during the run.
    pub watches_gpus: bool,
    /// How the suite that the run is part of started the server.
    pub server_command: Option<String>,
    /// What that suite leaves out.
    pub cut: Option<Cut>,
    /// Whether models are stand-ins, so that the numbers measure nothing.
    pub dry_run: bool,
    /// Show no progress.
    pub quiet: bool,
}

impl TryFrom<Args> for Config {
    type Error = anyhow::Error;

    fn try_from(args: Args) -> Result<Self> {
        let file = match &args.workload {
            Some(path) => WorkloadFile::read(path)?,
            None => WorkloadFile::default(),
        };
        let (urls, metrics_urls) = addresses(&args)?;
        let duration = args.duration.or(file.duration_s);
        let (arrival, trace) = arrival(&args, &file, duration)?;
        let requests = args.requests.or(file.requests);
        // A trace has an end of its own.
        let needs_end = duration.is_none() && trace.is_none();
        let requests = requests.or(needs_end.then_some(DEFAULT_REQUESTS));
        Ok(Self {
            name: args.name.clone(),
            command: args.command.clone(),
            urls,
            metrics_urls,
            target_kind: args.target_kind,
            contents: contents(&args, &file)?,
            api: args.api.or(file.api).unwrap_or(Api::Chat),
            temperature: args.temperature.or(file.temperature()).unwrap_or(0.0),
            cache: args.cache.or(file.cache).unwrap_or(Cache::Cold),
            slo: args.slo.or(file.slo),
            asks_tokenizer: true,
            rest: REST,
            may_give_up: false,
            price: args.price_per_hour.map(|per_hour| Price {
                per_hour,
                note: args.price_note.clone().unwrap_or_default(),
            }),
            warmup: args.warmup.or(file.warmup_s.map(Warmup::Time)),
            arrival,
            trace,
            requests,
            exact_count: args.exact_count || file.exact_count,
            duration,
            ramp_up: args.ramp_up.unwrap_or_default(),
            api_key: args.api_key,
            model: args.model,
            seed: args.seed,
            tokens_per_word: args.tokens_per_word,
            connections: args.connections,
            protocol: match args.http2 {
                true => Protocol::Http2,
                false => Protocol::Http1,
            },
            retries: args.retries,
            timeouts: Timeouts {
                connect: args.timeout_connect,
                head: args.timeout_head,
                first: args.timeout_first,
                gap: args.timeout_gap,
                total: args.timeout_total,
            },
            self_test: match args.results.is_some() && !args.no_self_test {
                true => Known::TestedBefore,
                false => Known::Nothing,
            },
            watches_gpus: !args.no_calibration,
            server_command: None,
            cut: None,
            watches_machine: args.results.is_some() && !args.no_calibration,
            dry_run: false,
            quiet: args.quiet,
        })
    }
}

impl Config {
    /// How many requests leave until the window ends, where their number is to be what the rate says.
    pub fn exact_count(&self) -> Option<u64> {
        let rate = self.arrival.rate().filter(|_| self.exact_count)?;
        let of_time = |time: Duration| (rate * time.as_secs_f64()).round() as u64;
        let early = match self.warmup() {
            Warmup::Requests(requests) => requests,
            Warmup::Time(time) => of_time(time),
        };
        let measured = self.requests.or(self.duration.map(of_time))?;
        Some((early + measured).max(1))
    }

    /// What goes before the window. Unless it is said, each user of a closed loop has asked once by then, because a
    /// start of all at once, or of one after the other, is no part of a steady state.
    pub fn warmup(&self) -> Warmup {
        self.warmup.unwrap_or(match self.arrival {
            Arrival::Closed { users } if users > 1 => match self.ramp_up {
                Duration::ZERO => Warmup::Requests(u64::from(users)),
                ramp_up => Warmup::Time(ramp_up),
            },
            _ => Warmup::Requests(0),
        })
    }
}

fn addresses(args: &Args) -> Result<(Vec<HttpUrl>, Vec<HttpUrl>)> {
    let urls: Vec<HttpUrl> = args
        .url
        .iter()
        .map(|text| HttpUrl::parse_base(text))
        .collect::<Result<_>>()?;
    let metrics: Vec<HttpUrl> = match args.metrics_url.len() {
        0 => urls.iter().map(|url| url.join("/metrics")).collect(),
        n if n == urls.len() => {
            let texts = args.metrics_url.iter();
            texts
                .map(|text| HttpUrl::parse(text))
                .collect::<Result<_>>()?
        }
        n => bail!("{n} --metrics-url for {} --url: one for each", urls.len()),
    };
    Ok((urls, metrics))
}

fn arrival(
    args: &Args,
    file: &WorkloadFile,
    duration: Option<Duration>,
) -> Result<(Arrival, Option<Arc<Trace>>)> {
    let asked = if let Some(users) = args.users {
        FileArrival::Closed { users }
    } else if let Some(rate) = args.rate {
        of_rate(args, rate)?
    } else if let Some(path) = &args.trace {
        FileArrival::Trace {
            path: path.clone(),
            speed: args.trace_speed,
        }
    } else if let Some(FileArrival::Trace { path, speed }) = &file.arrival {
        FileArrival::Trace {
            path: file.resolve(path),
            speed: *speed,
        }
    } else {
        let closed = FileArrival::Closed { users: 1 };
        file.arrival.clone().unwrap_or(closed)
    };
    resolve_arrival(asked, args, duration)
}

fn of_rate(args: &Args, rate: f64) -> Result<FileArrival> {
    if let Some(to) = args.ramp_to {
        if args.arrival.is_some() || args.burstiness.is_some() {
            bail!("--ramp-to is a Poisson process: --arrival and --burstiness do not go with it");
        }
        let shape = args.ramp;
        return Ok(FileArrival::Ramp {
            from: rate,
            to,
            shape,
        });
    }
    Ok(match (args.arrival, args.burstiness) {
        (None | Some(ArrivalKind::Poisson), None) => FileArrival::Poisson { rate },
        (None | Some(ArrivalKind::Gamma), Some(burstiness)) => {
            FileArrival::Gamma { rate, burstiness }
        }
        (Some(ArrivalKind::Gamma), None) => bail!("gamma arrivals need --burstiness"),
        (Some(ArrivalKind::Constant), None) => FileArrival::Constant { rate },
        (Some(_), Some(_)) => bail!("--burstiness is for gamma arrivals"),
    })
}

fn resolve_arrival(
    asked: FileArrival,
    args: &Args,
    duration: Option<Duration>,
) -> Result<(Arrival, Option<Arc<Trace>>)> {
    let max_in_flight = args.max_in_flight;
    let positive = |name: &str, value: f64| {
        if value.is_finite() && value > 0.0 {
            Ok(value)
        } else {
            bail!("{name} {value} is not a number above zero")
        }
    };
    let arrival = match asked {
        FileArrival::Closed { users: 0 } => bail!("a closed loop of 0 users asks nothing"),
        FileArrival::Closed { users } => Arrival::Closed { users },
        FileArrival::Poisson { rate } => Arrival::Poisson {
            rate: positive("rate", rate)?,
            max_in_flight,
        },
        FileArrival::Gamma { rate, burstiness } => Arrival::Gamma {
            rate: positive("rate", rate)?,
            burstiness: positive("burstiness", burstiness)?,
            max_in_flight,
        },
        FileArrival::Constant { rate } => Arrival::Constant {
            rate: positive("rate", rate)?,
            max_in_flight,
        },
        FileArrival::Ramp { from, to, shape } => Arrival::Ramp {
            from: positive("rate", from)?,
            to: positive("rate", to)?,
            seconds: duration.context("a ramp needs a duration")?.as_secs_f64(),
            shape: shape.unwrap_or(RampShape::Linear),
            max_in_flight,
        },
        FileArrival::Trace { path, speed } => {
            let trace = Arc::new(Trace::read(&path, args.max_prompt_tokens)?);
            let arrival = Arrival::Trace {
                requests: trace.requests.len() as u64,
                speed: positive("speed", speed.unwrap_or(1.0))?,
                max_in_flight,
            };
            return Ok((arrival, Some(trace)));
        }
    };
    Ok((arrival, None))
}

/// Flags that say what is asked replace the mix of a file as a whole.
fn contents(args: &Args, file: &WorkloadFile) -> Result<Vec<Content>> {
    let has_flags = args.prompt_tokens.is_some()
        || args.output_tokens.is_some()
        || args.dataset.is_some()
        || args.turns.is_some()
        || args.think.is_some()
        || args.prefix_tokens.is_some()
        || args.ignore_eos;
    if args.workload.is_some() && !has_flags {
        return file.contents();
    }
    let mut content = match &args.dataset {
        Some(path) => dataset_content(
            path,
            args.max_prompt_tokens,
            args.output_tokens,
            args.replay_recorded,
        )?,
        None => Content::words(
            args.prompt_tokens.unwrap_or(DEFAULT_LENGTH),
            args.output_tokens.unwrap_or(DEFAULT_LENGTH),
        ),
    };
    content.ignore_eos = args.ignore_eos;
    content.turns = args.turns.unwrap_or(content.turns);
    content.think = args.think.unwrap_or_default();
    content.prefix = args.prefix_tokens.map(|tokens| Prefix {
        tokens,
        groups: args.prefix_groups.unwrap_or(1),
    });
    Ok(vec![content])
}
