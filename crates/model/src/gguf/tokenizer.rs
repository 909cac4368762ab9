//! The tokenizer of a GGUF file as the `tokenizer.json` it was made from.
//!
//! Two kinds exist for the architectures read here: `gpt2`, byte-level BPE whose splitting rule has a
//! name, and `llama`, SentencePiece BPE whose merges follow from the scores. An unknown rule is an
//! error: a guess would tokenise most text right and the rest silently wrong.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::metadata::Metadata;
use super::parse::Value;
use crate::error::{ModelError, Result};
use crate::{GenerationDefaults, TextFiles};

/// Token types of the format.
mod kind {
    pub const UNKNOWN: u64 = 2;
    pub const CONTROL: u64 = 3;
    pub const USER_DEFINED: u64 = 4;
}

/// How a named rule cuts text before merging.
struct Splitting {
    /// Values of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// Cuts made one after the other, every match a piece of its own.
    cuts: &'static [&'static str],
    /// Canonical composition first.
    nfc: bool,
    /// A piece that is a token is taken whole, without merging.
    ignore_merges: bool,
    /// Whether a prompt begins with BOS where the file does not say.
    add_bos: bool,
}

/// The expression of GPT-2's own tokenizer.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The expression of Llama 3: three digits at most in a piece.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// That of Qwen: every digit alone.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// That of Mistral's Tekken: words end where small letters are followed by capitals.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// That of GPT-4o.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Splitting {
    const fn of(names: &'static [&'static str], cuts: &'static [&'static str]) -> Self {
        Self {
            names,
            cuts,
            nfc: false,
            ignore_merges: false,
            add_bos: false,
        }
    }
}

/// The rules as llama.cpp names them, for the families that are read here.
const SPLITTINGS: &[Splitting] = &[
    Splitting::of(&["gpt-2", "phi-2"], &[GPT2]),
    // "refact" is what converters write for Granite 3.
    Splitting::of(&["smollm", "refact", "starcoder"], &[r"\p{N}", GPT2]),
    Splitting {
        ignore_merges: true,
        add_bos: true,
        ..Splitting::of(
            &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
            &[LLAMA3],
        )
    },
    // OLMo 2 and Phi 4.
    Splitting::of(&["dbrx", "smaug-bpe"], &[LLAMA3]),
    Splitting {
        nfc: true,
        ..Splitting::of(&["qwen2", "deepseek-r1-qwen", "stablelm2"], &[QWEN2])
    },
    Splitting {
        ignore_merges: true,
        add_bos: true,
        ..Splitting::of(&["tekken"], &[TEKKEN])
    },
    // Phi 4 mini.
    Splitting::of(&["gpt-4o"], &[GPT4O]),
    Splitting::of(
        &["falcon"],
        &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"],
    ),
    Splitting::of(
        &["default"],
        &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
    ),
];

/// The tokens of a file with their types, checked against each other.
struct Vocabulary<'a> {
    metadata: &'a Metadata,
    tokens: Vec<&'a str>,
    types: Vec<u64>,
}

/// Everything text-like: `beside` is a `tokenizer.json` that lies next to the file and wins.
pub(super) fn text_files(metadata: &Metadata, beside: Option<Vec<u8>>) -> Result<TextFiles> {
    let vocabulary = Vocabulary::read(metadata)?;
    let embedded = metadata.typed("tokenizer.huggingface.json", Value::as_str, "a string")?;
    let tokenizer_json = match (beside, embedded) {
        (Some(beside), _) => beside,
        (None, Some(embedded)) => embedded.as_bytes().to_vec(),
        (None, None) => vocabulary.rebuild()?.to_string().into_bytes(),
    };
    let mut eos_token_ids = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        eos_token_ids.extend(vocabulary.special(key)?.map(|(id, _)| id as u32));
    }
    eos_token_ids.sort_unstable();
    eos_token_ids.dedup();
    let text = |key: &str| -> Result<Option<String>> {
        Ok(vocabulary.special(key)?.map(|(_, text)| text.to_owned()))
    };
    Ok(TextFiles {
        tokenizer_json,
        chat_templates: templates(metadata)?,
        bos_token: text("bos_token_id")?,
        eos_token: text("eos_token_id")?,
        unk_token: text("unknown_token_id")?,
        pad_token: text("padding_token_id")?,
        eos_token_ids,
        add_bos_token: metadata.typed(
            "tokenizer.ggml.add_bos_token",
            Value::as_bool,
            "a boolean",
        )?,
        generation: GenerationDefaults::default(),
    })
}

fn templates(metadata: &Metadata) -> Result<Vec<(String, String)>> {
    let mut templates = Vec::new();
    if let Some(source) = metadata.typed("tokenizer.chat_template", Value::as_str, "a string")? {
        templates.push(("default".to_owned(), source.to_owned()));
    }
    for (name, source) in metadata.starting_with("tokenizer.chat_template.") {
        if let Some(source) = source.as_str() {
            templates.push((name.to_owned(), source.to_owned()));
        }
    }
    Ok(templates)
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self> {
        let tokens = strings(metadata, "tokenizer.ggml.tokens")?
            .ok_or_else(|| metadata.malformed("tokenizer.ggml.tokens is missing"))?;
        let types = match metadata.typed("tokenizer.ggml.token_type", Value::as_array, "a list")? {
            None => vec![1; tokens.len()],
            Some(types) => types
                .iter()
                .map(|value| value.as_u64().unwrap_or(0))
                .collect(),
        };
        if types.len() != tokens.len() {
            return Err(metadata.malformed(format!(
                "tokenizer.ggml.token_type has {} entries for {} tokens",
                types.len(),
                tokens.len()
            )));
        }
        Ok(Self {
            metadata,
            tokens,
            types,
        })
    }

    /// Id and text of a special token named by a key under `tokenizer.ggml.`.
    fn special(&self, key: &str) -> Result<Option<(usize, &'a str)>> {
        let key = format!("tokenizer.ggml.{key}");
        let Some(id) = self.metadata.typed(&key, Value::as_u64, "a token id")? else {
            return Ok(None);
        };
        let token = usize::try_from(id)
            .ok()
            .and_then(|id| Some((id, *self.tokens.get(id)?)));
        token.map(Some).ok_or_else(|| {
            self.metadata.malformed(format!(
                "{key} is {id}, there are {} tokens",
                self.tokens.len()
            ))
        })
    }

    fn rebuild(&self) -> Result<Json> {
        match self
            .metadata
            .typed("tokenizer.ggml.model", Value::as_str, "a string")?
        {
            Some("gpt2") => self.byte_level(),
            Some("llama") => self.sentence_piece(),
            other => Err(ModelError::unsupported(
                "tokenizer.ggml.model",
                other.unwrap_or("missing"),
                "gpt2 and llama are; or put the model's tokenizer.json beside the file",
            )),
        }
    }

    fn byte_level(&self) -> Result<Json> {
        let pre = self
            .metadata
            .typed("tokenizer.ggml.pre", Value::as_str, "a string")?
            .unwrap_or("default");
        let splitting = SPLITTINGS
            .iter()
            .find(|splitting| splitting.names.contains(&pre))
            .ok_or_else(|| {
                let known: Vec<&str> = SPLITTINGS
                    .iter()
                    .flat_map(|splitting| splitting.names)
                    .copied()
                    .collect();
                let reason = format!(
                    "{} are; or put the model's tokenizer.json beside the file",
                    known.join(", ")
                );
                ModelError::unsupported("tokenizer.ggml.pre", pre, &reason)
            })?;
        let cuts = splitting
            .cuts
            .iter()
            .map(|cut| json!({"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": false}));
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let model = json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": splitting.ignore_merges,
            "vocab": self.model_vocab(),
            "merges": self.stored_merges()?,
        });
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added_tokens(),
            "normalizer": if splitting.nfc { json!({"type": "NFC"}) } else { Json::Null },
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": cuts.chain([bytes.clone()]).collect::<Vec<_>>()},
            "post_processor": self.post_processor(splitting.add_bos)?,
            "decoder": bytes,
            "model": model,
        }))
    }

    fn sentence_piece(&self) -> Result<Json> {
        let flag = |key: &str, default: bool| -> Result<bool> {
            Ok(self
                .metadata
                .typed(key, Value::as_bool, "a boolean")?
                .unwrap_or(default))
        };
        let add_prefix = flag("tokenizer.ggml.add_space_prefix", true)?;
        let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let prefix = json!({"type": "Prepend", "prepend": "▁"});
        let normalizers = if add_prefix {
            vec![prefix, spaces]
        } else {
            vec![spaces]
        };
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if add_prefix {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = self.special("unknown_token_id")?.map(|(_, text)| text);
        let unknown = unknown.or_else(|| {
            let id = self.types.iter().position(|kind| *kind == kind::UNKNOWN)?;
            Some(self.tokens[id])
        });
        let model = json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": self.vocab(self.tokens.len()),
            "merges": self.merges_from_scores()?,
        });
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added_tokens(),
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": null,
            "post_processor": self.post_processor(true)?,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": model,
        }))
    }

    fn is_added(&self, id: usize) -> bool {
        matches!(
            self.types[id],
            kind::UNKNOWN | kind::CONTROL | kind::USER_DEFINED
        )
    }

    fn added_tokens(&self) -> Vec<Json> {
        (0..self.tokens.len())
            .filter(|id| self.is_added(*id))
            .map(|id| {
                json!({
                    "id": id,
                    "content": self.tokens[id],
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": false,
                    "special": self.types[id] != kind::USER_DEFINED,
                })
            })
            .collect()
    }

    /// The first `len` tokens with their ids.
    fn vocab(&self, len: usize) -> Map<String, Json> {
        let tokens = self.tokens.iter().take(len).enumerate();
        tokens
            .map(|(id, token)| ((*token).to_owned(), json!(id)))
            .collect()
    }

    /// Tokens that merging may produce. Added tokens after the last ordinary one stay out, so that
    /// their spelling in a user's text never becomes one of them; earlier ones are needed to keep the
    /// ids dense.
    fn model_vocab(&self) -> Map<String, Json> {
        let last = (0..self.tokens.len()).rev().find(|id| !self.is_added(*id));
        self.vocab(last.map_or(0, |last| last + 1))
    }

    /// Merges as the file has them: two symbols joined by a space.
    fn stored_merges(&self) -> Result<Vec<Json>> {
        let merges = strings(self.metadata, "tokenizer.ggml.merges")?
            .ok_or_else(|| self.metadata.malformed("tokenizer.ggml.merges is missing"))?;
        merges
            .iter()
            .map(|merge| match merge.split_once(' ') {
                Some((left, right)) => Ok(json!([left, right])),
                None => Err(self
                    .metadata
                    .malformed(format!("the merge {merge:?} has no two parts"))),
            })
            .collect()
    }

    /// SentencePiece merges whatever pair makes the best-scored token, so every way to cut a token
    /// into two tokens is a merge, and their order is that of the scores.
    fn merges_from_scores(&self) -> Result<Vec<Json>> {
        let scores = self
            .metadata
            .typed("tokenizer.ggml.scores", Value::as_array, "a list")?
            .filter(|scores| scores.len() == self.tokens.len())
            .ok_or_else(|| {
                self.metadata
                    .malformed("tokenizer.ggml.scores has not one entry per token")
            })?;
        let ids: HashMap<&str, usize> = self
            .tokens
            .iter()
            .enumerate()
            .map(|(id, token)| (*token, id))
            .collect();
        let mut merges = Vec::new();
        for (id, token) in self
            .tokens
            .iter()
            .enumerate()
            .filter(|(id, _)| self.types[*id] == 1)
        {
            let score = scores[id].as_f64().filter(|score| score.is_finite());
            let score = score.ok_or_else(|| {
                self.metadata
                    .malformed(format!("the score of token {id} is not a number"))
            })?;
            for (cut, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(cut);
                if let (Some(left_id), Some(right_id)) = (ids.get(left), ids.get(right)) {
                    merges.push((score, left_id, right_id, left, right));
                }
            }
        }
        merges.sort_by(|a, b| {
            b.0.total_cmp(&a.0)
                .then_with(|| (a.1, a.2).cmp(&(b.1, b.2)))
        });
        Ok(merges
            .into_iter()
            .map(|(.., left, right)| json!([left, right]))
            .collect())
    }

    /// Puts BOS before and EOS after a text where the file wants them.
    fn post_processor(&self, add_bos: bool) -> Result<Json> {
        let flag = |key: &str, default: bool| -> Result<bool> {
            Ok(self
                .metadata
                .typed(key, Value::as_bool, "a boolean")?
                .unwrap_or(default))
        };
        let bos = self.special("bos_token_id")?;
        let bos = if flag("tokenizer.ggml.add_bos_token", add_bos && bos.is_some())? {
            bos
        } else {
            None
        };
        let eos = if flag("tokenizer.ggml.add_eos_token", false)? {
            self.special("eos_token_id")?
        } else {
            None
        };
        if bos.is_none() && eos.is_none() {
            return Ok(Json::Null);
        }
        let special = |token: Option<(usize, &str)>, type_id: u32| {
            token.map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": type_id}}))
        };
        let template = |sequences: &[(&str, u32)]| -> Vec<Json> {
            let mut pieces = Vec::new();
            for (name, type_id) in sequences {
                pieces.extend(special(bos, *type_id));
                pieces.push(json!({"Sequence": {"id": name, "type_id": type_id}}));
                pieces.extend(special(eos, *type_id));
            }
            pieces
        };
        let tokens: Map<String, Json> = bos
            .into_iter()
            .chain(eos)
            .map(|(id, text)| {
                (
                    text.to_owned(),
                    json!({"id": text, "ids": [id], "tokens": [text]}),
                )
            })
            .collect();
        Ok(json!({
            "type": "TemplateProcessing",
            "single": template(&[("A", 0)]),
            "pair": template(&[("A", 0), ("B", 1)]),
            "special_tokens": tokens,
        }))
    }
}

fn strings<'a>(metadata: &'a Metadata, key: &str) -> Result<Option<Vec<&'a str>>> {
    let Some(values) = metadata.typed(key, Value::as_array, "a list")? else {
        return Ok(None);
    };
    let strings: Option<Vec<&str>> = values.iter().map(Value::as_str).collect();
    strings
        .map(Some)
        .ok_or_else(|| metadata.malformed(format!("{key} is not a list of strings")))
}
