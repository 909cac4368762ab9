//! One small generator per skill. Each draws a content on the asked side of the held-out border, a
//! phrasing, and the one right answer. Owns what is asked; how turns become conversations is `dataset`.

mod calendar;
mod facts;
mod json;
mod other;
mod repeat;
mod small_talk;
mod sums;
mod tools;
mod words;

use crate::chat::Message;
use crate::prng::Prng;
use crate::words::{Split, split_of};

pub use tools::conversation as tool_conversation;

/// What the model claims to be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Skill {
    /// Sums of one- and two-digit numbers, with the steps.
    Sum,
    /// Letter by letter.
    Spell,
    /// Back to front.
    Reverse,
    /// Upper and lower case.
    Case,
    /// Days and months.
    Calendar,
    /// Capitals of countries.
    Capital,
    /// What colour things are, and what mixing gives.
    Colour,
    /// Greetings and who it is.
    SmallTalk,
    /// Saying a text again.
    Repeat,
    /// Small JSON objects.
    Json,
    /// Calls of the tools it was given.
    Tool,
    /// A polite answer to everything else.
    Other,
}

impl Skill {
    /// Every skill, in the order of reports.
    pub const ALL: [Skill; 12] = [
        Skill::Sum,
        Skill::Spell,
        Skill::Reverse,
        Skill::Case,
        Skill::Calendar,
        Skill::Capital,
        Skill::Colour,
        Skill::SmallTalk,
        Skill::Repeat,
        Skill::Json,
        Skill::Tool,
        Skill::Other,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Skill::Sum => "sum",
            Skill::Spell => "spell",
            Skill::Reverse => "reverse",
            Skill::Case => "case",
            Skill::Calendar => "calendar",
            Skill::Capital => "capital",
            Skill::Colour => "colour",
            Skill::SmallTalk => "small talk",
            Skill::Repeat => "repeat",
            Skill::Json => "json",
            Skill::Tool => "tool",
            Skill::Other => "other",
        }
    }

    /// Position in [`Skill::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

/// One question with its one right answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// What the user types.
    pub user: String,
    /// What the model has to answer, to the letter.
    pub answer: String,
}

/// Draws one question of a skill. [`Skill::Tool`] needs tools in the system turn and has its own
/// function, [`tool_conversation`].
pub fn turn(skill: Skill, prng: &mut Prng, split: Split) -> Turn {
    match skill {
        Skill::Sum => sums::turn(prng, split),
        Skill::Spell => words::spell(prng, split),
        Skill::Reverse => words::reverse(prng, split),
        Skill::Case => words::case(prng, split),
        Skill::Calendar => calendar::turn(prng, split),
        Skill::Capital => facts::capital(prng, split),
        Skill::Colour => facts::colour(prng, split),
        Skill::SmallTalk => small_talk::turn(prng, split),
        Skill::Repeat => repeat::turn(prng, split),
        Skill::Json => json::turn(prng, split),
        Skill::Other => other::turn(prng, split),
        Skill::Tool => unreachable!("a tool question needs its tools"),
    }
}

/// A conversation's tools and messages.
pub type ToolConversation = (Vec<serde_json::Value>, Vec<Message>);

/// Fills the `{}` of a phrasing, in order.
fn fill(phrasing: &str, values: &[&str]) -> String {
    let mut text = String::new();
    let mut values = values.iter();
    for (index, part) in phrasing.split("{}").enumerate() {
        if index > 0 {
            text.push_str(values.next().expect("a value for each gap"));
        }
        text.push_str(part);
    }
    text
}

/// The ways the same phrasing is typed: lower-case start, no final mark, with "please".
fn casual(prng: &mut Prng, text: &str) -> String {
    let mut text = text.to_owned();
    if prng.chance(0.3) && text.is_char_boundary(1) {
        text[..1].make_ascii_lowercase();
    }
    if prng.chance(0.25) && text.ends_with(['?', '.']) {
        text.pop();
    } else if prng.chance(0.08) && text.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '.') {
        text = format!("{}, please.", text.trim_end_matches('.'));
    }
    text
}

/// Draws a fact and one of its phrasings such that the pair lies on the asked side. Facts that are
/// finite cannot be held out themselves; their combination with a phrasing can.
fn combination<'a, F>(
    prng: &mut Prng,
    split: Split,
    facts: &'a [F],
    phrasings: &'a [&'a str],
    key: impl Fn(&F) -> String,
) -> (&'a F, &'a str) {
    loop {
        let (fact, phrasing) = (prng.pick(facts), *prng.pick(phrasings));
        if split_of(&format!("{} | {phrasing}", key(fact))) == split {
            return (fact, phrasing);
        }
    }
}
