//! The sampler on the device: what a row asks for goes there in one copy, the tokens and the
//! log-probabilities asked for come back in one.

use std::collections::HashSet;

use backend::{
    BackendError, Result, RowOutput, RowTask, SampleBatch, SampleOutput, SampleRow, Sampled,
    TokenId, log_probability, sample_row, uniform,
};

use crate::device::{Arg, Device, Launch};
use crate::linear::int;
use crate::tensor::CudaTensor;

/// Threads of the kernel's blocks.
const THREADS: u32 = 512;
/// The mass of the best token.
const ONE: f32 = (1u32 << 30) as f32;
/// Bytes of the kernel's `SampleTask`, `SampleEdit` and `SampleResult`.
const TASK: usize = 64;
const EDIT: usize = 8;
const RESULT: usize = 24;

/// All rows, as the kernel reads them.
#[derive(Default)]
struct Tasks {
    tasks: Vec<u8>,
    edits: Vec<u8>,
    num_top: usize,
}

impl Tasks {
    /// Adds a row and returns how many of its best tokens it reports.
    fn push(&mut self, row: &SampleRow, size: usize) -> usize {
        let params = &row.params;
        let known = match row.task {
            RowTask::Score(token) => token as i32,
            RowTask::Draw | RowTask::Distribution => -1,
        };
        let num_top = (params.num_logprobs.unwrap_or(0) as usize).min(size);
        let counts = match params.has_penalties() {
            true => &row.counts[..],
            false => &[],
        };
        let floor = (params.min_p.clamp(0.0, 1.0) * ONE).round_ties_even() as u32;
        let first_edit = self.edits.len() / EDIT;
        self.tasks
            .extend(uniform(row.seed, row.position).to_le_bytes());
        for word in [
            params.temperature.to_bits(),
            params.top_p.to_bits(),
            floor,
            params.top_k,
            known.cast_unsigned(),
            num_top as u32,
            first_edit as u32,
            row.banned.len() as u32,
            params.logit_bias.len() as u32,
            counts.len() as u32,
            params.repetition_penalty.to_bits(),
            params.frequency_penalty.to_bits(),
            params.presence_penalty.to_bits(),
            self.num_top as u32,
        ] {
            self.tasks.extend(word.to_le_bytes());
        }
        let bans = row.banned.iter().map(|token| (*token, 0.0));
        let biases = params.logit_bias.iter().copied();
        let counts = counts
            .iter()
            .map(|count| (count.token_id, count.num_generated as f32));
        for (token, amount) in bans.chain(biases).chain(counts) {
            self.edits.extend(token.to_le_bytes());
            self.edits.extend(amount.to_le_bytes());
        }
        self.num_top += num_top;
        num_top
    }
}

/// Whether the kernel computes a row: it changes every logit once, and reports no whole distribution.
fn is_for_device(row: &SampleRow, size: usize) -> bool {
    let fits = match row.task {
        RowTask::Draw => row.params.temperature >= 0.0,
        RowTask::Score(token) => (token as usize) < size,
        RowTask::Distribution => false,
    };
    fits && is_once(row.params.logit_bias.iter().map(|bias| bias.0))
        && is_once(row.counts.iter().map(|count| count.token_id))
}

fn is_once(mut tokens: impl Iterator<Item = TokenId>) -> bool {
    let mut seen = HashSet::new();
    tokens.all(|token| seen.insert(token))
}

/// Chooses or scores a token for each row.
pub(crate) fn sample<D: Device>(
    device: &D,
    logits: &CudaTensor<D>,
    batch: &SampleBatch,
) -> Result<SampleOutput> {
    let size = batch.vocab_size.min(logits.columns);
    if batch.rows.is_empty() || size == 0 {
        return on_host(device, logits, batch);
    }
    if !batch.rows.iter().all(|row| is_for_device(row, size)) {
        return on_host(device, logits, batch);
    }
    let mut tasks = Tasks::default();
    let tops: Vec<usize> = batch.rows.iter().map(|row| tasks.push(row, size)).collect();
    let rows = batch.rows.len();
    let edits_at = tasks.tasks.len();
    debug_assert_eq!(edits_at, rows * TASK);
    let mut bytes = tasks.tasks;
    bytes.extend(&tasks.edits);
    let input = device.scratch(bytes.len(), "the sampler")?;
    device.upload(&input, 0, &bytes)?;
    let ids_at = rows * RESULT;
    let logits_at = ids_at + 4 * tasks.num_top;
    let output = device.scratch(logits_at + 4 * tasks.num_top, "the sampler")?;
    let masses = device.scratch(4 * rows * size, "the sampler")?;
    device.launch(&Launch {
        kernel: "sample_rows",
        threads: THREADS,
        grid: [rows as u32, 1, 1],
        dynamic_bytes: 0,
        args: &[
            logits.arg()?,
            int(logits.pitch)?,
            int(size)?,
            Arg::Buffer(&input, 0),
            Arg::Buffer(&input, edits_at),
            Arg::Buffer(&masses, 0),
            Arg::Buffer(&output, 0),
            Arg::Buffer(&output, ids_at),
            Arg::Buffer(&output, logits_at),
        ],
    })?;
    let mut bytes = vec![0; logits_at + 4 * tasks.num_top];
    device.download(&output, 0, &mut bytes)?;
    let mut first = 0;
    let rows = tops.into_iter().enumerate().map(|(row, count)| {
        let tops = first..first + count;
        first += count;
        let result = &bytes[row * RESULT..][..RESULT];
        let word = |at: usize| u32::from_le_bytes(array(&bytes[at..]));
        let top = tops.map(|n| {
            (
                word(ids_at + 4 * n),
                f32::from_bits(word(logits_at + 4 * n)),
            )
        });
        outcome(result, top)
    });
    Ok(SampleOutput {
        rows: rows.collect(),
    })
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes.first_chunk().expect("a whole field")
}

/// One `SampleResult` with the row's best tokens.
fn outcome(result: &[u8], top: impl Iterator<Item = (TokenId, f32)>) -> RowOutput {
    let word = |at: usize| u32::from_le_bytes(array(&result[at..]));
    if word(20) == 0 {
        return RowOutput::NonFinite;
    }
    let sum = f64::from_le_bytes(array(result));
    let logprob = log_probability(f32::from_bits(word(8)), sum);
    RowOutput::Token(Sampled {
        token_id: word(16),
        logprob: logprob(f32::from_bits(word(12))),
        top: top.map(|(token, logit)| (token, logprob(logit))).collect(),
    })
}

/// The rare rows that the kernel does not take, and those beside them.
fn on_host<D: Device>(
    device: &D,
    logits: &CudaTensor<D>,
    batch: &SampleBatch,
) -> Result<SampleOutput> {
    let values = logits.read(device)?;
    if values.len() != batch.rows.len() * logits.columns {
        return Err(BackendError::Shape(format!(
            "{} logits for {} rows",
            values.len(),
            batch.rows.len()
        )));
    }
    let rows = batch.rows.iter().enumerate().map(|(i, row)| {
        let logits = &values[i * logits.columns..][..logits.columns];
        sample_row(logits, row, batch.vocab_size)
    });
    Ok(SampleOutput {
        rows: rows.collect(),
    })
}
