//! `octet eval`: what a precision costs in quality. A text is computed twice, with the weights as the
//! flags say and as 32-bit floats, and the two distributions over every next token are compared.

mod held_out;
mod report;
mod statistics;
mod tiers;
mod windows;

use anyhow::{Context, Result, bail};
use gateway::TextTokens;
use model::{CausalLm, Checkpoint, LoadOptions};
use serde::Serialize;

use crate::args::{DeviceArg, EvalArgs, KvCacheDtypeArg, QuantizationArg};
use crate::config::{Config, DeviceConfig};
use crate::load::{available_memory, open};
use crate::model_source::ModelSource;
use crate::progress::Progress;
use crate::target::Target;
use held_out::Score;
use statistics::{Comparison, Summary};
use tiers::Verdict;
use windows::Window;

/// Everything that is reported.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    commit: &'static str,
    model: String,
    num_parameters: u64,
    device: String,
    precision: &'static str,
    kv_cache: String,
    reference: String,
    text: String,
    windows: usize,
    summary: Summary,
    verdict: Verdict,
    /// Right answers of the bundled model.
    held_out: Option<HeldOutScores>,
}

/// Scores in both forms.
#[derive(Debug, Clone, Copy, Serialize)]
struct HeldOutScores {
    tested: Score,
    reference: Score,
}

/// Compares and prints.
///
/// # Errors
/// A bad configuration, a text that is missing or too short, a model that cannot be loaded.
pub fn run(args: &EvalArgs) -> Result<()> {
    if args.window < 4 {
        bail!("--window {} is below 4", args.window);
    }
    if args.tokens == 0 {
        bail!("--tokens 0 scores nothing");
    }
    let config = Config::resolve(args.serve.clone())?;
    let checkpoint = open(&config)?;
    let (windows, text) = windows(args, &config.model, &checkpoint)?;
    let target = Target::choose_for(&config.device, &checkpoint)?;
    let reference = Target::choose(&DeviceConfig {
        // The 32-bit form is the CPU's: GPUs have none.
        device: match config.device.device {
            DeviceArg::Cuda => DeviceArg::Cpu,
            device => device,
        },
        quantization: QuantizationArg::F32,
        kv_cache_dtype: KvCacheDtypeArg::F32,
        ..config.device.clone()
    })?;
    let longest = windows.iter().map(|window| window.token_ids.len()).max();
    let longest = longest.unwrap_or(args.window);
    let mut models = [&reference, &target].map(|target| load(target, &checkpoint, longest));
    let [Ok(ours), Ok(tested)] = &mut models else {
        let error = models.into_iter().find_map(Result::err);
        return Err(error.context("one model was not loaded")?);
    };
    let summary = compare(ours.as_mut(), tested.as_mut(), &windows)?;
    drop(models);
    let held_out = match config.model {
        ModelSource::Bundled => Some(HeldOutScores {
            reference: held_out::score(&reference, &config.engine)?,
            tested: held_out::score(&target, &config.engine)?,
        }),
        _ => None,
    };
    let num_parameters = checkpoint.num_weights();
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        commit: crate::COMMIT,
        model: config.model.to_string(),
        num_parameters,
        device: target.found.clone(),
        precision: target.precision,
        kv_cache: target.kv_dtype.to_string(),
        reference: format!("{}, KV cache {}", reference.precision, reference.kv_dtype),
        text,
        windows: windows.len(),
        verdict: tiers::verdict(&summary, num_parameters),
        summary,
        held_out,
    };
    crate::say(&report::table(&report)?)?;
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// What is scored, and what it is called.
fn windows(
    args: &EvalArgs,
    model: &ModelSource,
    checkpoint: &Checkpoint,
) -> Result<(Vec<Window>, String)> {
    let Some(path) = &args.text else {
        if *model != ModelSource::Bundled {
            bail!(
                "--text FILE is missing: a text of some hundred kilobytes in the model's language"
            );
        }
        let windows = held_out::windows(args.tokens)?;
        return Ok((windows, "its held-out answers".to_owned()));
    };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read --text {}", path.display()))?;
    let name = path.file_name().unwrap_or(path.as_os_str());
    let windows = windows::cut(
        &TextTokens::encode(checkpoint.text(), &text)?,
        args.window,
        args.tokens,
    )?;
    Ok((windows, name.to_string_lossy().into_owned()))
}

fn load(
    target: &Target,
    checkpoint: &Checkpoint,
    max_model_len: usize,
) -> Result<Box<dyn CausalLm>> {
    let options = LoadOptions {
        max_model_len: Some(max_model_len),
        kv_cache_bytes: available_memory(),
        swap_bytes: 0,
        max_num_seqs: 1,
        kv_dtype: target.kv_dtype,
    };
    let mut progress = Progress::new(&format!("loading in {}", target.precision), false);
    target.load(checkpoint, &options, &mut |done, total| {
        progress.set(done as u64, total as u64);
    })
}

/// Both models take the same steps in turn, so that only one step's probabilities are in memory.
fn compare(
    reference: &mut dyn CausalLm,
    tested: &mut dyn CausalLm,
    windows: &[Window],
) -> Result<Summary> {
    let mut comparison = Comparison::default();
    let mut progress = Progress::new("comparing", false);
    for (index, window) in windows.iter().enumerate() {
        for span in windows::spans(window) {
            let exact = windows::step(reference, window, span)?;
            let found = windows::step(tested, window, span)?;
            let next = &window.token_ids[span.first_next()..];
            for ((exact, found), next) in exact.iter().zip(&found).zip(next) {
                comparison.add(exact, found, *next as usize);
            }
        }
        progress.set(index as u64 + 1, windows.len() as u64);
    }
    comparison.summary().context("no token was scored")
}
