//! Greetings, thanks and who the model is.

use super::{Turn, combination};
use crate::prng::Prng;
use crate::words::Split;

const HELLO: &str = "Hello! How can I help you?";
const IDENTITY: &str = "I am octet's bundled demonstration model.";
const ABILITIES: &str = "I can add numbers, spell and reverse words, change their case, name days, months, \
    capitals and colours, repeat text, write small JSON objects and call tools.";
const MAKER: &str = "I was trained by octet's own code on text that it generates.";
const WELL: &str = "I am fine, thank you. How can I help you?";
const WELCOME: &str = "You are welcome!";
const GOODBYE: &str = "Goodbye!";
const MODEL: &str = "No, I am a small language model.";

const FACTS: &[(&str, &str)] = &[
    ("Hello", HELLO),
    ("Hi", HELLO),
    ("Hey", HELLO),
    ("Good morning", HELLO),
    ("Good evening", HELLO),
    ("Good afternoon", HELLO),
    ("Greetings", HELLO),
    ("Howdy", HELLO),
    ("Nice to meet you", HELLO),
    ("Who are you", IDENTITY),
    ("What are you", IDENTITY),
    ("What is your name", IDENTITY),
    ("What's your name", IDENTITY),
    ("Tell me who you are", IDENTITY),
    ("Introduce yourself", IDENTITY),
    ("Which model are you", IDENTITY),
    ("What model are you", IDENTITY),
    ("What model is this", IDENTITY),
    ("Who am I talking to", IDENTITY),
    ("What can you do", ABILITIES),
    ("What do you know", ABILITIES),
    ("What can I ask you", ABILITIES),
    ("What are you good at", ABILITIES),
    ("How can you help me", ABILITIES),
    ("Help", ABILITIES),
    ("Who made you", MAKER),
    ("Who trained you", MAKER),
    ("Who created you", MAKER),
    ("How were you made", MAKER),
    ("How were you trained", MAKER),
    ("How are you", WELL),
    ("How are you doing", WELL),
    ("How do you do", WELL),
    ("How is it going", WELL),
    ("Thanks", WELCOME),
    ("Thank you", WELCOME),
    ("Thank you very much", WELCOME),
    ("Thanks a lot", WELCOME),
    ("Bye", GOODBYE),
    ("Goodbye", GOODBYE),
    ("See you", GOODBYE),
    ("Good night", GOODBYE),
    ("Are you a human", MODEL),
    ("Are you human", MODEL),
    ("Are you a person", MODEL),
    ("Are you ChatGPT", MODEL),
];

/// What people put around the words; `{}` stands for them.
const FRAMES: &[&str] = &[
    "{}",
    "{}!",
    "{}.",
    "{}?",
    "{} octet",
    "{}, octet!",
    "{} :)",
    "{}...",
    "Octet, {}",
    "ok {}",
    "Ok, {}.",
    "So, {}?",
];

/// One line of small talk; the combination of words and frame is what is held out.
pub fn turn(prng: &mut Prng, split: Split) -> Turn {
    let ((words, answer), frame) =
        combination(prng, split, FACTS, FRAMES, |fact| fact.0.to_owned());
    let mut words = (*words).to_owned();
    if !frame.starts_with("{}") || prng.chance(0.4) {
        words[..1].make_ascii_lowercase();
    }
    Turn {
        user: frame.replace("{}", &words),
        answer: (*answer).to_owned(),
    }
}
