//! What the flags mean: everything resolved and checked once, all problems reported together.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use engine::EngineConfig;
use gateway::{GatewayConfig, GenerationPolicy, RequestLimits, Timeouts, VersionInfo};
use model::GenerationDefaults;
use model::hub::HubOptions;
use serde_json::{Map, Value};

use crate::args::{
    DeviceArg, KernelTuningArg, KvCacheDtypeArg, LogFormatArg, MetricsCompatArg, QuantizationArg,
    ServeArgs,
};
use crate::model_source::ModelSource;
use crate::target::Target;

/// Where and how to compute.
#[derive(Debug, Clone)]
pub struct DeviceConfig {
    /// The target.
    pub device: DeviceArg,
    /// Precision of the weights.
    pub quantization: QuantizationArg,
    /// Precision of cached keys and values.
    pub kv_cache_dtype: KvCacheDtypeArg,
    /// Compute threads; the target decides when absent.
    pub threads: Option<NonZeroUsize>,
    /// Whether a GPU's kernels are timed when a model is loaded.
    pub kernel_tuning: KernelTuningArg,
}

impl DeviceConfig {
    /// Whether the precision is one that only GPUs have.
    pub fn needs_gpu(&self) -> bool {
        matches!(
            self.quantization,
            QuantizationArg::F16 | QuantizationArg::W8A16
        )
    }

    /// Whether the flags ask for something that only the CPU has.
    pub fn needs_cpu(&self) -> bool {
        self.quantization == QuantizationArg::F32
            || self.kv_cache_dtype == KvCacheDtypeArg::Int8
            || self.threads.is_some()
    }
}

/// Everything `octet serve` needs.
#[derive(Clone)]
pub struct Config {
    /// Where the weights come from.
    pub model: ModelSource,
    /// An embedding model beside it.
    pub embedding_model: Option<ModelSource>,
    /// Access to the hub.
    pub hub: HubOptions,
    /// Address to bind.
    pub host: String,
    /// Port to bind.
    pub port: u16,
    /// Port for metrics alone.
    pub metrics_port: Option<u16>,
    /// Where and how to compute.
    pub device: DeviceConfig,
    /// Bytes for cached keys and values; sized from free memory when absent.
    pub kv_cache_memory: Option<u64>,
    /// Share of a GPU's memory that may be used.
    pub gpu_memory_utilization: f64,
    /// Bytes of host memory that preempted sequences are moved to; the target's own when absent.
    pub swap_bytes: Option<u64>,
    /// Longest sequence; the model's own when absent.
    pub max_model_len: Option<usize>,
    /// Limits of the engine.
    pub engine: EngineConfig,
    /// Settings of the HTTP side.
    pub gateway: GatewayConfig,
    /// Whether clients need a key.
    pub asks_for_key: bool,
    /// Where the replaceable keys of `gateway` stand.
    pub api_key_file: Option<PathBuf>,
    /// Log filter.
    pub log_level: String,
    /// Form of log lines.
    pub log_format: LogFormatArg,
}

/// The largest step any target is asked for.
const MAX_STEP_TOKENS: usize = 16_384;

/// Mistakes found so far.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    /// Keeps a value, or notes why there is none.
    fn keep<T: Default>(&mut self, result: Result<T>) -> T {
        result.unwrap_or_else(|error| {
            self.0.push(format!("{error:#}"));
            T::default()
        })
    }
}

impl Config {
    /// Resolves what was typed.
    ///
    /// # Errors
    /// One message that lists every problem.
    pub fn resolve(args: ServeArgs) -> Result<Self> {
        let mut problems = Problems::default();
        check_limits(&args, &mut problems);
        let model = args.model.as_deref().or(args.model_positional.as_deref());
        let model = ModelSource::parse(model);
        if let ModelSource::Path(path) = &model
            && !path.exists()
        {
            // One bare word may be a command spelled wrongly.
            let is_word = path.components().count() == 1 && path.extension().is_none();
            let hint = if is_word {
                "; commands are listed by octet help"
            } else {
                ""
            };
            let path = path.display();
            problems
                .0
                .push(format!("--model {path}: no such file or directory{hint}"));
        }
        let embedding_model = args
            .embedding_model
            .as_deref()
            .map(|text| ModelSource::parse(Some(text)));
        check_embedding_model(embedding_model.as_ref(), &mut problems);
        let gateway = gateway_config(&args, &model, &mut problems);
        let asks_for_key = has_keys(&args);
        if let Some(beside) = &embedding_model
            && gateway.served_model_names.contains(&beside.name())
        {
            let name = beside.name();
            problems.0.push(format!(
                "both models would be called {name}; name the first with --served-model-name"
            ));
        }
        let device = DeviceConfig {
            device: args.device,
            quantization: args.quantization,
            kv_cache_dtype: args.kv_cache_dtype,
            threads: args.threads.and_then(NonZeroUsize::new),
            kernel_tuning: args.kernel_tuning,
        };
        // Before anything is printed, bound or fetched.
        problems.keep(Target::check(&device));
        if !problems.0.is_empty() {
            bail!(
                "the configuration has {} problem(s):\n  {}",
                problems.0.len(),
                problems.0.join("\n  ")
            );
        }
        Ok(Self {
            hub: HubOptions {
                revision: args.revision,
                token: args.hf_token,
                cache_dir: args.download_dir,
                endpoint: args.hf_endpoint,
                offline: args.offline,
                ..HubOptions::default()
            },
            model,
            embedding_model,
            host: args.host,
            port: args.port,
            metrics_port: args.metrics_port,
            device,
            kv_cache_memory: args.kv_cache_memory,
            gpu_memory_utilization: args.gpu_memory_utilization,
            swap_bytes: args
                .swap_space
                .map(|gib| (gib * (1u64 << 30) as f64) as u64),
            max_model_len: args.max_model_len,
            engine: EngineConfig {
                max_num_seqs: args.max_num_seqs,
                max_num_batched_tokens: args.max_num_batched_tokens,
                max_num_queued_reqs: args
                    .max_num_queued_reqs
                    .unwrap_or((4 * args.max_num_seqs).max(256)),
                max_num_queued_tokens: args.max_num_queued_tokens,
                enable_prefix_caching: !args.no_enable_prefix_caching,
                queue_timeout: Duration::from_secs(args.queue_timeout),
                request_timeout: Duration::from_secs(args.request_timeout),
                stream_write_timeout: Duration::from_secs(args.stream_write_timeout),
            },
            asks_for_key,
            gateway,
            api_key_file: args.api_key_file,
            log_level: args.log_level,
            log_format: args.log_format,
        })
    }
}

fn gateway_config(args: &ServeArgs, model: &ModelSource, problems: &mut Problems) -> GatewayConfig {
    let keys_of_file = args.api_key_file.as_deref().map(keys_of_file);
    let replaceable_api_keys = problems.keep(keys_of_file.transpose()).unwrap_or_default();
    check_access(args, problems);
    let template = args.chat_template.as_ref().map(|path| {
        std::fs::read_to_string(path).with_context(|| format!("--chat-template {}", path.display()))
    });
    let names = &args.served_model_name;
    if names.iter().any(|name| name.trim().is_empty()) {
        problems
            .0
            .push("--served-model-name must not be empty".to_owned());
    }
    GatewayConfig {
        served_model_names: if names.is_empty() {
            vec![model.name()]
        } else {
            names.clone()
        },
        accept_any_model: args.accept_any_model,
        api_keys: problems.keep(usable_keys("--api-key", &args.api_key)),
        replaceable_api_keys,
        max_num_reqs_per_key: args.max_num_reqs_per_key,
        allowed_origins: args.allowed_origins.clone(),
        loopback: is_loopback(&args.host),
        metrics_require_key: args.metrics_require_key,
        metrics_apart: args.metrics_port.is_some(),
        vllm_metrics: args.metrics_compat == MetricsCompatArg::Vllm,
        strict_params: args.strict_params,
        limits: RequestLimits {
            max_body: usize::try_from(args.max_request_body).unwrap_or(usize::MAX),
            max_n: args.max_n,
            max_stop: args.max_stop,
            max_logprobs: args.max_logprobs,
            max_prompts: args.max_prompts,
            ..RequestLimits::default()
        },
        timeouts: Timeouts {
            sse_ping: Duration::from_secs(args.sse_ping_interval),
            write: Duration::from_secs(args.stream_write_timeout).saturating_mul(2),
            shutdown: Duration::from_secs(args.shutdown_timeout),
            ..Timeouts::default()
        },
        generation_config: match args.generation_config.as_str() {
            "none" => GenerationPolicy::None,
            _ => GenerationPolicy::Auto,
        },
        generation_override: problems.keep(generation_override(args)),
        default_seed: args.seed,
        chat_template: problems.keep(template.transpose()),
        chat_template_kwargs: problems.keep(object(
            "--default-chat-template-kwargs",
            args.default_chat_template_kwargs.as_deref(),
        )),
        stream_early_headers: args.stream_early_headers,
        version: VersionInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: crate::COMMIT.to_owned(),
            features: crate::cuda::FEATURES
                .split(',')
                .map(str::to_owned)
                .collect(),
        },
        text_threads: 2,
        max_connections: max_connections(),
    }
}

/// Connections at the same time: a share of the files that the process may open, which leaves some for
/// everything else.
fn max_connections() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let share = limit.current.unwrap_or(u64::MAX) / 5 * 4;
    usize::try_from(share).unwrap_or(usize::MAX).min(1024)
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|ip| ip.is_loopback())
}

fn check_embedding_model(source: Option<&ModelSource>, problems: &mut Problems) {
    match source {
        Some(ModelSource::Bundled) => problems
            .0
            .push("--embedding-model: the bundled model does not embed".to_owned()),
        Some(ModelSource::Path(path)) if !path.is_dir() => {
            let path = path.display();
            problems
                .0
                .push(format!("--embedding-model {path}: no such directory"));
        }
        _ => {}
    }
}

/// The keys that stand in `--api-key-file`.
///
/// # Errors
/// A file that cannot be read, that everybody may use, or that holds no key.
pub fn keys_of_file(path: &Path) -> Result<Vec<String>> {
    let origin = format!("--api-key-file {}", path.display());
    let text = secret(path).with_context(|| origin.clone())?;
    keys_of_text(&origin, &text)
}

fn keys_of_text(origin: &str, text: &str) -> Result<Vec<String>> {
    // Some editors begin a file with a mark that is no part of its first line.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = text.lines().map(str::trim);
    let keys: Vec<_> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    if keys.is_empty() {
        bail!("{origin} holds no key");
    }
    usable_keys(origin, &keys)
}

/// Keys as clients send them: HTTP takes off the blanks around one, and lets none hold control characters.
fn usable_keys(origin: &str, keys: &[impl AsRef<str>]) -> Result<Vec<String>> {
    let keys = keys.iter().map(|key| key.as_ref().trim());
    keys.map(|key| {
        if key.is_empty() {
            bail!("{origin} must not be empty");
        }
        if key.chars().any(char::is_control) {
            bail!("{origin}: a key with control characters, which no client can send");
        }
        Ok(key.to_owned())
    })
    .collect()
}

/// The text of a file that only its owner and group may read.
fn secret(path: &Path) -> Result<String> {
    let mode = std::fs::metadata(path)?.permissions().mode() & 0o777;
    if mode & 0o007 != 0 {
        bail!("everybody may use this file (mode {mode:03o}); take that away with chmod o-rwx");
    }
    Ok(std::fs::read_to_string(path)?)
}

fn has_keys(args: &ServeArgs) -> bool {
    !args.api_key.is_empty() || args.api_key_file.is_some()
}

fn check_access(args: &ServeArgs, problems: &mut Problems) {
    let host = &args.host;
    let has_keys = has_keys(args);
    if !is_loopback(host) && !has_keys && !args.allow_unauthenticated {
        problems.0.push(format!(
            "--host {host} is reachable from outside and no --api-key is set; set one or pass \
             --allow-unauthenticated"
        ));
    }
    let needs_keys = [
        ("--metrics-require-key", args.metrics_require_key),
        (
            "--max-num-reqs-per-key",
            args.max_num_reqs_per_key.is_some(),
        ),
    ];
    if args
        .metrics_port
        .is_some_and(|port| port != 0 && port == args.port)
    {
        let port = args.port;
        problems
            .0
            .push(format!("--metrics-port {port} is that of --port"));
    }
    for (flag, _) in needs_keys.iter().filter(|(_, is_set)| *is_set && !has_keys) {
        problems.0.push(format!("{flag} needs an --api-key"));
    }
}

fn check_limits(args: &ServeArgs, problems: &mut Problems) {
    if let Some(gib) = args.swap_space.filter(|gib| !(0.0..=1024.0).contains(gib)) {
        problems
            .0
            .push(format!("--swap-space {gib} is outside 0..=1024"));
    }
    let mut range = |flag: &str, value: u64, min: u64, max: u64| {
        if !(min..=max).contains(&value) {
            problems
                .0
                .push(format!("{flag} {value} is outside {min}..={max}"));
        }
    };
    range("--max-num-seqs", args.max_num_seqs as u64, 1, 4096);
    range(
        "--gpu-memory-utilization (in hundredths)",
        (args.gpu_memory_utilization * 100.0) as u64,
        1,
        100,
    );
    if let Some(tokens) = args.max_num_batched_tokens {
        range(
            "--max-num-batched-tokens",
            tokens as u64,
            1,
            MAX_STEP_TOKENS as u64,
        );
    }
    if let Some(len) = args.max_model_len {
        range("--max-model-len", len as u64, 2, 1 << 24);
    }
    if let Some(threads) = args.threads {
        range("--threads", threads as u64, 1, 1024);
    }
    if let Some(requests) = args.max_num_queued_reqs {
        range("--max-num-queued-reqs", requests as u64, 1, 1 << 20);
    }
    if let Some(requests) = args.max_num_reqs_per_key {
        range("--max-num-reqs-per-key", requests as u64, 1, 1 << 20);
    }
    range(
        "--max-num-queued-tokens",
        args.max_num_queued_tokens as u64,
        1,
        1 << 32,
    );
    range("--max-n", u64::from(args.max_n), 1, 1024);
    range("--max-prompts", args.max_prompts as u64, 1, 2048);
    range("--max-stop", args.max_stop as u64, 1, 256);
    range("--max-logprobs", u64::from(args.max_logprobs), 0, 100);
    range("--max-request-body", args.max_request_body, 1024, 1 << 30);
    for (flag, seconds) in [
        ("--queue-timeout", args.queue_timeout),
        ("--request-timeout", args.request_timeout),
        ("--stream-write-timeout", args.stream_write_timeout),
        ("--sse-ping-interval", args.sse_ping_interval),
    ] {
        range(flag, seconds, 1, 86_400);
    }
    range("--shutdown-timeout", args.shutdown_timeout, 0, 86_400);
}

fn object(flag: &str, text: Option<&str>) -> Result<Map<String, Value>> {
    match text.map(serde_json::from_str).transpose() {
        Ok(None) => Ok(Map::new()),
        Ok(Some(Value::Object(map))) => Ok(map),
        Ok(Some(_)) => bail!("{flag} must be a JSON object"),
        Err(error) => bail!("{flag}: {error}"),
    }
}

/// Sampling defaults of the operator; a field that is none of them is a mistake.
fn generation_override(args: &ServeArgs) -> Result<GenerationDefaults> {
    const FLAG: &str = "--override-generation-config";
    let mut fields = object(FLAG, args.override_generation_config.as_deref())?;
    let mut number = |name: &str, min: f64, max: f64| -> Result<Option<f64>> {
        let Some(value) = fields.remove(name) else {
            return Ok(None);
        };
        let read = value.as_f64().filter(|read| (min..=max).contains(read));
        let read =
            read.with_context(|| format!("{FLAG}: {name} {value} is outside {min}..={max}"))?;
        Ok(Some(read))
    };
    let defaults = GenerationDefaults {
        do_sample: None,
        temperature: number("temperature", 0.0, 2.0)?.map(|v| v as f32),
        top_p: number("top_p", 0.001, 1.0)?.map(|v| v as f32),
        top_k: number("top_k", 0.0, f64::from(i32::MAX))?.map(|v| v as u32),
        min_p: number("min_p", 0.0, 1.0)?.map(|v| v as f32),
        repetition_penalty: number("repetition_penalty", 0.01, 100.0)?.map(|v| v as f32),
    };
    match fields.keys().next() {
        Some(name) => bail!("{FLAG}: {name} is not a sampling default"),
        None => Ok(defaults),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::args::Cli;

    fn resolve(flags: &[&str]) -> Result<Config> {
        let mut line = vec!["octet"];
        line.extend(flags);
        Config::resolve(Cli::try_parse_from(line).expect("the flags parse").serve)
    }

    fn problem(flags: &[&str]) -> String {
        let Err(error) = resolve(flags) else {
            panic!("{flags:?} was accepted")
        };
        error.to_string()
    }

    #[test]
    fn a_public_address_needs_a_key() {
        for host in ["0.0.0.0", "192.168.0.2", "::"] {
            assert!(problem(&["--host", host]).contains("--allow-unauthenticated"));
            assert!(resolve(&["--host", host, "--api-key", "k"]).is_ok());
            assert!(resolve(&["--host", host, "--allow-unauthenticated"]).is_ok());
        }
        for host in ["127.0.0.1", "::1", "localhost", "127.1.2.3"] {
            assert!(resolve(&["--host", host]).is_ok(), "{host}");
        }
    }

    #[test]
    fn what_needs_a_key_says_so() {
        for flags in [
            &["--metrics-require-key"][..],
            &["--max-num-reqs-per-key", "3"],
        ] {
            assert!(problem(flags).contains("needs an --api-key"), "{flags:?}");
            assert!(resolve(&[flags, &["--api-key", "k"]].concat()).is_ok());
        }
        assert!(problem(&["--api-key", " "]).contains("must not be empty"));
        assert!(problem(&["--metrics-port", "8000"]).contains("that of --port"));
        assert!(resolve(&["--metrics-port", "0", "--port", "0"]).is_ok());
    }

    #[test]
    fn a_word_that_is_no_model_may_have_been_a_command() {
        assert!(problem(&["serv"]).contains("octet help"));
        assert!(!problem(&["./serv/none"]).contains("octet help"));
        assert!(!problem(&["none.gguf"]).contains("octet help"));
    }

    /// A secret often ends in a line break, and lists have blanks after commas.
    #[test]
    fn keys_are_what_clients_can_send() {
        let keys = |key: &str| resolve(&["--api-key", key]).map(|config| config.gateway.api_keys);
        assert_eq!(keys("a\n").expect("valid"), ["a"]);
        assert_eq!(keys("a, b c").expect("valid"), ["a", "b c"]);
        assert!(problem(&["--api-key", "s3\u{0}t"]).contains("control characters"));
        assert!(!problem(&["--api-key", "s3\u{0}t"]).contains("s3"));
        let of_an_editor = keys_of_text("file", "\u{feff}a\r\n# b\r\n\tc \r\n");
        assert_eq!(of_an_editor.expect("valid"), ["a", "c"]);
        assert!(keys_of_text("file", "\u{feff}# b\n").is_err());
    }

    #[test]
    fn every_problem_is_listed() {
        let error = problem(&[
            "--max-num-seqs",
            "0",
            "--max-n",
            "0",
            "--host",
            "0.0.0.0",
            "--override-generation-config",
            "[]",
            "--model",
            "./does/not/exist",
        ]);
        for part in [
            "5 problem",
            "--max-num-seqs 0",
            "--max-n 0",
            "--api-key",
            "JSON object",
            "no such file",
        ] {
            assert!(error.contains(part), "{part} is missing in {error}");
        }
    }

    /// Sums and products of limits are taken before all problems are told.
    #[test]
    fn no_value_of_any_flag_panics() {
        let command = Cli::command();
        let flags = command.get_arguments().filter_map(|flag| flag.get_long());
        let flags: Vec<_> = flags.map(|name| format!("--{name}")).collect();
        assert!(flags.len() > 40, "{flags:?}");
        for flag in &flags {
            for value in ["0", "1", "18446744073709551615", "1e308", "NaN", "-1", ""] {
                if let Ok(cli) = Cli::try_parse_from(["octet", &format!("{flag}={value}")]) {
                    let _ = Config::resolve(cli.serve);
                }
            }
        }
    }

    #[test]
    fn sampling_defaults_are_checked() {
        for (json, expected) in [
            (r#"{"temperature": 3}"#, "temperature 3 is outside"),
            (r#"{"temperature": "a"}"#, "temperature"),
            (r#"{"warmth": 1}"#, "warmth"),
        ] {
            let error = problem(&["--override-generation-config", json]);
            assert!(error.contains(expected), "{error}");
        }
        let config = resolve(&["--override-generation-config", r#"{"top_k": 5}"#]);
        let config = config.expect("a valid default");
        assert_eq!(config.gateway.generation_override.top_k, Some(5));
    }

    #[test]
    fn an_embedding_model_has_a_folder_and_a_name_of_its_own() {
        assert!(problem(&["--embedding-model", "bundled"]).contains("does not embed"));
        assert!(problem(&["--embedding-model", "./nowhere"]).contains("no such directory"));
        let same = ["--embedding-model", "org/a", "--served-model-name", "org/a"];
        assert!(problem(&same).contains("--served-model-name"));
        let config = resolve(&["--embedding-model", "org/a"]).expect("valid");
        assert_eq!(
            config.embedding_model,
            Some(ModelSource::Hub("org/a".into()))
        );
    }

    #[test]
    fn the_queue_grows_with_the_batch() {
        let config = resolve(&["--max-num-seqs", "100"]).expect("valid");
        assert_eq!(config.engine.max_num_queued_reqs, 400);
        assert_eq!(resolve(&[]).expect("valid").engine.max_num_queued_reqs, 256);
    }
}
