//! The numbers of a page that name their keys.

use serde_json::Value;

/// A number on a page.
#[derive(Debug)]
pub struct Tag {
    pub key: String,
    pub of: String,
    pub value: f64,
    /// What people read.
    pub text: String,
}

pub fn tags(page: &str) -> Vec<Tag> {
    let parts = page.split("<data ").skip(1);
    let parse = |part: &str| {
        let (head, rest) = part.split_once('>').unwrap();
        let attribute = |name: &str| {
            let (_, value) = head.split_once(&format!("{name}=\"")).expect(name);
            value.split_once('"').unwrap().0.to_owned()
        };
        Tag {
            key: attribute("data-key"),
            of: attribute("data-of"),
            value: attribute(" value").parse().unwrap(),
            text: rest.split_once("</data>").unwrap().0.to_owned(),
        }
    };
    parts.map(parse).collect()
}

/// The number at a path; keys may hold no dots.
pub fn at(result: &Value, key: &str) -> f64 {
    let pointer = format!("/{}", key.replace('.', "/"));
    let found = result.pointer(&pointer).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("the result has no number at {key}"))
}

/// Whether words say a value as exactly as their digits do.
pub fn says(text: &str, value: f64) -> bool {
    let words: Vec<&str> = text.split(' ').collect();
    let number = words[0];
    // `1.2 ± 0.1 ms` has its unit at the end.
    let unit = match words.get(1) {
        Some(&"±") => *words.last().unwrap(),
        unit => unit.copied().unwrap_or(""),
    };
    let scale = match unit {
        "ms" => 1e-3,
        "µs" => 1e-6,
        "%" => 1e-2,
        "GB/s" => 1e9,
        _ => 1.0,
    };
    let digits = number.split_once('.').map_or(0, |(_, rest)| rest.len());
    let half = 0.5 * 10f64.powi(-i32::try_from(digits).unwrap()) * scale;
    let read: f64 = number.parse().unwrap();
    (read * scale - value).abs() <= half * 1.000_001
}

impl Tag {
    /// Fails unless the number and its words are `expected`.
    pub fn check(&self, expected: f64) {
        let error = (self.value - expected).abs();
        assert!(error <= 1e-12 * expected.abs(), "{self:?}: {expected}");
        assert!(says(&self.text, expected), "{self:?}: {expected}");
    }
}
