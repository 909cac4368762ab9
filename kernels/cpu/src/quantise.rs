//! 8-bit forms of rows of activations, in the arithmetic of `quant`, with what the product kernels
//! need beside the integers. Memory-bound: each number is read twice, from cache the second time.

use quant::{Granularity, Scale};

use crate::aligned::AlignedBuf;
use crate::dot::OFFSET;
use crate::isa::{Isa, Kernel};
use crate::simd::{LANES, Simd};

/// Words of a cache line.
const LINE_WORDS: usize = 16;

/// How rows of quantised activations lie in memory, in words of 32 bits: the integers, four to a word
/// and padded with zeros to whole vectors; one scale per group; one offset per group, −128 times the
/// sum of its integers. A row takes an odd number of cache lines, so that the rows of a tile do not
/// compete for the same places in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowLayout {
    columns: usize,
    granularity: Granularity,
}

impl RowLayout {
    /// For rows of `columns` numbers.
    ///
    /// # Panics
    /// When there is no column, or groups are not a multiple of sixteen numbers.
    pub fn new(columns: usize, granularity: Granularity) -> Self {
        assert!(columns > 0, "a row holds numbers");
        if let Granularity::Groups(len) = granularity {
            assert!(
                len > 0 && len.is_multiple_of(LANES),
                "groups of {len} are not whole vectors"
            );
        }
        Self {
            columns,
            granularity,
        }
    }

    /// Numbers of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Which numbers of a row share a scale.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Words of a row.
    pub fn row_words(&self) -> usize {
        let words = self.first_scale() + 2 * self.num_groups();
        (words.div_ceil(LINE_WORDS) | 1) * LINE_WORDS
    }

    /// Scales of a row.
    pub(crate) fn num_groups(&self) -> usize {
        self.granularity.num_groups(self.columns)
    }

    /// Where scales start: after whole vectors of sixteen integers.
    pub(crate) fn first_scale(&self) -> usize {
        self.columns.div_ceil(LANES) * LANES / 4
    }

    pub(crate) fn first_offset(&self) -> usize {
        self.first_scale() + self.num_groups()
    }
}

/// Rows of quantised activations. The memory is kept when they are laid out anew.
#[derive(Debug)]
pub struct QuantisedRows {
    words: AlignedBuf<u32>,
    layout: RowLayout,
    rows: usize,
}

impl QuantisedRows {
    /// Room for `rows` rows with arbitrary contents, or none when the memory cannot be had.
    pub fn new(rows: usize, layout: RowLayout) -> Option<Self> {
        let len = rows.checked_mul(layout.row_words())?;
        Some(Self {
            words: AlignedBuf::zeroed(len.checked_next_power_of_two()?)?,
            layout,
            rows,
        })
    }

    /// Lays the memory out for other rows; false, and nothing is changed, when they do not fit.
    pub fn reuse(&mut self, rows: usize, layout: RowLayout) -> bool {
        let fits = rows
            .checked_mul(layout.row_words())
            .is_some_and(|len| len <= self.words.len());
        if fits {
            (self.rows, self.layout) = (rows, layout);
        }
        fits
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How they lie in memory.
    pub fn layout(&self) -> RowLayout {
        self.layout
    }

    /// The words of all rows.
    pub fn words(&self) -> &[u32] {
        &self.words[..self.rows * self.layout.row_words()]
    }

    /// The words of all rows, for [`quantise`].
    pub fn words_mut(&mut self) -> &mut [u32] {
        &mut self.words[..self.rows * self.layout.row_words()]
    }
}

/// Quantises the rows of `x` into the rows of `words`. A group with a number that is not finite becomes
/// zeros with a NaN scale.
///
/// # Panics
/// When the lengths do not fit together.
pub fn quantise(isa: Isa, layout: RowLayout, x: &[f32], words: &mut [u32]) {
    assert!(x.len().is_multiple_of(layout.columns), "whole rows");
    let rows = x.len() / layout.columns;
    assert_eq!(words.len(), rows * layout.row_words(), "room for each row");
    isa.dispatch(Rows { layout, x, words });
}

struct Rows<'a> {
    layout: RowLayout,
    x: &'a [f32],
    words: &'a mut [u32],
}

impl Kernel for Rows<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let layout = self.layout;
        let group_len = layout.granularity.group_len(layout.columns);
        let rows = self.words.chunks_exact_mut(layout.row_words());
        for (x, words) in self.x.chunks_exact(layout.columns).zip(rows) {
            let (values, rest) = words.split_at_mut(layout.first_scale());
            let (scales, offsets) = rest.split_at_mut(layout.num_groups());
            for (group, x) in x.chunks(group_len).enumerate() {
                let values = &mut values[group * group_len / 4..];
                let (step, sum) = quantise_group(s, x, values);
                scales[group] = step.to_bits();
                // Exact: the sum of integers in ±127 that one 32-bit sum of products can hold.
                offsets[group] = (-i32::from(OFFSET) * sum as i32) as u32;
            }
        }
    }
}

/// Writes the integers of one group, padded to whole vectors, and returns their scale and their sum.
#[inline(always)]
pub(crate) fn quantise_group<S: Simd>(s: S, x: &[f32], words: &mut [u32]) -> (f32, f32) {
    // Adding 1.5·2²³ rounds to the nearest integer, ties to even.
    const ROUND: f32 = 12_582_912.0;
    let (zero, round) = (s.splat(0.0), s.splat(ROUND));
    let (mut largest, mut poison) = (zero, zero);
    for x in x.chunks(LANES) {
        let x = s.load_slice(x);
        largest = s.max(s.abs(x), largest);
        // Zero times NaN or an infinity is NaN.
        poison = s.fma(x, zero, poison);
    }
    let absmax = s.max_lane(largest) + s.sum(poison);
    let Scale { step, inverse } = Scale::of(absmax);
    if step.is_nan() {
        words[..x.len().div_ceil(LANES) * LANES / 4].fill(0);
        return (step, 0.0);
    }
    let inverse = s.splat(inverse);
    let mut sums = zero;
    for (x, words) in x.chunks(LANES).zip(words.chunks_exact_mut(LANES / 4)) {
        let scaled = s.mul(s.load_slice(x), inverse);
        let rounded = s.sub(s.add(scaled, round), round);
        sums = s.add(sums, rounded);
        // SAFETY: the four words of this vector are sixteen bytes.
        unsafe { s.store_i8_ptr(words.as_mut_ptr().cast(), rounded) };
    }
    (step, s.sum(sums))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::random;
    use quant::{BLOCK, GROUP, LARGEST, SMALLEST_ABSMAX, quantise_row};

    const ALL: [Granularity; 3] = [
        Granularity::Row,
        Granularity::Groups(GROUP),
        Granularity::Groups(BLOCK),
    ];

    /// Compares the row's integers, scales and offsets with the definition, bit for bit.
    fn check(isa: Isa, granularity: Granularity, x: &[f32]) {
        let layout = RowLayout::new(x.len(), granularity);
        let mut words = vec![0xdead_beef; layout.row_words()];
        quantise(isa, layout, x, &mut words);
        let mut values = vec![0; x.len()];
        let mut scales = vec![0.0; layout.num_groups()];
        let bad = quantise_row(x, granularity, &mut values, &mut scales);
        let context = format!("{isa}, {granularity:?}, {} numbers, {bad} bad", x.len());

        let found: Vec<i8> = words[..layout.first_scale()]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .map(|byte| byte as i8)
            .collect();
        assert_eq!(found[..x.len()], values, "{context}");
        assert!(found[x.len()..].iter().all(|q| *q == 0), "{context}");
        let found = &words[layout.first_scale()..layout.first_offset()];
        for (found, scale) in found.iter().zip(&scales) {
            let same = *found == scale.to_bits();
            assert!(same || f32::from_bits(*found).is_nan() && scale.is_nan());
        }
        let sums = values.chunks(granularity.group_len(x.len()));
        for (group, values) in sums.enumerate() {
            let sum: i32 = values.iter().map(|q| i32::from(*q)).sum();
            let found = words[layout.first_offset() + group] as i32;
            assert_eq!(found, -128 * sum, "{context}");
        }
    }

    #[test]
    fn every_level_follows_the_definition() {
        for isa in Isa::supported() {
            for granularity in ALL {
                for len in [1, 3, 4, 15, 16, 17, 100, 127, 128, 129, 255, 256, 300, 1000] {
                    let mut x = random(len as u64, len);
                    check(isa, granularity, &x);
                    x[len / 2] = 1e30;
                    check(isa, granularity, &x);
                    x[len / 3] = f32::MIN;
                    check(isa, granularity, &x);
                    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                        let mut x = x.clone();
                        x[len - 1] = bad;
                        check(isa, granularity, &x);
                        x[0] = bad;
                        check(isa, granularity, &x);
                    }
                }
                check(isa, granularity, &[0.0; 200]);
                check(isa, granularity, &[-0.0; 7]);
                check(isa, granularity, &[SMALLEST_ABSMAX / 2.0; 130]);
                check(isa, granularity, &[-SMALLEST_ABSMAX; 130]);
            }
        }
    }

    /// Halves of a step, where a rounding mode shows.
    #[test]
    fn ties_go_to_even_on_every_level() {
        let x: Vec<f32> = (-254..=254).map(|i| i as f32 * 0.5).collect();
        for isa in Isa::supported() {
            check(isa, Granularity::Row, &x);
            for absmax in [1.0, 3.0, 0.1, 7e-12, 2e20] {
                let step = absmax / LARGEST;
                let x: Vec<f32> = x.iter().map(|x| x * step).collect();
                check(isa, Granularity::Row, &x);
            }
        }
    }

    #[test]
    fn memory_is_used_again_where_it_suffices() {
        let layout = RowLayout::new(300, Granularity::Groups(GROUP));
        let mut rows = QuantisedRows::new(5, layout).expect("memory");
        assert_eq!(rows.words().len() % layout.row_words(), 0);
        assert!(rows.reuse(2, RowLayout::new(200, Granularity::Row)));
        assert_eq!((rows.rows(), rows.layout().columns()), (2, 200));
        assert!(!rows.reuse(1000, layout));
        assert_eq!(rows.rows(), 2);
        assert!(QuantisedRows::new(usize::MAX / 64, layout).is_none());
        assert_eq!(layout.row_words() / LINE_WORDS % 2, 1);
    }
}
