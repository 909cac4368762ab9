//! Which tokens may be drawn, and the draw.
//!
//! Weights become masses: whole numbers of 2⁻³⁰ of the best token's weight. The border of a set is
//! found by digits of ten bits, from the largest masses down: a pass adds up what falls on each value
//! of a digit, and skips sixteen masses at once where none is of interest. Three passes suffice for any
//! row. Sums are whole numbers, so neither their order nor the level matters.

use super::{exp_nonpositive, logits_from};
use crate::isa::{Isa, Kernel};
use crate::simd::{LANES, Simd};

/// How a draw is restricted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Filters {
    /// Above 0; divides logits.
    pub temperature: f32,
    /// Keep the k largest; 0 is off.
    pub top_k: u32,
    /// Keep the fewest largest whose mass reaches this share; from 1 on it is off.
    pub top_p: f32,
    /// Drop those below this share of the best.
    pub min_p: f32,
}

/// Draws an index by `u` in `[0, 1)`, as `backend::SamplerOps::choose` defines it. `max` is the largest
/// of the logits and finite.
pub fn choose(
    isa: Isa,
    logits: &[f32],
    max: f32,
    filters: Filters,
    u: f64,
    Masses(masses): &mut Masses,
) -> u32 {
    let floor = (filters.min_p.clamp(0.0, 1.0) * ONE).round_ties_even() as u32;
    masses.resize(logits.len().div_ceil(LANES), [0; LANES]);
    let mut total = 0;
    isa.dispatch(Weigh {
        logits,
        max,
        temperature: filters.temperature,
        floor,
        masses,
        total: &mut total,
    });
    let mut row = Row {
        isa,
        masses,
        border: Border::NONE,
    };
    if filters.top_k > 0 {
        row.keep::<false>(u64::from(filters.top_k));
    }
    if filters.top_p < 1.0 {
        if filters.top_k > 0 {
            total = row.blocks().iter().sum();
        }
        let share = f64::from(filters.top_p) * total as f64;
        row.keep::<true>((share.ceil() as u64).max(1));
    }
    row.pick(u)
}

/// Memory for the masses of one row, kept from row to row. Those behind the end of the row are 0.
#[derive(Debug, Default)]
pub struct Masses(Vec<[u32; LANES]>);

/// The mass of the best token.
const ONE: f32 = (1u32 << 30) as f32;
/// Bits of a digit of a mass.
const DIGIT: u32 = 10;
/// Values of a digit at most, counted from the start of a range.
const VALUES: usize = 1 << DIGIT;
/// Ranges that are looked through from the top until the border is in one, each by its highest digit.
const RANGES: [Range; 3] = [
    Range::new(1 << 20, (1 << 30) + (1 << 20), 20),
    Range::new(1 << 10, 1 << 20, 10),
    Range::new(1, 1 << 10, 0),
];
/// Sixteens of masses whose sum is known apart, to find the one that a draw falls on.
const BLOCK: usize = 64;

/// Masses from `low` up to `end`, told apart by the bits from `shift` on.
#[derive(Clone, Copy)]
struct Range {
    low: u32,
    end: u32,
    shift: u32,
}

impl Range {
    const fn new(low: u32, end: u32, shift: u32) -> Self {
        Self { low, end, shift }
    }

    const fn num_values(self) -> usize {
        ((self.end - self.low) >> self.shift) as usize
    }

    /// The masses of one value of the digit, by their next digit.
    fn of_value(self, value: u32) -> Self {
        let low = value << self.shift;
        Self::new(low, low + (1 << self.shift), self.shift - DIGIT)
    }
}

/// The worst token that is kept: larger masses are, and equal ones up to this index.
#[derive(Clone, Copy)]
struct Border {
    mass: u32,
    last: usize,
}

impl Border {
    /// Every token with a mass.
    const NONE: Self = Self {
        mass: 1,
        last: usize::MAX,
    };

    /// The least mass that is kept at an index.
    #[inline(always)]
    fn least(self, index: usize) -> u32 {
        self.mass + u32::from(index > self.last)
    }
}

/// A row and what is kept of it.
struct Row<'a> {
    isa: Isa,
    masses: &'a [[u32; LANES]],
    border: Border,
}

impl Row<'_> {
    /// Keeps the fewest best tokens whose amount reaches `goal`, or what there is: their mass where
    /// `BY_MASS`, their number otherwise.
    fn keep<const BY_MASS: bool>(&mut self, goal: u64) {
        let mut missing = goal;
        for range in RANGES {
            if let Some(mass) = self.find::<BY_MASS>(range, &mut missing) {
                let each = if BY_MASS { u64::from(mass) } else { 1 };
                let last = self.nth_of(mass, missing.div_ceil(each));
                self.border = Border { mass, last };
                return;
            }
        }
    }

    /// The mass at which what lies in the range, from the top down, reaches `missing`. Takes from
    /// `missing` what lies above it.
    fn find<const BY_MASS: bool>(&self, mut range: Range, missing: &mut u64) -> Option<u32> {
        loop {
            let mut amounts = [0; VALUES];
            self.isa.dispatch(Amounts::<BY_MASS> {
                masses: self.masses,
                range,
                amounts: &mut amounts,
            });
            let mut value = amounts.len();
            while value > 0 && amounts[value - 1] < *missing {
                value -= 1;
                *missing -= amounts[value];
            }
            let value = value.checked_sub(1)? as u32;
            // The digits of a range within a range are counted from its start.
            let value = value + (range.low >> range.shift);
            if range.shift == 0 {
                return Some(value);
            }
            range = range.of_value(value);
        }
    }

    /// The index of the `count`-th token of this mass.
    fn nth_of(&self, mass: u32, count: u64) -> usize {
        let mut last = 0;
        self.isa.dispatch(NthOf {
            masses: self.masses,
            mass,
            count,
            last: &mut last,
        });
        last
    }

    /// The kept mass of each block.
    fn blocks(&self) -> Vec<u64> {
        let mut sums = Vec::with_capacity(self.masses.len().div_ceil(BLOCK));
        self.isa.dispatch(Blocks {
            masses: self.masses,
            border: self.border,
            sums: &mut sums,
        });
        sums
    }

    /// The first index up to which more than the share `u` is kept.
    fn pick(&self, u: f64) -> u32 {
        let blocks = self.blocks();
        let total: u64 = blocks.iter().sum();
        let mut mark = (u * total as f64) as u64;
        let mut block = 0;
        for sum in blocks {
            if mark < sum {
                break;
            }
            mark -= sum;
            block += 1;
        }
        let masses = self.masses.as_flattened().iter().enumerate();
        for (index, mass) in masses.skip(block * BLOCK * LANES) {
            if *mass >= self.border.least(index) {
                if mark < u64::from(*mass) {
                    return index as u32;
                }
                mark -= u64::from(*mass);
            }
        }
        unreachable!("the mark is below the mass that is kept")
    }
}

struct Weigh<'a> {
    logits: &'a [f32],
    max: f32,
    temperature: f32,
    floor: u32,
    masses: &'a mut [[u32; LANES]],
    total: &'a mut u64,
}

impl Kernel for Weigh<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (max, temperature) = (s.splat(self.max), s.splat(self.temperature));
        let mut sums = [0u64; LANES];
        for (chunk, masses) in self.masses.iter_mut().enumerate() {
            let x = s.sub(logits_from(s, self.logits, chunk * LANES), max);
            let weight = exp_nonpositive(s, s.div(x, temperature));
            s.store_rounded(masses, s.mul(weight, s.splat(ONE)));
            for lane in 0..LANES {
                if masses[lane] < self.floor {
                    masses[lane] = 0;
                }
                sums[lane] += u64::from(masses[lane]);
            }
        }
        for sum in sums {
            *self.total += sum;
        }
    }
}

/// The amount of each value of a digit.
struct Amounts<'a, const BY_MASS: bool> {
    masses: &'a [[u32; LANES]],
    range: Range,
    amounts: &'a mut [u64; VALUES],
}

impl<const BY_MASS: bool> Kernel for Amounts<'_, BY_MASS> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        /// Neighbours go to different tables: additions to one place wait for each other.
        const TABLES: usize = 4;
        let mut tables = [[0u64; VALUES + 1]; TABLES];
        let Range { low, end, shift } = self.range;
        let num_values = self.range.num_values();
        for chunk in self.masses {
            let mut is_any_inside = false;
            for mass in chunk {
                is_any_inside |= mass.wrapping_sub(low) < end - low;
            }
            if !is_any_inside {
                continue;
            }
            for (lane, mass) in chunk.iter().enumerate() {
                // What is outside goes to a place of its own, which costs less than to tell it apart.
                let value = (mass.wrapping_sub(low) >> shift) as usize;
                let amount = if BY_MASS { u64::from(*mass) } else { 1 };
                tables[lane % TABLES][value.min(num_values)] += amount;
            }
        }
        for value in 0..num_values {
            for table in &tables {
                self.amounts[value] += table[value];
            }
        }
    }
}

struct NthOf<'a> {
    masses: &'a [[u32; LANES]],
    mass: u32,
    count: u64,
    last: &'a mut usize,
}

impl Kernel for NthOf<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let mut missing = self.count;
        for (chunk, masses) in self.masses.iter().enumerate() {
            let mut here = 0;
            for mass in masses {
                here += u32::from(*mass == self.mass);
            }
            if u64::from(here) < missing {
                missing -= u64::from(here);
                continue;
            }
            for (lane, mass) in masses.iter().enumerate() {
                missing -= u64::from(*mass == self.mass);
                if missing == 0 {
                    *self.last = chunk * LANES + lane;
                    return;
                }
            }
        }
    }
}

struct Blocks<'a> {
    masses: &'a [[u32; LANES]],
    border: Border,
    sums: &'a mut Vec<u64>,
}

impl Kernel for Blocks<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (block, masses) in self.masses.chunks(BLOCK).enumerate() {
            let mut sums = [0u64; LANES];
            for (chunk, masses) in masses.iter().enumerate() {
                let first = (block * BLOCK + chunk) * LANES;
                for lane in 0..LANES {
                    let is_kept = masses[lane] >= self.border.least(first + lane);
                    sums[lane] += if is_kept { u64::from(masses[lane]) } else { 0 };
                }
            }
            let mut total = 0;
            for sum in sums {
                total += sum;
            }
            self.sums.push(total);
        }
    }
}
