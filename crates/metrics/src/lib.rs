//! Every metric's name, help, labels and buckets, defined once.
//!
//! [`Metrics`] is a handle that components clone; they set its typed fields and never spell a name.
//! Series exist at zero from the start. [`Metrics::render`] writes the Prometheus text form and, on
//! request, the same series again under the names vLLM gives them.

mod aliases;
pub mod buckets;
mod catalogue;
mod labels;

use std::ops::Deref;
use std::sync::Arc;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

pub use catalogue::{Family, Kind, catalogue};
pub use labels::{FinishReason, Phase, RejectReason};

/// Names of harmless request fields that are ignored and reported; the label set of
/// `octet_ignored_params_total`. Anything else counts as `other`.
pub const IGNORED_PARAMS: &[&str] = &[
    "user",
    "safety_identifier",
    "metadata",
    "store",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "moderation",
    "verbosity",
    "prediction",
    "service_tier",
    "stream_options.include_obfuscation",
    "cache_prompt",
    "id_slot",
    "timings_per_token",
    "return_progress",
    "other",
];

/// A cheap handle on all metrics of the process.
#[derive(Clone)]
pub struct Metrics(Arc<Families>);

impl Deref for Metrics {
    type Target = Families;

    fn deref(&self) -> &Families {
        &self.0
    }
}

/// Facts that label `octet_build_info`.
#[derive(Debug, Clone, Default)]
pub struct BuildInfo {
    /// Version of the program.
    pub version: String,
    /// Source revision it was built from.
    pub commit: String,
    /// Device that computes.
    pub device: String,
    /// Precision of the weights.
    pub quantization: String,
    /// A word why that precision: `auto`, `asked`, or what was found on the device.
    pub reason: String,
    /// Optional parts built in, separated by commas.
    pub features: String,
}

/// The typed families. Units stand in the names.
pub struct Families {
    registry: Registry,
    model_name: String,
    /// 1 while requests are answered, 0 while the model loads, drains or is dead; set when scraped.
    pub ready: IntGauge,
    /// Sequences being computed.
    pub requests_running: IntGauge,
    /// Requests waiting for their first step.
    pub requests_waiting: IntGauge,
    /// HTTP requests answered, by route pattern and status code.
    pub requests_total: IntCounterVec,
    /// Choices that ended, by reason.
    pub requests_finished_total: IntCounterVec,
    /// Requests refused before they ran, by reason.
    pub requests_rejected_total: IntCounterVec,
    /// Requests that the client says are retries.
    pub request_retries_total: IntCounter,
    /// Request fields that were ignored.
    pub ignored_params_total: IntCounterVec,
    /// Prompt tokens of requests that ran.
    pub prompt_tokens_total: IntCounter,
    /// Generated tokens that were kept.
    pub generation_tokens_total: IntCounter,
    /// Prompt tokens taken from the prefix cache.
    pub prompt_tokens_cached_total: IntCounter,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_cache_queries_total: IntCounter,
    /// Prompt tokens found in the prefix cache.
    pub prefix_cache_hits_total: IntCounter,
    /// Sequences put back to waiting because blocks ran out.
    pub preemptions_total: IntCounter,
    /// Blocks in use divided by all blocks.
    pub kv_cache_usage_ratio: Gauge,
    /// Blocks owned by sequences.
    pub kv_cache_blocks_used: IntGauge,
    /// Blocks of the cache.
    pub kv_cache_blocks: IntGauge,
    cache_config_info: IntGaugeVec,
    build_info: IntGaugeVec,
    /// From the request head to the first token.
    pub time_to_first_token_seconds: Histogram,
    /// Between consecutive tokens of a choice.
    pub inter_token_latency_seconds: Histogram,
    /// Mean time per token after the first, per request.
    pub request_time_per_output_token_seconds: Histogram,
    /// From the request head to the last token.
    pub e2e_request_latency_seconds: Histogram,
    /// From admission to the first step.
    pub request_queue_time_seconds: Histogram,
    /// From the first step to the first token.
    pub request_prefill_time_seconds: Histogram,
    /// From the first token to the last.
    pub request_decode_time_seconds: Histogram,
    /// Prompt tokens per request.
    pub request_prompt_tokens: Histogram,
    /// Generated tokens per request.
    pub request_generation_tokens: Histogram,
    /// Token limit per request.
    pub request_max_tokens: Histogram,
    /// Duration of a step, by phase.
    pub step_duration_seconds: HistogramVec,
    /// Tokens computed by a step, by phase.
    pub step_tokens: HistogramVec,
    /// Sequences in a step, by phase.
    pub step_batch_size: HistogramVec,
    /// Recoveries from a failed step.
    pub engine_restarts_total: IntCounter,
    /// Steps done.
    pub engine_steps_total: IntCounter,
    /// Panics caught outside the engine; stays zero.
    pub panics_total: IntCounter,
    /// Time since the engine thread last turned its loop; set when scraped.
    pub engine_heartbeat_age_seconds: Gauge,
    /// Embedding requests of which batches are being computed.
    pub embedding_requests_running: IntGauge,
    /// Embedding requests waiting for their first batch.
    pub embedding_requests_waiting: IntGauge,
    /// Texts embedded.
    pub embedding_inputs_total: IntCounter,
    /// From submission to the first batch.
    pub embedding_queue_time_seconds: Histogram,
    /// Duration of a batch of texts.
    pub embedding_batch_duration_seconds: Histogram,
    /// Tokens of a batch of texts, padding included.
    pub embedding_batch_tokens: Histogram,
    /// Texts of a batch.
    pub embedding_batch_size: Histogram,
    /// HTTP requests being answered, by route pattern.
    pub http_requests_in_flight: IntGaugeVec,
    /// Connections refused because too many were open.
    pub connections_rejected_total: IntCounter,
    /// From the request head to the end of the response, by route pattern and status code.
    pub http_request_duration_seconds: HistogramVec,
}

impl Metrics {
    /// Registers every family; `model_name` labels those of the model.
    pub fn new(model_name: &str) -> Self {
        let r = Registration {
            registry: Registry::new(),
            model_name,
        };
        let families = Families {
            ready: r.gauge("ready", "Whether requests are answered."),
            requests_running: r.gauge("requests_running", "Sequences being computed."),
            requests_waiting: r.gauge("requests_waiting", "Requests waiting for their first step."),
            requests_total: r.counters(
                "requests_total",
                "HTTP requests answered.",
                &["endpoint", "code"],
            ),
            requests_finished_total: r.counters(
                "requests_finished_total",
                "Choices that ended, by reason.",
                &["finish_reason"],
            ),
            requests_rejected_total: r.counters(
                "requests_rejected_total",
                "Requests refused before they ran, by reason.",
                &["reason"],
            ),
            request_retries_total: r
                .counter("request_retries_total", "Requests marked as retries."),
            ignored_params_total: r.plain_counters(
                "ignored_params_total",
                "Request fields that were ignored.",
                &["param"],
            ),
            prompt_tokens_total: r
                .counter("prompt_tokens_total", "Prompt tokens of requests that ran."),
            generation_tokens_total: r.counter(
                "generation_tokens_total",
                "Generated tokens that were kept.",
            ),
            prompt_tokens_cached_total: r.counter(
                "prompt_tokens_cached_total",
                "Prompt tokens taken from the prefix cache.",
            ),
            prefix_cache_queries_total: r.counter(
                "prefix_cache_queries_total",
                "Prompt tokens looked up in the prefix cache.",
            ),
            prefix_cache_hits_total: r.counter(
                "prefix_cache_hits_total",
                "Prompt tokens found in the prefix cache.",
            ),
            preemptions_total: r.counter(
                "preemptions_total",
                "Sequences put back to waiting because blocks ran out.",
            ),
            kv_cache_usage_ratio: r.ratio(
                "kv_cache_usage_ratio",
                "Blocks in use divided by all blocks.",
            ),
            kv_cache_blocks_used: r.gauge("kv_cache_blocks_used", "Blocks owned by sequences."),
            kv_cache_blocks: r.gauge("kv_cache_blocks", "Blocks of the cache."),
            cache_config_info: r.info(
                "cache_config_info",
                "Shape of the cache.",
                &["block_size", "num_gpu_blocks", "kv_dtype"],
            ),
            build_info: r.info(
                "build_info",
                "What is running.",
                &[
                    "version",
                    "commit",
                    "device",
                    "quantization",
                    "reason",
                    "features",
                ],
            ),
            time_to_first_token_seconds: r.histogram(
                "time_to_first_token_seconds",
                "From the request head to the first token.",
                buckets::TIME_TO_FIRST_TOKEN,
            ),
            inter_token_latency_seconds: r.histogram(
                "inter_token_latency_seconds",
                "Between consecutive tokens of a choice.",
                buckets::PER_TOKEN,
            ),
            request_time_per_output_token_seconds: r.histogram(
                "request_time_per_output_token_seconds",
                "Mean time per token after the first, per request.",
                buckets::PER_TOKEN,
            ),
            e2e_request_latency_seconds: r.histogram(
                "e2e_request_latency_seconds",
                "From the request head to the last token.",
                buckets::REQUEST,
            ),
            request_queue_time_seconds: r.histogram(
                "request_queue_time_seconds",
                "From admission to the first step.",
                buckets::REQUEST,
            ),
            request_prefill_time_seconds: r.histogram(
                "request_prefill_time_seconds",
                "From the first step to the first token.",
                buckets::REQUEST,
            ),
            request_decode_time_seconds: r.histogram(
                "request_decode_time_seconds",
                "From the first token to the last.",
                buckets::REQUEST,
            ),
            request_prompt_tokens: r.histogram(
                "request_prompt_tokens",
                "Prompt tokens per request.",
                buckets::TOKENS,
            ),
            request_generation_tokens: r.histogram(
                "request_generation_tokens",
                "Generated tokens per request.",
                buckets::TOKENS,
            ),
            request_max_tokens: r.histogram(
                "request_max_tokens",
                "Token limit per request.",
                buckets::TOKENS,
            ),
            step_duration_seconds: r.by_phase(
                "step_duration_seconds",
                "Duration of a step.",
                buckets::STEP,
            ),
            step_tokens: r.by_phase(
                "step_tokens",
                "Tokens computed by a step.",
                buckets::STEP_TOKENS,
            ),
            step_batch_size: r.by_phase(
                "step_batch_size",
                "Sequences in a step.",
                buckets::BATCH_SIZE,
            ),
            engine_restarts_total: r
                .counter("engine_restarts_total", "Recoveries from a failed step."),
            engine_steps_total: r.counter("engine_steps_total", "Steps done."),
            panics_total: r.counter("panics_total", "Panics caught outside the engine."),
            engine_heartbeat_age_seconds: r.ratio(
                "engine_heartbeat_age_seconds",
                "Time since the engine thread last turned its loop.",
            ),
            embedding_requests_running: r.plain_gauge(
                "embedding_requests_running",
                "Embedding requests of which batches are being computed.",
            ),
            embedding_requests_waiting: r.plain_gauge(
                "embedding_requests_waiting",
                "Embedding requests waiting for their first batch.",
            ),
            embedding_inputs_total: r.plain_counter("embedding_inputs_total", "Texts embedded."),
            embedding_queue_time_seconds: r.plain_histogram(
                "embedding_queue_time_seconds",
                "From submission to the first batch.",
                buckets::REQUEST,
            ),
            embedding_batch_duration_seconds: r.plain_histogram(
                "embedding_batch_duration_seconds",
                "Duration of a batch of texts.",
                buckets::STEP,
            ),
            embedding_batch_tokens: r.plain_histogram(
                "embedding_batch_tokens",
                "Tokens of a batch of texts, padding included.",
                buckets::STEP_TOKENS,
            ),
            embedding_batch_size: r.plain_histogram(
                "embedding_batch_size",
                "Texts of a batch.",
                buckets::BATCH_SIZE,
            ),
            http_requests_in_flight: r.plain_gauges(
                "http_requests_in_flight",
                "HTTP requests being answered.",
                &["endpoint"],
            ),
            connections_rejected_total: r.plain_counter(
                "connections_rejected_total",
                "Connections refused because too many were open.",
            ),
            http_request_duration_seconds: r.http_histograms(),
            model_name: model_name.to_owned(),
            registry: r.registry,
        };
        families
            .registry
            .register(Box::new(ProcessCollector::for_self()))
            .expect("process metrics are registered once");
        families.start_at_zero();
        Self(Arc::new(families))
    }

    /// The Prometheus text form of everything; with `vllm_aliases` the same series again under the
    /// names vLLM gives them.
    pub fn render(&self, vllm_aliases: bool) -> String {
        let mut families = self.registry.gather();
        if vllm_aliases {
            families.extend(aliases::vllm(&families));
        }
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&families, &mut text)
            .expect("every gathered family has a name and at least one series");
        String::from_utf8(text).expect("the text encoder writes UTF-8")
    }
}

impl Families {
    /// Creates the zero series of an HTTP route; called once per route at start.
    pub fn declare_endpoint(&self, endpoint: &str) {
        self.requests_total.with_label_values(&[endpoint, "200"]);
        self.http_requests_in_flight.with_label_values(&[endpoint]);
        self.http_request_duration_seconds
            .with_label_values(&[endpoint, "200"]);
    }

    /// Publishes the shape of the cache.
    pub fn set_cache_config(&self, block_size: usize, num_blocks: usize, kv_dtype: &str) {
        self.cache_config_info.reset();
        self.cache_config_info
            .with_label_values(&[&block_size.to_string(), &num_blocks.to_string(), kv_dtype])
            .set(1);
        self.kv_cache_blocks
            .set(i64::try_from(num_blocks).unwrap_or(i64::MAX));
    }

    /// Publishes what is running.
    pub fn set_build_info(&self, info: &BuildInfo) {
        self.build_info.reset();
        let values = [
            &*info.version,
            &*info.commit,
            &*info.device,
            &*info.quantization,
            &*info.reason,
            &*info.features,
        ];
        self.build_info.with_label_values(&values).set(1);
    }

    /// The name that labels the model's series.
    pub fn model_name(&self) -> &str {
        &self.model_name
    }

    fn start_at_zero(&self) {
        for reason in FinishReason::ALL {
            self.requests_finished_total
                .with_label_values(&[reason.as_str()]);
        }
        for reason in RejectReason::ALL {
            self.requests_rejected_total
                .with_label_values(&[reason.as_str()]);
        }
        for param in IGNORED_PARAMS {
            self.ignored_params_total.with_label_values(&[param]);
        }
        for phase in Phase::ALL {
            for family in [
                &self.step_duration_seconds,
                &self.step_tokens,
                &self.step_batch_size,
            ] {
                family.with_label_values(&[phase.as_str()]);
            }
        }
    }
}

/// Builds and registers families; a duplicate or invalid name is a bug that every test finds.
struct Registration<'a> {
    registry: Registry,
    model_name: &'a str,
}

impl Registration<'_> {
    fn plain(&self, name: &str, help: &str) -> Opts {
        Opts::new(format!("octet_{name}"), help)
    }

    fn opts(&self, name: &str, help: &str) -> Opts {
        self.plain(name, help)
            .const_label("model_name", self.model_name)
    }

    fn register<C: Collector + Clone + 'static>(&self, collector: prometheus::Result<C>) -> C {
        let collector = collector.expect("metric names and labels are valid");
        self.registry
            .register(Box::new(collector.clone()))
            .expect("metric names are unique");
        collector
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::with_opts(self.opts(name, help)))
    }

    fn plain_gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::with_opts(self.plain(name, help)))
    }

    fn ratio(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::with_opts(self.opts(name, help)))
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::with_opts(self.opts(name, help)))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(self.opts(name, help), labels))
    }

    fn plain_counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::with_opts(self.plain(name, help)))
    }

    fn plain_counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(self.plain(name, help), labels))
    }

    fn plain_gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(self.plain(name, help), labels))
    }

    fn info(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(self.opts(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::from(self.opts(name, help)).buckets(buckets.to_vec());
        self.register(Histogram::with_opts(opts))
    }

    fn plain_histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::from(self.plain(name, help)).buckets(buckets.to_vec());
        self.register(Histogram::with_opts(opts))
    }

    fn by_phase(&self, name: &str, help: &str, buckets: &[f64]) -> HistogramVec {
        let opts = HistogramOpts::from(self.opts(name, help)).buckets(buckets.to_vec());
        self.register(HistogramVec::new(opts, &["phase"]))
    }

    fn http_histograms(&self) -> HistogramVec {
        let opts = HistogramOpts::from(self.plain(
            "http_request_duration_seconds",
            "From the request head to the end of the response.",
        ));
        self.register(HistogramVec::new(
            opts.buckets(buckets::REQUEST.to_vec()),
            &["endpoint", "code"],
        ))
    }
}

#[cfg(test)]
mod tests;
