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
    /// Of the multiply-adds that the machine could do around each repetition, for the matrices alone;
    /// the median.
    share_of_multiply_adds: Option<f64>,
    /// Of the bytes that the machine could read, likewise, for the weights alone. Prompts are not bound
    /// by it.
    share_of_memory_read: Option<f64>,
}

/// What rates are held against. Attention and everything but the matrices is left out of the work, so
/// that the shares are lower than what the machine does.
struct Limits<'a> {
    weights: ActiveWeights,
    target: &'a Target,
}

impl Limits<'_> {
    /// Multiplications and additions per second in the precision of the model.
    fn ops(&self, peak: &Peak) -> Option<f64> {
        match self.target.precision {
            _ if self.target.has_int8_products() => peak.int8_ops,
            "bf16" => peak.bf16_ops.or(peak.f32_ops),
            _ => peak.f32_ops,
        }
    }

    /// The row of some repetitions. A step of decoding reads every weight once and multiplies it for each
    /// sequence; a prompt meets the head once.
    fn row(&self, (test, prompt, output): Test, batch: usize, repetitions: &[Repetition]) -> Row {
        let ActiveWeights { layers, head } = self.weights;
        let is_prefill = test == "prefill";
        let weights = match is_prefill {
            true => layers as f64 + head as f64 / prompt as f64,
            false => (layers + head) as f64,
        };
        let of_compute = |repetition: &Repetition| {
            let ops = repetition.best(|peak| self.ops(peak))?;
            Some(repetition.rate * 2.0 * weights / ops)
        };
        let of_reading = |repetition: &Repetition| {
            let read = repetition.best(|peak| Some(peak.read_bytes))?;
            let bytes = ((layers + head) * self.target.min_weight_bytes()) as f64;
            (!is_prefill).then_some(repetition.rate / batch as f64 * bytes / read)
        };
        let rates = sorted(repetitions.iter().map(|repetition| repetition.rate));
        Row {
            test,
            prompt_tokens: prompt,
            output_tokens: output,
            batch,
            min: rates[0],
            median: median(&rates),
            max: rates[rates.len() - 1],
            share_of_multiply_adds: share(repetitions.iter().map(of_compute)),
            share_of_memory_read: share(repetitions.iter().map(of_reading)),
        }
    }
}

/// Tokens per second, and what the machine could do just before and just after.
struct Repetition {
    rate: f64,
    peaks: [Peak; 2],
}

impl Repetition {
    /// The better of the two measurements.
    fn best(&self, rate: impl Fn(&Peak) -> Option<f64>) -> Option<f64> {
        self.peaks.iter().filter_map(rate).reduce(f64::max)
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

/// The median of shares, where there are any.
fn share(shares: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let shares = sorted(shares.flatten());
    (!shares.is_empty()).then(|| median(&shares))
}

/// Name, prompt and output.
type Test = (&'static str, usize, usize);

/// The tests that were asked for.
fn tests(args: &BenchArgs) -> Result<Vec<Test>> {
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
    int8_gops: Option<Range>,
    bf16_gflops: Option<Range>,
    f32_gflops: Option<Range>,
    read_gb_per_second: Option<Range>,
    rows: Vec<Row>,
}

/// What the machine could do, over the measurements between repetitions.
#[derive(Debug, Clone, Copy, Serialize)]
struct Range {
    min: f64,
    max: f64,
}

impl Range {
    /// In units of 10⁹ per second.
    fn of(peaks: &[Peak], rate: fn(&Peak) -> Option<f64>) -> Option<Self> {
        let rates = sorted(peaks.iter().filter_map(rate).map(|rate| rate / 1e9));
        let (&min, &max) = (rates.first()?, rates.last()?);
        Some(Self { min, max })
    }
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
    let mut peaks = vec![peak::measure(isa, threads)];
    let info = loaded.engine.info().context("the model is loaded")?;
    let limits = Limits {
        weights: info.active_weights,
        target: &loaded.target,
    };
    let mut rows = Vec::new();
    let mut progress = Progress::new("measuring", false);
    let total = (args.batch.len() * tests.len() * args.repetitions) as u64;
    for &batch in &args.batch {
        for &test in &tests {
            let mut repetitions = Vec::new();
            for _ in 0..args.repetitions {
                let rate = once(&loaded.engine, test, batch)?;
                let around = [peaks[peaks.len() - 1], peak::measure(isa, threads)];
                peaks.push(around[1]);
                repetitions.push(Repetition {
                    rate,
                    peaks: around,
                });
                progress.set(peaks.len() as u64 - 1, total);
            }
            rows.push(limits.row(test, batch, &repetitions));
        }
    }
    drop(progress);
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        model: name,
        device: loaded.target.found.clone(),
        precision: loaded.target.precision,
        threads,
        int8_gops: Range::of(&peaks, |peak| peak.int8_ops),
        bf16_gflops: Range::of(&peaks, |peak| peak.bf16_ops),
        f32_gflops: Range::of(&peaks, |peak| peak.f32_ops),
        read_gb_per_second: Range::of(&peaks, |peak| Some(peak.read_bytes)),
        rows,
    };
    print_table(&report);
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    Ok(())
}

/// Tokens per second of one repetition.
fn once(engine: &EngineHandle, (test, prompt, output): Test, batch: usize) -> Result<f64> {
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
        end_token_ids: Vec::new(),
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

fn print_table(report: &Report) {
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
    println!(
        "\nThis machine between the tests, on {} threads:",
        report.threads
    );
    for (name, unit, range) in [
        ("8-bit multiply-add", "Gop/s", report.int8_gops),
        ("bf16 multiply-add", "Gflop/s", report.bf16_gflops),
        ("f32 multiply-add", "Gflop/s", report.f32_gflops),
        ("memory read", "GB/s", report.read_gb_per_second),
    ] {
        if let Some(Range { min, max }) = range {
            println!("  {name:<20} {min:>8.1} to {max:.1} {unit}");
        }
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or("-".to_owned(), |share| format!("{:.0} %", 100.0 * share))
}

fn write_json(path: &PathBuf, report: &Report) -> Result<()> {
    let text = serde_json::to_string_pretty(report)? + "\n";
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
