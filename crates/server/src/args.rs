//! What was typed: every flag of `octet`, its default, its environment variable and its help, in one
//! table. Nothing outside this module and [`crate::config`] reads a flag or the environment.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// Serve open language models behind an OpenAI-compatible API.
#[derive(Debug, Parser)]
#[command(
    name = "octet",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Run without arguments to serve the bundled model on http://127.0.0.1:8000."
)]
pub struct Cli {
    /// What to do; serving is the default.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of `serve` without naming it.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// Show every flag, also the rarely needed ones.
    #[arg(long, global = true)]
    pub help_all: bool,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model over HTTP.
    Serve(Box<ServeArgs>),
    /// List the model families and file formats that can be loaded.
    Models,
    /// Show what was detected and what would run on it.
    Devices(DeviceArgs),
    /// Talk to a running server from the terminal.
    Chat(ChatArgs),
    /// Measure the engine without HTTP, beside what the machine can do.
    Bench(Box<BenchArgs>),
    /// Measure what a precision costs in quality, against the model's own 32-bit form.
    Eval(Box<EvalArgs>),
    /// Ask a server on this machine whether it is ready.
    Health(HealthArgs),
    /// Print the completion script of a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
    /// Write an 8-bit copy of a model in the format of compressed-tensors.
    Quantize(QuantizeArgs),
}

/// Where a model is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceArg {
    /// The best device found.
    Auto,
    /// The vectorised CPU target.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// Plain loops in 32-bit floats: slow, the yardstick of the tests.
    Reference,
}

/// How weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QuantizationArg {
    /// The fastest form that stays close to the 32-bit one: 8 bits; said at start.
    Auto,
    /// 8-bit weights; 8-bit activations with a scale per token and group of 128 features.
    Int8,
    /// As int8 with one scale per token: faster, less accurate.
    Int8Fast,
    /// bfloat16 weights and activations, 32-bit accumulation.
    #[value(alias = "bfloat16")]
    Bf16,
    /// Half precision, 32-bit accumulation; only on GPUs.
    #[value(aliases = ["float16", "half", "fp16"])]
    F16,
    /// 8-bit weights, activations in half precision: the memory of int8 without its error; only on GPUs.
    #[value(name = "w8a16")]
    W8A16,
    /// 32-bit floats.
    #[value(aliases = ["float32", "float"])]
    F32,
}

/// How cached keys and values are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvCacheDtypeArg {
    /// As precise as the weights; bfloat16 beside 8-bit weights.
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// 8 bits with a scale per token and head: about half of bfloat16's memory.
    Int8,
}

/// Whether kernels are timed at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KernelTuningArg {
    /// On a GPU, once for each shape of matrix; kept in the user's cache directory.
    Auto,
    /// Never: a table decides which kernel multiplies what.
    Off,
}

/// Which second set of metric names is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MetricsCompatArg {
    /// vLLM's names beside our own.
    Vllm,
    /// Only our own.
    None,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormatArg {
    /// Readable lines.
    Text,
    /// One JSON object per line.
    Json,
}

/// Flags of `octet devices`.
#[derive(Debug, Clone, Args)]
pub struct DeviceArgs {
    /// Where the model would be computed.
    #[arg(long, env = "OCTET_DEVICE", value_enum, default_value = "auto")]
    pub device: DeviceArg,
    /// How weights would be held.
    #[arg(
        short,
        long,
        env = "OCTET_QUANTIZATION",
        value_enum,
        default_value = "auto"
    )]
    pub quantization: QuantizationArg,
    /// Compute threads.
    #[arg(long, env = "OCTET_THREADS", value_name = "N")]
    pub threads: Option<usize>,
}

/// Flags of `octet bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Prompt tokens of the prefill test; 0 leaves it out.
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    pub prompt_tokens: usize,
    /// Tokens in the cache when the decode test begins.
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    pub context_tokens: usize,
    /// Tokens that each sequence of the decode test generates; 0 leaves it out.
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    pub generate_tokens: usize,
    /// Sequences side by side.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 8, 32])]
    pub batch: Vec<usize>,
    /// Runs of each test.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub repetitions: usize,
    /// Write the results as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Model, device and limits, as for `serve`.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// Flags of `octet eval`.
#[derive(Debug, Clone, Args)]
pub struct EvalArgs {
    /// Text to score, UTF-8; left out, the bundled model is scored on its held-out answers.
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Tokens to score, in whole windows; 4096 are enough for a first look.
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    pub tokens: usize,
    /// Tokens of a window, the second half of which is scored.
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    pub window: usize,
    /// Write the results as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Model, device and precision, as for `serve`.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// Flags of `octet health`.
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    /// Port of the server.
    #[arg(short, long, env = "OCTET_PORT", default_value_t = 8000)]
    pub port: u16,
}

/// Flags of `octet chat`.
#[derive(Debug, Clone, Args)]
pub struct ChatArgs {
    /// Base URL of the server.
    #[arg(long, env = "OCTET_URL", default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Model name; the first one the server lists when left out.
    #[arg(short, long, env = "OCTET_CHAT_MODEL")]
    pub model: Option<String>,
    /// API key of the server.
    #[arg(long, env = "OCTET_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// System prompt.
    #[arg(short, long)]
    pub system: Option<String>,
    /// Sampling temperature.
    #[arg(short, long)]
    pub temperature: Option<f64>,
    /// Longest answer in tokens.
    #[arg(long)]
    pub max_tokens: Option<u32>,
    /// Ask this one question and exit.
    pub question: Vec<String>,
}

/// Arguments of `octet quantize`.
#[derive(Debug, Clone, Args)]
pub struct QuantizeArgs {
    /// Folder of a safetensors model in floats.
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// Folder to write; it must not exist, or be empty.
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
}

/// Flags of `octet serve`. Names follow vLLM where it has one.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Checkpoint directory, .gguf file or hub id, of a language or embedding model; the bundled model
    /// when left out.
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub model_positional: Option<String>,
    /// Same as MODEL.
    #[arg(short, long, env = "OCTET_MODEL", value_name = "MODEL")]
    pub model: Option<String>,
    /// Name of the model in the API; repeat for aliases.
    #[arg(
        short = 'a',
        long,
        env = "OCTET_SERVED_MODEL_NAME",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub served_model_name: Vec<String>,
    /// Embedding model to serve beside MODEL: a directory or a hub id.
    #[arg(long, env = "OCTET_EMBEDDING_MODEL", value_name = "MODEL")]
    pub embedding_model: Option<String>,
    /// Address to bind.
    #[arg(long, env = "OCTET_HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to bind; 0 picks a free one.
    #[arg(short, long, env = "OCTET_PORT", default_value_t = 8000)]
    pub port: u16,
    /// Key that clients must send; repeat, or separate by commas, for several.
    #[arg(
        long,
        env = "OCTET_API_KEY",
        value_name = "KEY",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub api_key: Vec<String>,
    /// Where to compute.
    #[arg(long, env = "OCTET_DEVICE", value_enum, default_value = "auto")]
    pub device: DeviceArg,
    /// How to hold the weights.
    #[arg(
        short,
        long,
        visible_alias = "dtype",
        env = "OCTET_QUANTIZATION",
        value_enum,
        default_value = "auto"
    )]
    pub quantization: QuantizationArg,
    /// Longest prompt plus output in tokens; default: the model's own.
    #[arg(short = 'c', long, env = "OCTET_MAX_MODEL_LEN", value_name = "TOKENS")]
    pub max_model_len: Option<usize>,
    /// Sequences computed at the same time.
    #[arg(
        long,
        env = "OCTET_MAX_NUM_SEQS",
        value_name = "N",
        default_value_t = 64
    )]
    pub max_num_seqs: usize,
    /// Tokens computed in one step; default: measured, so that a step takes at most 250 ms.
    #[arg(long, env = "OCTET_MAX_NUM_BATCHED_TOKENS", value_name = "TOKENS")]
    pub max_num_batched_tokens: Option<usize>,
    /// Memory for cached keys and values, such as 512MiB or 4GiB; default: a quarter of what is free.
    #[arg(long, env = "OCTET_KV_CACHE_MEMORY", value_name = "SIZE", value_parser = parse_size)]
    pub kv_cache_memory: Option<u64>,
    /// Share of a GPU's memory that may be used, by weights, a step's buffers and cached keys and values.
    #[arg(
        long,
        env = "OCTET_GPU_MEMORY_UTILIZATION",
        value_name = "SHARE",
        default_value_t = 0.9,
        hide = true
    )]
    pub gpu_memory_utilization: f64,
    /// Whether a GPU's kernels are timed at start, at most two seconds for a new model, and the times kept; answers
    /// are the same in any case.
    #[arg(
        long,
        env = "OCTET_KERNEL_TUNING",
        value_enum,
        default_value = "auto",
        hide = true
    )]
    pub kernel_tuning: KernelTuningArg,
    /// GiB of host memory that preempted sequences are moved to instead of being computed again; default: 4, at most
    /// a quarter of what is available, for a GPU, else 0.
    #[arg(long, env = "OCTET_SWAP_SPACE", value_name = "GIB", hide = true)]
    pub swap_space: Option<f64>,
    /// Compute threads; by default one for each physical core that affinity and CPU quota allow.
    #[arg(long, env = "OCTET_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// Jinja chat template that replaces the model's.
    #[arg(long, env = "OCTET_CHAT_TEMPLATE", value_name = "FILE")]
    pub chat_template: Option<PathBuf>,

    /// Type of cached keys and values.
    #[arg(
        long,
        env = "OCTET_KV_CACHE_DTYPE",
        value_enum,
        default_value = "auto",
        hide = true
    )]
    pub kv_cache_dtype: KvCacheDtypeArg,
    /// Branch, tag or commit of a hub id; default: main.
    #[arg(long, env = "OCTET_REVISION", hide = true)]
    pub revision: Option<String>,
    /// Token for private or gated hub ids.
    #[arg(long, env = "HF_TOKEN", hide_env_values = true, hide = true)]
    pub hf_token: Option<String>,
    /// Base address of the hub.
    #[arg(long, env = "HF_ENDPOINT", value_name = "URL", hide = true)]
    pub hf_endpoint: Option<String>,
    /// Where downloads are kept; default: the hub's usual cache.
    #[arg(long, env = "OCTET_DOWNLOAD_DIR", value_name = "DIR", hide = true)]
    pub download_dir: Option<PathBuf>,
    /// Never touch the network; a hub id must be in the cache.
    #[arg(long, env = "HF_HUB_OFFLINE", hide = true, action = ArgAction::SetTrue,
          value_parser = switch())]
    pub offline: bool,
    /// Answer requests for any model name.
    #[arg(long, env = "OCTET_ACCEPT_ANY_MODEL", hide = true, action = ArgAction::SetTrue, value_parser = switch())]
    pub accept_any_model: bool,
    /// File with one API key per line; lines that begin with # are comments. SIGHUP has it read again.
    #[arg(long, env = "OCTET_API_KEY_FILE", value_name = "FILE", hide = true)]
    pub api_key_file: Option<PathBuf>,
    /// Requests that each API key may have at the same time; default: no limit of its own.
    #[arg(
        long,
        env = "OCTET_MAX_NUM_REQS_PER_KEY",
        value_name = "N",
        hide = true
    )]
    pub max_num_reqs_per_key: Option<usize>,
    /// Bind a public address although no key is set.
    #[arg(long, env = "OCTET_ALLOW_UNAUTHENTICATED", hide = true, action = ArgAction::SetTrue, value_parser = switch())]
    pub allow_unauthenticated: bool,
    /// Requests that may wait; default: max(256, 4 × max-num-seqs).
    #[arg(long, env = "OCTET_MAX_NUM_QUEUED_REQS", value_name = "N", hide = true)]
    pub max_num_queued_reqs: Option<usize>,
    /// Prompt tokens that may wait; a request of more waits alone.
    #[arg(
        long,
        env = "OCTET_MAX_NUM_QUEUED_TOKENS",
        value_name = "TOKENS",
        default_value_t = 262_144,
        hide = true
    )]
    pub max_num_queued_tokens: usize,
    /// Seconds a request may wait for its first step.
    #[arg(
        long,
        env = "OCTET_QUEUE_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = 60,
        hide = true
    )]
    pub queue_timeout: u64,
    /// Seconds a request may take in all.
    #[arg(
        long,
        env = "OCTET_REQUEST_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = 600,
        hide = true
    )]
    pub request_timeout: u64,
    /// Seconds that running requests may take to finish after SIGTERM.
    #[arg(
        long,
        env = "OCTET_SHUTDOWN_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = 30,
        hide = true
    )]
    pub shutdown_timeout: u64,
    /// Seconds a client may leave its stream unread; after twice as long its connection is cut.
    #[arg(
        long,
        env = "OCTET_STREAM_WRITE_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = 30,
        hide = true
    )]
    pub stream_write_timeout: u64,
    /// Seconds between keep-alive comments in silent streams.
    #[arg(
        long,
        env = "OCTET_SSE_PING_INTERVAL",
        value_name = "SECONDS",
        default_value_t = 10,
        hide = true
    )]
    pub sse_ping_interval: u64,
    /// Answer 200 when a stream's request starts instead of with its first token.
    #[arg(long, env = "OCTET_STREAM_EARLY_HEADERS", hide = true, action = ArgAction::SetTrue, value_parser = switch())]
    pub stream_early_headers: bool,
    /// Largest request body.
    #[arg(long, env = "OCTET_MAX_REQUEST_BODY", value_name = "SIZE", value_parser = parse_size,
          default_value = "32MiB", hide = true)]
    pub max_request_body: u64,
    /// Refuse unknown request fields instead of reporting them.
    #[arg(long, env = "OCTET_STRICT_PARAMS", hide = true, action = ArgAction::SetTrue, value_parser = switch())]
    pub strict_params: bool,
    /// Largest logprobs and top_logprobs.
    #[arg(
        long,
        env = "OCTET_MAX_LOGPROBS",
        value_name = "N",
        default_value_t = 20,
        hide = true
    )]
    pub max_logprobs: u32,
    /// Largest n.
    #[arg(
        long,
        env = "OCTET_MAX_N",
        value_name = "N",
        default_value_t = 16,
        hide = true
    )]
    pub max_n: u32,
    /// Most stop strings.
    #[arg(
        long,
        env = "OCTET_MAX_STOP",
        value_name = "N",
        default_value_t = 16,
        hide = true
    )]
    pub max_stop: usize,
    /// Most prompts in one completions call.
    #[arg(
        long,
        env = "OCTET_MAX_PROMPTS",
        value_name = "N",
        default_value_t = 32,
        hide = true
    )]
    pub max_prompts: usize,
    /// Whether the model's generation_config.json sets sampling defaults: auto or none.
    #[arg(long, env = "OCTET_GENERATION_CONFIG", default_value = "auto", value_parser = ["auto", "none"], hide = true)]
    pub generation_config: String,
    /// Sampling defaults as a JSON object, over the model's.
    #[arg(
        long,
        env = "OCTET_OVERRIDE_GENERATION_CONFIG",
        value_name = "JSON",
        hide = true
    )]
    pub override_generation_config: Option<String>,
    /// Template variables as a JSON object, under the request's.
    #[arg(
        long,
        env = "OCTET_DEFAULT_CHAT_TEMPLATE_KWARGS",
        value_name = "JSON",
        hide = true
    )]
    pub default_chat_template_kwargs: Option<String>,
    /// Seed of requests that bring none; default: a random one for each.
    #[arg(long, env = "OCTET_SEED", hide = true)]
    pub seed: Option<u64>,
    /// Reuse cached prefixes of prompts; the default.
    #[arg(
        long,
        env = "OCTET_ENABLE_PREFIX_CACHING",
        overrides_with = "no_enable_prefix_caching",
        hide = true, action = ArgAction::SetTrue, value_parser = switch())]
    pub enable_prefix_caching: bool,
    /// Recompute every prompt instead of reusing cached prefixes.
    #[arg(long, env = "OCTET_NO_ENABLE_PREFIX_CACHING", hide = true, action = ArgAction::SetTrue, value_parser = switch())]
    pub no_enable_prefix_caching: bool,
    /// Origins that web pages may call from; repeat for several.
    #[arg(
        long,
        env = "OCTET_ALLOWED_ORIGINS",
        value_name = "ORIGIN",
        value_delimiter = ',',
        hide = true
    )]
    pub allowed_origins: Vec<String>,
    /// Second set of metric names.
    #[arg(
        long,
        env = "OCTET_METRICS_COMPAT",
        value_enum,
        default_value = "vllm",
        hide = true
    )]
    pub metrics_compat: MetricsCompatArg,
    /// Ask for a key on /metrics too.
    #[arg(long, env = "OCTET_METRICS_REQUIRE_KEY", hide = true, action = ArgAction::SetTrue, value_parser = switch())]
    pub metrics_require_key: bool,
    /// Port of 127.0.0.1 that answers /metrics, which the other port then does not; 0 picks a free one.
    #[arg(long, env = "OCTET_METRICS_PORT", value_name = "PORT", hide = true)]
    pub metrics_port: Option<u16>,
    /// Log filter, such as info or gateway=debug.
    #[arg(
        long,
        env = "OCTET_LOG_LEVEL",
        value_name = "FILTER",
        default_value = "info",
        hide = true
    )]
    pub log_level: String,
    /// Form of log lines.
    #[arg(
        long,
        env = "OCTET_LOG_FORMAT",
        value_enum,
        default_value = "text",
        hide = true
    )]
    pub log_format: LogFormatArg,
}

/// Names the environment variable that a refused value came from: nobody typed the flag.
pub fn name_variable(mut error: clap::Error) -> clap::Error {
    use clap::error::{ContextKind, ContextValue};
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let (refused, flag) = (
        text(ContextKind::InvalidValue),
        text(ContextKind::InvalidArg),
    );
    let command = <Cli as clap::CommandFactory>::command();
    let named = |arg: &&clap::Arg| {
        arg.get_long()
            .is_some_and(|long| flag.split(' ').next() == Some(&format!("--{long}")))
    };
    let variable = command.get_arguments().find(named).and_then(|arg| {
        let name = arg.get_env()?.to_str()?;
        let value = std::env::var(name).ok()?;
        (!refused.is_empty() && value.split(',').any(|part| part == refused))
            .then(|| name.to_owned())
    });
    if let Some(name) = variable {
        let origin = format!("{flag} (from the environment variable {name})");
        error.insert(ContextKind::InvalidArg, ContextValue::String(origin));
    }
    error
}

/// In the environment a switch is off when it is empty, `0`, `n`, `no`, `f`, `false` or `off`.
fn switch() -> clap::builder::FalseyValueParser {
    clap::builder::FalseyValueParser::new()
}

/// Reads a size in bytes: a whole number with an optional unit `K`, `M`, `G` (powers of 1024), also
/// spelled `KiB`, `MiB`, `GiB`.
fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..digits]
        .parse()
        .map_err(|_| format!("{text} is not a size such as 512MiB"))?;
    let shift = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        unit => return Err(format!("{unit} is not a unit: use KiB, MiB or GiB")),
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text} is too large"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_table_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("2KiB", 2048),
            ("3 MB", 3 << 20),
            ("1g", 1 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "x", "1.5G", "-1", "1T", "99999999999999G"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn serving_is_the_default_command() {
        let cli = Cli::try_parse_from(["octet", "--port", "9"])
            .expect("flags of serve are accepted bare");
        assert!(cli.command.is_none());
        assert_eq!(cli.serve.port, 9);
        let cli =
            Cli::try_parse_from(["octet", "serve", "dir", "--port", "9"]).expect("as vllm serve");
        let Some(Command::Serve(serve)) = cli.command else {
            panic!("serve was named")
        };
        assert_eq!(serve.model_positional.as_deref(), Some("dir"));
    }

    #[test]
    fn every_flag_has_its_environment_variable() {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").expect("serve exists");
        for arg in serve.get_arguments().filter(|arg| {
            arg.get_long()
                .is_some_and(|l| l != "help" && l != "help-all")
        }) {
            let long = arg.get_long().expect("filtered above");
            let env = arg
                .get_env()
                .unwrap_or_else(|| panic!("--{long} has no variable"))
                .to_string_lossy();
            let ours = format!("OCTET_{}", long.replace('-', "_").to_uppercase());
            assert!(env == ours || env.starts_with("HF_"), "--{long}: {env}");
        }
    }
}
