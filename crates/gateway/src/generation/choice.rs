//! One choice: tokens in, pieces of text and log-probabilities out.

use std::sync::Arc;

use backend::Sampled;
use engine::{FinishReason, PromptLogprob};

use super::EncodedPrompt;
use crate::request::Generate;
use crate::text::{Detokenizer, LeadingSpace, Pieces, StopMatcher};

/// A piece of one choice's answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Output {
    /// Which choice of the request.
    pub(crate) index: usize,
    /// Whole characters, certainly not part of a stop string.
    pub(crate) text: String,
    /// Log-probabilities of the tokens taken since the last piece, where asked for.
    pub(crate) entries: Vec<TokenEntry>,
    /// Set on the last piece.
    pub(crate) finish: Option<Finish>,
}

/// How a choice ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Finish {
    /// The reason on the wire.
    pub(crate) kind: FinishKind,
    /// What matched, if something of the request did.
    pub(crate) stop_reason: Option<StopReason>,
}

/// The reasons on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FinishKind {
    /// An end token, a stop token or a stop string.
    Stop,
    /// The token limit or the context.
    Length,
}

/// The stop condition of the request that matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// A stop string.
    Text(String),
    /// A stop token.
    Token(u32),
}

/// Log-probabilities of one token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenEntry {
    /// The token's text; partial characters as replacement characters.
    pub(crate) token: String,
    /// The token's bytes.
    pub(crate) bytes: Vec<u8>,
    /// None for the first token of a prompt.
    pub(crate) logprob: Option<f32>,
    /// The most probable tokens, best first; none for the first token of a prompt.
    pub(crate) top: Option<Vec<TopEntry>>,
    /// Code points of the answer before this token.
    pub(crate) text_offset: usize,
}

/// An alternative to a token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TopEntry {
    /// Its text.
    pub(crate) token: String,
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
    /// Its log-probability.
    pub(crate) logprob: f32,
}

/// What is the same for all choices of a request.
#[derive(Debug)]
pub(crate) struct ChoiceRules {
    stop_strings: Arc<[String]>,
    include_stop: bool,
    stop_token_ids: Vec<u32>,
    /// Those of them that are the model's own.
    eos: Vec<u32>,
    min_tokens: usize,
    wants_entries: bool,
    skip_special: bool,
}

impl ChoiceRules {
    /// The rules of a request.
    pub(crate) fn new(generate: &Generate, stop_token_ids: Vec<u32>, eos: Vec<u32>) -> Self {
        Self {
            stop_strings: Arc::clone(&generate.stop.strings),
            include_stop: generate.stop.include,
            stop_token_ids,
            eos,
            min_tokens: generate.min_tokens,
            wants_entries: generate.sampling.num_logprobs.is_some(),
            skip_special: generate.skip_special_tokens,
        }
    }
}

impl Output {
    /// A piece with text alone.
    pub(crate) fn text(index: usize, text: String) -> Self {
        Self {
            index,
            text,
            entries: Vec::new(),
            finish: None,
        }
    }

    /// Whether there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.entries.is_empty() && self.finish.is_none()
    }
}

/// The state of one choice.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    detokenizer: Detokenizer,
    stops: StopMatcher,
    num_tokens: usize,
    last_token: Option<u32>,
    /// Entries of tokens whose text is still held back.
    held_entries: Vec<TokenEntry>,
    offset: TextOffset,
    /// The last piece has been made; what the engine still sends was computed before it knew.
    is_finished: bool,
}

impl Choice {
    /// A choice whose answer starts with `num_echoed` code points of the prompt.
    pub(crate) fn new(
        pieces: &Pieces,
        rules: &ChoiceRules,
        space: LeadingSpace,
        num_echoed: usize,
    ) -> Self {
        Self {
            detokenizer: Detokenizer::new(pieces, space, rules.skip_special),
            stops: StopMatcher::new(Arc::clone(&rules.stop_strings)),
            num_tokens: 0,
            last_token: None,
            held_entries: Vec::new(),
            offset: TextOffset {
                num_chars: num_echoed,
                begun: false,
            },
            is_finished: false,
        }
    }

    /// Takes a token. A stop string completed by it finishes the choice; a stop token does not yet,
    /// and adds no text.
    pub(crate) fn push(
        &mut self,
        pieces: &Pieces,
        rules: &ChoiceRules,
        token: &Sampled,
        output: &mut Output,
    ) {
        debug_assert!(!self.is_finished, "the caller asks first");
        self.num_tokens += 1;
        self.last_token = Some(token.token_id);
        if rules.wants_entries {
            let bytes = self.detokenizer.bytes(pieces, token.token_id);
            let offset = self.offset.of_next_token();
            let entry = TokenEntry::generated(pieces, token, bytes, offset);
            self.held_entries.push(entry);
        }
        if !rules.stop_token_ids.contains(&token.token_id) {
            let text = self.detokenizer.push(pieces, token.token_id);
            let inside = self.detokenizer.is_inside_character();
            self.offset.advance(&text, inside);
            self.take_text(rules, &text, output);
        }
        if output.finish.is_some() || !output.text.is_empty() {
            output.entries = std::mem::take(&mut self.held_entries);
        }
        self.is_finished = output.finish.is_some();
    }

    /// Whether the last piece has been made.
    pub(crate) fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// Ends the choice as the engine says and gives out what was held back.
    pub(crate) fn finish(
        &mut self,
        rules: &ChoiceRules,
        reason: FinishReason,
        output: &mut Output,
    ) {
        let rest = self.detokenizer.flush();
        self.take_text(rules, &rest, output);
        if output.finish.is_none() {
            output.text.push_str(&self.stops.flush());
            output.finish = Some(match reason {
                FinishReason::Length => Finish {
                    kind: FinishKind::Length,
                    stop_reason: None,
                },
                FinishReason::Stop => Finish {
                    kind: FinishKind::Stop,
                    stop_reason: self
                        .last_token
                        .filter(|id| !rules.eos.contains(id))
                        .map(StopReason::Token),
                },
            });
        }
        output.entries = std::mem::take(&mut self.held_entries);
        self.is_finished = true;
    }

    fn take_text(&mut self, rules: &ChoiceRules, text: &str, output: &mut Output) {
        if self.num_tokens <= rules.min_tokens && rules.min_tokens > 0 {
            output.text.push_str(text);
            return;
        }
        let pushed = self.stops.push(text);
        output.text.push_str(&pushed.text);
        if let Some(index) = pushed.matched {
            let stop = rules.stop_strings[index].clone();
            if rules.include_stop {
                output.text.push_str(&stop);
            }
            output.finish = Some(Finish {
                kind: FinishKind::Stop,
                stop_reason: Some(StopReason::Text(stop)),
            });
        }
    }
}

impl TokenEntry {
    fn generated(pieces: &Pieces, token: &Sampled, bytes: &[u8], text_offset: usize) -> Self {
        Self {
            token: String::from_utf8_lossy(bytes).into_owned(),
            bytes: bytes.to_vec(),
            logprob: Some(token.logprob),
            top: Some(top(pieces, token)),
            text_offset,
        }
    }
}

fn top(pieces: &Pieces, token: &Sampled) -> Vec<TopEntry> {
    let entry = |(id, logprob): &(u32, f32)| {
        let bytes = pieces.bytes(*id);
        TopEntry {
            token: String::from_utf8_lossy(bytes).into_owned(),
            bytes: bytes.to_vec(),
            logprob: *logprob,
        }
    };
    token.top.iter().map(entry).collect()
}

/// The prompt's part of an answer with `echo`.
#[derive(Debug)]
pub(crate) struct PromptEcho {
    text: Option<String>,
    /// The text has been given out.
    is_taken: bool,
    ids: Vec<u32>,
    /// Positions whose scores have arrived.
    num_scored: usize,
    /// Follows the text token by token.
    detokenizer: Detokenizer,
    /// Bytes of `text` before the next position.
    at: usize,
    offset: TextOffset,
}

impl PromptEcho {
    /// The echo of a prompt; ids are kept only where scores will come.
    pub(crate) fn new(pieces: &Pieces, prompt: EncodedPrompt, scores: bool) -> Self {
        Self {
            text: prompt.echo,
            is_taken: false,
            ids: if scores { prompt.ids } else { Vec::new() },
            num_scored: 0,
            detokenizer: Detokenizer::new(pieces, LeadingSpace::Decode, false),
            at: 0,
            offset: TextOffset::default(),
        }
    }

    /// The text repeated, the first time.
    pub(crate) fn take_text(&mut self) -> Option<String> {
        if std::mem::replace(&mut self.is_taken, true) {
            return None;
        }
        self.text.clone()
    }

    /// Code points of the text.
    pub(crate) fn num_chars(&self) -> usize {
        self.text.as_deref().map_or(0, |text| text.chars().count())
    }

    /// Entries of the next positions. Offsets follow the text: a control token that does not stand in
    /// it, such as a beginning-of-sequence token, has no width.
    pub(crate) fn entries(&mut self, pieces: &Pieces, scores: &[PromptLogprob]) -> Vec<TokenEntry> {
        let mut entries = Vec::with_capacity(scores.len());
        for score in scores {
            let Some(id) = self.ids.get(self.num_scored).copied() else {
                break;
            };
            let bytes = self.detokenizer.bytes(pieces, id);
            entries.push(TokenEntry {
                token: String::from_utf8_lossy(bytes).into_owned(),
                bytes: bytes.to_vec(),
                logprob: score.as_ref().map(|s| s.logprob),
                top: score.as_ref().map(|s| top(pieces, s)),
                text_offset: self.offset.of_next_token(),
            });
            if !pieces.is_special(id) || self.stands_next(bytes) {
                let text = self.detokenizer.push(pieces, id);
                self.at += text.len();
                let inside = self.detokenizer.is_inside_character();
                self.offset.advance(&text, inside);
            }
            self.num_scored += 1;
        }
        entries
    }

    fn stands_next(&self, bytes: &[u8]) -> bool {
        let text = self.text.as_deref().unwrap_or_default().as_bytes();
        text.get(self.at..)
            .is_some_and(|rest| rest.starts_with(bytes))
    }
}

/// Where tokens begin in a text, in code points.
#[derive(Debug, Clone, Copy, Default)]
struct TextOffset {
    /// Code points so far, the last one possibly incomplete.
    num_chars: usize,
    /// The last code point is incomplete.
    begun: bool,
}

impl TextOffset {
    /// A token that continues a character starts inside it.
    fn of_next_token(self) -> usize {
        self.num_chars - usize::from(self.begun)
    }

    /// Counts the code points that a token completed, and the one it left incomplete.
    fn advance(&mut self, completed: &str, is_inside: bool) {
        self.num_chars += completed.chars().count();
        self.num_chars += usize::from(is_inside);
        self.num_chars -= usize::from(self.begun);
        self.begun = is_inside;
    }
}
