//! Whole steps of three models whose weights are random and made on the device: the time of decoding and of
//! reading a prompt, as shares of what no device could undercut.

use std::time::Instant;

use backend::{BackendError, Batch, KvDtype, Result};
use backend_cuda::device::Device;
use backend_cuda::{CudaBackend, Precision};

use super::clock::{Clock, share};
use super::decoder::{Decoder, Model, Part, batch};
use super::time;

/// How much is measured.
pub struct Sizes {
    /// Sequences that decode together.
    pub batches: &'static [usize],
    /// Tokens before the first that is decoded.
    pub context: usize,
    /// Steps of each figure, after three that warm up, are captured and replayed.
    pub steps: usize,
    /// Tokens of a prompt.
    pub prompt: usize,
    /// How the memory is measured.
    pub memory: &'static time::Sizes,
}

impl Sizes {
    /// On a device.
    pub const REAL: Self = Self {
        batches: &[1, 8, 32, 64],
        context: 512,
        steps: 24,
        prompt: 2048,
        memory: &time::Sizes::REAL,
    };
}

/// All models in 8 bits and in half precision; what does not fit says so. `in_order` opens a device whose launches
/// begin one after the other, where `open`'s may begin earlier: 8-bit decoding is timed on both.
pub fn steps<D: Device>(
    open: &dyn Fn() -> Result<D>,
    in_order: Option<&dyn Fn() -> Result<D>>,
    clock: &Clock,
    models: &[Model],
    sizes: &Sizes,
    say: &mut dyn FnMut(String),
) -> Result<()> {
    let mut target = CudaBackend::new(open()?, Precision::Int8);
    let read = time::bandwidth(&mut target, sizes.memory)?;
    say(format!(
        "memory: {:.0} GB/s by sums of two matrices",
        read * 1e-9
    ));
    drop(target);
    for model in models {
        for precision in [Precision::Int8, Precision::F16] {
            for &sequences in sizes.batches {
                let what = format!("{} {}, {sequences} sequences", model.name, precision.name());
                match decode(open()?, *model, precision, sequences, (sizes, read)) {
                    Ok(line) => say(format!("{what}: {line}")),
                    Err(BackendError::OutOfMemory { .. }) => {
                        say(format!("{what}: does not fit"));
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                if let Some(open) = in_order.filter(|_| precision == Precision::Int8) {
                    let line = decode(open()?, *model, precision, sequences, (sizes, read))?;
                    say(format!("{what}, launches in order: {line}"));
                }
            }
            let what = format!(
                "{} {}, prompt of {}",
                model.name,
                precision.name(),
                sizes.prompt
            );
            match prefill(open()?, *model, precision, (sizes, clock)) {
                Ok(line) => say(format!("{what}: {line}")),
                Err(BackendError::OutOfMemory { .. }) => say(format!("{what}: does not fit")),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Seconds of a decode step: the median, and its share of what reading weights, keys and values takes.
fn decode<D: Device>(
    device: D,
    model: Model,
    precision: Precision,
    sequences: usize,
    (sizes, read): (&Sizes, f64),
) -> Result<String> {
    let most = sizes.context + sizes.steps + 4;
    let target = CudaBackend::new(device, precision).with_graphs();
    let num_blocks = sequences * most.div_ceil(32);
    let mut loaded = Decoder::new(target, (model, precision), most, num_blocks)?;
    let mut times = Vec::new();
    for step in 0..sizes.steps + 3 {
        let began = Instant::now();
        loaded.step(&side_by_side(sequences, (sizes.context + step, 1), most))?;
        if step >= 3 {
            times.push(began.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    let time = times[times.len() / 2];
    let [_, kv_heads, dim] = model.heads;
    let token = 2 * model.layers * kv_heads * KvDtype::Bf16.head_bytes(dim);
    let kv_bytes = sequences * sizes.context * token;
    let floor = (loaded.weight_bytes + kv_bytes) as f64 / read;
    Ok(format!(
        "{:.2} ms a step, {:.1} tokens/s, the floor is {:.2} ms: {:.0} %",
        time * 1e3,
        sequences as f64 / time,
        floor * 1e3,
        100.0 * floor / time
    ))
}

/// Seconds of a prompt: the best of three, and its share of the multiplications.
fn prefill<D: Device>(
    device: D,
    model: Model,
    precision: Precision,
    (sizes, clock): (&Sizes, &Clock),
) -> Result<String> {
    let target = CudaBackend::new(device, precision);
    let num_blocks = sizes.prompt.div_ceil(32);
    let mut loaded = Decoder::new(target, (model, precision), sizes.prompt, num_blocks)?;
    let prompt = side_by_side(1, (0, sizes.prompt), sizes.prompt);
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let began = Instant::now();
        loaded.step(&prompt)?;
        best = best.min(began.elapsed().as_secs_f64());
    }
    let [qkv, out, up, down, _] = model.products().map(|[n, k]| n * k);
    let rate = 2.0 * (sizes.prompt * model.layers * (qkv + out + up + down)) as f64 / best;
    let peak = share(loaded.device().properties(), clock, precision, rate);
    Ok(format!(
        "{:.1} ms, {:.0} tokens/s, {:.1} TOPS by its products, {peak}",
        best * 1e3,
        sizes.prompt as f64 / best,
        rate * 1e-12
    ))
}

/// Sequences of one length, up to `most` tokens, with blocks of their own.
fn side_by_side(sequences: usize, (computed, count): (usize, usize), most: usize) -> Batch {
    let blocks = most.div_ceil(32) as u32;
    let part = |index| Part {
        computed,
        count,
        blocks: (index * blocks..(index + 1) * blocks).collect(),
    };
    batch((0..sequences as u32).map(part).collect())
}
