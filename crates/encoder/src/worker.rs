//! The thread that computes. It owns the model; everything else talks to it by message.
//!
//! Each turn computes one batch and moves on to the next request, so a small request never waits for all
//! of a large one. A request whose receiver is gone is dropped before the next batch.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use metrics::Metrics;
use tokio::sync::oneshot;

use crate::batch::{Bounds, Lengths, take};

/// What the worker computes with.
pub trait Encode: Send {
    /// One vector for each input.
    ///
    /// # Errors
    /// What went wrong, for the log.
    fn encode(&mut self, inputs: &[&[u32]]) -> Result<Vec<Vec<f32>>, String>;
}

/// Facts about a loaded encoder.
#[derive(Debug, Clone)]
pub struct EncoderInfo {
    /// Features of a vector.
    pub dimension: usize,
    /// Tokens of an input at most.
    pub max_tokens: usize,
    /// Token ids are below it.
    pub num_token_ids: usize,
    /// The first features alone are a vector too.
    pub is_matryoshka: bool,
    /// Tokens computed together, padding included.
    pub batch_tokens: usize,
    /// Inputs of different lengths may be computed together.
    pub pads: bool,
    /// Architecture, pooling and normalisation in a few words.
    pub description: String,
}

/// How much may wait, and for how long.
#[derive(Debug, Clone)]
pub struct EncoderConfig {
    /// Requests that wait for their first batch.
    pub max_num_queued_reqs: usize,
    /// Tokens of such requests; one request alone may have more.
    pub max_num_queued_tokens: usize,
    /// Time from submission to the last vector.
    pub request_timeout: Duration,
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Too many requests wait.
    #[error("the queue is full: {max} embedding requests wait, which is the limit")]
    QueueFull {
        /// The limit.
        max: usize,
    },
    /// Too many tokens wait.
    #[error(
        "the queue is full: with this request, more than {max} tokens would wait for embeddings"
    )]
    QueueTokensFull {
        /// The limit.
        max: usize,
    },
    /// No new work is taken.
    #[error("no new embedding requests are taken")]
    Draining,
    /// The worker is gone.
    #[error("the thread of embeddings is gone")]
    Dead,
}

/// Why an accepted request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncodeError {
    /// A batch with one of its inputs failed.
    Failed,
    /// A vector has values that are no numbers.
    NotFinite,
    /// It took too long.
    Timeout,
    /// The server ended before it was done.
    Draining,
}

/// The vectors of a request in the order of its inputs.
pub type Vectors = Result<Vec<Vec<f32>>, EncodeError>;

enum Message {
    Submit(Job),
    Drain(Instant),
}

struct Job {
    inputs: Vec<Vec<u32>>,
    lengths: Lengths,
    vectors: Vec<Vec<f32>>,
    submitted: Instant,
    deadline: Instant,
    has_started: bool,
    num_tokens: usize,
    reply: oneshot::Sender<Vectors>,
}

#[derive(Default)]
struct Shared {
    waiting_requests: AtomicUsize,
    waiting_tokens: AtomicUsize,
    is_draining: AtomicBool,
    has_ended: AtomicBool,
}

/// A cheap handle on the worker.
#[derive(Clone)]
pub struct EncoderHandle {
    messages: Sender<Message>,
    shared: Arc<Shared>,
    config: Arc<EncoderConfig>,
    info: Arc<EncoderInfo>,
}

/// Starts the worker. It ends after [`EncoderHandle::drain`], or when every handle is gone.
///
/// # Panics
/// When the system gives no thread.
pub fn spawn(
    config: EncoderConfig,
    info: EncoderInfo,
    metrics: Metrics,
    model: impl Encode + 'static,
) -> (EncoderHandle, JoinHandle<()>) {
    let (messages, receiver) = channel();
    let shared = Arc::new(Shared::default());
    let worker = Worker {
        receiver,
        shared: Arc::clone(&shared),
        metrics,
        bounds: Bounds {
            tokens: info.batch_tokens,
            pads: info.pads,
        },
        jobs: VecDeque::new(),
        drain: None,
        model,
    };
    let thread = std::thread::Builder::new()
        .name("encoder".into())
        .spawn(move || worker.run())
        .expect("the system gives a thread");
    let handle = EncoderHandle {
        messages,
        shared,
        config: Arc::new(config),
        info: Arc::new(info),
    };
    (handle, thread)
}

impl EncoderHandle {
    /// Facts about the model.
    pub fn info(&self) -> &EncoderInfo {
        &self.info
    }

    /// Whether the worker is there.
    pub fn is_alive(&self) -> bool {
        !self.shared.has_ended.load(Ordering::Acquire)
    }

    /// Takes a request, or refuses it at once. Dropping the receiver cancels it. Inputs have at least one
    /// token, at most as many as the model takes, and ids below its bound.
    ///
    /// # Errors
    /// [`SubmitError`] names the limit that was reached.
    pub fn submit(&self, inputs: Vec<Vec<u32>>) -> Result<oneshot::Receiver<Vectors>, SubmitError> {
        if self.shared.is_draining.load(Ordering::Acquire) {
            return Err(SubmitError::Draining);
        }
        let num_tokens = inputs.iter().map(Vec::len).sum();
        self.reserve(num_tokens)?;
        let (reply, receiver) = oneshot::channel();
        let submitted = Instant::now();
        let job = Job {
            lengths: Lengths::new(inputs.iter().map(Vec::len)),
            vectors: vec![Vec::new(); inputs.len()],
            inputs,
            submitted,
            deadline: submitted + self.config.request_timeout,
            has_started: false,
            num_tokens,
            reply,
        };
        self.messages
            .send(Message::Submit(job))
            .map_err(|_| SubmitError::Dead)?;
        Ok(receiver)
    }

    fn reserve(&self, num_tokens: usize) -> Result<(), SubmitError> {
        let (max_requests, max_tokens) = (
            self.config.max_num_queued_reqs,
            self.config.max_num_queued_tokens,
        );
        let add = |counter: &AtomicUsize, amount: usize, fits: &dyn Fn(usize) -> bool| {
            counter.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
                fits(used).then_some(used + amount)
            })
        };
        add(&self.shared.waiting_requests, 1, &|used| {
            used < max_requests
        })
        .map_err(|_| SubmitError::QueueFull { max: max_requests })?;
        let fits = |used: usize| used == 0 || used.saturating_add(num_tokens) <= max_tokens;
        add(&self.shared.waiting_tokens, num_tokens, &fits).map_err(|_| {
            self.shared.waiting_requests.fetch_sub(1, Ordering::AcqRel);
            SubmitError::QueueTokensFull { max: max_tokens }
        })?;
        Ok(())
    }

    /// Takes no new requests from now on; those that are not done at the deadline fail then.
    pub fn drain(&self, deadline: Instant) {
        self.shared.is_draining.store(true, Ordering::Release);
        // A worker that is gone has nothing left to drain.
        self.messages.send(Message::Drain(deadline)).ok();
    }
}

struct Worker<E> {
    receiver: Receiver<Message>,
    shared: Arc<Shared>,
    metrics: Metrics,
    bounds: Bounds,
    jobs: VecDeque<Job>,
    drain: Option<Instant>,
    model: E,
}

impl<E: Encode> Worker<E> {
    fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        // Whatever happens below, nobody must wait for a thread that is gone.
        let ended = catch_unwind(AssertUnwindSafe(|| while self.turn() {}));
        shared.has_ended.store(true, Ordering::Release);
        if ended.is_err() {
            tracing::error!("the thread of embeddings panicked outside a batch; it ends");
        }
    }

    /// One batch, or a wait where there is nothing to do. Returns whether to go on.
    fn turn(&mut self) -> bool {
        if self.jobs.is_empty() && self.drain.is_none() {
            match self.receiver.recv() {
                Ok(message) => self.take(message),
                Err(_) => return false,
            }
        }
        while let Ok(message) = self.receiver.try_recv() {
            self.take(message);
        }
        self.drop_ended();
        let batch = take(
            self.jobs.iter_mut().map(|job| &mut job.lengths),
            self.bounds,
        );
        if !batch.is_empty() {
            self.compute(&batch);
        }
        self.finish();
        self.observe();
        !(self.jobs.is_empty() && self.drain.is_some())
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Submit(job) => self.jobs.push_back(job),
            // A second, nearer deadline wins.
            Message::Drain(deadline) => {
                self.drain = Some(self.drain.map_or(deadline, |known| known.min(deadline)));
            }
        }
    }

    /// Lets go of requests that nobody waits for, or that have had their time.
    fn drop_ended(&mut self) {
        let now = Instant::now();
        let is_over = self.drain.is_some_and(|deadline| now >= deadline);
        for _ in 0..self.jobs.len() {
            let Some(job) = self.jobs.pop_front() else {
                break;
            };
            let failure = match () {
                () if job.reply.is_closed() => None,
                () if is_over => Some(EncodeError::Draining),
                () if now >= job.deadline => Some(EncodeError::Timeout),
                () => {
                    self.jobs.push_back(job);
                    continue;
                }
            };
            self.leave_queue(&job);
            if let Some(failure) = failure {
                // Nobody may be waiting any more.
                job.reply.send(Err(failure)).ok();
            }
        }
    }

    fn leave_queue(&self, job: &Job) {
        if !job.has_started {
            self.shared.waiting_requests.fetch_sub(1, Ordering::AcqRel);
            self.shared
                .waiting_tokens
                .fetch_sub(job.num_tokens, Ordering::AcqRel);
        }
    }

    fn compute(&mut self, batch: &[(usize, usize)]) {
        let start = Instant::now();
        for (job, _) in batch {
            if !self.jobs[*job].has_started {
                self.leave_queue(&self.jobs[*job]);
                self.jobs[*job].has_started = true;
                let waited = start - self.jobs[*job].submitted;
                self.metrics
                    .embedding_queue_time_seconds
                    .observe(waited.as_secs_f64());
            }
        }
        self.observe();
        let inputs: Vec<&[u32]> = batch
            .iter()
            .map(|(job, i)| &self.jobs[*job].inputs[*i][..])
            .collect();
        let longest = inputs.iter().map(|ids| ids.len()).max().unwrap_or(0);
        let model = &mut self.model;
        let result = catch_unwind(AssertUnwindSafe(|| model.encode(&inputs)));
        let metrics = &self.metrics;
        metrics
            .embedding_batch_duration_seconds
            .observe(start.elapsed().as_secs_f64());
        metrics.embedding_batch_size.observe(batch.len() as f64);
        metrics
            .embedding_batch_tokens
            .observe((longest * batch.len()) as f64);
        match result {
            Ok(Ok(vectors)) if vectors.len() == batch.len() => {
                for ((job, input), vector) in batch.iter().zip(vectors) {
                    self.jobs[*job].vectors[*input] = vector;
                }
                // The next batch is led by the next request.
                self.jobs.rotate_left(1);
            }
            Ok(Ok(_)) => self.fail(batch, "wrong number of vectors"),
            Ok(Err(error)) => self.fail(batch, &error),
            Err(_) => {
                metrics.panics_total.inc();
                self.fail(batch, "a panic");
            }
        }
    }

    /// Ends the requests of a failed batch, and no others.
    fn fail(&mut self, batch: &[(usize, usize)], error: &str) {
        tracing::error!(error, inputs = batch.len(), "a batch of embeddings failed");
        let jobs = std::mem::take(&mut self.jobs).into_iter().enumerate();
        for (at, job) in jobs {
            if batch.iter().any(|(failed, _)| *failed == at) {
                // Nobody may be waiting any more.
                job.reply.send(Err(EncodeError::Failed)).ok();
            } else {
                self.jobs.push_back(job);
            }
        }
    }

    /// Answers requests of which everything is computed.
    fn finish(&mut self) {
        let jobs = std::mem::take(&mut self.jobs);
        for job in jobs {
            if !job.lengths.is_empty() {
                self.jobs.push_back(job);
                continue;
            }
            self.leave_queue(&job);
            let is_finite = job.vectors.iter().flatten().all(|x| x.is_finite());
            if is_finite {
                self.metrics
                    .embedding_inputs_total
                    .inc_by(job.inputs.len() as u64);
                self.metrics
                    .prompt_tokens_total
                    .inc_by(job.num_tokens as u64);
            }
            let vectors = if is_finite {
                Ok(job.vectors)
            } else {
                Err(EncodeError::NotFinite)
            };
            // Nobody may be waiting any more.
            job.reply.send(vectors).ok();
        }
    }

    fn observe(&self) {
        let running = self.jobs.iter().filter(|job| job.has_started).count();
        self.metrics.embedding_requests_running.set(running as i64);
        let waiting = self.shared.waiting_requests.load(Ordering::Acquire);
        self.metrics.embedding_requests_waiting.set(waiting as i64);
    }
}

#[cfg(test)]
mod tests;
