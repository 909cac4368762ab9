//! What becomes of sequences after a step: they advance, fork, finish or fail.

use backend::{RowOutput, SampleOutput, Sampled};

use super::Scheduler;
use crate::request::{EngineError, FinishReason, StreamEvent};
use crate::sequence::{RequestId, Sequence};

impl Scheduler {
    /// Takes the result of the step: sequences advance, fork, finish or fail.
    pub fn commit(&mut self, output: SampleOutput) -> Vec<(RequestId, StreamEvent)> {
        let mut events = Vec::new();
        let mut rows = output.rows.into_iter();
        let mut finished = Vec::new();
        let mut forked = Vec::new();
        for scheduled in std::mem::take(&mut self.scheduled) {
            let scores: Vec<_> = rows.by_ref().take(scheduled.num_scores).collect();
            let draws: Vec<_> = rows.by_ref().take(scheduled.num_draws).collect();
            let index = scheduled.index;
            self.cache
                .advance(&mut self.running[index], scheduled.num_tokens);
            let request = self.running[index].request;
            let (Some(scores), Some(draws)) = (finite(scores), finite(draws)) else {
                events.push((request, StreamEvent::Failed(EngineError::NonFiniteLogits)));
                finished.push((request, None));
                continue;
            };
            self.report_scores(index, scores, &mut events);
            forked.extend(self.append(index, draws, &mut events));
            let sequence = &self.running[index];
            if sequence.rules.max_tokens == 0 && sequence.num_owed_tokens() == 0 {
                // Nothing is drawn, so the pending choices never split off: they end here too.
                events.extend((0..sequence.num_choices()).map(|choice| {
                    let reason = FinishReason::Length;
                    (request, StreamEvent::Finished { choice, reason })
                }));
            }
        }
        for sequence in forked {
            self.insert(sequence);
        }
        for (request, event) in &events {
            if let StreamEvent::Finished { choice, .. } = event {
                finished.push((*request, Some(*choice)));
            }
        }
        finished.into_iter().for_each(|(request, choice)| {
            self.remove(request, choice);
        });
        events
    }

    fn report_scores(
        &mut self,
        index: usize,
        scores: Vec<Sampled>,
        events: &mut Vec<(RequestId, StreamEvent)>,
    ) {
        let sequence = &mut self.running[index];
        if sequence.rules.prompt_logprobs.is_none() {
            return;
        }
        let mut piece: Vec<Option<Sampled>> = Vec::new();
        // The first position has nothing before it.
        if sequence.num_scored_tokens == 0
            && (!scores.is_empty() || sequence.num_prompt_tokens == 1)
        {
            piece.push(None);
        }
        sequence.num_scored_tokens += scores.len();
        piece.extend(scores.into_iter().map(Some));
        if !piece.is_empty() && sequence.num_generated_tokens() == 0 {
            events.push((sequence.request, StreamEvent::Prompt(piece)));
        }
    }

    /// Appends drawn tokens: the sequence's own, and one each to the choices that split off now. Works
    /// from the last choice to the first, so that a fork copies the prompt only.
    fn append(
        &mut self,
        index: usize,
        draws: Vec<Sampled>,
        events: &mut Vec<(RequestId, StreamEvent)>,
    ) -> Vec<Sequence> {
        let request = self.running[index].request;
        let mut forks = Vec::new();
        let mut by_choice = Vec::new();
        for (offset, token) in draws.into_iter().enumerate().rev() {
            if offset == 0 {
                let sequence = &mut self.running[index];
                sequence.pending_choices = 0;
                by_choice.push(push(sequence, token, self.max_model_len));
                continue;
            }
            let sequence = &self.running[index];
            let mut fork = self.cache.fork(sequence, sequence.choice + offset);
            by_choice.push(push(&mut fork, token, self.max_model_len));
            forks.push(fork);
        }
        events.extend(
            by_choice
                .into_iter()
                .rev()
                .flatten()
                .map(|event| (request, event)),
        );
        forks
    }
}

/// All rows, or none when one is not finite.
fn finite(rows: Vec<RowOutput>) -> Option<Vec<Sampled>> {
    rows.into_iter()
        .map(|row| match row {
            RowOutput::Token(token) => Some(token),
            RowOutput::NonFinite => None,
        })
        .collect()
}

/// Appends one token and says whether the sequence is complete.
fn push(sequence: &mut Sequence, token: Sampled, max_model_len: usize) -> Vec<StreamEvent> {
    let token_id = token.token_id;
    let choice = sequence.choice;
    sequence.tokens.push(token_id);
    let mut events = vec![StreamEvent::Token { choice, token }];
    let rules = &sequence.rules;
    if rules.stop_token_ids.contains(&token_id) {
        events.push(StreamEvent::Finished {
            choice,
            reason: FinishReason::Stop,
        });
    } else if sequence.num_generated_tokens() >= rules.max_tokens
        || sequence.tokens.len() >= max_model_len
    {
        events.push(StreamEvent::Finished {
            choice,
            reason: FinishReason::Length,
        });
    }
    events
}
