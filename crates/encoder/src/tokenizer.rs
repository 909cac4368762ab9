//! From text to token ids, as sentence-transformers makes them: control tokens in the text are read, and
//! the tokens that mark its beginning and end are added.

use tokenizers::{Tokenizer, TruncationDirection, TruncationParams};

/// The tokenizer of an encoder.
#[derive(Clone)]
pub struct TextTokenizer {
    inner: Tokenizer,
    lower_case: bool,
    /// Bytes of the longest token: no text has fewer tokens than its bytes divided by this.
    longest: usize,
}

/// Which end of a text is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TruncationSide {
    /// The beginning.
    Left,
    /// The end.
    Right,
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// The library's text when it is malformed.
    pub fn new(json: &[u8], lower_case: bool) -> Result<Self, String> {
        let mut inner = Tokenizer::from_bytes(json).map_err(|error| error.to_string())?;
        // Lengths are checked and padded elsewhere.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| error.to_string())?;
        let longest = inner.get_vocab(true).keys().map(String::len).max();
        Ok(Self {
            inner,
            lower_case,
            longest: longest.unwrap_or(1).max(1),
        })
    }

    /// Fewer tokens than this no text of so many bytes has, white space left out.
    pub fn min_tokens(&self, text: &str) -> usize {
        text.split_whitespace().map(str::len).sum::<usize>() / self.longest
    }

    /// Token ids of a text.
    ///
    /// # Errors
    /// The library's text when it fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        self.run(&self.inner, text)
    }

    /// At most `max` token ids of a text, the marks of beginning and end among them.
    ///
    /// # Errors
    /// The library's text when it fails, or when not even the marks fit.
    pub fn encode_truncated(
        &self,
        text: &str,
        max: usize,
        side: TruncationSide,
    ) -> Result<Vec<u32>, String> {
        let ids = self.encode(text)?;
        if ids.len() <= max {
            return Ok(ids);
        }
        let mut inner = self.inner.clone();
        let truncation = TruncationParams {
            max_length: max,
            direction: match side {
                TruncationSide::Left => TruncationDirection::Left,
                TruncationSide::Right => TruncationDirection::Right,
            },
            ..TruncationParams::default()
        };
        inner
            .with_truncation(Some(truncation))
            .map_err(|error| error.to_string())?;
        self.run(&inner, text)
    }

    fn run(&self, inner: &Tokenizer, text: &str) -> Result<Vec<u32>, String> {
        let lower = self.lower_case.then(|| text.to_lowercase());
        let text = lower.as_deref().unwrap_or(text);
        let encoding = inner
            .encode_fast(text, true)
            .map_err(|error| error.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }
}
