//! Spelling, reversing and changing the case of short words.

use super::{Turn, casual, fill};
use crate::prng::Prng;
use crate::words::{Split, capitalised, word};

const SPELL: &[&str] = &[
    "Spell {}",
    "Spell {}.",
    "Spell the word {}.",
    "Spell '{}'.",
    "Spell \"{}\"",
    "Spell the word '{}'.",
    "Spell the word \"{}\".",
    "How do you spell {}?",
    "How is {} spelled?",
    "Can you spell {}?",
    "Please spell {}.",
    "What are the letters of {}?",
    "Spell {} letter by letter.",
];

const REVERSE: &[&str] = &[
    "Reverse {}",
    "Reverse {}.",
    "Reverse the word {}.",
    "Reverse '{}'.",
    "Reverse \"{}\"",
    "Reverse the word '{}'.",
    "Reverse the letters of {}.",
    "Spell {} backwards.",
    "Write {} backwards.",
    "Write '{}' backwards.",
    "What is {} backwards?",
    "What is {} reversed?",
    "Can you reverse {}?",
];

const CASE: &[&str] = &[
    "Write {} in {} case.",
    "Write '{}' in {} case.",
    "Write the word {} in {} case.",
    "What is {} in {} case?",
    "What is {} in {}case?",
    "Write {} in {}case letters.",
    "Convert {} to {} case.",
    "Convert {} to {}case.",
    "Convert \"{}\" to {} case.",
    "Turn {} into {} case.",
    "Make {} {} case.",
    "Make {} {}case.",
    "Put {} in {} case.",
    "{} in {} case",
];

/// `cat` → `c-a-t`.
pub fn spell(prng: &mut Prng, split: Split) -> Turn {
    let word = typed(prng, split);
    let letters: Vec<String> = word.chars().map(String::from).collect();
    ask(prng, SPELL, &[&word], letters.join("-"))
}

/// `cat` → `tac`.
pub fn reverse(prng: &mut Prng, split: Split) -> Turn {
    let word = word(prng, split);
    let answer = word.chars().rev().collect();
    ask(prng, REVERSE, &[&word], answer)
}

/// `cat` → `CAT` and `Dog` or `DOG` → `dog`.
pub fn case(prng: &mut Prng, split: Split) -> Turn {
    let word = word(prng, split);
    if prng.chance(0.5) {
        let typed = if prng.chance(0.2) {
            capitalised(&word)
        } else {
            word.clone()
        };
        ask(prng, CASE, &[&typed, "upper"], word.to_uppercase())
    } else {
        let typed = if prng.chance(0.2) {
            capitalised(&word)
        } else {
            word.to_uppercase()
        };
        ask(prng, CASE, &[&typed, "lower"], word)
    }
}

fn ask(prng: &mut Prng, phrasings: &[&str], values: &[&str], answer: String) -> Turn {
    let phrasing = *prng.pick(phrasings);
    let filled = fill(phrasing, values);
    // A phrasing that starts with the word itself must keep the word's case.
    let user = if phrasing.starts_with("{}") {
        filled
    } else {
        casual(prng, &filled)
    };
    Turn { user, answer }
}

fn typed(prng: &mut Prng, split: Split) -> String {
    let word = word(prng, split);
    if prng.chance(0.1) {
        capitalised(&word)
    } else {
        word
    }
}
