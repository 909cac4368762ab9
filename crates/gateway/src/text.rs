//! Text on its way into and out of tokens: the tokenizer, what each token's bytes are, incremental
//! detokenisation and stop strings. Knows nothing of HTTP.

mod detokenizer;
mod pieces;
#[cfg(test)]
mod real;
mod stop;
mod tokenizer;

pub(crate) use detokenizer::{Detokenizer, LeadingSpace};
pub(crate) use pieces::Pieces;
pub(crate) use stop::StopMatcher;
pub use tokenizer::TextTokens;
pub(crate) use tokenizer::Tokenizer;

/// Why a model's text files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The tokenizer cannot be read.
    #[error("the tokenizer cannot be read: {0}")]
    Tokenizer(String),
    /// The tokenizer's decoder is of a kind this server does not know.
    #[error("the tokenizer's decoder {0:?} is not supported")]
    Decoder(String),
    /// A control token could be written by a user.
    #[error("the tokenizer would read the spelling {0:?} inside a message as a control token")]
    Escape(String),
    /// The chat template does not parse or render.
    #[error("the chat template does not work: {0}")]
    Template(String),
}
