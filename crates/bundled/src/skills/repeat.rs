//! Saying a text of two to five words again.

use super::{Turn, fill};
use crate::prng::Prng;
use crate::words::{Split, capitalised, split_of, word};

/// Words that are tokens of their own, so that copying whole words is learned beside copying letters.
const COMMON: &[&str] = &[
    "the", "a", "is", "and", "of", "to", "in", "you", "I", "it", "for", "not", "on", "with",
    "this", "but", "his", "from", "they", "say", "her", "she", "will", "one", "all", "would",
    "there", "their", "what", "so", "up", "out", "if", "about", "who", "get", "which", "go", "me",
    "when", "make", "can", "like", "time", "no", "just", "him", "know", "take", "people", "into",
    "year", "your", "good", "some", "could", "them", "see", "other", "than", "then", "now", "look",
    "only", "come", "its", "over", "hello", "also", "back", "after", "use", "two", "how", "our",
    "work", "first", "well", "way", "even", "new", "want", "because", "any", "these", "give",
    "day", "most", "us", "red", "blue", "green", "are", "was", "my", "we", "he", "have", "has",
    "very", "here", "please", "word", "little", "big",
];

const PHRASINGS: &[&str] = &[
    "Repeat: {}",
    "Repeat {}",
    "Repeat after me: {}",
    "Repeat this: {}",
    "Repeat the text: {}",
    "Repeat the following: {}",
    "Repeat the following text: {}",
    "Please repeat: {}",
    "Repeat '{}'",
    "Repeat \"{}\"",
    "Repeat the words \"{}\"",
    "Say {}",
    "Say: {}",
    "Say '{}'",
    "Say \"{}\"",
    "Echo {}",
    "Echo: {}",
    "Echo \"{}\"",
];

/// A text is held out as a whole, and the words it is made of beside the common ones are held out too.
pub fn turn(prng: &mut Prng, split: Split) -> Turn {
    let text = text(prng, split);
    let mut user = fill(prng.pick::<&str>(PHRASINGS), &[&text]);
    if prng.chance(0.3) {
        user[..1].make_ascii_lowercase();
    }
    Turn { user, answer: text }
}

/// A text of two to five words on the given side of the border.
pub fn text(prng: &mut Prng, split: Split) -> String {
    loop {
        let count = prng.range(2, 5);
        let words: Vec<String> = (0..count)
            .map(|_| {
                if prng.chance(0.6) {
                    (*prng.pick(COMMON)).to_owned()
                } else {
                    word(prng, split)
                }
            })
            .collect();
        let mut text = words.join(" ");
        if prng.chance(0.3) {
            text = capitalised(&text);
        }
        if split_of(&text.to_lowercase()) == split {
            return text;
        }
    }
}
