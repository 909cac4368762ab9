//! Prompt formats of models that were tuned for conversations before checkpoints carried templates. A
//! format is known by the tokens that its model was given for it; a base model has none and gets none.

/// The prompt format of a model without a chat template of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prompt {
    /// Who uses it.
    pub name: &'static str,
    /// Jinja source, as a checkpoint would carry it.
    pub template: &'static str,
    /// A tokenizer that knows all of these is one of its models.
    tokens: &'static [&'static str],
    /// Tokens that end an answer, beside those that the checkpoint names.
    ends: &'static [&'static str],
}

const PROMPTS: &[Prompt] = &[
    Prompt {
        name: "Dolly",
        template: include_str!("prompts/dolly.jinja"),
        tokens: &["### Instruction:", "### End"],
        ends: &["### End"],
    },
    Prompt {
        name: "OpenAssistant",
        template: include_str!("prompts/openassistant.jinja"),
        tokens: &["<|prompter|>", "<|assistant|>"],
        ends: &[],
    },
    Prompt {
        name: "StableLM tuned alpha",
        template: include_str!("prompts/stablelm_tuned.jinja"),
        tokens: &["<|SYSTEM|>", "<|USER|>", "<|ASSISTANT|>"],
        ends: &["<|SYSTEM|>", "<|USER|>", "<|ASSISTANT|>", "<|padding|>"],
    },
];

impl Prompt {
    /// Every format.
    pub fn all() -> &'static [Self] {
        PROMPTS
    }

    /// The format of a tokenizer; `token_id` finds a token by its exact text.
    pub(crate) fn of(token_id: impl Fn(&str) -> Option<u32>) -> Option<&'static Self> {
        PROMPTS
            .iter()
            .find(|prompt| prompt.tokens.iter().all(|token| token_id(token).is_some()))
    }

    /// Ids that end an answer, as far as the tokenizer has them.
    pub(crate) fn end_ids(&self, token_id: impl Fn(&str) -> Option<u32>) -> Vec<u32> {
        self.ends.iter().filter_map(|end| token_id(end)).collect()
    }
}
