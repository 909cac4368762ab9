//! The same steps again and again, while a kernel on another stream takes all the memory bandwidth it can get: every
//! time the same bits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use backend::{BackendError, Batch, Result, RowOutput};
use backend_cuda::device::{Arg, Device, Launch};
use backend_cuda::{CudaBackend, Precision};

use super::decoder::{Decoder, Layers, Model, Part, batch};
use super::graphs::same;

/// How much is repeated.
pub struct Sizes {
    /// Times that each step runs.
    pub repeats: usize,
    /// The model's layers.
    pub layers: usize,
    /// Features of a token.
    pub hidden: usize,
    /// Tokens of the longer prompt, at most [`TOKENS`] less what follows.
    pub prompt: usize,
    /// Words that the other stream writes in one launch.
    pub words: usize,
}

impl Sizes {
    /// On a device.
    pub const REAL: Self = Self {
        repeats: 200,
        layers: 4,
        hidden: 1024,
        prompt: 300,
        words: 1 << 26,
    };
}

const PRECISIONS: [Precision; 5] = [
    Precision::Int8,
    Precision::Int8Fast,
    Precision::Int8Blocks,
    Precision::W8A16,
    Precision::F16,
];
/// Tokens of the longest context, and blocks of all.
const TOKENS: usize = 384;
const BLOCKS: usize = 16;

/// Prints a line for each precision; true when no repetition differs from the first.
pub fn repeat<D: Device>(
    open: &(dyn Fn() -> Result<D> + Sync),
    sizes: &Sizes,
    say: &mut dyn FnMut(String),
) -> Result<bool> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (started, begin) = channel();
        let (done, words) = (&done, sizes.words);
        let hog = scope.spawn(move || write_memory(open, words, done, &started));
        let outcome = {
            // However the comparison ends, the other stream does too.
            let _stop = Stop(done);
            // Nothing is sent when it fails; then its error is told below.
            begin.recv().ok();
            compare(open, sizes, say)
        };
        let launches = hog
            .join()
            .map_err(|_| BackendError::Device("the other stream panicked".into()))??;
        say(format!("beside {launches} launches on another stream"));
        outcome
    })
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes memory until told to stop; the number of launches.
fn write_memory<D: Device>(
    open: &(dyn Fn() -> Result<D> + Sync),
    words: usize,
    done: &AtomicBool,
    started: &Sender<()>,
) -> Result<usize> {
    let device = open()?;
    let buffer = device.alloc(4 * words, "what is only written")?;
    let mut launches = 0;
    while !done.load(Ordering::Relaxed) {
        // A few, so that the stream never runs dry and ends soon.
        for _ in 0..4 {
            let args = [
                Arg::Buffer(&buffer, 0),
                Arg::Int(words as i32),
                Arg::Int(launches as i32),
                Arg::Int(-1),
                Arg::Int(0),
            ];
            device.launch(&Launch {
                kernel: "fill_random",
                threads: 256,
                grid: [words.div_ceil(256) as u32, 1, 1],
                dynamic_bytes: 0,
                args: &args,
            })?;
            launches += 1;
        }
        device.synchronize()?;
        started.send(()).ok();
    }
    Ok(launches)
}

/// A prompt beside another, their next tokens, and a chunk beside a token: every kernel of products and attention.
fn steps(prompt: usize) -> [Batch; 3] {
    let part = |sequence: u32, computed, count| Part {
        computed,
        count,
        blocks: (sequence * 12..sequence * 12 + 12)
            .take(if sequence == 0 { 12 } else { 4 })
            .collect(),
    };
    [
        batch(vec![part(0, 0, prompt), part(1, 0, 20)]),
        batch(vec![part(0, prompt, 1), part(1, 20, 1)]),
        batch(vec![part(0, prompt + 1, 1), part(1, 21, 25)]),
    ]
}

fn compare<D: Device>(
    open: &(dyn Fn() -> Result<D> + Sync),
    sizes: &Sizes,
    say: &mut dyn FnMut(String),
) -> Result<bool> {
    let model = Model {
        name: "small",
        kind: Layers::Llama,
        hidden: sizes.hidden,
        heads: [sizes.hidden / 32, sizes.hidden / 64, 32],
        width: 2 * sizes.hidden,
        layers: sizes.layers,
        vocab: 64,
    };
    let mut all = true;
    for precision in PRECISIONS {
        let target = CudaBackend::new(open()?, precision);
        let mut decoder = Decoder::new(target, (model, precision), TOKENS, BLOCKS)?;
        let mut run = || -> Result<Vec<Vec<RowOutput>>> {
            steps(sizes.prompt)
                .iter()
                .map(|batch| Ok(decoder.step(batch)?.rows))
                .collect()
        };
        let first = run()?;
        let mut differs = None;
        for again in 1..sizes.repeats {
            let found = run()?;
            let is_same = found
                .iter()
                .zip(&first)
                .all(|(found, first)| same(found, first));
            if !is_same {
                differs = Some(again);
                break;
            }
        }
        say(match differs {
            None => format!("ok    {} {} times", precision.name(), sizes.repeats),
            Some(again) => format!("WRONG {} at repetition {again}", precision.name()),
        });
        all &= differs.is_none();
    }
    Ok(all)
}
