//! The table that people read.

use std::fmt::{Error, Write};

use super::Report;
use super::statistics::{CLEAR_MARGIN, Estimate};

/// All figures with their errors, and the tier they lie in.
///
/// # Errors
/// Never in practice: strings take any text.
pub fn table(report: &Report) -> Result<String, Error> {
    let summary = &report.summary;
    let (divergence, change) = (&summary.divergence, &summary.probability_change);
    let mut text = String::new();
    writeln!(
        text,
        "{} in {} with a KV cache in {}, against {}",
        report.model, report.precision, report.kv_cache, report.reference
    )?;
    writeln!(
        text,
        "{} tokens of {} scored\n",
        summary.tokens, report.text
    )?;
    let mut line = |name: &str, value: String| writeln!(text, "  {name:<38} {value}");
    line("perplexity", plain(summary.perplexity))?;
    line(
        "perplexity of the reference",
        plain(summary.reference_perplexity),
    )?;
    line("perplexity ratio", precise(summary.perplexity_ratio))?;
    line("KL divergence, mean", precise(divergence.mean))?;
    line(
        "  median, 99 %, 99.9 %, largest",
        format!(
            "{:.5}, {:.4}, {:.4}, {:.4}",
            divergence.median, divergence.percentile_99, divergence.percentile_99_9, divergence.max
        ),
    )?;
    line("same most probable token", percent(summary.same_top))?;
    line(
        &format!("  where it leads by {CLEAR_MARGIN} nat"),
        format!(
            "{} of {} tokens",
            percent(summary.same_top_where_clear),
            summary.clear_tokens
        ),
    )?;
    line(
        "change of the token's probability, RMS",
        format!("{:.3} %", 100.0 * change.rms),
    )?;
    line("  mean", percent(change.mean))?;
    for (percentile, value) in &change.percentiles {
        line(
            &format!("  {percentile} %"),
            format!("{:+.3} %", 100.0 * value),
        )?;
    }
    line("tier", report.verdict.text().to_owned())?;
    if let Some(scores) = &report.held_out {
        line(
            "held-out answers that are right",
            format!(
                "{:.1} % ({} of {}); {:.1} % in f32",
                scores.tested.percent(),
                scores.tested.right,
                scores.tested.prompts,
                scores.reference.percent()
            ),
        )?;
    }
    Ok(text)
}

fn plain(estimate: Estimate) -> String {
    format!("{:.4} ± {:.4}", estimate.value, estimate.standard_error)
}

fn precise(estimate: Estimate) -> String {
    format!("{:.6} ± {:.6}", estimate.value, estimate.standard_error)
}

fn percent(estimate: Estimate) -> String {
    format!(
        "{:.3} ± {:.3} %",
        100.0 * estimate.value,
        100.0 * estimate.standard_error
    )
}
