//! Rows of activations rounded to bfloat16. Memory-bound.

use crate::aligned::AlignedBuf;
use crate::isa::{Isa, Kernel};
use crate::runner::{TaskRunner, for_each_chunk};
use crate::simd::{LANES, Simd};

/// Words of a cache line.
const LINE_WORDS: usize = 16;
/// Words that one task rounds at least: some microseconds of work.
const TASK_WORDS: usize = 8 * 1024;

/// Rows of pairs of bfloat16, the first of a pair in the low half of its word. A row takes an odd number
/// of cache lines, so that the rows of a tile do not compete for the same places in the cache. The
/// memory is kept from one set of rows to the next.
#[derive(Debug, Default)]
pub struct Bf16Rows {
    words: Option<AlignedBuf<u32>>,
    len: usize,
    inputs: usize,
}

impl Bf16Rows {
    /// Replaces the rows by those of `x`, rounded; none when the memory cannot be had.
    ///
    /// # Panics
    /// When `x` is not whole rows of `inputs`.
    pub fn round(
        &mut self,
        isa: Isa,
        runner: &dyn TaskRunner,
        x: &[f32],
        inputs: usize,
    ) -> Option<()> {
        assert!(inputs > 0 && x.len().is_multiple_of(inputs), "whole rows");
        self.inputs = inputs;
        let row_words = self.row_words();
        self.len = (x.len() / inputs).checked_mul(row_words)?;
        if self.words.as_ref().is_none_or(|w| w.len() < self.len) {
            self.words = Some(AlignedBuf::zeroed(self.len.checked_next_power_of_two()?)?);
        }
        let words = &mut self.words.as_mut().expect("just allocated")[..self.len];
        let task_rows = (TASK_WORDS / row_words).max(1);
        for_each_chunk(runner, words, task_rows * row_words, |chunk, words| {
            let rows = words.len() / row_words;
            let x = &x[chunk * task_rows * inputs..][..rows * inputs];
            isa.dispatch_bf16(Round {
                x,
                inputs,
                words,
                row_words,
            });
        });
        Some(())
    }

    /// Numbers of a row.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    pub(super) fn row_words(&self) -> usize {
        (self.inputs.div_ceil(2).div_ceil(LINE_WORDS) | 1) * LINE_WORDS
    }

    pub(super) fn words(&self) -> &[u32] {
        self.words.as_ref().map_or(&[], |words| &words[..self.len])
    }
}

struct Round<'a> {
    x: &'a [f32],
    inputs: usize,
    words: &'a mut [u32],
    row_words: usize,
}

impl Kernel for Round<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.words.chunks_exact_mut(self.row_words);
        for (x, words) in self.x.chunks_exact(self.inputs).zip(rows) {
            for (x, words) in x.chunks(LANES).zip(words.chunks_exact_mut(LANES / 2)) {
                // SAFETY: eight words are sixteen 16-bit numbers.
                unsafe { s.round_to_bf16(words.as_mut_ptr().cast(), s.load_slice(x)) }
            }
        }
    }
}
