//! Sums of one- and two-digit numbers. Longer sums are answered with their steps, units first.

use super::{Turn, casual, fill};
use crate::prng::Prng;
use crate::words::{Split, split_of};

const PHRASINGS: &[&str] = &[
    "What is {} + {}?",
    "What is {} + {}?",
    "What's {} + {}?",
    "What is {} plus {}?",
    "What's {} plus {}?",
    "How much is {} + {}?",
    "How much is {} plus {}?",
    "{} + {}",
    "{} + {}?",
    "{} + {} =",
    "{}+{}",
    "{}+{}=",
    "{} + {} = ?",
    "{} plus {}",
    "Add {} and {}.",
    "Can you add {} and {}?",
    "Calculate {} + {}.",
    "Compute {} + {}.",
    "What is {}+{}?",
    "What is the sum of {} and {}?",
    "What do {} and {} make?",
];

/// A pair of numbers is held out in both orders.
pub fn turn(prng: &mut Prng, split: Split) -> Turn {
    let (a, b) = loop {
        let (a, b) = match prng.below(10) {
            0 | 1 => (prng.below(10), prng.below(10)),
            2 => (prng.below(100), prng.below(10)),
            3 => (prng.below(10), prng.below(100)),
            _ => (prng.range(10, 99), prng.range(10, 99)),
        };
        if split_of(&format!("sum {} {}", a.min(b), a.max(b))) == split {
            break (a, b);
        }
    };
    let phrasing = *prng.pick(PHRASINGS);
    Turn {
        user: casual(prng, &fill(phrasing, &[&a.to_string(), &b.to_string()])),
        answer: worked(a, b),
    }
}

/// The answer: `7 + 8 = 15.` or `7 + 8 = 15, 4 + 5 + 1 = 10. 47 + 58 = 105.`
fn worked(a: usize, b: usize) -> String {
    let sum = format!("{a} + {b} = {}.", a + b);
    if a < 10 && b < 10 {
        return sum;
    }
    let (units, tens) = (a % 10 + b % 10, a / 10 + b / 10);
    let steps = format!("{} + {} = {units}", a % 10, b % 10);
    let carried = if units > 9 {
        format!("{} + {} + 1 = {}", a / 10, b / 10, tens + 1)
    } else {
        format!("{} + {} = {tens}", a / 10, b / 10)
    };
    format!("{steps}, {carried}. {sum}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_show_their_steps() {
        for (a, b, expected) in [
            (7, 8, "7 + 8 = 15."),
            (12, 30, "2 + 0 = 2, 1 + 3 = 4. 12 + 30 = 42."),
            (47, 58, "7 + 8 = 15, 4 + 5 + 1 = 10. 47 + 58 = 105."),
            (96, 5, "6 + 5 = 11, 9 + 0 + 1 = 10. 96 + 5 = 101."),
        ] {
            assert_eq!(worked(a, b), expected);
        }
    }
}
