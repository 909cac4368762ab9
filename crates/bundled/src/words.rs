//! Words that the skills spell, reverse, repeat and pass around. None of them is a token of its own:
//! the model sees their letters. Which of them are held out is decided by each word's hash alone.

use crate::prng::{Prng, hash};

/// Which side of the held-out border a content must come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Content the model is trained on.
    Train,
    /// Content that never appears in training.
    HeldOut,
}

/// The side a content belongs to: one content in ten is held out.
pub fn split_of(content: &str) -> Split {
    if hash(content).is_multiple_of(10) {
        Split::HeldOut
    } else {
        Split::Train
    }
}

/// Everyday words of three to six letters.
pub const REAL_WORDS: &[&str] = &[
    "cat", "dog", "cow", "pig", "hen", "fox", "owl", "bee", "ant", "bat", "rat", "bear", "bird",
    "fish", "frog", "goat", "lion", "wolf", "duck", "deer", "horse", "mouse", "sheep", "snake",
    "tiger", "zebra", "camel", "eagle", "whale", "shark", "rabbit", "monkey", "turtle", "spider",
    "parrot", "apple", "pear", "plum", "peach", "grape", "mango", "melon", "cherry", "banana",
    "bread", "cheese", "butter", "sugar", "salt", "soup", "rice", "cake", "candy", "honey",
    "pizza", "salad", "egg", "tea", "juice", "water", "coffee", "house", "door", "wall", "roof",
    "floor", "table", "chair", "couch", "lamp", "clock", "mirror", "window", "garden", "kitchen",
    "fork", "knife", "spoon", "plate", "bowl", "cup", "glass", "bottle", "box", "bag", "book",
    "paper", "pencil", "page", "story", "music", "song", "piano", "guitar", "drum", "dance",
    "movie", "game", "ball", "toy", "doll", "kite", "car", "bus", "bike", "boat", "ship", "plane",
    "train", "truck", "wheel", "road", "street", "bridge", "town", "farm", "field", "forest",
    "tree", "leaf", "root", "seed", "rose", "tulip", "hill", "lake", "river", "ocean", "beach",
    "sand", "stone", "rock", "cloud", "rain", "storm", "wind", "snow", "ice", "fire", "smoke",
    "moon", "star", "planet", "earth", "light", "dawn", "winter", "summer", "spring", "hand",
    "foot", "head", "hair", "nose", "mouth", "tooth", "ear", "eye", "arm", "leg", "knee", "heart",
    "brain", "bone", "hat", "shirt", "shoe", "sock", "coat", "dress", "glove", "scarf", "ring",
    "gold", "silver", "iron", "wood", "metal", "cotton", "silk", "rope", "chain", "key", "lock",
    "bell", "flag", "coin", "money", "gift", "party", "friend", "mother", "father", "sister",
    "baby", "king", "queen", "doctor", "nurse", "pilot", "farmer", "baker", "artist", "robot",
    "laptop", "phone", "radio", "camera", "screen", "cable", "engine", "rocket", "server", "rust",
    "code", "byte", "token", "memory", "disk", "python", "linux", "jump", "walk", "swim", "sleep",
    "drink", "read", "think", "laugh", "smile", "happy", "sad", "angry", "quiet", "loud", "quick",
    "slow", "tall", "short", "warm", "cold", "soft", "hard", "clean", "dirty", "sweet", "sour",
    "bright", "dark", "heavy", "empty", "full", "young", "old", "brave", "kind", "smart", "funny",
    "lucky", "proud", "world",
];

/// First names, all of three to six letters.
pub const REAL_NAMES: &[&str] = &[
    "Anna", "Bob", "Carol", "Dave", "Emma", "Frank", "Grace", "Henry", "Ida", "Jack", "Karen",
    "Leo", "Maria", "Nina", "Oscar", "Paul", "Quinn", "Rosa", "Sam", "Tina", "Uma", "Victor",
    "Wendy", "Yuki", "Zoe", "Alice", "Peter", "Laura", "Simon", "Julia", "Ben", "Eva", "Max",
    "Lena", "Tom", "Mia", "John", "Jane", "Ada", "Alan",
];

/// A word of three to six lower-case letters on the given side of the split.
pub fn word(prng: &mut Prng, split: Split) -> String {
    loop {
        let word = if prng.chance(0.35) {
            (*prng.pick(REAL_WORDS)).to_owned()
        } else {
            made_up(prng)
        };
        if word.len() <= 6 && split_of(&word) == split {
            return word;
        }
    }
}

/// A capitalised name on the given side of the split; the side is that of its lower-case spelling.
pub fn name(prng: &mut Prng, split: Split) -> String {
    loop {
        let name = if prng.chance(0.35) {
            (*prng.pick(REAL_NAMES)).to_owned()
        } else {
            capitalised(&made_up(prng))
        };
        if split_of(&name.to_lowercase()) == split {
            return name;
        }
    }
}

/// The text with its first letter in upper case (ASCII).
pub fn capitalised(text: &str) -> String {
    let mut text = text.to_owned();
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    text
}

/// A word that may not exist: vowels and consonants mostly alternate, so that it looks like one.
fn made_up(prng: &mut Prng) -> String {
    const VOWELS: &[u8] = b"aaeeeiioouy";
    const CONSONANTS: &[u8] = b"bbccddffgghhjkkllmmnnnpprrrssstttvwxzq";
    let len = *prng.pick(&[3, 4, 4, 4, 5, 5, 5, 6, 6, 6]);
    let mut vowel = prng.chance(0.4);
    (0..len)
        .map(|_| {
            let letter = *prng.pick(if vowel { VOWELS } else { CONSONANTS });
            vowel = if prng.chance(0.8) {
                !vowel
            } else {
                prng.chance(0.4)
            };
            char::from(letter)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_on_their_side_and_in_their_range() {
        let mut prng = Prng::new(3);
        for split in [Split::Train, Split::HeldOut] {
            for _ in 0..500 {
                let word = word(&mut prng, split);
                assert!(
                    (3..=6).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_lowercase())
                );
                assert_eq!(split_of(&word), split);
                assert_eq!(split_of(&name(&mut prng, split).to_lowercase()), split);
            }
        }
    }
}
