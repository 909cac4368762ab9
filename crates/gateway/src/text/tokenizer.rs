//! The tokenizer of a checkpoint, and the rule that a message can never write a control token.
//!
//! Spellings of control tokens inside messages are broken up with a [`SENTINEL`] before the chat
//! template sees them. The tokenizer looks for control tokens first and drops the sentinel only
//! afterwards, so the spelling reaches the model as plain text. A text without such a spelling is
//! tokenised exactly as the checkpoint's own tokenizer does it, unless that one looks for control
//! tokens in normalised text only; here they are always looked for in the text as it is.

use model::TextFiles;
use serde_json::{Value, json};
use tokenizers::Tokenizer as Inner;

use super::{Pieces, TextError};

/// Breaks up spellings of control tokens; no text may contain it. A private-use character of the
/// last plane.
pub(crate) const SENTINEL: char = '\u{10FFFD}';

/// Encodes text and knows the bytes of every token.
pub(crate) struct Tokenizer {
    inner: Inner,
    pieces: Pieces,
    /// Spellings that only a template may turn into tokens.
    control: Vec<String>,
    /// Which bytes begin one of them.
    first_bytes: [bool; 256],
    /// Put in front of raw prompts, where the post-processor does not do it.
    raw_prefix: Option<u32>,
    /// Stands for an empty raw prompt: the document's start.
    document_start: Option<u32>,
    /// What every raw prompt begins with, where the checkpoint marks beginnings.
    beginning: Option<u32>,
}

/// The tokens of a text that no request brought.
#[derive(Debug, Clone)]
pub struct TextTokens {
    /// What the checkpoint wants at the beginning of every text; it is not among the others.
    pub beginning: Option<u32>,
    /// The text itself; control tokens are read.
    pub token_ids: Vec<u32>,
}

impl TextTokens {
    /// Encodes a text with a checkpoint's own tokenizer.
    ///
    /// # Errors
    /// [`TextError`] when the tokenizer cannot be used or fails.
    pub fn encode(files: &TextFiles, text: &str) -> Result<Self, TextError> {
        let tokenizer = Tokenizer::new(files)?;
        Ok(Self {
            beginning: tokenizer.beginning,
            token_ids: tokenizer
                .encode(text, false)
                .map_err(TextError::Tokenizer)?,
        })
    }
}

impl Tokenizer {
    /// Reads a checkpoint's tokenizer and checks that control tokens can be kept out of messages.
    ///
    /// # Errors
    /// [`TextError`] when the file is malformed, its decoder unknown or the check fails.
    pub(crate) fn new(files: &TextFiles) -> Result<Self, TextError> {
        // The library panics on settings that contradict each other, such as a template with a token
        // that it does not define. What is tried while reading does not fail later.
        std::panic::catch_unwind(|| Self::read(files)).unwrap_or_else(|_| {
            let reason = "its settings contradict each other";
            Err(TextError::Tokenizer(reason.into()))
        })
    }

    fn read(files: &TextFiles) -> Result<Self, TextError> {
        let malformed = |e: String| TextError::Tokenizer(e);
        let mut json: Value =
            serde_json::from_slice(&files.tokenizer_json).map_err(|e| malformed(e.to_string()))?;
        if !json.is_object() {
            return Err(malformed("it is not an object".into()));
        }
        drop_sentinel_when_normalizing(&mut json);
        for added in json["added_tokens"].as_array_mut().into_iter().flatten() {
            if added["special"] == true {
                // Looked for before normalising, where the sentinel still stands.
                added["normalized"] = json!(false);
            }
        }
        let mut inner =
            Inner::from_bytes(json.to_string().as_bytes()).map_err(|e| malformed(e.to_string()))?;
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| malformed(e.to_string()))?;
        let added = inner.get_added_tokens_decoder();
        let pieces = Pieces::new(&json["decoder"], inner.get_vocab(true), |id| {
            added.get(&id).map(|token| token.special)
        })?;
        let control = control_spellings(&inner);
        let mut first_bytes = [false; 256];
        for spelling in &control {
            first_bytes[usize::from(spelling.as_bytes()[0])] = true;
        }
        let mut tokenizer = Self {
            control,
            first_bytes,
            raw_prefix: None,
            document_start: None,
            beginning: None,
            inner,
            pieces,
        };
        tokenizer.find_document_start(files)?;
        tokenizer.check_escapes()?;
        Ok(tokenizer)
    }

    /// The bytes of every token.
    pub(crate) fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// Tokens of a rendered template: control tokens are read, none are added.
    ///
    /// # Errors
    /// When the tokenizer fails, with its message.
    pub(crate) fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, String> {
        self.encode(text, false)
    }

    /// Tokens of a raw prompt: control tokens are read, and the beginning is marked where the
    /// checkpoint does so. An empty prompt is the start of a document, where there is a token for it.
    ///
    /// # Errors
    /// When the tokenizer fails, with its message.
    pub(crate) fn encode_raw(&self, text: &str) -> Result<Vec<u32>, String> {
        let mut ids = self.encode(text, true)?;
        if let Some(bos) = self.raw_prefix {
            ids.insert(0, bos);
        }
        if ids.is_empty() {
            ids.extend(self.document_start);
        }
        Ok(ids)
    }

    /// How the vocabulary spells a token; ids that it does not have are empty.
    pub(crate) fn spelling(&self, id: u32) -> String {
        self.inner.id_to_token(id).unwrap_or_default()
    }

    /// Breaks up every spelling of a control token in `text`.
    pub(crate) fn escape(&self, text: &str) -> Option<String> {
        let mut out: Option<String> = None;
        let mut copied = 0;
        for (at, first) in text.char_indices() {
            let rest = &text[at..];
            let begins = |spelling: &String| rest.starts_with(spelling.as_str());
            if !self.first_bytes[usize::from(rest.as_bytes()[0])]
                || !self.control.iter().any(begins)
            {
                continue;
            }
            let after_first = at + first.len_utf8();
            let out = out.get_or_insert_default();
            out.push_str(&text[copied..after_first]);
            out.push(SENTINEL);
            copied = after_first;
        }
        out.map(|mut out| {
            out.push_str(&text[copied..]);
            out
        })
    }

    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, String> {
        let encoding = self
            .inner
            .encode_fast(text, add_special_tokens)
            .map_err(|e| e.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }

    fn find_document_start(&mut self, files: &TextFiles) -> Result<(), TextError> {
        let id = |text: &Option<String>| text.as_ref().and_then(|t| self.inner.token_to_id(t));
        let bos = id(&files.bos_token);
        let eos = id(&files.eos_token);
        self.encode("Aé 1\n世界", true)
            .map_err(TextError::Tokenizer)?;
        let added = self.encode("", true).map_err(TextError::Tokenizer)?;
        self.raw_prefix = bos.filter(|_| added.is_empty() && files.add_bos_token == Some(true));
        self.document_start = bos.or(eos);
        self.beginning = match self.raw_prefix {
            Some(bos) => Some(bos),
            None => bos.filter(|bos| added.first() == Some(bos)),
        };
        Ok(())
    }

    fn check_escapes(&self) -> Result<(), TextError> {
        for spelling in &self.control {
            let escaped = self.escape(spelling).unwrap_or_default();
            let ids = self.encode(&escaped, false).map_err(TextError::Tokenizer)?;
            let control = self.inner.token_to_id(spelling);
            if escaped.is_empty() || ids.iter().any(|id| Some(*id) == control) {
                return Err(TextError::Escape(spelling.clone()));
            }
        }
        Ok(())
    }
}

/// Puts a step that deletes the sentinel in front of the normaliser.
fn drop_sentinel_when_normalizing(tokenizer: &mut Value) {
    let drop = json!({
        "type": "Replace",
        "pattern": {"String": SENTINEL.to_string()},
        "content": "",
    });
    let own = tokenizer["normalizer"].take();
    let steps = if own.is_null() {
        vec![drop]
    } else {
        vec![drop, own]
    };
    tokenizer["normalizer"] = json!({"type": "Sequence", "normalizers": steps});
}

/// Spellings of all special tokens.
fn control_spellings(inner: &Inner) -> Vec<String> {
    let mut control: Vec<String> = inner
        .get_added_tokens_decoder()
        .into_values()
        .filter(|token| token.special && !token.content.is_empty())
        .map(|token| token.content)
        .collect();
    control.sort_unstable();
    control.dedup();
    control
}

#[cfg(test)]
mod tests;
