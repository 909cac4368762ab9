//! The engine thread: streams, cancellation, faults, admission, drain. Steps are held by gates and
//! waits are on events, never on time.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use metrics::Metrics;
use model::CausalLm;

use super::{config, greedy};
use crate::engine::PAUSED_TURN;
use crate::fake::{FakeModel, Fault};
use crate::request::{EngineConfig, EngineError, StreamEvent, SubmitError};
use crate::{Engine, EngineHandle, EngineStatus, TokenId, TokenStream};

struct Running {
    handle: EngineHandle,
    thread: JoinHandle<Result<(), std::convert::Infallible>>,
    metrics: Metrics,
}

fn start(config: EngineConfig, model: FakeModel) -> Running {
    let metrics = Metrics::new("fake");
    let factory = move || Ok(Box::new(model) as Box<dyn CausalLm>);
    let (handle, thread) = Engine::spawn(config, metrics.clone(), factory);
    wait(|| handle.status() == EngineStatus::Ready);
    Running {
        handle,
        thread,
        metrics,
    }
}

/// Without any patience: only an engine that serves can be stuck.
#[test]
fn an_engine_that_loads_is_not_stuck_however_long_it_takes() {
    let (load, loading) = channel::<()>();
    let factory = move || {
        loading.recv().expect("the test goes on");
        Ok::<_, ()>(Box::new(model()) as Box<dyn CausalLm>)
    };
    let (handle, thread) = Engine::spawn(config(), Metrics::new("fake"), factory);
    wait(|| handle.heartbeat_age() > Duration::ZERO);
    assert!(!handle.is_stuck(Duration::ZERO));
    load.send(()).expect("it waits");
    wait(|| handle.is_stuck(Duration::ZERO));
    handle.drain(Instant::now());
    thread.join().expect("no panic").expect("no failure");
    assert!(!handle.is_stuck(Duration::ZERO));
}

fn model() -> FakeModel {
    FakeModel::new(7, 50, 192, 32)
}

fn gated() -> (FakeModel, Sender<()>) {
    let (sender, gate) = channel();
    (model().with_gate(gate), sender)
}

/// Spins until a condition holds; the bound is reached only when it never will.
fn wait(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "a condition never came true"
        );
        std::thread::yield_now();
    }
}

fn collect(stream: &mut TokenStream) -> (Vec<TokenId>, Vec<StreamEvent>) {
    let (mut tokens, mut others) = (Vec::new(), Vec::new());
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::Token { token, .. } => tokens.push(token.token_id),
            other => others.push(other),
        }
    }
    (tokens, others)
}

#[test]
fn a_stream_carries_its_tokens_and_one_end() {
    let oracle = model();
    let running = start(config(), model());
    let mut stream = running
        .handle
        .submit(greedy(vec![1, 2, 3], 20))
        .expect("admitted");
    let (tokens, others) = collect(&mut stream);
    let mut history = vec![1, 2, 3];
    for _ in 0..20 {
        history.push(oracle.next_token(&history));
    }
    assert_eq!(tokens, history[3..]);
    assert_eq!(others.len(), 2, "{others:?}");
    assert!(matches!(
        others[0],
        StreamEvent::Started {
            num_cached_tokens: 0
        }
    ));
    assert!(matches!(others[1], StreamEvent::Finished { choice: 0, .. }));
}

#[test]
fn dropping_a_stream_frees_its_blocks() {
    let (model, gate) = gated();
    let running = start(config(), model);
    let mut stream = running
        .handle
        .submit(greedy(vec![1; 40], 100))
        .expect("admitted");
    gate.send(()).expect("the model waits");
    while !matches!(stream.blocking_recv(), Some(StreamEvent::Token { .. })) {}
    wait(|| running.metrics.kv_cache_blocks_used.get() == 2);
    drop(stream);
    drop(gate);
    wait(|| running.metrics.kv_cache_blocks_used.get() == 0);
    wait(|| running.metrics.requests_running.get() == 0);
}

#[test]
fn a_slow_reader_pauses_and_loses_nothing() {
    let running = start(config(), model());
    let mut slow = running
        .handle
        .submit(greedy(vec![1, 2, 3], 150))
        .expect("admitted");
    let mut quick = running
        .handle
        .submit(greedy(vec![1, 2, 3], 150))
        .expect("admitted");
    let (expected, _) = collect(&mut quick);
    assert_eq!(
        expected.len(),
        150,
        "the slow reader does not hold up the quick one"
    );
    assert_eq!(collect(&mut slow).0, expected);
}

#[test]
fn the_thread_rests_while_nothing_can_be_computed_and_only_then() {
    let config = EngineConfig {
        max_num_seqs: 1,
        ..config()
    };
    let (handle, messages) = EngineHandle::new(&config);
    let shared = Arc::clone(&handle.shared);
    shared.set_status(EngineStatus::Ready);
    let metrics = Metrics::new("fake");
    let mut engine = Engine::new(config, metrics, shared, messages, Box::new(model()));
    let submit = |request| handle.submit(request).expect("admitted");
    let mut slow = submit(greedy(vec![1, 2, 3], 150));
    let mut next = submit(greedy(vec![1], 2));
    for turns in 0.. {
        assert!(turns < 1000, "it looks again and again");
        assert!(engine.turn());
        if engine.rest().is_some() {
            break;
        }
    }
    assert_eq!(engine.rest(), Some(PAUSED_TURN));
    // Once somebody reads it goes on, and at last it waits for a message.
    let mut tokens = 0;
    while tokens < 150 {
        if let Some(StreamEvent::Token { .. }) = slow.blocking_recv() {
            tokens += 1;
        }
        if engine.rest() <= Some(PAUSED_TURN) {
            assert!(engine.turn());
        }
    }
    while engine.rest().is_none() {
        assert!(engine.turn());
    }
    assert!(engine.rest() > Some(PAUSED_TURN));
    assert_eq!(collect(&mut next).0.len(), 2);
}

#[test]
fn the_queue_is_bounded_exactly() {
    let (model, gate) = gated();
    let config = EngineConfig {
        max_num_seqs: 1,
        max_num_queued_reqs: 3,
        ..config()
    };
    let running = start(config, model);
    let mut first = running.handle.submit(greedy(vec![1], 2)).expect("admitted");
    assert!(matches!(
        first.blocking_recv(),
        Some(StreamEvent::Started { .. })
    ));
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            running
                .handle
                .submit(greedy(vec![1], 1))
                .expect("the queue has room")
        })
        .collect();
    let refused = running
        .handle
        .submit(greedy(vec![1], 1))
        .expect_err("the queue is full");
    assert_eq!(refused, SubmitError::QueueFull { max: 3 });
    drop(waiting);
    drop(gate);
    assert_eq!(collect(&mut first).0.len(), 2);
}

#[test]
fn tokens_in_the_queue_are_bounded_and_a_request_of_more_waits_alone() {
    let (model, gate) = gated();
    let config = EngineConfig {
        max_num_seqs: 1,
        max_num_queued_tokens: 10,
        ..config()
    };
    let running = start(config, model);
    let mut first = running.handle.submit(greedy(vec![1], 2)).expect("admitted");
    assert!(matches!(
        first.blocking_recv(),
        Some(StreamEvent::Started { .. })
    ));
    let submit = |num_tokens| running.handle.submit(greedy(vec![1; num_tokens], 1));
    let large = submit(11).expect("nothing else waits");
    let refused = submit(1).expect_err("more tokens than may wait");
    assert_eq!(refused, SubmitError::QueueTokensFull { max: 10 });
    drop((large, gate));
    assert_eq!(collect(&mut first).0.len(), 2);
    wait(|| submit(1).is_ok());
}

#[test]
fn hopeless_requests_are_refused_at_once() {
    let running = start(config(), model());
    let submit = |request| running.handle.submit(request).expect_err("refused");
    assert!(matches!(submit(greedy(vec![], 1)), SubmitError::Invalid(_)));
    assert!(matches!(
        submit(greedy(vec![50], 1)),
        SubmitError::Invalid(_)
    ));
    assert!(matches!(
        submit(greedy(vec![1; 193], 0)),
        SubmitError::ContextTooLong { prompt: 193, .. }
    ));
    assert!(matches!(
        submit(greedy(vec![1; 192], 1)),
        SubmitError::ContextTooLong { max_tokens: 1, .. }
    ));
    assert!(matches!(
        submit(greedy(vec![1], usize::MAX)),
        SubmitError::ContextTooLong { .. }
    ));
    let mut request = greedy(vec![1], 1);
    request.num_choices = 9;
    assert!(matches!(submit(request), SubmitError::Invalid(_)));
}

#[test]
fn a_panic_ends_its_step_and_the_engine_goes_on() {
    for fault in [Fault::Panic, Fault::Error, Fault::MissingRow] {
        let faulty = model().with_fault(3, fault);
        let observed = faulty.observed();
        let running = start(
            EngineConfig {
                max_num_seqs: 1,
                ..config()
            },
            faulty,
        );
        let mut hit = running
            .handle
            .submit(greedy(vec![1, 2], 20))
            .expect("admitted");
        let mut waiting = running
            .handle
            .submit(greedy(vec![1, 2], 20))
            .expect("admitted");
        let (tokens, others) = collect(&mut hit);
        assert_eq!(tokens.len(), 3, "{fault:?}");
        assert_eq!(
            others.last(),
            Some(&StreamEvent::Failed(EngineError::StepFailed))
        );
        assert_eq!(collect(&mut waiting).0.len(), 20, "what waited is kept");
        assert_eq!(running.metrics.engine_restarts_total.get(), 1);
        assert_eq!(observed.lock().expect("not poisoned").resets, 1);
        assert_eq!(running.handle.status(), EngineStatus::Ready);
    }
}

#[test]
fn a_lost_device_ends_every_stream_and_the_engine() {
    let running = start(config(), model().with_fault(2, Fault::Device));
    let mut stream = running
        .handle
        .submit(greedy(vec![1, 2], 20))
        .expect("admitted");
    assert_eq!(
        collect(&mut stream).1.last(),
        Some(&StreamEvent::Failed(EngineError::StepFailed))
    );
    running
        .thread
        .join()
        .expect("the thread ends in order")
        .expect("the factory succeeded");
    assert_eq!(running.handle.status(), EngineStatus::Dead);
    assert_eq!(
        running.handle.submit(greedy(vec![1], 1)).expect_err("dead"),
        SubmitError::Dead
    );
}

#[test]
fn a_drain_finishes_what_runs_and_fails_what_waits() {
    let (model, gate) = gated();
    let running = start(
        EngineConfig {
            max_num_seqs: 1,
            ..config()
        },
        model,
    );
    let mut runs = running.handle.submit(greedy(vec![1], 5)).expect("admitted");
    assert!(matches!(
        runs.blocking_recv(),
        Some(StreamEvent::Started { .. })
    ));
    let mut waits = running.handle.submit(greedy(vec![1], 5)).expect("admitted");
    running
        .handle
        .drain(Instant::now() + Duration::from_secs(3600));
    assert_eq!(running.handle.status(), EngineStatus::Draining);
    assert_eq!(
        running
            .handle
            .submit(greedy(vec![1], 1))
            .expect_err("draining"),
        SubmitError::Draining
    );
    drop(gate);
    assert_eq!(collect(&mut runs).0.len(), 5);
    assert_eq!(
        collect(&mut waits).1,
        [StreamEvent::Failed(EngineError::Draining)]
    );
    running
        .thread
        .join()
        .expect("the thread ends in order")
        .expect("the factory succeeded");
}

#[test]
fn a_drain_that_is_due_ends_what_runs() {
    let (model, gate) = gated();
    let running = start(config(), model);
    let mut stream = running
        .handle
        .submit(greedy(vec![1], 100))
        .expect("admitted");
    assert!(matches!(
        stream.blocking_recv(),
        Some(StreamEvent::Started { .. })
    ));
    running.handle.drain(Instant::now());
    drop(gate);
    assert_eq!(
        collect(&mut stream).1,
        [StreamEvent::Failed(EngineError::Draining)]
    );
    running
        .thread
        .join()
        .expect("the thread ends in order")
        .expect("the factory succeeded");
}

#[test]
fn finishing_one_choice_leaves_the_others() {
    let (model, gate) = gated();
    let running = start(config(), model);
    let mut request = greedy(vec![1, 2], 30);
    request.num_choices = 2;
    let mut stream = running.handle.submit(request).expect("admitted");
    gate.send(()).expect("the model waits");
    while !matches!(
        stream.blocking_recv(),
        Some(StreamEvent::Token { choice: 1, .. })
    ) {}
    stream.finish_choice(0);
    drop(gate);
    let (mut last, mut ended) = (0, Vec::new());
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::Token { choice: 1, .. } => last += 1,
            StreamEvent::Finished { choice, .. } => ended.push(choice),
            _ => {}
        }
    }
    assert_eq!(last, 29);
    assert_eq!(ended, [1]);
    wait(|| running.metrics.kv_cache_blocks_used.get() == 0);
}

#[test]
fn ending_a_choice_that_has_ended_leaves_the_others() {
    let mut request = greedy(vec![1, 2], 30);
    request.num_choices = 2;
    request.sampling.temperature = 1.0;
    let mut free = [Vec::new(), Vec::new()];
    let running = start(config(), model());
    let mut stream = running.handle.submit(request.clone()).expect("admitted");
    while let Some(event) = stream.blocking_recv() {
        if let StreamEvent::Token { choice, token } = event {
            free[choice].push(token.token_id);
        }
    }
    // A token that ends choice 0 and not choice 1.
    let stop = free[0].iter().find(|token| !free[1].contains(token));
    request.stop_token_ids = vec![*stop.expect("the choices differ")];

    let (model, gate) = gated();
    let running = start(config(), model);
    let mut stream = running.handle.submit(request).expect("admitted");
    let (mut last, mut ended) = (0, Vec::new());
    gate.send(()).expect("the model waits");
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::Token { choice: 0, .. } => {}
            StreamEvent::Token { .. } => last += 1,
            StreamEvent::Finished { choice, .. } => {
                ended.push(choice);
                stream.finish_choice(choice);
            }
            other => assert!(matches!(other, StreamEvent::Started { .. }), "{other:?}"),
        }
        // One step at a time: the message is there before the next one.
        gate.send(()).ok();
    }
    assert_eq!((last, ended), (30, vec![0, 1]));
}

#[test]
fn scoring_a_prompt_ends_every_choice() {
    let running = start(config(), model());
    let mut request = greedy(vec![1, 2, 3], 0);
    request.num_choices = 3;
    request.prompt_logprobs = Some(0);
    let mut stream = running.handle.submit(request).expect("admitted");
    let (tokens, others) = collect(&mut stream);
    assert!(tokens.is_empty());
    let ended = others.iter().filter_map(|event| match event {
        StreamEvent::Finished { choice, .. } => Some(*choice),
        _ => None,
    });
    assert_eq!(ended.collect::<Vec<_>>(), [0, 1, 2]);
    wait(|| running.metrics.kv_cache_blocks_used.get() == 0);
}
