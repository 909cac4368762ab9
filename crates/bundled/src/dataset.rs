//! Turns become conversations here: with or without a system prompt, alone or several in a row. Owns
//! the training stream and the held-out set; what is asked comes from `skills`.

use serde_json::Value;

use crate::chat::{Message, Role, render_prompt};
use crate::prng::Prng;
use crate::skills::{self, Skill};
use crate::tokenizer::{IM_END_ID, Tokenizer};
use crate::words::Split;

/// A conversation to learn from.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// Function descriptions in the form of the chat API.
    pub tools: Vec<Value>,
    /// System prompt (if any) and turns; the last is the assistant's.
    pub messages: Vec<Message>,
}

/// A prompt whose content the model never saw, with its one right answer.
#[derive(Clone, Debug)]
pub struct HeldOut {
    /// What is tested.
    pub skill: Skill,
    /// Function descriptions in the form of the chat API.
    pub tools: Vec<Value>,
    /// System prompt (if any) and turns; the last is the user's or a tool's.
    pub messages: Vec<Message>,
    /// What greedy decoding must say, to the letter, before it ends its turn.
    pub answer: String,
}

/// No right answer takes more tokens.
pub const MAX_ANSWER_TOKENS: usize = 96;

impl HeldOut {
    /// The text that the model continues.
    pub fn prompt(&self) -> String {
        render_prompt(&self.tools, &self.messages)
    }

    /// Whether generated tokens are the answer and the end of the turn.
    pub fn is_answered_by(&self, token_ids: &[u32], tokenizer: &Tokenizer) -> bool {
        match token_ids.split_last() {
            Some((&IM_END_ID, answer)) => tokenizer.decode(answer) == self.answer,
            _ => false,
        }
    }
}

/// Prompts of each skill in the held-out set.
pub const HELD_OUT_PER_SKILL: usize = 90;

/// The seed of the held-out set.
pub const HELD_OUT_SEED: u64 = 0x0C7E_7001;

const SYSTEM_PROMPTS: &[&str] = &[
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are octet, a small demonstration model.",
    "You are a friendly assistant.",
    "You are a helpful, honest assistant.",
    "Answer briefly.",
    "Be concise.",
    "Be polite and brief.",
    "You are an AI assistant.",
];

/// The held-out set: [`HELD_OUT_PER_SKILL`] different prompts of every skill, always the same.
pub fn held_out() -> Vec<HeldOut> {
    let mut prompts: Vec<HeldOut> = Vec::new();
    for skill in Skill::ALL {
        let mut prng = Prng::new(HELD_OUT_SEED + skill.index() as u64);
        let mut of_skill: Vec<HeldOut> = Vec::new();
        while of_skill.len() < HELD_OUT_PER_SKILL {
            let prompt = probe(skill, &mut prng, Split::HeldOut);
            let asked = |p: &HeldOut| p.messages.last().map(|m| m.content.clone());
            if of_skill
                .iter()
                .all(|other| asked(other) != asked(&prompt) || other.tools != prompt.tools)
            {
                of_skill.push(prompt);
            }
        }
        prompts.extend(of_skill);
    }
    prompts
}

/// One prompt of a skill; with [`Split::Train`], what the trainer measures its progress on.
pub fn probe(skill: Skill, prng: &mut Prng, split: Split) -> HeldOut {
    let mut messages = Vec::new();
    if prng.chance(0.15) {
        messages.push(Message::new(Role::System, *prng.pick(SYSTEM_PROMPTS)));
    }
    let mut tools = Vec::new();
    if skill == Skill::Tool {
        let (given, turns) = skills::tool_conversation(prng, split);
        tools = given;
        messages.extend(turns);
    } else {
        if prng.chance(0.1) {
            push_turn(&mut messages, any_skill(prng), prng, Split::Train);
        }
        push_turn(&mut messages, skill, prng, split);
    }
    let answer = messages
        .pop()
        .expect("every conversation ends with an answer")
        .content;
    HeldOut {
        skill,
        tools,
        messages,
        answer,
    }
}

/// A conversation of at most `max_chars` characters or so that practises `skill`. `mix` draws the
/// skills of further turns.
pub fn conversation(
    skill: Skill,
    prng: &mut Prng,
    mix: impl Fn(&mut Prng) -> Skill,
    max_chars: usize,
) -> Conversation {
    let mut messages = Vec::new();
    if prng.chance(0.2) {
        messages.push(Message::new(Role::System, *prng.pick(SYSTEM_PROMPTS)));
    }
    if skill == Skill::Tool {
        let (tools, turns) = skills::tool_conversation(prng, Split::Train);
        messages.extend(turns);
        return Conversation { tools, messages };
    }
    push_turn(&mut messages, skill, prng, Split::Train);
    let further = match prng.below(100) {
        0..70 => 0,
        70..97 => prng.range(1, 3),
        _ => prng.range(4, 24),
    };
    for _ in 0..further {
        let chars: usize = messages.iter().map(|m| m.content.len() + 10).sum();
        if chars > max_chars {
            break;
        }
        let next = if prng.chance(0.3) { skill } else { mix(prng) };
        let next = if next == Skill::Tool {
            any_skill(prng)
        } else {
            next
        };
        push_turn(&mut messages, next, prng, Split::Train);
    }
    Conversation {
        tools: Vec::new(),
        messages,
    }
}

fn push_turn(messages: &mut Vec<Message>, skill: Skill, prng: &mut Prng, split: Split) {
    let turn = skills::turn(skill, prng, split);
    messages.push(Message::new(Role::User, turn.user));
    messages.push(Message::new(Role::Assistant, turn.answer));
}

/// Any skill that needs no tools.
fn any_skill(prng: &mut Prng) -> Skill {
    loop {
        let skill = *prng.pick(&Skill::ALL);
        if skill != Skill::Tool {
            return skill;
        }
    }
}
