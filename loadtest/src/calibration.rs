//! Whether the machine stayed what it was: how fast it reads memory just before a run and just after it. What a
//! server reads weights with may be shared with other machines, and a run between two different readings says
//! little about the server.

use std::hint::black_box;
use std::thread;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::gpu_watch::GpuLoad;

/// Differences beyond this share of the larger value are said.
pub const DRIFT_LIMIT: f64 = 0.05;
/// Bytes that each thread reads, more than the caches that it shares hold, and those of all threads at most.
const BYTES: (usize, usize) = (128 << 20, 1 << 30);
/// Passes of which the best counts: what disturbs one of them lasts milliseconds.
const PASSES: usize = 6;
/// Running sums, so that the additions do not wait for each other.
const SUMS: usize = 16;

/// A figure before a run and after it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Around {
    /// Just before, or in the first third of the window.
    pub before: f64,
    /// Just after, or in its last third.
    pub after: f64,
}

/// What was seen of the machine around a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Calibration {
    /// Memory read by all cores together, bytes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_read_bytes_per_second: Option<Around>,
    /// Clock of the GPU whose clock changed the most over the window, in hertz: an idle one is low and says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_clock_hertz: Option<Around>,
    /// The largest difference of the two, as a share of the larger value.
    pub drift: f64,
    /// Beyond which the run carries a warning.
    pub drift_limit: f64,
}

impl Around {
    /// The difference as a share of the larger value.
    pub fn drift(self) -> f64 {
        let most = self.before.max(self.after);
        if most > 0.0 {
            (self.before - self.after).abs() / most
        } else {
            0.0
        }
    }
}

impl Calibration {
    /// From readings of memory and the load of the GPUs; none of neither.
    pub fn new(memory: Option<Around>, gpus: &[GpuLoad]) -> Option<Self> {
        let clocks = gpus.iter().filter_map(|gpu| gpu.clock_around);
        let clock = clocks.max_by(|a, b| a.drift().total_cmp(&b.drift()));
        let drifts = memory.into_iter().chain(clock).map(Around::drift);
        let drift = drifts.reduce(f64::max)?;
        Some(Self {
            memory_read_bytes_per_second: memory,
            gpu_clock_hertz: clock,
            drift,
            drift_limit: DRIFT_LIMIT,
        })
    }

    /// Why the run carries a warning, if it does.
    pub fn warning(&self) -> Option<String> {
        (self.drift > self.drift_limit).then(|| {
            let beyond = |around: Option<Around>| around.filter(|a| a.drift() > self.drift_limit);
            let memory = beyond(self.memory_read_bytes_per_second)
                .map(|Around { before, after }| {
                    let [before, after] = [before, after].map(|rate| rate / 1e9);
                    format!("read memory at {before:.1} GB/s before the run and at {after:.1} after it")
                });
            let clock = beyond(self.gpu_clock_hertz).map(|Around { before, after }| {
                let [before, after] = [before, after].map(|clock| clock / 1e6);
                format!("had its GPU at {before:.0} MHz in the first third and at {after:.0} in the last")
            });
            let what: Vec<String> = memory.into_iter().chain(clock).collect();
            format!("the machine changed: it {}", what.join(" and "))
        })
    }
}

/// Bytes per second that all cores together read from memory at the moment; takes a few tenths of a second.
pub fn memory_read() -> Option<f64> {
    let threads = thread::available_parallelism().ok()?.get();
    let bytes = BYTES.0.min(BYTES.1 / threads);
    read(threads, bytes)
}

fn read(threads: usize, bytes: usize) -> Option<f64> {
    let words = bytes / size_of::<u64>();
    let mut buffers: Vec<Vec<u64>> = Vec::new();
    for _ in 0..threads {
        let mut buffer = Vec::new();
        // Where memory is short there is no reading, and no end of the run either.
        buffer.try_reserve_exact(words).ok()?;
        buffers.push(buffer);
    }
    thread::scope(|scope| {
        // Pages that nobody wrote are one page of zeros.
        buffers.iter_mut().for_each(|buffer| {
            scope.spawn(|| buffer.resize(words, 1));
        });
    });
    let pass = || {
        let start = Instant::now();
        thread::scope(|scope| {
            for buffer in &buffers {
                scope.spawn(|| black_box(sum(buffer)));
            }
        });
        (threads * words * size_of::<u64>()) as f64 / start.elapsed().as_secs_f64()
    };
    (0..PASSES).map(|_| pass()).reduce(f64::max)
}

fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; SUMS];
    for chunk in words.chunks_exact(SUMS) {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_changed_is_named_and_one_that_did_not_is_not() {
        let memory = |before, after| Some(Around { before, after });
        let told = |around| Calibration::new(around, &[]).unwrap().warning();
        assert_eq!(told(memory(50e9, 48e9)), None);
        for (before, after) in [(50e9, 40e9), (40e9, 50e9)] {
            let words = told(memory(before, after)).unwrap();
            let [before, after] = [before, after].map(|rate| format!("{:.1}", rate / 1e9));
            assert_eq!(
                words,
                format!(
                    "the machine changed: it read memory at {before} GB/s before the run and at {after} after it"
                )
            );
        }
        assert_eq!(Calibration::new(None, &[]), None);
        // A reading that failed is no drift.
        assert_eq!(told(memory(0.0, 0.0)), None);
    }

    #[test]
    fn the_clock_that_changed_the_most_counts() {
        let gpu = |before, after| GpuLoad {
            clock_around: Some(Around { before, after }),
            ..GpuLoad::default()
        };
        let memory = Some(Around {
            before: 1e9,
            after: 1e9,
        });
        let found = Calibration::new(memory, &[gpu(1.5e9, 1.49e9), gpu(1.5e9, 1.2e9)]).unwrap();
        assert!((found.drift - 0.2).abs() < 1e-9, "{found:?}");
        let words = found.warning().unwrap();
        assert!(
            words.contains("1500 MHz in the first third and at 1200"),
            "{words}"
        );
        assert!(!words.contains("memory"), "{words}");
    }

    #[test]
    fn every_word_is_read() {
        assert_eq!(sum(&vec![3; 32 * SUMS]), 96 * SUMS as u64);
        let rate = read(2, 1 << 20).unwrap();
        assert!(rate.is_finite() && rate > 0.0);
    }
}
