//! Small JSON objects of one to three fields.

use super::{Turn, casual};
use crate::prng::Prng;
use crate::words::{Split, name, split_of, word};

/// What a field holds.
#[derive(Clone, Copy)]
enum Kind {
    Name,
    Word,
    Number,
}

const FIELDS: &[(&str, Kind)] = &[
    ("name", Kind::Name),
    ("city", Kind::Name),
    ("country", Kind::Name),
    ("friend", Kind::Name),
    ("color", Kind::Word),
    ("animal", Kind::Word),
    ("fruit", Kind::Word),
    ("title", Kind::Word),
    ("id", Kind::Word),
    ("age", Kind::Number),
    ("count", Kind::Number),
    ("price", Kind::Number),
    ("size", Kind::Number),
];

/// How the request begins, between key and value, between fields, and how it ends.
const PHRASINGS: &[(&str, &str, &str, &str)] = &[
    ("Return a JSON object with ", " ", " and ", "."),
    ("Return a JSON object with the ", " ", " and the ", "."),
    ("Return JSON with ", " ", ", ", "."),
    ("Return JSON: ", " = ", ", ", ""),
    ("Give me a JSON object with ", " ", " and ", "."),
    ("Give me JSON with ", " ", " and ", "."),
    ("Write a JSON object with ", " ", " and ", "."),
    ("Write JSON for ", ": ", ", ", ""),
    ("Make a JSON object with ", " ", " and ", "."),
    ("Make JSON: ", ": ", ", ", ""),
    ("Create a JSON object with ", " ", ", ", "."),
    ("JSON with ", " ", " and ", ""),
    ("JSON: ", "=", ", ", ""),
    ("JSON: ", " ", ", ", ""),
];

/// The values together are held out, and each word or name among them is.
pub fn turn(prng: &mut Prng, split: Split) -> Turn {
    let (open, between, separator, close) = *prng.pick(PHRASINGS);
    loop {
        let mut asked: Vec<String> = Vec::new();
        let mut written: Vec<String> = Vec::new();
        let mut used: Vec<&str> = Vec::new();
        for _ in 0..prng.range(1, 3) {
            let (key, kind) = *prng.pick(FIELDS);
            if used.contains(&key) {
                continue;
            }
            used.push(key);
            let (value, literal) = value(prng, kind, split);
            asked.push(format!("{key}{between}{value}"));
            written.push(format!("\"{key}\": {literal}"));
        }
        let answer = format!("{{{}}}", written.join(", "));
        if split_of(&answer) == split {
            let user = casual(prng, &format!("{open}{}{close}", asked.join(separator)));
            return Turn { user, answer };
        }
    }
}

/// A value as it is typed and as JSON writes it.
fn value(prng: &mut Prng, kind: Kind, split: Split) -> (String, String) {
    let text = match kind {
        Kind::Name => name(prng, split),
        Kind::Word => word(prng, split),
        Kind::Number => {
            let number = prng.below(100).to_string();
            return (number.clone(), number);
        }
    };
    let literal = format!("\"{text}\"");
    (text, literal)
}
