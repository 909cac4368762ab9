//! Everything the model cannot do gets one short polite answer that says what it can.

use super::{Turn, casual, fill};
use crate::prng::Prng;
use crate::words::{Split, capitalised, split_of, word};

/// The one answer.
pub const ANSWER: &str =
    "Sorry, I am a small demonstration model and cannot do that. Ask me what I can do.";

const PHRASINGS: &[&str] = &[
    "Write a poem about {}.",
    "Write a story about {}.",
    "Write an essay about {}.",
    "Write a song about {}.",
    "Tell me a joke about {}.",
    "Tell me a story about {}.",
    "Tell me about {}.",
    "Explain {}.",
    "Explain how {} works.",
    "How does {} work?",
    "Why is {} important?",
    "Why do people like {}?",
    "What is the meaning of {}?",
    "What do you think about {}?",
    "What is {}?",
    "What are {}?",
    "Who invented {}?",
    "Who discovered {}?",
    "When was {} invented?",
    "Where can I buy {}?",
    "Where does {} come from?",
    "How much does {} cost?",
    "How do I learn {}?",
    "How do I make {}?",
    "Do you like {}?",
    "Is {} good for me?",
    "Give me advice about {}.",
    "Give me five facts about {}.",
    "Describe {} in one sentence.",
    "Translate {} to French.",
    "Translate {} into Spanish.",
    "Summarize the history of {}.",
    "Write a Python function for {}.",
    "Write code for {}.",
    "Fix my code for {}.",
    "What is the best {} in the world?",
    "Who is the president of {}?",
    "Who won the {} game yesterday?",
    "What will the weather in {} be tomorrow?",
    "Should I invest in {}?",
    "Draw a picture of {}.",
    "Play {}.",
    "I want to talk about {}.",
    "I am sad about {}.",
    "My {} is broken.",
    "Can you help me with {}?",
    "{}",
    "{} is great",
    "I love {}",
    "What is the population of {}?",
    "How old is {}?",
    "How tall is {}?",
];

const TOPICS: &[&str] = &[
    "love",
    "life",
    "music",
    "football",
    "history",
    "science",
    "physics",
    "math",
    "art",
    "politics",
    "quantum computers",
    "machine learning",
    "climate change",
    "the internet",
    "the moon",
    "the universe",
    "the ocean",
    "dinosaurs",
    "space",
    "computers",
    "neural networks",
    "black holes",
    "cooking",
    "bitcoin",
    "the stock market",
    "philosophy",
    "religion",
    "war",
    "peace",
    "gravity",
    "evolution",
    "electricity",
    "programming",
    "my homework",
    "my job",
    "Einstein",
    "Shakespeare",
    "Napoleon",
    "Rust",
    "Linux",
    "Python",
    "America",
    "Europe",
    "Africa",
    "cars",
    "trains",
    "cats",
    "dogs",
    "chess",
    "tennis",
    "vaccines",
    "photosynthesis",
    "a rainbow",
    "the brain",
    "a new phone",
    "my birthday",
];

/// An off-topic question. The combination of phrasing and topic is what is held out.
pub fn turn(prng: &mut Prng, split: Split) -> Turn {
    let user = if prng.chance(0.2) {
        beyond(prng, split)
    } else {
        topical(prng, split)
    };
    Turn {
        user,
        answer: ANSWER.to_owned(),
    }
}

fn topical(prng: &mut Prng, split: Split) -> String {
    loop {
        let phrasing = *prng.pick(PHRASINGS);
        let topic = match prng.below(10) {
            0..7 => (*prng.pick(TOPICS)).to_owned(),
            7 => word(prng, split),
            8 => capitalised(&word(prng, split)),
            _ => format!("the {}", word(prng, split)),
        };
        if split_of(&format!("{phrasing} {topic}").to_lowercase()) == split {
            return casual(prng, &fill(phrasing, &[&topic]));
        }
    }
}

/// Arithmetic the model was not trained on, close to what it was.
fn beyond(prng: &mut Prng, split: Split) -> String {
    const ASKED: &[&str] = &[
        "What is {}?",
        "What's {}?",
        "{}",
        "{} =",
        "Calculate {}.",
        "How much is {}?",
    ];
    loop {
        let (a, b) = (prng.below(100), prng.below(100));
        let (c, d) = (prng.range(100, 999), prng.range(10, 999));
        let sum = match prng.below(6) {
            0 => format!("{a} - {b}"),
            1 => format!("{a} * {b}"),
            2 => format!("{a} / {b}"),
            3 => format!("{a} times {b}"),
            4 => format!("{c} + {d}"),
            _ => format!("{d} + {c}"),
        };
        if split_of(&sum) == split {
            let asked = fill(prng.pick::<&str>(ASKED), &[&sum]);
            return casual(prng, &asked);
        }
    }
}
