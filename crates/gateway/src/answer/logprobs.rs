//! Log-probabilities in the formats of the two routes.

use serde::Serialize;
use serde_json::Map;

use crate::generation::TokenEntry;

/// Stands for minus infinity, which JSON does not have.
const LOWEST: f32 = -9999.0;

/// The `logprobs` of a choice.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(super) enum Logprobs {
    /// One object per token.
    Chat {
        content: Vec<Entry>,
        refusal: Option<String>,
    },
    /// One list per property.
    Completion {
        tokens: Vec<String>,
        token_logprobs: Vec<Option<f32>>,
        top_logprobs: Vec<Option<Map<String, serde_json::Value>>>,
        text_offset: Vec<usize>,
    },
}

/// A token of the chat format.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Entry {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<Top>,
}

/// An alternative of the chat format.
#[derive(Debug, Clone, Serialize)]
struct Top {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl Logprobs {
    pub(super) fn chat(entries: Vec<TokenEntry>) -> Self {
        let entry = |entry: TokenEntry| Entry {
            token: entry.token,
            logprob: finite(entry.logprob.unwrap_or(LOWEST)),
            bytes: entry.bytes,
            top_logprobs: entry
                .top
                .unwrap_or_default()
                .into_iter()
                .map(|top| Top {
                    token: top.token,
                    logprob: finite(top.logprob),
                    bytes: top.bytes,
                })
                .collect(),
        };
        Self::Chat {
            content: entries.into_iter().map(entry).collect(),
            refusal: None,
        }
    }

    pub(super) fn completion(entries: Vec<TokenEntry>) -> Self {
        let mut lists = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for entry in entries {
            lists.0.push(entry.token);
            lists.1.push(entry.logprob.map(finite));
            // Best first, so of two tokens with the same text the more probable one stays.
            lists.2.push(entry.top.map(|top| {
                let mut map = Map::new();
                for top in top {
                    let logprob = serde_json::json!(finite(top.logprob));
                    map.entry(top.token).or_insert(logprob);
                }
                map
            }));
            lists.3.push(entry.text_offset);
        }
        Self::Completion {
            tokens: lists.0,
            token_logprobs: lists.1,
            top_logprobs: lists.2,
            text_offset: lists.3,
        }
    }

    /// Appends those of the next piece.
    pub(super) fn extend(&mut self, more: Self) {
        match (self, more) {
            (Self::Chat { content, .. }, Self::Chat { content: more, .. }) => content.extend(more),
            (
                Self::Completion {
                    tokens,
                    token_logprobs,
                    top_logprobs,
                    text_offset,
                },
                Self::Completion {
                    tokens: more_tokens,
                    token_logprobs: more_token_logprobs,
                    top_logprobs: more_top_logprobs,
                    text_offset: more_text_offset,
                },
            ) => {
                tokens.extend(more_tokens);
                token_logprobs.extend(more_token_logprobs);
                top_logprobs.extend(more_top_logprobs);
                text_offset.extend(more_text_offset);
            }
            _ => unreachable!("all pieces of an answer are of its kind"),
        }
    }
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() {
        logprob.max(LOWEST)
    } else {
        LOWEST
    }
}
