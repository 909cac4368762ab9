//! The invariants of block books, fairness and equality, after every step of random programs.

use std::collections::BTreeMap;

use model::CausalLm;
use proptest::prelude::*;

use super::{config, greedy};
use crate::fake::FakeModel;
use crate::request::{EngineConfig, FinishReason, GenerateRequest, StreamEvent};
use crate::scheduler::Scheduler;
use crate::sequence::{RequestId, Sequence};
use crate::{SamplingParams, TokenId};

const VOCAB: usize = 50;
const MAX_LEN: usize = 192;
const STEP_LIMIT: usize = 5000;

/// What one request was told.
#[derive(Debug, Default, Clone, PartialEq)]
struct Told {
    started: usize,
    num_cached: usize,
    prompt: usize,
    tokens: BTreeMap<usize, Vec<TokenId>>,
    finished: BTreeMap<usize, FinishReason>,
}

/// Scheduler and model without a thread.
struct Simulation {
    scheduler: Scheduler,
    model: FakeModel,
    told: BTreeMap<RequestId, Told>,
    next: RequestId,
}

impl Simulation {
    fn new(config: &EngineConfig, num_blocks: usize) -> Self {
        Self::with_host_blocks(config, num_blocks, 0)
    }

    fn with_host_blocks(config: &EngineConfig, num_blocks: usize, num_host_blocks: usize) -> Self {
        let model = FakeModel::new(7, VOCAB, MAX_LEN, num_blocks).with_host_blocks(num_host_blocks);
        Self {
            scheduler: Scheduler::new(
                config,
                model.info(),
                config.max_num_batched_tokens.unwrap_or(1 << 20),
            ),
            model,
            told: BTreeMap::new(),
            next: 1,
        }
    }

    fn submit(&mut self, request: GenerateRequest) -> RequestId {
        let id = self.next;
        self.next += 1;
        self.scheduler.add(Sequence::new(id, request));
        self.told.insert(id, Told::default());
        id
    }

    fn step(&mut self) {
        let work = self.scheduler.schedule();
        self.hear(work.events);
        self.check();
        if work.batch.token_ids.is_empty() {
            assert!(
                self.scheduler.is_idle() || self.scheduler.sequences().any(|s| s.paused),
                "nothing moves"
            );
            return;
        }
        let output = self
            .model
            .forward(&work.batch, &work.samples)
            .expect("scheduled batches are valid");
        let events = self.scheduler.commit(output);
        self.hear(events);
        self.check();
    }

    fn check(&self) {
        let held: Vec<_> = self
            .scheduler
            .sequences()
            .flat_map(|s| s.blocks.iter().copied())
            .collect();
        self.scheduler.blocks().assert_consistent(held.iter());
        let swapped = self.scheduler.sequences().flat_map(|s| s.swapped.clone());
        self.scheduler.host().assert_consistent(swapped);
    }

    fn hear(&mut self, events: Vec<(RequestId, StreamEvent)>) {
        for (id, event) in events {
            let told = self.told.get_mut(&id).expect("events belong to requests");
            match event {
                StreamEvent::Started { num_cached_tokens } => {
                    if told.started == 0 {
                        told.num_cached = num_cached_tokens;
                    }
                    told.started += 1;
                }
                StreamEvent::Prompt(piece) => told.prompt += piece.len(),
                StreamEvent::Token { choice, token } => {
                    assert!(
                        !told.finished.contains_key(&choice),
                        "a token after the end"
                    );
                    told.tokens.entry(choice).or_default().push(token.token_id);
                }
                StreamEvent::Finished { choice, reason } => {
                    assert!(told.finished.insert(choice, reason).is_none(), "two ends");
                }
                StreamEvent::Failed(error) => panic!("{error}"),
            }
        }
    }

    fn run(&mut self) {
        for _ in 0..STEP_LIMIT {
            if self.scheduler.is_idle() {
                assert_eq!(self.scheduler.blocks().num_used(), 0, "blocks leak");
                return;
            }
            self.step();
        }
        panic!("starvation: {:?}", self.scheduler);
    }
}

/// The answer of each choice, computed without any engine.
fn expected(request: &GenerateRequest, choice: usize) -> Vec<TokenId> {
    let alone = EngineConfig {
        max_num_batched_tokens: None,
        enable_prefix_caching: false,
        ..config()
    };
    let mut simulation = Simulation::new(&alone, 64);
    let mut solo = request.clone();
    if request.num_choices == 1 || choice == 0 {
        solo.num_choices = 1;
    }
    let id = simulation.submit(solo);
    simulation.run();
    simulation.told[&id]
        .tokens
        .get(&choice)
        .cloned()
        .unwrap_or_default()
}

fn request() -> impl Strategy<Value = GenerateRequest> {
    let lengths = (1usize..100, 0usize..60, 1usize..4);
    (
        lengths,
        0u64..2,
        any::<bool>(),
        0u64..3,
        prop::option::of(0u32..3),
        any::<bool>(),
    )
        .prop_map(
            |((prompt, max_tokens, num_choices), family, sampled, seed, prompt_logprobs, stops)| {
                GenerateRequest {
                    // Two families of prompts share their beginnings.
                    prompt: (0..prompt as u64)
                        .map(|i| ((i * 7 + family * 13 + i / 40) % VOCAB as u64) as TokenId)
                        .collect(),
                    sampling: SamplingParams {
                        temperature: if sampled { 1.0 } else { 0.0 },
                        ..SamplingParams::default()
                    },
                    num_choices,
                    max_tokens: max_tokens.max(usize::from(prompt_logprobs.is_none())),
                    stop_token_ids: if stops { vec![3] } else { Vec::new() },
                    prompt_logprobs,
                    seed,
                    cache_salt: family,
                    ..greedy(Vec::new(), 0)
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn answers_do_not_depend_on_anything_else(
        requests in prop::collection::vec((request(), 0usize..6), 1..10),
        (num_blocks, num_host_blocks) in (6usize..24, 0usize..12),
        max_num_batched_tokens in prop_oneof![1usize..8, 30usize..70, Just(1000)],
        enable_prefix_caching in any::<bool>(),
    ) {
        let config = EngineConfig { max_num_batched_tokens: Some(max_num_batched_tokens), enable_prefix_caching, ..config() };
        let mut simulation = Simulation::with_host_blocks(&config, num_blocks, num_host_blocks);
        let mut ids = Vec::new();
        for (request, steps) in &requests {
            ids.push(simulation.submit(request.clone()));
            (0..*steps).for_each(|_| simulation.step());
        }
        simulation.run();
        for (id, (request, _)) in ids.iter().zip(&requests) {
            let told = &simulation.told[id];
            prop_assert_eq!(told.finished.len(), request.num_choices);
            prop_assert_eq!(told.prompt, request.prompt_logprobs.map_or(0, |_| request.prompt.len()));
            for choice in 0..told.finished.len() {
                let tokens = told.tokens.get(&choice).cloned().unwrap_or_default();
                prop_assert_eq!(&tokens, &expected(request, choice), "request {} choice {}", id, choice);
                prop_assert!(tokens.len() <= request.max_tokens);
            }
        }
    }

    #[test]
    fn cancelled_requests_leave_no_trace(
        requests in prop::collection::vec((request(), 0usize..8, any::<prop::sample::Index>()), 1..12),
        (num_blocks, num_host_blocks) in (6usize..24, 0usize..12),
    ) {
        let mut simulation =
            Simulation::with_host_blocks(&config(), num_blocks, num_host_blocks);
        let mut ids: Vec<RequestId> = Vec::new();
        for (request, steps, victim) in &requests {
            ids.push(simulation.submit(request.clone()));
            (0..*steps).for_each(|_| simulation.step());
            let victim = ids[victim.index(ids.len())];
            simulation.scheduler.remove(victim, None);
            simulation.check();
            let after = simulation.told[&victim].clone();
            simulation.step();
            prop_assert_eq!(&simulation.told[&victim], &after, "an event after the cancellation");
        }
        simulation.run();
    }
}

#[test]
fn cached_tokens_are_not_computed() {
    let prompt: Vec<TokenId> = (0..100).map(|i| i % 50).collect();
    let mut simulation = Simulation::new(&config(), 64);
    let first = simulation.submit(greedy(prompt.clone(), 5));
    simulation.run();
    let cold = simulation.scheduler.counts.computed_tokens;
    let second = simulation.submit(greedy(prompt, 5));
    simulation.run();
    let warm = simulation.scheduler.counts.computed_tokens - cold;
    let cached = simulation.told[&second].num_cached as u64;
    assert_eq!(cached, 96);
    assert_eq!(cold - warm, cached);
    assert_eq!(
        simulation.told[&first].tokens,
        simulation.told[&second].tokens
    );
    assert_eq!(simulation.scheduler.counts.prefix_hits, cached);
}

#[test]
fn a_small_pool_preempts_and_changes_nothing() {
    let mut simulation = Simulation::new(&config(), 7);
    let requests = crowd();
    let ids: Vec<_> = requests
        .iter()
        .map(|request| simulation.submit(request.clone()))
        .collect();
    simulation.run();
    assert!(
        simulation.scheduler.counts.preemptions > 0,
        "the pool was not small enough"
    );
    for (id, request) in ids.iter().zip(&requests) {
        assert_eq!(simulation.told[id].tokens[&0], expected(request, 0));
    }
}

/// Four requests that need more blocks than there are, without shared prefixes.
fn crowd() -> Vec<GenerateRequest> {
    (0..4)
        .map(|i| greedy((0..40).map(|t| (t + i) % 50).collect(), 100))
        .collect()
}

#[test]
fn what_is_swapped_out_is_not_computed_again() {
    let mut simulation = Simulation::with_host_blocks(&config(), 7, 16);
    let ids: Vec<_> = crowd().into_iter().map(|r| simulation.submit(r)).collect();
    simulation.run();
    let counts = simulation.scheduler.counts;
    assert!(counts.preemptions > 0, "the pool was not small enough");
    // Every token but the last of each answer, once.
    assert_eq!(counts.computed_tokens, 4 * (40 + 100 - 1));
    for (id, request) in ids.iter().zip(&crowd()) {
        assert_eq!(simulation.told[id].tokens[&0], expected(request, 0));
    }
}

/// A simulation with a request whose blocks are on the host, and which one.
fn swapped_out() -> (Simulation, RequestId) {
    let mut simulation = Simulation::with_host_blocks(&config(), 7, 16);
    crowd().into_iter().for_each(|request| {
        simulation.submit(request);
    });
    loop {
        simulation.step();
        let swapped = simulation
            .scheduler
            .sequences()
            .find(|s| !s.swapped.is_empty());
        if let Some(id) = swapped.map(|s| s.request) {
            return (simulation, id);
        }
    }
}

#[test]
fn who_does_not_read_is_not_computed_and_holds_nobody_up() {
    // The oldest has blocks that the others need, the other one is preempted meanwhile.
    for (slow, tokens, num_host_blocks) in [(0, 30, 0), (0, 30, 16), (2, 10, 0), (2, 10, 16)] {
        let mut simulation = Simulation::with_host_blocks(&config(), 7, num_host_blocks);
        let ids: Vec<_> = crowd().into_iter().map(|r| simulation.submit(r)).collect();
        let slow = ids[slow];
        while simulation.told[&slow].tokens.get(&0).map_or(0, Vec::len) < tokens {
            simulation.step();
        }
        let told = simulation.told[&slow].clone();
        for _ in 0..STEP_LIMIT {
            simulation.scheduler.set_paused(|id| id == slow);
            simulation.step();
        }
        assert_eq!(simulation.told[&slow], told);
        let ended = simulation.told.values().filter(|t| !t.finished.is_empty());
        assert_eq!(ended.count(), 3, "all others");
        simulation.scheduler.set_paused(|_| false);
        simulation.run();
        for (id, request) in ids.iter().zip(&crowd()) {
            assert_eq!(simulation.told[id].tokens[&0], expected(request, 0));
        }
    }
}

#[test]
fn a_request_cancelled_on_the_host_leaves_no_trace() {
    let (mut simulation, id) = swapped_out();
    assert!(simulation.scheduler.remove(id, None));
    simulation.check();
    simulation.run();
}

#[test]
fn what_was_on_the_host_is_computed_anew_after_a_reset() {
    let (mut simulation, id) = swapped_out();
    simulation
        .scheduler
        .reset(simulation.model.info(), config().enable_prefix_caching);
    simulation.model.reset().expect("resets");
    simulation.check();
    simulation.run();
    let request = &crowd()[id as usize - 1];
    assert_eq!(simulation.told[&id].tokens[&0], expected(request, 0));
}

#[test]
fn a_long_prompt_does_not_stop_decoding() {
    let mut simulation = Simulation::new(
        &EngineConfig {
            max_num_batched_tokens: Some(16),
            ..config()
        },
        64,
    );
    let decoding = simulation.submit(greedy(vec![1], 50));
    simulation.step();
    simulation.submit(greedy((0..150).map(|t| t % 50).collect(), 1));
    for step in 2..10 {
        simulation.step();
        assert_eq!(
            simulation.told[&decoding].tokens[&0].len(),
            step,
            "one token a step"
        );
    }
}

#[test]
fn choices_share_the_prompt() {
    let mut simulation = Simulation::new(&config(), 64);
    let mut request = greedy((0..50).collect(), 4);
    request.num_choices = 3;
    let id = simulation.submit(request);
    simulation.run();
    let told = &simulation.told[&id];
    assert_eq!(told.tokens.len(), 3);
    assert!(
        told.tokens
            .values()
            .all(|tokens| *tokens == told.tokens[&0]),
        "greedy choices are equal"
    );
    // The prompt once, then three more tokens for each of three choices.
    assert_eq!(simulation.scheduler.counts.computed_tokens, 50 + 3 * 3);
}

#[test]
fn non_finite_rows_fail_their_request_only() {
    let mut model = FakeModel::new(7, VOCAB, MAX_LEN, 64).with_poison(49);
    let mut scheduler = Scheduler::new(&config(), model.info(), 64);
    scheduler.add(Sequence::new(1, greedy(vec![1, 2, 49], 1)));
    scheduler.add(Sequence::new(2, greedy(vec![1, 2, 3], 1)));
    let work = scheduler.schedule();
    let events = scheduler.commit(
        model
            .forward(&work.batch, &work.samples)
            .expect("a valid batch"),
    );
    assert!(matches!(
        events[0],
        (1, StreamEvent::Failed(crate::EngineError::NonFiniteLogits))
    ));
    assert!(matches!(events[1], (2, StreamEvent::Token { .. })));
    assert!(matches!(events[2], (2, StreamEvent::Finished { .. })));
    assert!(scheduler.is_idle() && scheduler.blocks().num_used() == 0);
}

#[test]
fn end_tokens_are_banned_before_the_minimum() {
    let mut request = greedy(vec![1, 2], 40);
    request.stop_token_ids = (0..45).collect();
    request.end_token_ids.clone_from(&request.stop_token_ids);
    let mut simulation = Simulation::new(&config(), 64);
    let early = simulation.submit(request.clone());
    request.min_tokens = 10;
    let late = simulation.submit(request);
    simulation.run();
    assert!(simulation.told[&early].tokens[&0].len() < 10);
    let tokens = &simulation.told[&late].tokens[&0];
    assert!(
        tokens.len() > 10 && tokens[..10].iter().all(|token| *token >= 45),
        "{tokens:?}"
    );
}
