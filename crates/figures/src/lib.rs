//! The pictures of `docs/quantisation.md`, drawn from a model's own tensors: a text goes through the
//! reference target in 32-bit floats, every matrix product on the way is measured, and what was measured
//! is drawn. Owns no arithmetic of quantisation, which is `quant`'s.

mod measure;
mod pictures;
mod svg;
mod tap;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result, bail, ensure};
use backend::{BLOCK_SIZE, Batch, BatchSequence, KvDtype, TokenId};
use bundled::dataset::{HELD_OUT_PER_SKILL, held_out};
use bundled::tokenizer::Tokenizer;
use gateway::TextTokens;
use model::{Checkpoint, LoadOptions};

use measure::Product;
pub use pictures::granularities;
use tap::Tap;

/// Matrices of a layer in the order in which they are met.
const KINDS: [&str; 4] = [
    "queries, keys, values",
    "attention output",
    "feed-forward in",
    "feed-forward out",
];

/// What a model's products looked like.
#[derive(Debug)]
pub struct Study {
    /// As pictures name the model.
    name: String,
    num_tokens: usize,
    /// Layer by layer, [`KINDS`] within each.
    products: Vec<Product>,
}

impl Study {
    /// Sends sequences of tokens through a model and measures every product.
    ///
    /// # Errors
    /// A model that cannot be loaded, or one whose layers are not of four matrices.
    pub fn new(name: &str, checkpoint: &Checkpoint, sequences: &[Vec<TokenId>]) -> Result<Self> {
        let longest = sequences.iter().map(Vec::len).max();
        let options = LoadOptions {
            max_model_len: Some(longest.context("no tokens to look at")?),
            kv_cache_bytes: u64::MAX,
            swap_bytes: 0,
            max_num_seqs: sequences.len(),
            kv_dtype: KvDtype::F32,
        };
        let mut decoder = model::load(checkpoint, Tap::default(), &options, &mut |_, _| {})?;
        let batch = batch(sequences);
        decoder.logits(&batch)?;
        let products = decoder.backend().products.clone();
        if products.is_empty() || !products.len().is_multiple_of(KINDS.len()) {
            bail!("{} products do not make layers of four", products.len());
        }
        Ok(Self {
            name: name.to_owned(),
            num_tokens: batch.num_tokens(),
            products,
        })
    }

    /// The bundled model on one held-out conversation of each skill.
    ///
    /// # Errors
    /// Never for the files of this program.
    pub fn bundled() -> Result<Self> {
        let checkpoint = Checkpoint::from_memory(bundled::files())?;
        let files = bundled::files().iter();
        let mut tokenizers = files.filter(|(name, _)| *name == "tokenizer.json");
        let (_, tokenizer) = tokenizers.next().context("the model has a tokenizer")?;
        let tokenizer = Tokenizer::from_json(std::str::from_utf8(tokenizer)?)
            .context("the tokenizer is the bundled one")?;
        let prompts = held_out();
        let skills = prompts.iter().step_by(HELD_OUT_PER_SKILL);
        let sequences: Vec<Vec<TokenId>> = skills
            .map(|prompt| tokenizer.encode(&(prompt.prompt() + &prompt.answer)))
            .collect();
        Self::new("The bundled model", &checkpoint, &sequences)
    }

    /// A model on the first tokens of a text.
    ///
    /// # Errors
    /// A model that cannot be loaded or a text that is too short.
    pub fn of_text(name: &str, checkpoint: &Checkpoint, text: &str, len: usize) -> Result<Self> {
        let tokens = TextTokens::encode(checkpoint.text(), text)?;
        let all = tokens.beginning.into_iter().chain(tokens.token_ids);
        let tokens: Vec<TokenId> = all.take(len).collect();
        ensure!(tokens.len() == len, "the text has {} tokens", tokens.len());
        Self::new(name, checkpoint, &[tokens])
    }
}

/// All tokens of all sequences in one step that asks for no logits.
fn batch(sequences: &[Vec<TokenId>]) -> Batch {
    let mut blocks = 0..;
    let sequence = |tokens: &Vec<TokenId>| BatchSequence {
        num_tokens: tokens.len(),
        num_computed_tokens: 0,
        block_table: blocks
            .by_ref()
            .take(tokens.len().div_ceil(BLOCK_SIZE))
            .collect(),
    };
    Batch {
        sequences: sequences.iter().map(sequence).collect(),
        token_ids: sequences.concat(),
        ..Batch::default()
    }
}
