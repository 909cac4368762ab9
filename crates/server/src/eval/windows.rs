//! Pieces of a text and which of their tokens are scored, and the probabilities that a model gives to every token of their second halves.

use std::sync::Arc;

use anyhow::{Result, bail};
use backend::{
    BLOCK_SIZE, Batch, BatchSequence, RowOutput, RowTask, SampleBatch, SampleRow, SamplingParams,
    TokenId,
};
use gateway::TextTokens;
use model::CausalLm;

/// Positions computed and compared at once: this many rows of the vocabulary's width are in memory for
/// each model.
const ROWS: usize = 128;

/// Tokens computed from an empty cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// All of them.
    pub token_ids: Vec<TokenId>,
    /// Index of the first one that is scored, at least 1; the others are its context.
    pub first_scored: usize,
}

/// Cuts a text into windows of `len` tokens, each with the checkpoint's own beginning in front, until
/// `max_scored` tokens are in second halves or the text ends.
///
/// # Errors
/// When the text does not fill one window.
pub fn cut(text: &TextTokens, len: usize, max_scored: usize) -> Result<Vec<Window>> {
    let own = len - usize::from(text.beginning.is_some());
    let first_scored = len / 2;
    let beginning = text.beginning.into_iter();
    let windows: Vec<Window> = text
        .token_ids
        .chunks_exact(own)
        .take(max_scored.div_ceil(len - first_scored))
        .map(|chunk| Window {
            token_ids: beginning.clone().chain(chunk.iter().copied()).collect(),
            first_scored,
        })
        .collect();
    if windows.is_empty() {
        let found = text.token_ids.len();
        bail!("the text has {found} tokens, less than a window of {own}; name a longer one");
    }
    Ok(windows)
}

/// What a step computes: tokens `start..end` of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    start: usize,
    end: usize,
    /// Whether the probabilities that its rows give are wanted.
    pub is_scored: bool,
}

impl Span {
    /// Index of the token that the first row's probabilities are for.
    pub fn first_next(self) -> usize {
        self.start + 1
    }
}

/// The steps of a window in order. The last token is not computed: nothing follows it.
pub fn spans(window: &Window) -> Vec<Span> {
    let (len, first) = (window.token_ids.len(), window.first_scored - 1);
    let mut spans = Vec::new();
    if first > 0 {
        spans.push(Span {
            start: 0,
            end: first,
            is_scored: false,
        });
    }
    spans.extend((first..len - 1).step_by(ROWS).map(|start| Span {
        start,
        end: (start + ROWS).min(len - 1),
        is_scored: true,
    }));
    spans
}

/// Computes one step of a window on a model whose cache holds the steps before it. Returns the
/// log-probability of every token after each row.
///
/// # Errors
/// What the model reports, and logits that are not finite.
pub fn step(model: &mut dyn CausalLm, window: &Window, span: Span) -> Result<Vec<Vec<f32>>> {
    let num_tokens = span.end - span.start;
    let num_rows = if span.is_scored { num_tokens } else { 0 };
    let batch = Batch {
        token_ids: window.token_ids[span.start..span.end].to_vec(),
        sequences: vec![BatchSequence {
            num_tokens,
            num_computed_tokens: span.start,
            block_table: (0..span.end.div_ceil(BLOCK_SIZE) as u32).collect(),
        }],
        logit_rows: (0..num_rows).collect(),
        copies: Vec::new(),
    };
    let row = SampleRow {
        params: Arc::new(SamplingParams::greedy()),
        task: RowTask::Distribution,
        seed: 0,
        position: 0,
        counts: Vec::new(),
        banned: Arc::from([]),
    };
    let samples = SampleBatch {
        rows: vec![row; num_rows],
        vocab_size: model.info().vocab_size,
    };
    let output = model.forward(&batch, &samples)?;
    let rows = output.rows.into_iter().map(|row| match row {
        RowOutput::Token(sampled) => Ok(sampled.top.into_iter().map(|(_, p)| p).collect()),
        RowOutput::NonFinite => bail!("the model's logits are not finite"),
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(len: u32, beginning: Option<u32>) -> TextTokens {
        TextTokens {
            beginning,
            token_ids: (0..len).collect(),
        }
    }

    #[test]
    fn windows_begin_as_the_checkpoint_wants_and_lose_no_token() {
        let windows = cut(&text(25, None), 8, 1000).expect("long enough");
        assert_eq!(windows.len(), 3);
        assert_eq!(windows[1].token_ids, (8..16).collect::<Vec<u32>>());
        let windows = cut(&text(25, Some(99)), 8, 9).expect("long enough");
        assert_eq!(windows.len(), 3);
        assert_eq!(windows[1].token_ids, [99, 7, 8, 9, 10, 11, 12, 13]);
        assert_eq!(windows[1].first_scored, 4);
        assert_eq!(cut(&text(25, None), 8, 4).expect("long enough").len(), 1);
        let error = cut(&text(6, Some(99)), 8, 4).expect_err("too short");
        assert!(error.to_string().contains("6 tokens"), "{error}");
    }

    #[test]
    fn tokens_are_computed_and_scored_once() {
        for (len, first_scored) in [(2, 1), (3, 1), (8, 4), (9, 7), (512, 256), (2048, 1024)] {
            let spans = spans(&Window {
                token_ids: vec![0; len],
                first_scored,
            });
            let mut at = 0;
            for span in &spans {
                assert_eq!(span.start, at, "{len}");
                at = span.end;
            }
            assert_eq!(at, len - 1);
            let scored = spans.iter().filter(|span| span.is_scored);
            let next: Vec<usize> = scored
                .flat_map(|span| (0..span.end - span.start).map(|row| span.first_next() + row))
                .collect();
            assert_eq!(next, (first_scored..len).collect::<Vec<_>>());
        }
    }
}
