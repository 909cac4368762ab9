//! Which tokens are computed next. Every sequence owes tokens and each step pays some of them; there
//! are no phases. No I/O, no tensors, no clock.

use std::collections::VecDeque;

use backend::{
    BLOCK_SIZE, Batch, BatchSequence, BlockCopy, BlockId, RowOutput, SampleBatch, SampleOutput,
    SampleRow, Sampled,
};

use crate::block_manager::BlockManager;
use crate::host_pool::HostPool;
use crate::request::{EngineConfig, EngineError, FinishReason, StreamEvent};
use crate::sequence::{RequestId, Sequence};

/// Queues, blocks and limits.
#[derive(Debug)]
pub struct Scheduler {
    waiting: VecDeque<Sequence>,
    /// In order of arrival, the oldest first.
    running: Vec<Sequence>,
    blocks: BlockManager,
    host: HostPool,
    /// Copies of steps that computed nothing; the next step makes them first.
    pending_copies: Vec<BlockCopy>,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
    max_model_len: usize,
    vocab_size: usize,
    /// What the last step computes, by index into `running`.
    scheduled: Vec<Scheduled>,
    /// Counts since the start.
    pub counts: Counts,
}

/// What happened so far; tests and metrics read it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sequences put back to waiting because blocks ran out.
    pub preemptions: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Prompt tokens found there.
    pub prefix_hits: u64,
    /// Tokens computed.
    pub computed_tokens: u64,
}

#[derive(Debug)]
struct Scheduled {
    index: usize,
    num_tokens: usize,
    /// Prompt positions scored by this step's first rows.
    num_scores: usize,
    /// Choices drawn by its last rows.
    num_draws: usize,
}

/// The input of one step.
#[derive(Debug, Default)]
pub struct Work {
    /// Tokens to compute.
    pub batch: Batch,
    /// Rows to sample.
    pub samples: SampleBatch,
    /// Events that scheduling itself caused: requests that started.
    pub events: Vec<(RequestId, StreamEvent)>,
}

impl Scheduler {
    /// Empty queues over the model's blocks, all free.
    pub fn new(
        config: &EngineConfig,
        info: &model::ModelInfo,
        max_num_batched_tokens: usize,
    ) -> Self {
        Self {
            waiting: VecDeque::new(),
            running: Vec::new(),
            blocks: BlockManager::new(info.num_blocks, config.enable_prefix_caching),
            host: HostPool::new(info.num_blocks, info.num_host_blocks),
            pending_copies: Vec::new(),
            max_num_seqs: config.max_num_seqs,
            max_num_batched_tokens,
            max_model_len: info.max_model_len,
            vocab_size: info.vocab_size,
            scheduled: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Appends a request to the waiting queue.
    pub fn add(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// Sequences being computed.
    pub fn num_running(&self) -> usize {
        self.running.iter().map(Sequence::num_choices).sum()
    }

    /// Sequences waiting.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The blocks.
    pub fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// The host blocks.
    #[cfg(test)]
    pub fn host(&self) -> &HostPool {
        &self.host
    }

    /// Whether nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// All sequences, running ones first.
    pub fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.running.iter().chain(&self.waiting)
    }

    /// Marks requests whose clients take no more for now.
    pub fn set_paused(&mut self, is_paused: impl Fn(RequestId) -> bool) {
        self.running
            .iter_mut()
            .for_each(|sequence| sequence.paused = is_paused(sequence.request));
    }

    /// Removes all sequences of a request, or one choice of it, and frees their blocks.
    ///
    /// Returns whether there was one.
    pub fn remove(&mut self, request: RequestId, choice: Option<usize>) -> bool {
        let before = self.running.len() + self.waiting.len();
        let gone =
            |s: &Sequence| s.request == request && choice.is_none_or(|choice| s.choice == choice);
        let mut index = 0;
        while index < self.running.len() {
            if gone(&self.running[index]) {
                let sequence = self.running.remove(index);
                self.free(&sequence);
            } else {
                index += 1;
            }
        }
        let host = &mut self.host;
        self.waiting.retain_mut(|sequence| {
            let gone = gone(sequence);
            if gone {
                host.give_back(std::mem::take(&mut sequence.swapped));
            }
            !gone
        });
        self.running.len() + self.waiting.len() < before
    }

    /// Forgets the cache after a failed step: running sequences are gone, waiting ones start anew.
    pub fn reset(&mut self, info: &model::ModelInfo, caching: bool) {
        self.running.clear();
        self.scheduled.clear();
        self.pending_copies.clear();
        self.waiting.iter_mut().for_each(Sequence::restart);
        self.blocks = BlockManager::new(info.num_blocks, caching);
        self.host = HostPool::new(info.num_blocks, info.num_host_blocks);
    }

    /// Requests that run.
    pub fn running_requests(&self) -> Vec<RequestId> {
        let mut requests: Vec<_> = self
            .running
            .iter()
            .map(|sequence| sequence.request)
            .collect();
        requests.dedup();
        requests
    }

    /// Chooses the next step's tokens: one per decoding sequence first, then prompts in order of
    /// arrival, then new requests, as far as the budget and the blocks go.
    pub fn schedule(&mut self) -> Work {
        let mut work = Work {
            samples: SampleBatch {
                rows: Vec::new(),
                vocab_size: self.vocab_size,
            },
            ..Work::default()
        };
        work.batch.copies.append(&mut self.pending_copies);
        let mut budget = self.max_num_batched_tokens;
        let preemptions = self.counts.preemptions;
        let mut chosen: Vec<(RequestId, usize, usize)> = Vec::new();
        for decoding in [true, false] {
            let candidates: Vec<(RequestId, usize)> = self
                .running
                .iter()
                .filter(|s| !s.paused && (s.num_owed_tokens() == 1) == decoding)
                .map(|s| (s.request, s.choice))
                .collect();
            for (request, choice) in candidates {
                let Some(index) = self.position(request, choice) else {
                    continue;
                };
                let num_tokens = self.running[index].num_owed_tokens().min(budget);
                if num_tokens > 0
                    && self.reserve(request, choice, num_tokens, &chosen, &mut work.batch.copies)
                {
                    budget -= num_tokens;
                    chosen.push((request, choice, num_tokens));
                }
            }
        }
        if self.counts.preemptions == preemptions {
            self.admit(&mut budget, &mut chosen, &mut work);
        }
        self.scheduled.clear();
        for (request, choice, num_tokens) in chosen {
            let index = self
                .position(request, choice)
                .expect("a chosen sequence is never preempted");
            self.lay_out(index, num_tokens, &mut work);
        }
        if work.batch.token_ids.is_empty() {
            self.pending_copies = std::mem::take(&mut work.batch.copies);
        }
        work
    }

    fn position(&self, request: RequestId, choice: usize) -> Option<usize> {
        self.running
            .iter()
            .position(|s| s.request == request && s.choice == choice)
    }

    /// Makes room for the next tokens of a running sequence, preempting the youngest that has not been
    /// chosen for this step. False when the sequence itself had to go, or must wait for a chosen one.
    fn reserve(
        &mut self,
        request: RequestId,
        choice: usize,
        num_tokens: usize,
        chosen: &[(RequestId, usize, usize)],
        copies: &mut Vec<BlockCopy>,
    ) -> bool {
        loop {
            let index = self
                .position(request, choice)
                .expect("the caller found it and it was not preempted");
            if self.try_reserve(index, num_tokens, copies) {
                return true;
            }
            let is_chosen = |s: &Sequence| {
                chosen
                    .iter()
                    .any(|(r, c, _)| (*r, *c) == (s.request, s.choice))
            };
            let victim = self
                .running
                .iter()
                .rposition(|s| !is_chosen(s))
                .expect("the sequence itself is not chosen");
            self.preempt(victim, copies);
            if victim == index {
                return false;
            }
        }
    }

    /// Takes the blocks for the next `num_tokens`, copying a shared block that would be written. Takes
    /// nothing when there are too few.
    fn try_reserve(
        &mut self,
        index: usize,
        num_tokens: usize,
        copies: &mut Vec<BlockCopy>,
    ) -> bool {
        let sequence = &self.running[index];
        let first = sequence.num_computed_tokens / BLOCK_SIZE;
        let needed = (sequence.num_computed_tokens + num_tokens).div_ceil(BLOCK_SIZE);
        let copied = sequence
            .blocks
            .get(first)
            .copied()
            .filter(|block| self.blocks.is_shared(*block));
        let missing = needed.saturating_sub(sequence.blocks.len());
        if missing + usize::from(copied.is_some()) > self.blocks.num_free() {
            return false;
        }
        let mut take = || self.blocks.allocate().expect("counted above");
        let fresh: Vec<_> = (0..missing).map(|_| take()).collect();
        if let Some(from) = copied {
            let to = self.blocks.allocate().expect("counted above");
            copies.push(BlockCopy { from, to });
            self.running[index].blocks[first] = to;
            self.blocks.release(from);
        }
        self.running[index].blocks.extend(fresh);
        true
    }

    /// Puts a running sequence back to the head of the queue. What it computed moves to the host; where
    /// there is no room it will be computed again.
    fn preempt(&mut self, index: usize, copies: &mut Vec<BlockCopy>) {
        let mut sequence = self.running.remove(index);
        self.free(&sequence);
        let num_computed = sequence.num_computed_tokens.div_ceil(BLOCK_SIZE);
        if let Some(host) = self.host.take(num_computed) {
            let pairs = sequence.blocks.iter().zip(&host);
            copies.extend(pairs.map(|(from, to)| BlockCopy {
                from: *from,
                to: *to,
            }));
            sequence.blocks.clear();
            sequence.swapped = host;
        } else {
            sequence.restart();
        }
        self.counts.preemptions += 1;
        self.waiting.push_front(sequence);
    }

    /// The tail goes first, so that the head of a prefix stays known the longest.
    fn free(&mut self, sequence: &Sequence) {
        sequence
            .blocks
            .iter()
            .rev()
            .for_each(|block| self.blocks.release(*block));
    }

    /// Starts waiting sequences in order, while the whole of each fits.
    fn admit(
        &mut self,
        budget: &mut usize,
        chosen: &mut Vec<(RequestId, usize, usize)>,
        work: &mut Work,
    ) {
        while let Some(sequence) = self.waiting.front() {
            if *budget == 0 || self.num_running() + sequence.num_choices() > self.max_num_seqs {
                return;
            }
            let cached = match sequence.rules.prompt_logprobs {
                Some(_) if sequence.num_scored_tokens + 1 < sequence.num_prompt_tokens => {
                    Vec::new()
                }
                _ => self
                    .blocks
                    .lookup(sequence.rules.cache_salt, &sequence.tokens),
            };
            let needed = sequence.tokens.len().div_ceil(BLOCK_SIZE) - cached.len();
            if needed + self.blocks.num_free_among(&cached) > self.blocks.num_free() {
                return;
            }
            let mut sequence = self.waiting.pop_front().expect("the queue has a front");
            let num_cached = cached.len() * BLOCK_SIZE;
            if sequence.swapped.is_empty() {
                self.counts.prefix_queries += sequence.tokens.len() as u64;
                self.counts.prefix_hits += num_cached as u64;
            }
            self.restore(&mut sequence, cached, &mut work.batch.copies);
            let num_tokens = sequence.num_owed_tokens().min(*budget);
            let (request, choice) = (sequence.request, sequence.choice);
            if sequence.num_generated_tokens() == 0 {
                work.events.push((
                    request,
                    StreamEvent::Started {
                        num_cached_tokens: num_cached,
                    },
                ));
            }
            let index = self.insert(sequence);
            let reserved = self.try_reserve(index, num_tokens, &mut work.batch.copies);
            debug_assert!(reserved, "the whole sequence fits");
            *budget -= num_tokens;
            chosen.push((request, choice, num_tokens));
        }
    }

    /// Gives a sequence that starts the blocks of what is computed already: those that the prefix cache
    /// knows, and new ones for what else was moved to the host.
    fn restore(
        &mut self,
        sequence: &mut Sequence,
        cached: Vec<BlockId>,
        copies: &mut Vec<BlockCopy>,
    ) {
        cached.iter().for_each(|block| self.blocks.hold(*block));
        let num_cached = cached.len() * BLOCK_SIZE;
        let last = cached.last().and_then(|block| self.blocks.prefix(*block));
        if let Some(prefix) = last
            && num_cached >= sequence.num_computed_tokens
        {
            sequence.prefix = prefix;
            sequence.num_computed_tokens = num_cached;
        }
        sequence.blocks = cached;
        let host = std::mem::take(&mut sequence.swapped);
        for from in host.iter().skip(sequence.blocks.len()) {
            let to = self.blocks.allocate().expect("the whole sequence fits");
            copies.push(BlockCopy { from: *from, to });
            sequence.blocks.push(to);
        }
        self.host.give_back(host);
    }

    /// Keeps `running` in order of arrival; request ids grow.
    fn insert(&mut self, sequence: Sequence) -> usize {
        let key = (sequence.request, sequence.choice);
        let index = self
            .running
            .partition_point(|s| (s.request, s.choice) < key);
        self.running.insert(index, sequence);
        index
    }

    fn lay_out(&mut self, index: usize, num_tokens: usize, work: &mut Work) {
        let sequence = &self.running[index];
        let (start, first_row) = (sequence.num_computed_tokens, work.batch.token_ids.len());
        let end = start + num_tokens;
        work.batch
            .token_ids
            .extend_from_slice(&sequence.tokens[start..end]);
        work.batch.sequences.push(BatchSequence {
            num_tokens,
            num_computed_tokens: start,
            block_table: sequence.blocks.clone(),
        });
        let mut row = |position: usize, row: SampleRow| {
            work.batch.logit_rows.push(first_row + position - start);
            work.samples.rows.push(row);
        };
        let mut num_scores = 0;
        if sequence.rules.prompt_logprobs.is_some() {
            for position in
                start.max(sequence.num_scored_tokens)..end.min(sequence.num_prompt_tokens - 1)
            {
                row(position, sequence.score_row(position));
                num_scores += 1;
            }
        }
        let draws = end == sequence.tokens.len() && sequence.rules.max_tokens > 0;
        let num_draws = if draws { sequence.num_choices() } else { 0 };
        for choice in sequence.choice..sequence.choice + num_draws {
            row(end - 1, sequence.draw_row(choice));
        }
        self.counts.computed_tokens += num_tokens as u64;
        self.scheduled.push(Scheduled {
            index,
            num_tokens,
            num_scores,
            num_draws,
        });
    }

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
            self.advance(index, scheduled.num_tokens);
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

    /// Counts computed tokens and remembers the blocks they fill.
    fn advance(&mut self, index: usize, num_tokens: usize) {
        let sequence = &mut self.running[index];
        let before = sequence.num_computed_tokens / BLOCK_SIZE;
        sequence.num_computed_tokens += num_tokens;
        for block in before..sequence.num_computed_tokens / BLOCK_SIZE {
            let tokens = &sequence.tokens[block * BLOCK_SIZE..(block + 1) * BLOCK_SIZE];
            sequence.prefix = self
                .blocks
                .remember(sequence.prefix, tokens, sequence.blocks[block]);
        }
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
            let mut fork = self.running[index].fork(self.running[index].choice + offset);
            fork.blocks
                .iter()
                .for_each(|block| self.blocks.hold(*block));
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
