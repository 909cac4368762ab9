//! `octet quantize`: an 8-bit copy of a checkpoint on disk.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::args::QuantizeArgs;
use crate::progress::Progress;

/// Writes the copy and returns what to say about it.
///
/// # Errors
/// What cannot be read, is not a float checkpoint, or cannot be written.
pub fn run(args: &QuantizeArgs) -> Result<String> {
    let started = Instant::now();
    let mut progress = Progress::new("quantising", false);
    let written = model::quantize(&args.input, &args.output, &mut |done, total| {
        progress.set(done as u64, total as u64);
    })
    .with_context(|| format!("cannot quantise {}", args.input.display()))?;
    drop(progress);
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    Ok(format!(
        "{} matrices in 8 bits, {:.0} MB of weights became {:.0} MB in {:.1} s: {}\n",
        written.matrices,
        megabytes(written.bytes_before),
        megabytes(written.bytes_after),
        started.elapsed().as_secs_f64(),
        args.output.display(),
    ))
}
