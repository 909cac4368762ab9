//! Which tokens may be drawn, and the draw.
//!
//! Weights become masses: whole numbers of 2⁻³⁰ of the best token's weight. The border of a set is
//! found in two ways. Passes that add up all masses from a power of two on, on vectors, tell between
//! which two powers it lies. In there it is found by digits of ten bits: a pass adds up what falls on
//! each value of a digit, one by one, and skips sixteen masses at once where none is of interest. Sums
//! are whole numbers, so neither their order nor the level matters.

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
    isa.dispatch(Weigh {
        logits,
        max,
        temperature: filters.temperature,
        masses,
    });
    let border = Border {
        mass: floor.max(1),
        last: usize::MAX,
    };
    let mut row = Row {
        isa,
        masses,
        border,
    };
    if filters.top_k > 0 {
        row.keep::<false>(u64::from(filters.top_k));
    }
    if filters.top_p < 1.0 {
        let total: u64 = row.blocks().iter().sum();
        let share = f64::from(filters.top_p) * total as f64;
        row.keep::<true>((share.ceil() as u64).max(1));
    }
    row.pick(u)
}

/// Memory for the masses of one row, kept from row to row. Those behind the end of the row are 0.
#[derive(Debug, Default)]
pub struct Masses(Vec<[u32; LANES]>);

/// Bits of a mass.
const MASS_BITS: u32 = 31;
/// The mass of the best token.
const ONE: f32 = (1u32 << 30) as f32;
/// Bits of a digit of a mass.
const DIGIT: u32 = 10;
/// Values of a digit at most, counted from the start of a range.
const VALUES: usize = 1 << DIGIT;
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
    /// The `2^bits` masses from `low` on, which is a multiple of that, by their highest digit.
    fn new(low: u32, bits: u32) -> Self {
        Self {
            low,
            end: low + (1 << bits),
            shift: bits.saturating_sub(DIGIT),
        }
    }
}

/// The worst token that is kept: larger masses are, and equal ones up to this index.
#[derive(Clone, Copy)]
struct Border {
    mass: u32,
    last: usize,
}

impl Border {
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
    /// Keeps the fewest best tokens whose amount reaches `goal`: their mass where `BY_MASS`, their
    /// number otherwise. Changes nothing where what is kept does not reach it.
    fn keep<const BY_MASS: bool>(&mut self, goal: u64) {
        // Amounts from 2^bits on reach the goal for all powers below `above`, and `beyond` is the
        // amount from there on.
        let (mut below, mut above, mut beyond) = (0, MASS_BITS, 0);
        while below < above {
            let bits = (below + above) / 2;
            let amount = self.amount_from::<BY_MASS>(1 << bits);
            if amount < goal {
                (above, beyond) = (bits, amount);
            } else {
                below = bits + 1;
            }
        }
        let Some(bits) = above.checked_sub(1) else {
            return;
        };
        let mut missing = goal - beyond;
        let mass = self.find::<BY_MASS>(Range::new(1 << bits, bits), &mut missing);
        if mass >= self.border.mass {
            let each = if BY_MASS { u64::from(mass) } else { 1 };
            let last = self.nth_of(mass, missing.div_ceil(each));
            self.border = Border { mass, last };
        }
    }

    /// The amount of the masses from `least` on.
    fn amount_from<const BY_MASS: bool>(&self, least: u32) -> u64 {
        let mut amount = 0;
        self.isa.dispatch(AmountFrom::<BY_MASS> {
            masses: self.masses,
            least,
            amount: &mut amount,
        });
        amount
    }

    /// The mass at which what lies in the range, from the top down, reaches `missing`, which all of it
    /// does. Takes from `missing` what lies above it.
    fn find<const BY_MASS: bool>(&self, mut range: Range, missing: &mut u64) -> u32 {
        loop {
            let mut amounts = [0; VALUES];
            self.isa.dispatch(Amounts::<BY_MASS> {
                masses: self.masses,
                range,
                amounts: &mut amounts,
            });
            let mut value = VALUES - 1;
            while amounts[value] < *missing {
                *missing -= amounts[value];
                value -= 1;
            }
            let low = range.low + ((value as u32) << range.shift);
            if range.shift == 0 {
                return low;
            }
            range = Range::new(low, range.shift);
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
    masses: &'a mut [[u32; LANES]],
}

impl Kernel for Weigh<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (max, temperature) = (s.splat(self.max), s.splat(self.temperature));
        for (chunk, masses) in self.masses.iter_mut().enumerate() {
            let x = s.sub(logits_from(s, self.logits, chunk * LANES), max);
            let weight = exp_nonpositive(s, s.div(x, temperature));
            s.store_rounded(masses, s.mul(weight, s.splat(ONE)));
        }
    }
}

struct AmountFrom<'a, const BY_MASS: bool> {
    masses: &'a [[u32; LANES]],
    least: u32,
    amount: &'a mut u64,
}

impl<const BY_MASS: bool> Kernel for AmountFrom<'_, BY_MASS> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if BY_MASS {
            *self.amount = s.sum_from(self.masses, self.least);
            return;
        }
        for masses in self.masses {
            let outside = s.mask_inside(masses, 0, self.least);
            *self.amount += u64::from(LANES as u32 - outside.count_ones());
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
    fn run<S: Simd>(self, s: S) {
        /// Neighbours go to different tables: additions to one place wait for each other.
        const TABLES: usize = 4;
        let mut tables = [[0u64; VALUES]; TABLES];
        let Range { low, end, shift } = self.range;
        for masses in self.masses {
            let mut inside = s.mask_inside(masses, low, end - low);
            if inside == 0 {
                continue;
            }
            let value = |mass: u32| ((mass - low) >> shift) as usize % VALUES;
            let first = value(masses[inside.trailing_zeros() as usize]);
            let of_first = low + ((first as u32) << shift);
            // Flat rows would add to one place again and again.
            if s.mask_inside(masses, of_first, 1 << shift) == inside && inside == ALL {
                tables[0][first] += if BY_MASS { sum(masses) } else { LANES as u64 };
                continue;
            }
            while inside > 0 {
                let lane = inside.trailing_zeros() as usize % LANES;
                let amount = if BY_MASS { u64::from(masses[lane]) } else { 1 };
                tables[lane % TABLES][value(masses[lane])] += amount;
                inside &= inside - 1;
            }
        }
        for value in 0..VALUES {
            for table in &tables {
                self.amounts[value] += table[value];
            }
        }
    }
}

/// The mask of all lanes.
const ALL: u32 = (1 << LANES) - 1;

#[inline(always)]
fn sum(masses: &[u32; LANES]) -> u64 {
    let mut sum = 0;
    for mass in masses {
        sum += u64::from(*mass);
    }
    sum
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
    fn run<S: Simd>(self, s: S) {
        for (block, masses) in self.masses.chunks(BLOCK).enumerate() {
            let first = block * BLOCK * LANES;
            let least = self.border.least(first);
            if least == self.border.least(first + masses.len() * LANES - 1) {
                self.sums.push(s.sum_from(masses, least));
                continue;
            }
            let mut sum = 0;
            for (index, mass) in masses.as_flattened().iter().enumerate() {
                if *mass >= self.border.least(first + index) {
                    sum += u64::from(*mass);
                }
            }
            self.sums.push(sum);
        }
    }
}
