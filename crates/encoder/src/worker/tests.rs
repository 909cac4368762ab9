//! The worker with a model that computes when it is told to.

use super::*;

/// Makes a batch panic.
const PANIC: u32 = 666;
/// Makes a batch fail.
const FAILURE: u32 = 667;
/// Makes a vector of no numbers.
const NAN: u32 = 668;

/// Reports the inputs of each batch and waits for leave to compute it.
struct Gated {
    started: Sender<Vec<u32>>,
    go: Receiver<()>,
}

impl Encode for Gated {
    fn encode(&mut self, inputs: &[&[u32]]) -> Result<Vec<Vec<f32>>, String> {
        let first: Vec<u32> = inputs.iter().map(|ids| ids[0]).collect();
        self.started.send(first.clone()).expect("the test listens");
        self.go.recv().expect("the test goes on");
        assert!(!first.contains(&PANIC), "asked for");
        if first.contains(&FAILURE) {
            return Err("asked for".into());
        }
        let vector = |ids: &&[u32]| match ids[0] {
            NAN => vec![f32::NAN],
            first => vec![first as f32, ids.len() as f32],
        };
        Ok(inputs.iter().map(vector).collect())
    }
}

struct Rig {
    handle: EncoderHandle,
    thread: JoinHandle<()>,
    started: Receiver<Vec<u32>>,
    go: Sender<()>,
    metrics: Metrics,
}

impl Rig {
    fn new(change: impl FnOnce(&mut EncoderConfig)) -> Self {
        let mut config = EncoderConfig {
            max_num_queued_reqs: 8,
            max_num_queued_tokens: 64,
            request_timeout: Duration::from_secs(600),
        };
        change(&mut config);
        let info = EncoderInfo {
            dimension: 2,
            max_tokens: 8,
            num_token_ids: 1000,
            is_matryoshka: false,
            batch_tokens: 4,
            pads: true,
            description: "gated".into(),
        };
        let metrics = Metrics::new("model");
        let ((started, starts), (go, gate)) = (channel(), channel());
        let model = Gated { started, go: gate };
        let (handle, thread) = spawn(config, info, metrics.clone(), model);
        Self {
            handle,
            thread,
            started: starts,
            go,
            metrics,
        }
    }

    fn submit(&self, inputs: &[&[u32]]) -> oneshot::Receiver<Vectors> {
        let inputs = inputs.iter().map(|ids| ids.to_vec()).collect();
        self.handle.submit(inputs).expect("the request is taken")
    }

    /// First ids of the inputs of the batch that has begun.
    fn batch(&self) -> Vec<u32> {
        self.started.recv().expect("the worker lives")
    }

    fn go(&self) {
        self.go.send(()).expect("the worker lives");
    }
}

fn answer(receiver: oneshot::Receiver<Vectors>) -> Vectors {
    receiver.blocking_recv().expect("every request is answered")
}

#[test]
fn vectors_come_in_the_order_of_the_inputs() {
    let rig = Rig::new(|_| {});
    let request = rig.submit(&[&[1], &[2, 2, 2], &[3, 3]]);
    assert_eq!(rig.batch(), [2]);
    rig.go();
    assert_eq!(rig.batch(), [3, 1]);
    rig.go();
    assert_eq!(
        answer(request),
        Ok(vec![vec![1.0, 1.0], vec![2.0, 3.0], vec![3.0, 2.0]])
    );
    assert_eq!(rig.metrics.embedding_inputs_total.get(), 3);
    assert_eq!(rig.metrics.prompt_tokens_total.get(), 6);
}

#[test]
fn a_small_request_does_not_wait_for_all_of_a_large_one() {
    let rig = Rig::new(|_| {});
    let large = rig.submit(&[&[1; 4], &[1; 4], &[1; 4], &[1; 4]]);
    assert_eq!(rig.batch(), [1]);
    let small = rig.submit(&[&[2; 4]]);
    rig.go();
    assert_eq!(rig.batch(), [1]);
    rig.go();
    assert_eq!(rig.batch(), [2]);
    rig.go();
    assert!(answer(small).is_ok());
    for _ in 0..2 {
        assert_eq!(rig.batch(), [1]);
        rig.go();
    }
    assert!(answer(large).is_ok());
}

#[test]
fn nobody_computes_for_a_client_that_has_left() {
    let rig = Rig::new(|_| {});
    let left = rig.submit(&[&[1; 4], &[1; 4], &[1; 4]]);
    assert_eq!(rig.batch(), [1]);
    let stays = rig.submit(&[&[2; 4]]);
    drop(left);
    rig.go();
    assert_eq!(rig.batch(), [2]);
    rig.go();
    assert!(answer(stays).is_ok());
}

#[test]
fn a_full_queue_refuses_with_its_limit() {
    let rig = Rig::new(|config| config.max_num_queued_reqs = 1);
    let running = rig.submit(&[&[1]]);
    assert_eq!(rig.batch(), [1]);
    let waiting = rig.submit(&[&[2]]);
    let refused = rig.handle.submit(vec![vec![3]]).map(|_| ());
    assert_eq!(refused, Err(SubmitError::QueueFull { max: 1 }));
    rig.go();
    rig.batch();
    rig.go();
    assert!(answer(running).is_ok() && answer(waiting).is_ok());

    let rig = Rig::new(|config| config.max_num_queued_tokens = 5);
    let running = rig.submit(&[&[1]]);
    assert_eq!(rig.batch(), [1]);
    // More than the limit, but nothing else waits.
    let waiting = rig.submit(&[&[2; 3], &[2; 3]]);
    let refused = rig.handle.submit(vec![vec![3]]).map(|_| ());
    assert_eq!(refused, Err(SubmitError::QueueTokensFull { max: 5 }));
    for _ in 0..2 {
        rig.go();
        rig.batch();
    }
    rig.go();
    assert!(answer(running).is_ok() && answer(waiting).is_ok());
}

#[test]
fn a_failed_batch_fails_its_requests_only() {
    for failing in [PANIC, FAILURE] {
        let rig = Rig::new(|_| {});
        // Two requests in the failing batch, one that waits.
        let first = rig.submit(&[&[1]]);
        assert_eq!(rig.batch(), [1]);
        let failed = rig.submit(&[&[failing; 2], &[5; 4]]);
        let with_it = rig.submit(&[&[6; 2]]);
        rig.go();
        assert!(answer(first).is_ok());
        assert_eq!(rig.batch(), [5]);
        rig.go();
        assert_eq!(rig.batch(), [6, failing]);
        let later = rig.submit(&[&[7]]);
        rig.go();
        assert_eq!(answer(failed), Err(EncodeError::Failed));
        assert_eq!(answer(with_it), Err(EncodeError::Failed));
        assert_eq!(rig.batch(), [7]);
        rig.go();
        assert!(answer(later).is_ok());
        assert_eq!(rig.metrics.panics_total.get(), u64::from(failing == PANIC));
    }
}

#[test]
fn what_is_no_number_is_an_error() {
    let rig = Rig::new(|_| {});
    let request = rig.submit(&[&[NAN]]);
    rig.batch();
    rig.go();
    assert_eq!(answer(request), Err(EncodeError::NotFinite));
}

#[test]
fn a_request_has_its_time() {
    let rig = Rig::new(|config| config.request_timeout = Duration::ZERO);
    let request = rig.submit(&[&[1]]);
    assert_eq!(answer(request), Err(EncodeError::Timeout));
}

#[test]
fn a_drain_lets_requests_finish_until_its_deadline() {
    let rig = Rig::new(|_| {});
    let (running, waiting) = (rig.submit(&[&[1; 4]]), rig.submit(&[&[2; 4]]));
    rig.batch();
    rig.handle.drain(Instant::now() + Duration::from_secs(600));
    let refused = rig.handle.submit(vec![vec![3]]).map(|_| ());
    assert_eq!(refused, Err(SubmitError::Draining));
    rig.go();
    rig.batch();
    rig.go();
    assert!(answer(running).is_ok() && answer(waiting).is_ok());
    rig.thread.join().expect("it ends well");
    assert!(!rig.handle.is_alive());

    let rig = Rig::new(|_| {});
    let (running, waiting) = (rig.submit(&[&[1; 4]]), rig.submit(&[&[2; 4]]));
    rig.batch();
    rig.handle.drain(Instant::now());
    rig.go();
    // What is computed at the deadline is handed out, the rest fails.
    assert!(answer(running).is_ok());
    assert_eq!(answer(waiting), Err(EncodeError::Draining));
    rig.thread.join().expect("it ends well");
}
