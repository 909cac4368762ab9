//! What the requests of a run contain: prompts of drawn lengths or of a dataset, alone or as
//! conversations, with beginnings that several of them share.

use std::fmt;
use std::sync::Arc;

use crate::clock::Nanos;
use crate::dataset::Dataset;
use crate::lengths::Lengths;
use crate::rng::Rng;
use crate::think::Think;

/// Where prompts come from.
#[derive(Debug, Clone)]
pub enum Prompts {
    /// Random words of drawn lengths.
    Words(Lengths),
    /// Conversations that people had.
    Dataset(Arc<Dataset>),
}

/// A beginning that all conversations of a group share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Its length in tokens.
    pub tokens: u32,
    /// Number of different ones.
    pub groups: u32,
}

/// One kind of conversation in a run.
#[derive(Debug, Clone)]
pub struct Content {
    /// Share of the conversations, against the weights of the others.
    pub weight: f64,
    /// Where prompts come from.
    pub prompts: Prompts,
    /// Output lengths in tokens; none takes those of the dataset.
    pub output: Option<Lengths>,
    /// Ask the server to go on after the end-of-sequence token, so that the output length is exact.
    pub ignore_eos: bool,
    /// Questions in a conversation; of a dataset at most those it has.
    pub turns: Lengths,
    /// Pause before a question: of a conversation's first one only in a closed loop.
    pub think: Think,
    /// Shared beginning.
    pub prefix: Option<Prefix>,
    /// A next question follows the dataset's own answer instead of the server's.
    pub replays_recorded: bool,
}

impl Content {
    /// Single questions of random words.
    pub fn words(prompt: Lengths, output: Lengths) -> Self {
        Self {
            weight: 1.0,
            prompts: Prompts::Words(prompt),
            output: Some(output),
            ignore_eos: false,
            turns: Lengths::Fixed(1),
            think: Think::default(),
            prefix: None,
            replays_recorded: false,
        }
    }

    /// Whether a conversation can have more than one question.
    pub fn is_multi_turn(&self) -> bool {
        self.turns.max() > 1
    }

    /// Prompt lengths in words for a reader.
    pub fn prompt_words(&self) -> String {
        let prefix = |f: &Prefix| format!("{} shared by {} groups + ", f.tokens, f.groups);
        let prefix = self.prefix.as_ref().map_or_else(String::new, prefix);
        match &self.prompts {
            Prompts::Words(lengths) => format!("{prefix}{lengths}"),
            Prompts::Dataset(dataset) => format!("{prefix}{}", dataset.name),
        }
    }

    /// Output lengths in words for a reader.
    pub fn output_words(&self) -> String {
        match &self.output {
            Some(lengths) => lengths.to_string(),
            None => "as recorded".into(),
        }
    }
}

/// The contents of a run as one line: each with its weight when there are several.
pub struct Described<'a, F: Fn(&Content) -> String>(pub &'a [Content], pub F);

impl<F: Fn(&Content) -> String> fmt::Display for Described<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(contents, words) = self;
        for (i, content) in contents.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            if contents.len() > 1 {
                write!(f, "{}× ", content.weight)?;
            }
            f.write_str(&words(content))?;
        }
        Ok(())
    }
}

/// Draws one of several contents by weight; draws nothing when there is no choice.
pub fn pick(contents: &[Content], rng: &mut Rng) -> usize {
    if contents.len() < 2 {
        return 0;
    }
    let total: f64 = contents.iter().map(|content| content.weight).sum();
    let mut left = rng.unit() * total;
    let chosen = contents.iter().position(|content| {
        left -= content.weight;
        left < 0.0
    });
    chosen.unwrap_or(contents.len() - 1)
}

/// A question of a conversation, as far as it is known before the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Pause before it.
    pub think: Nanos,
    /// Length aimed at in tokens, of this question alone.
    pub prompt_tokens: u32,
    /// Output length asked for, in tokens.
    pub output_tokens: u32,
    /// Its text.
    pub text: String,
    /// The answer that the dataset has.
    pub recorded: Option<String>,
}

/// A conversation: one question, or several that build on the answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// Its number in the run.
    pub number: u64,
    /// Which of the contents it is of.
    pub content: usize,
    /// Its questions.
    pub turns: Vec<Turn>,
}
