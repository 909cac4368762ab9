//! Days of the week and months of the year.

use super::{Turn, casual, combination, fill};
use crate::prng::Prng;
use crate::words::Split;

const DAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const LENGTHS: [usize; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
const ORDINALS: [&str; 12] = [
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth",
];

const NEXT: &[&str] = &[
    "What {} comes after {}?",
    "Which {} comes after {}?",
    "Which {} follows {}?",
    "What {} is after {}?",
    "What is the {} after {}?",
    "Tell me the {} after {}.",
    "Name the {} after {}.",
    "What is the next {} after {}?",
];
const PREVIOUS: &[&str] = &[
    "What {} comes before {}?",
    "Which {} comes before {}?",
    "What {} is before {}?",
    "Which {} is before {}?",
    "What is the {} before {}?",
    "Tell me the {} before {}.",
    "Name the {} before {}.",
];
const NUMBER: &[&str] = &[
    "Which number is {}?",
    "What number is {}?",
    "What number month is {}?",
    "Which month of the year is {}?",
    "Which month number is {}?",
    "What is the number of {}?",
];
const ORDINAL: &[&str] = &[
    "What is the {} month?",
    "What is the {} month of the year?",
    "Which is the {} month?",
    "Which month is the {}?",
    "Name the {} month.",
    "Tell me the {} month of the year.",
];
const LENGTH: &[&str] = &[
    "How many days are in {}?",
    "How many days are there in {}?",
    "How many days does {} have?",
    "How many days has {}?",
    "How long is {}?",
    "Tell me how many days {} has.",
];

/// One question about days or months; the combination of fact and phrasing is what is held out.
pub fn turn(prng: &mut Prng, split: Split) -> Turn {
    match prng.below(9) {
        0 | 1 => neighbour(prng, split, ("day", &DAYS), NEXT, 1),
        2 => neighbour(prng, split, ("day", &DAYS), PREVIOUS, DAYS.len() - 1),
        3 | 4 => neighbour(prng, split, ("month", &MONTHS), NEXT, 1),
        5 => neighbour(prng, split, ("month", &MONTHS), PREVIOUS, MONTHS.len() - 1),
        6 => indexed(prng, split, NUMBER, |i| {
            (
                MONTHS[i],
                format!("{} is month number {}.", MONTHS[i], i + 1),
            )
        }),
        7 => indexed(prng, split, ORDINAL, |i| {
            (
                ORDINALS[i],
                format!("The {} month is {}.", ORDINALS[i], MONTHS[i]),
            )
        }),
        _ => indexed(prng, split, LENGTH, |i| {
            (MONTHS[i], format!("{} has {} days.", MONTHS[i], LENGTHS[i]))
        }),
    }
}

fn neighbour(
    prng: &mut Prng,
    split: Split,
    (unit, names): (&str, &[&str]),
    phrasings: &[&str],
    offset: usize,
) -> Turn {
    let facts: Vec<usize> = (0..names.len()).collect();
    let (&index, phrasing) = combination(prng, split, &facts, phrasings, |i| names[*i].to_owned());
    let word = if offset == 1 { "after" } else { "before" };
    let found = names[(index + offset) % names.len()];
    Turn {
        user: casual(prng, &fill(phrasing, &[unit, names[index]])),
        answer: format!("The {unit} {word} {} is {found}.", names[index]),
    }
}

/// Questions about the month of an index; `fact` gives the word asked about and the answer.
fn indexed(
    prng: &mut Prng,
    split: Split,
    phrasings: &[&str],
    fact: impl Fn(usize) -> (&'static str, String),
) -> Turn {
    let facts: Vec<usize> = (0..MONTHS.len()).collect();
    let (&index, phrasing) = combination(prng, split, &facts, phrasings, |i| MONTHS[*i].to_owned());
    let (asked, answer) = fact(index);
    Turn {
        user: casual(prng, &fill(phrasing, &[asked])),
        answer,
    }
}
