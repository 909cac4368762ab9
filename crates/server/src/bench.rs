//! `octet bench`: how fast the engine itself is, without HTTP, beside what the machine could do.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use engine::{EngineHandle, GenerateRequest, SamplingParams, StreamEvent, TokenStream};
use gateway::Gateway;
use kernels_cpu::peak::{self, Peak};
use metrics::Metrics;
use model::ActiveWeights;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::args::BenchArgs;
use crate::config::Config;
use crate::load::load;
use crate::progress::Progress;
use crate::target::Target;

/// For how long a sequence may wait or run: longer than any measurement.
const UNHURRIED: Duration = Duration::from_secs(24 * 60 * 60);

/// One row of the table.
#[derive(Debug, Clone, Copy, Serialize)]
struct Row {
    /// `prefill` or `decode`.
    test: &'static str,
    /// Prompt tokens of each sequence.
    prompt_tokens: usize,
    /// Generated tokens of each sequence.
    output_tokens: usize,
    /// Sequences side by side.
    batch: usize,
    /// Tokens per second, over the repetitions.
    #[serde(rename = "tokens_per_second_min")]
    min: f64,
    #[serde(rename = "tokens_per_second_median")]
    median: f64,
    #[serde(rename = "tokens_per_second_max")]
    max: f64,
    /// Of the multiply-adds that the machine can do, for the matrices alone.
    share_of_multiply_adds: Option<f64>,
    /// Of the bytes that the machine can read, for the weights alone. Prompts are not bound by it.
    share_of_memory_read: Option<f64>,
}

/// What the median rates are held against. Attention and everything but the matrices is left out of the
/// work, so that the shares are lower than what the machine does.
struct Limits {
    weights: ActiveWeights,
    weight_bytes: u64,
    /// Multiplications and additions per second in the precision of the model, the better of the two
    /// measurements.
    ops: Option<f64>,
    /// Bytes per second, likewise.
    read_bytes: f64,
}

impl Limits {
    fn new(weights: ActiveWeights, target: &Target, peaks: [Peak; 2]) -> Self {
        let ops = |peak: &Peak| match target.precision {
            _ if target.is_int8() => peak.int8_ops,
            "bf16" => peak.bf16_ops.or(peak.f32_ops),
            _ => peak.f32_ops,
        };
        Self {
            weights,
            weight_bytes: target.min_weight_bytes(),
            ops: peaks.iter().filter_map(ops).reduce(f64::max),
            read_bytes: peaks.iter().map(|p| p.read_bytes).fold(0.0, f64::max),
        }
    }

    /// Fills in the shares of a row. A step of decoding reads every weight once and multiplies it for
    /// each sequence; a prompt meets the head once.
    fn shares(&self, mut row: Row) -> Row {
        let ActiveWeights { layers, head } = self.weights;
        let weights = match row.test {
            "prefill" => layers as f64 + head as f64 / row.prompt_tokens as f64,
            _ => {
                let bytes = ((layers + head) * self.weight_bytes) as f64;
                let steps = row.median / row.batch as f64;
                row.share_of_memory_read = Some(steps * bytes / self.read_bytes);
                (layers + head) as f64
            }
        };
        row.share_of_multiply_adds = self.ops.map(|ops| row.median * 2.0 * weights / ops);
        row
    }
}

/// Name, prompt and output of the tests that were asked for.
fn tests(args: &BenchArgs) -> Result<Vec<(&'static str, usize, usize)>> {
    let mut tests = Vec::new();
    if args.prompt_tokens > 0 {
        tests.push(("prefill", args.prompt_tokens, 1));
    }
    match args.generate_tokens {
        0 => {}
        1 => bail!(
            "--generate-tokens 1 leaves nothing to time: the first token belongs to the prompt"
        ),
        tokens => tests.push(("decode", args.context_tokens, tokens)),
    }
    if tests.is_empty() {
        bail!("--prompt-tokens 0 and --generate-tokens 0 leave nothing to measure");
    }
    Ok(tests)
}

/// Everything in the JSON file.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    model: String,
    device: String,
    precision: &'static str,
    threads: usize,
    int8_gops_before_after: [Option<f64>; 2],
    bf16_gflops_before_after: [Option<f64>; 2],
    f32_gflops_before_after: [Option<f64>; 2],
    read_gb_per_second_before_after: [f64; 2],
    rows: Vec<Row>,
}

/// Runs every combination and prints the table.
///
/// # Errors
/// A bad configuration, a model that cannot be loaded, sequences that do not fit.
pub fn run(args: BenchArgs) -> Result<()> {
    for (flag, value, min) in [
        ("--context-tokens", args.context_tokens, 1),
        ("--repetitions", args.repetitions, 1),
        ("--batch", args.batch.iter().copied().min().unwrap_or(0), 1),
    ] {
        if value < min {
            bail!("{flag} {value} is below {min}");
        }
    }
    let tests = tests(&args)?;
    let mut config = Config::resolve(args.serve.clone())?;
    let largest = args.batch.iter().copied().max().unwrap_or(1);
    config.engine.max_num_seqs = config.engine.max_num_seqs.max(largest);
    config.engine.enable_prefix_caching = false;
    // A slow combination takes long, and nobody waits for an answer.
    config.engine.queue_timeout = UNHURRIED;
    config.engine.request_timeout = UNHURRIED;
    let name = config.gateway.served_model_names[0].clone();
    let metrics = Metrics::new(&name);
    let gateway = Gateway::new(config.gateway.clone(), metrics.clone());
    let loaded = load(&config, &gateway, &metrics)?;
    let threads = loaded.target.threads;
    let isa = kernels_cpu::Isa::detect();
    let before = peak::measure(isa, threads);
    let mut rows = Vec::new();
    let mut progress = Progress::new("measuring", false);
    let total = (args.batch.len() * tests.len() * args.repetitions) as u64;
    for &batch in &args.batch {
        for &(test, prompt, output) in &tests {
            let mut rates = Vec::new();
            for _ in 0..args.repetitions {
                rates.push(once(&loaded.engine, test, prompt, output, batch)?);
                progress.set((rows.len() * args.repetitions + rates.len()) as u64, total);
            }
            rates.sort_by(f64::total_cmp);
            rows.push(Row {
                test,
                prompt_tokens: prompt,
                output_tokens: output,
                batch,
                min: rates[0],
                median: rates[rates.len() / 2],
                max: rates[rates.len() - 1],
                share_of_multiply_adds: None,
                share_of_memory_read: None,
            });
        }
    }
    drop(progress);
    let after = peak::measure(isa, threads);
    let info = loaded.engine.info().context("the model is loaded")?;
    let limits = Limits::new(info.active_weights, &loaded.target, [before, after]);
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        model: name,
        device: loaded.target.found.clone(),
        precision: loaded.target.precision,
        threads,
        int8_gops_before_after: [before, after].map(|p| p.int8_ops.map(|ops| ops / 1e9)),
        bf16_gflops_before_after: [before, after].map(|p| p.bf16_ops.map(|ops| ops / 1e9)),
        f32_gflops_before_after: [before, after].map(|p| p.f32_ops.map(|ops| ops / 1e9)),
        read_gb_per_second_before_after: [before, after].map(|p| p.read_bytes / 1e9),
        rows: rows.into_iter().map(|row| limits.shares(row)).collect(),
    };
    print_table(&report, [before, after]);
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    Ok(())
}

/// Tokens per second of one repetition.
fn once(
    engine: &EngineHandle,
    test: &str,
    prompt: usize,
    output: usize,
    batch: usize,
) -> Result<f64> {
    let info = engine.info().context("the model is loaded")?;
    let request = |i: usize| GenerateRequest {
        // Ids spread over the vocabulary, other ones for every sequence.
        prompt: (0..prompt)
            .map(|t| ((t * 7919 + i * 104_729) % info.vocab_size) as u32)
            .collect(),
        sampling: SamplingParams::greedy(),
        num_choices: 1,
        max_tokens: output,
        min_tokens: 0,
        stop_token_ids: Vec::new(),
        prompt_logprobs: None,
        seed: 0,
        cache_salt: 0,
    };
    let start = Instant::now();
    let streams: Vec<TokenStream> = (0..batch)
        .map(|i| engine.submit(request(i)))
        .collect::<Result<_, _>>()?;
    // One thread reads every stream: more would take the cores that compute.
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let times = runtime.block_on(async {
        let mut readers = JoinSet::new();
        streams
            .into_iter()
            .for_each(|stream| drop(readers.spawn(read(stream))));
        readers
            .join_all()
            .await
            .into_iter()
            .collect::<Result<Vec<_>>>()
    })?;
    let end = times.iter().flatten().max().copied().context("no tokens")?;
    if test == "prefill" {
        return Ok((prompt * batch) as f64 / (end - start).as_secs_f64());
    }
    // Decoding begins when the last sequence has its first token.
    let begin = times
        .iter()
        .filter_map(|t| t.first())
        .max()
        .copied()
        .context("no tokens")?;
    let num_tokens = times.iter().flatten().filter(|time| **time > begin).count();
    Ok(num_tokens as f64 / (end - begin).as_secs_f64())
}

/// When each token arrived.
async fn read(mut stream: TokenStream) -> Result<Vec<Instant>> {
    let mut times = Vec::new();
    while let Some(event) = stream.recv().await {
        match event {
            StreamEvent::Token { .. } => times.push(Instant::now()),
            StreamEvent::Failed(error) => bail!("{error}"),
            _ => {}
        }
    }
    Ok(times)
}

fn print_table(report: &Report, peaks: [Peak; 2]) {
    println!(
        "{} in {}, {}",
        report.model, report.precision, report.device
    );
    println!(
        "\n{:<8} {:>7} {:>9} {:>6} {:>12} {:>23} {:>10} {:>10}",
        "test",
        "prompt",
        "generate",
        "batch",
        "tokens/s",
        "slowest to fastest",
        "of compute",
        "of reading"
    );
    for row in &report.rows {
        println!(
            "{:<8} {:>7} {:>9} {:>6} {:>12.1} {:>11.1} to {:>8.1} {:>10} {:>10}",
            row.test,
            row.prompt_tokens,
            row.output_tokens,
            row.batch,
            row.median,
            row.min,
            row.max,
            percent(row.share_of_multiply_adds),
            percent(row.share_of_memory_read)
        );
    }
    let rates = |name: &str, unit: &str, rate: fn(&Peak) -> Option<f64>| {
        if let (Some(before), Some(after)) = (rate(&peaks[0]), rate(&peaks[1])) {
            println!(
                "{name:<28} {:>8.1} {unit} before, {:.1} after",
                before / 1e9,
                after / 1e9
            );
        }
    };
    println!("\nThis machine now, on {} threads:", report.threads);
    rates("  8-bit multiply-add", "Gop/s", |p| p.int8_ops);
    rates("  bf16 multiply-add", "Gflop/s", |p| p.bf16_ops);
    rates("  f32 multiply-add", "Gflop/s", |p| p.f32_ops);
    rates("  memory read", "GB/s", |p| Some(p.read_bytes));
}

fn percent(share: Option<f64>) -> String {
    share.map_or("-".to_owned(), |share| format!("{:.0} %", 100.0 * share))
}

fn write_json(path: &PathBuf, report: &Report) -> Result<()> {
    let text = serde_json::to_string_pretty(report)? + "\n";
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
