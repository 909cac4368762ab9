//! The byte-level tokenizer: whole frequent words, and single bytes for everything else. Owns the
//! vocabulary, an encoder for the trainer and the writing of `tokenizer.json`.
//!
//! A text is cut into pieces: letters with an optional space before them, single digits, other marks
//! with an optional space, single white space. A piece in the vocabulary is one token, any other is
//! its bytes. In `tokenizer.json` this is a byte-level BPE with `ignore_merges` and no merges.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value, json};

use crate::chat::{TOOLS_HEAD, TOOLS_TAIL, render};
use crate::dataset::conversation;
use crate::prng::Prng;
use crate::skills::Skill;
use crate::words::{REAL_NAMES, REAL_WORDS};

/// Ends a document.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Opens a turn.
pub const IM_START: &str = "<|im_start|>";
/// Closes a turn.
pub const IM_END: &str = "<|im_end|>";
/// Tokens with an id of their own wherever they are spelled, the first three of them control tokens.
pub const ADDED: [&str; 5] = [END_OF_TEXT, IM_START, IM_END, "<tool_call>", "</tool_call>"];
/// Id of [`IM_END`].
pub const IM_END_ID: u32 = 2;
/// Id of [`END_OF_TEXT`].
pub const END_OF_TEXT_ID: u32 = 0;

/// The pieces as a regular expression, for `tokenizer.json`; [`pieces`] is the same cut by hand.
const PIECES: &str = " ?[A-Za-z]+|[0-9]| ?[^ \\t\\r\\nA-Za-z0-9]+|[ \\t\\r\\n]";

const MIN_COUNT: usize = 40;
const SAMPLED_CONVERSATIONS: usize = 60_000;

/// The vocabulary: added tokens, the 256 bytes, whole pieces.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    tokens: Vec<Vec<u8>>,
    ids: HashMap<Vec<u8>, u32>,
}

impl Tokenizer {
    /// Collects the frequent pieces of the training stream, leaving out the words that are spelled.
    pub fn build(seed: u64) -> Self {
        let mut prng = Prng::new(seed);
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        let spelled: HashSet<String> = REAL_WORDS
            .iter()
            .chain(REAL_NAMES)
            .map(|w| w.to_lowercase())
            .collect();
        for number in 0..SAMPLED_CONVERSATIONS {
            let skill = Skill::ALL[number % Skill::ALL.len()];
            let sample = conversation(skill, &mut prng, |prng| *prng.pick(&Skill::ALL), 200);
            let text: String = render(&sample.tools, &sample.messages)
                .into_iter()
                .map(|p| p.text)
                .collect();
            for (part, added) in split_added(&text) {
                if added.is_none() {
                    pieces(part)
                        .for_each(|piece| *counts.entry(piece.to_owned()).or_default() += 1);
                }
            }
        }
        for text in [TOOLS_HEAD, TOOLS_TAIL] {
            pieces(text)
                .for_each(|piece| *counts.entry(piece.to_owned()).or_default() += MIN_COUNT);
        }
        let words = counts
            .into_iter()
            .filter(|(piece, count)| *count >= MIN_COUNT && piece.len() > 1)
            .filter(|(piece, _)| !spelled.contains(&piece.trim().to_lowercase()))
            .filter(|(piece, _)| !spelled.contains(&piece.chars().rev().collect::<String>()))
            .map(|(piece, _)| piece.into_bytes());
        Self::from_tokens(
            ADDED
                .iter()
                .map(|t| t.as_bytes().to_vec())
                .chain((0..=255).map(|b| vec![b]))
                .chain(words),
        )
    }

    fn from_tokens(tokens: impl Iterator<Item = Vec<u8>>) -> Self {
        let tokens: Vec<Vec<u8>> = tokens.collect();
        let ids = tokens
            .iter()
            .enumerate()
            .map(|(id, token)| (token.clone(), id as u32))
            .collect();
        Self { tokens, ids }
    }

    /// Reads back what [`Tokenizer::to_json`] wrote; `None` if it is not such a file.
    pub fn from_json(text: &str) -> Option<Self> {
        let file: Value = serde_json::from_str(text).ok()?;
        let vocab = file.get("model")?.get("vocab")?.as_object()?;
        let bytes: HashMap<char, u8> = (0..=255).map(|b| (byte_char(b), b)).collect();
        let mut tokens = vec![Vec::new(); vocab.len()];
        for (token, id) in vocab {
            let id = id.as_u64()? as usize;
            *tokens.get_mut(id)? = if ADDED.contains(&token.as_str()) {
                token.as_bytes().to_vec()
            } else {
                token
                    .chars()
                    .map(|c| bytes.get(&c).copied())
                    .collect::<Option<_>>()?
            };
        }
        Some(Self::from_tokens(tokens.into_iter()))
    }

    /// The contents of `tokenizer.json`.
    pub fn to_json(&self) -> Value {
        let vocab: Map<String, Value> = self
            .tokens
            .iter()
            .enumerate()
            .map(|(id, token)| {
                let text = match ADDED.get(id) {
                    Some(added) => (*added).to_owned(),
                    None => token.iter().map(|b| byte_char(*b)).collect(),
                };
                (text, json!(id))
            })
            .collect();
        let added: Vec<Value> = ADDED
            .iter()
            .enumerate()
            .map(|(id, content)| {
                json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": id < 3})
            })
            .collect();
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added, "normalizer": null,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PIECES}, "behavior": "Isolated", "invert": false},
                byte_level,
            ]},
            "post_processor": null, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
                "vocab": vocab, "merges": []}
        })
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// A vocabulary always holds at least its bytes.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Ids of a text in which every added token is recognised.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        for (part, added) in split_added(text) {
            match added {
                Some(id) => ids.push(id),
                None => pieces(part).for_each(|piece| match self.ids.get(piece.as_bytes()) {
                    Some(id) => ids.push(*id),
                    None => ids.extend(piece.bytes().map(|b| ADDED.len() as u32 + u32::from(b))),
                }),
            }
        }
        ids
    }

    /// The text of some ids, added tokens spelled out, broken UTF-8 replaced.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids
            .iter()
            .filter_map(|id| self.tokens.get(*id as usize))
            .flat_map(|t| t.iter().copied())
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Cuts a text at added tokens; each part comes with the id it stands for, if any.
fn split_added(text: &str) -> Vec<(&str, Option<u32>)> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let found = ADDED
            .iter()
            .enumerate()
            .filter_map(|(id, token)| Some((rest.find(token)?, id, token.len())))
            .min();
        let Some((at, id, len)) = found else { break };
        if at > 0 {
            parts.push((&rest[..at], None));
        }
        parts.push((&rest[at..at + len], Some(id as u32)));
        rest = &rest[at + len..];
    }
    if !rest.is_empty() {
        parts.push((rest, None));
    }
    parts
}

/// Kinds of characters in the cut.
#[derive(PartialEq, Clone, Copy)]
enum Class {
    Letter,
    Digit,
    Mark,
    White,
}

fn class(c: char) -> Class {
    match c {
        'A'..='Z' | 'a'..='z' => Class::Letter,
        '0'..='9' => Class::Digit,
        ' ' | '\t' | '\r' | '\n' => Class::White,
        _ => Class::Mark,
    }
}

/// The pieces of a text; see `PIECES`.
pub fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let second = rest.chars().nth(1).map(class);
        let lead = if first == ' ' && matches!(second, Some(Class::Letter | Class::Mark)) {
            1
        } else {
            0
        };
        let kind = rest[lead..].chars().next().map(class)?;
        let len = match kind {
            Class::Digit | Class::White => 1,
            run => rest[lead..]
                .find(|c| class(c) != run)
                .unwrap_or(rest.len() - lead),
        };
        let (piece, tail) = rest.split_at(lead + len);
        rest = tail;
        Some(piece)
    })
}

/// The printable stand-in of a byte in byte-level vocabularies (GPT-2's table): printable Latin-1
/// stands for itself, the other bytes follow from U+0100 on in their order.
fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(0x100 + before).expect("at most 68 bytes are not printable")
}
