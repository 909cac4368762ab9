//! All sequences of a step go through the model together: steps and forward calls are the same number,
//! whatever the number of sequences.

use std::convert::Infallible;
use std::sync::mpsc::channel;
use std::time::Duration;

use engine::fake::FakeModel;
use engine::{Engine, EngineConfig, EngineStatus, GenerateRequest, SamplingParams};
use metrics::Metrics;
use model::CausalLm;

const NUM_REQUESTS: usize = 6;
const MAX_TOKENS: usize = 10;

#[test]
fn one_forward_computes_every_sequence_of_a_step() {
    let config = EngineConfig {
        max_num_seqs: NUM_REQUESTS,
        max_num_batched_tokens: Some(1024),
        max_num_queued_reqs: NUM_REQUESTS,
        max_num_queued_tokens: 1024,
        enable_prefix_caching: true,
        queue_timeout: Duration::from_secs(3600),
        request_timeout: Duration::from_secs(3600),
        stream_write_timeout: Duration::from_secs(3600),
    };
    let (gate, gated) = channel();
    let model = FakeModel::new(3, 50, 128, 64).with_gate(gated);
    let observed = model.observed();
    let metrics = Metrics::new("fake");
    let build = move || Ok::<_, Infallible>(Box::new(model) as Box<dyn CausalLm>);
    let (handle, _thread) = Engine::spawn(config, metrics.clone(), build);
    while handle.status() == EngineStatus::Loading {
        std::thread::yield_now();
    }
    let request = |i: usize, max_tokens| GenerateRequest {
        prompt: (0..10 + i as u32).collect(),
        sampling: SamplingParams::greedy(),
        num_choices: 1,
        max_tokens,
        min_tokens: 0,
        stop_token_ids: Vec::new(),
        end_token_ids: Vec::new(),
        prompt_logprobs: None,
        seed: 0,
        cache_salt: i as u64,
    };
    // The first step holds one sequence and waits at the gate until the others have been submitted.
    let mut streams = vec![handle.submit(request(0, 1)).expect("admitted")];
    streams.extend((1..NUM_REQUESTS).map(|i| {
        let stream = handle.submit(request(i, MAX_TOKENS));
        stream.expect("admitted")
    }));
    drop(gate);
    for mut stream in streams {
        while stream.blocking_recv().is_some() {}
    }
    let forwards = observed.lock().expect("not poisoned").forwards;
    assert_eq!(metrics.engine_steps_total.get(), forwards as u64);
    // Either the first step took the first sequence alone, or all came together.
    assert!(
        (MAX_TOKENS..=MAX_TOKENS + 1).contains(&forwards),
        "{forwards} forwards for {NUM_REQUESTS} sequences of {MAX_TOKENS} tokens"
    );
}
