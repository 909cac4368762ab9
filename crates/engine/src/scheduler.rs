//! Which tokens are computed next. Every sequence owes tokens and each step pays some of them; there
//! are no phases. No I/O, no tensors, no clock.

mod commit;

use std::collections::VecDeque;

use backend::{Batch, BatchSequence, SampleBatch, SampleRow};

use crate::block_manager::BlockManager;
#[cfg(test)]
use crate::host_pool::HostPool;
use crate::kv_cache_manager::KvCacheManager;
use crate::request::{EngineConfig, StreamEvent};
use crate::sequence::{RequestId, Sequence};

/// Queues, blocks and limits.
#[derive(Debug)]
pub struct Scheduler {
    waiting: VecDeque<Sequence>,
    /// In order of arrival, the oldest first.
    running: Vec<Sequence>,
    cache: KvCacheManager,
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
            cache: KvCacheManager::new(info, config.enable_prefix_caching),
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
        self.cache.blocks()
    }

    /// The host blocks.
    #[cfg(test)]
    pub fn host(&self) -> &HostPool {
        self.cache.host()
    }

    /// Whether nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// All sequences, running ones first.
    #[cfg(test)]
    pub fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.running.iter().chain(&self.waiting)
    }

    /// Marks requests whose clients take no more for now. They are not computed, and give way to others.
    pub fn set_paused(&mut self, is_paused: impl Fn(RequestId) -> bool) {
        let all = self.running.iter_mut().chain(&mut self.waiting);
        all.for_each(|sequence| sequence.paused = is_paused(sequence.request));
    }

    /// Removes all sequences of a request, or one choice of it, and frees their blocks.
    ///
    /// Returns whether there was one.
    pub fn remove(&mut self, request: RequestId, choice: Option<usize>) -> bool {
        let before = self.running.len() + self.waiting.len();
        let cache = &mut self.cache;
        let mut stays = |s: &mut Sequence| {
            let goes = s.request == request && choice.is_none_or(|choice| s.choice == choice);
            if goes {
                cache.free(s);
            }
            !goes
        };
        self.running.retain_mut(&mut stays);
        self.waiting.retain_mut(&mut stays);
        self.running.len() + self.waiting.len() < before
    }

    /// Forgets the cache after a failed step: running sequences are gone, waiting ones start anew.
    pub fn reset(&mut self, info: &model::ModelInfo, caching: bool) {
        self.running.clear();
        self.scheduled.clear();
        self.waiting.iter_mut().for_each(Sequence::restart);
        self.cache = KvCacheManager::new(info, caching);
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
                if num_tokens > 0 && self.reserve(request, choice, num_tokens, &chosen) {
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
        if !work.batch.token_ids.is_empty() {
            work.batch.copies = self.cache.take_copies();
        }
        work
    }

    fn position(&self, request: RequestId, choice: usize) -> Option<usize> {
        self.running
            .iter()
            .position(|s| s.request == request && s.choice == choice)
    }

    /// Makes room for the next tokens of a running sequence, preempting others. False when the sequence
    /// itself had to go.
    fn reserve(
        &mut self,
        request: RequestId,
        choice: usize,
        num_tokens: usize,
        chosen: &[(RequestId, usize, usize)],
    ) -> bool {
        loop {
            let index = self
                .position(request, choice)
                .expect("the caller found it and it was not preempted");
            if self.cache.reserve(&mut self.running[index], num_tokens) {
                return true;
            }
            let victim = self.victim(chosen);
            self.preempt(victim);
            if victim == index {
                return false;
            }
        }
    }

    /// Who has to go when blocks run out: the youngest whose client does not read, else the youngest
    /// that has not been chosen for this step.
    fn victim(&self, chosen: &[(RequestId, usize, usize)]) -> usize {
        let is_chosen = |s: &Sequence| {
            chosen
                .iter()
                .any(|(r, c, _)| (*r, *c) == (s.request, s.choice))
        };
        self.running
            .iter()
            .rposition(|s| s.paused)
            .or_else(|| self.running.iter().rposition(|s| !is_chosen(s)))
            .expect("who asks for blocks is not chosen")
    }

    /// Puts a running sequence back to the head of the queue.
    fn preempt(&mut self, index: usize) {
        let mut sequence = self.running.remove(index);
        self.cache.swap_out(&mut sequence);
        self.counts.preemptions += 1;
        self.waiting.push_front(sequence);
    }

    /// Starts waiting sequences in order, while the whole of each fits. Those whose clients do not read
    /// hold up nobody.
    fn admit(
        &mut self,
        budget: &mut usize,
        chosen: &mut Vec<(RequestId, usize, usize)>,
        work: &mut Work,
    ) {
        while *budget > 0 {
            let num_running = self.num_running();
            let Some(next) = self.waiting.iter().position(|s| !s.paused) else {
                return;
            };
            let sequence = &mut self.waiting[next];
            if num_running + sequence.num_choices() > self.max_num_seqs {
                return;
            }
            let is_swapped = !sequence.swapped.is_empty();
            let Some(num_cached_tokens) = self.cache.restore(sequence) else {
                return;
            };
            let sequence = self.waiting.remove(next).expect("it was found there");
            if !is_swapped {
                self.counts.prefix_queries += sequence.tokens.len() as u64;
                self.counts.prefix_hits += num_cached_tokens as u64;
            }
            let num_tokens = sequence.num_owed_tokens().min(*budget);
            let (request, choice) = (sequence.request, sequence.choice);
            if sequence.num_generated_tokens() == 0 {
                work.events
                    .push((request, StreamEvent::Started { num_cached_tokens }));
            }
            let index = self.insert(sequence);
            let reserved = self.cache.reserve(&mut self.running[index], num_tokens);
            debug_assert!(reserved, "the whole sequence fits");
            *budget -= num_tokens;
            chosen.push((request, choice, num_tokens));
        }
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
}
