//! Capitals and colours.

use super::{Turn, casual, combination, fill};
use crate::prng::Prng;
use crate::words::Split;

/// Country and capital, each a single word.
const CAPITALS: &[(&str, &str)] = &[
    ("France", "Paris"),
    ("Germany", "Berlin"),
    ("Italy", "Rome"),
    ("Spain", "Madrid"),
    ("Portugal", "Lisbon"),
    ("Austria", "Vienna"),
    ("Switzerland", "Bern"),
    ("Belgium", "Brussels"),
    ("Netherlands", "Amsterdam"),
    ("Denmark", "Copenhagen"),
    ("Norway", "Oslo"),
    ("Sweden", "Stockholm"),
    ("Finland", "Helsinki"),
    ("Poland", "Warsaw"),
    ("Hungary", "Budapest"),
    ("Greece", "Athens"),
    ("Ireland", "Dublin"),
    ("England", "London"),
    ("Scotland", "Edinburgh"),
    ("Ukraine", "Kyiv"),
    ("Russia", "Moscow"),
    ("Turkey", "Ankara"),
    ("Egypt", "Cairo"),
    ("Kenya", "Nairobi"),
    ("Ghana", "Accra"),
    ("Morocco", "Rabat"),
    ("China", "Beijing"),
    ("Japan", "Tokyo"),
    ("Thailand", "Bangkok"),
    ("Vietnam", "Hanoi"),
    ("Indonesia", "Jakarta"),
    ("Nepal", "Kathmandu"),
    ("Iran", "Tehran"),
    ("Iraq", "Baghdad"),
    ("Canada", "Ottawa"),
    ("Cuba", "Havana"),
    ("Peru", "Lima"),
    ("Chile", "Santiago"),
    ("Ecuador", "Quito"),
    ("Australia", "Canberra"),
];

const CAPITAL: &[&str] = &[
    "What is the capital of {}?",
    "What's the capital of {}?",
    "Which city is the capital of {}?",
    "What city is the capital of {}?",
    "Tell me the capital of {}.",
    "Name the capital of {}.",
    "Capital of {}?",
    "The capital of {}?",
    "Can you tell me the capital of {}?",
    "Do you know the capital of {}?",
    "What is the capital city of {}?",
];

/// Thing and colour.
const COLOURS: &[(&str, &str)] = &[
    ("the sky", "blue"),
    ("the sun", "yellow"),
    ("the sea", "blue"),
    ("grass", "green"),
    ("snow", "white"),
    ("milk", "white"),
    ("coal", "black"),
    ("blood", "red"),
    ("a banana", "yellow"),
    ("a lemon", "yellow"),
    ("a tomato", "red"),
    ("a strawberry", "red"),
    ("a carrot", "orange"),
    ("a leaf", "green"),
    ("an orange", "orange"),
    ("chocolate", "brown"),
    ("the night sky", "black"),
    ("an elephant", "grey"),
];

const COLOUR: &[&str] = &[
    "What colour is {}?",
    "What color is {}?",
    "What is the colour of {}?",
    "What is the color of {}?",
    "Which colour is {}?",
    "Which color is {}?",
    "Which colour does {} have?",
    "Which color does {} have?",
    "Tell me the colour of {}.",
    "Tell me the color of {}.",
];

/// Two paints and what they give.
const MIXES: &[(&str, &str, &str)] = &[
    ("red", "yellow", "orange"),
    ("yellow", "red", "orange"),
    ("blue", "yellow", "green"),
    ("yellow", "blue", "green"),
    ("red", "blue", "purple"),
    ("blue", "red", "purple"),
    ("red", "white", "pink"),
    ("white", "red", "pink"),
    ("black", "white", "grey"),
    ("white", "black", "grey"),
];

const MIX: &[&str] = &[
    "What do you get when you mix {} and {}?",
    "What do {} and {} make?",
    "What colour do {} and {} make?",
    "What color do {} and {} make?",
    "What happens when you mix {} and {}?",
    "Mix {} and {}.",
    "Mix {} with {}.",
    "What is {} mixed with {}?",
    "Which colour is {} mixed with {}?",
    "Which color is {} mixed with {}?",
];

/// The capital of a country.
pub fn capital(prng: &mut Prng, split: Split) -> Turn {
    let ((country, city), phrasing) =
        combination(prng, split, CAPITALS, CAPITAL, |fact| fact.0.to_owned());
    Turn {
        user: casual(prng, &fill(phrasing, &[country])),
        answer: format!("The capital of {country} is {city}."),
    }
}

/// The colour of a thing, or of a mixture.
pub fn colour(prng: &mut Prng, split: Split) -> Turn {
    if prng.chance(0.6) {
        let ((thing, colour), phrasing) =
            combination(prng, split, COLOURS, COLOUR, |fact| fact.0.to_owned());
        let answer = crate::words::capitalised(&format!("{thing} is {colour}."));
        Turn {
            user: casual(prng, &fill(phrasing, &[thing])),
            answer,
        }
    } else {
        let ((a, b, mixed), phrasing) = combination(prng, split, MIXES, MIX, |fact| {
            format!("{} {}", fact.0, fact.1)
        });
        Turn {
            user: casual(prng, &fill(phrasing, &[a, b])),
            answer: format!("{} and {b} make {mixed}.", crate::words::capitalised(a)),
        }
    }
}
