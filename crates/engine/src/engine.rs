//! The engine thread: drain messages, schedule, one forward, commit. It owns scheduler, model and device.

mod observe;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backend::BackendError;
use metrics::Metrics;
use model::CausalLm;
use tokio::sync::mpsc::Sender;

use crate::handle::EngineHandle;
use crate::request::{EngineConfig, EngineError, GenerateRequest, StreamEvent};
use crate::scheduler::{Counts, Scheduler, Work};
use crate::sequence::{RequestId, Sequence};
use crate::shared::{EngineStatus, Shared};
use crate::step_size::{self, StepSize};

/// How long an idle loop waits before it shows that it is alive.
const IDLE_TURN: Duration = Duration::from_millis(500);
/// How often a loop looks again that can compute nothing before a client reads.
pub(crate) const PAUSED_TURN: Duration = Duration::from_millis(5);
/// More panics than this in [`PANIC_WINDOW`] end the engine.
const MAX_PANICS: usize = 5;
const PANIC_WINDOW: Duration = Duration::from_secs(60);

/// Everything that can wake the engine thread.
#[derive(Debug)]
pub(crate) enum Message {
    /// A new request.
    Submit {
        /// Its id.
        id: RequestId,
        /// What is asked.
        request: Box<GenerateRequest>,
        /// Where its events go.
        events: Sender<StreamEvent>,
    },
    /// A client left, or one choice is complete.
    Remove {
        /// The request.
        id: RequestId,
        /// The choice, or all.
        choice: Option<usize>,
    },
    /// The server shuts down.
    Drain {
        /// When what still runs is failed.
        deadline: Instant,
    },
}

/// One accepted request.
struct Client {
    events: Sender<StreamEvent>,
    submitted: Instant,
    started: Option<Instant>,
    full_since: Option<Instant>,
    num_choices: usize,
    num_prompt_tokens: usize,
    /// Choices that have not ended.
    open_choices: usize,
}

/// The engine, before and while it runs.
pub struct Engine {
    config: EngineConfig,
    metrics: Metrics,
    shared: Arc<Shared>,
    messages: Receiver<Message>,
    model: Box<dyn CausalLm>,
    scheduler: Scheduler,
    clients: HashMap<RequestId, Client>,
    deadline: Option<Instant>,
    /// The last turn found nothing to compute.
    is_blocked: bool,
    panics: Vec<Instant>,
    reported: Counts,
}

impl Engine {
    /// Starts the thread, which builds the model with `factory` and then serves. The thread ends after
    /// a drain, or when the device fails; it returns the error of the factory if that failed.
    pub fn spawn<E, F>(
        config: EngineConfig,
        metrics: Metrics,
        factory: F,
    ) -> (EngineHandle, JoinHandle<Result<(), E>>)
    where
        E: Send + 'static,
        F: FnOnce() -> Result<Box<dyn CausalLm>, E> + Send + 'static,
    {
        let (handle, messages) = EngineHandle::new(&config);
        let shared = Arc::clone(&handle.shared);
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || {
                let _dead_at_the_end = DeadAtTheEnd(Arc::clone(&shared));
                let model = factory()?;
                Self::new(config, metrics, shared, messages, model).run();
                Ok(())
            })
            .expect("the system can start one thread");
        (handle, thread)
    }

    /// An engine whose model is loaded, and which is not yet ready.
    pub(crate) fn new(
        config: EngineConfig,
        metrics: Metrics,
        shared: Arc<Shared>,
        messages: Receiver<Message>,
        mut model: Box<dyn CausalLm>,
    ) -> Self {
        let info = model.info().clone();
        metrics
            .kv_cache_blocks
            .set(i64::try_from(info.num_blocks).unwrap_or(i64::MAX));
        let step = match config.max_num_batched_tokens {
            Some(tokens) => StepSize { tokens, time: None },
            None => step_size::measure(&mut *model),
        };
        shared.step.set(step).expect("the engine is built once");
        shared
            .info
            .set(info.clone())
            .expect("the engine is built once");
        Self {
            scheduler: Scheduler::new(&config, &info, step.tokens),
            config,
            metrics,
            shared,
            messages,
            model,
            clients: HashMap::new(),
            deadline: None,
            is_blocked: false,
            panics: Vec::new(),
            reported: Counts::default(),
        }
    }

    fn run(mut self) {
        self.shared.beat();
        self.shared.set_status(EngineStatus::Ready);
        while self.turn() {}
        // Whoever reads of a failure on a stream must not be told that the server is ready.
        self.shared.set_status(EngineStatus::Dead);
        self.fail_all(EngineError::StepFailed);
        self.observe_state();
    }

    /// Messages, then one step. False when the engine must end.
    pub(crate) fn turn(&mut self) -> bool {
        self.shared.beat();
        let alive = self.receive();
        self.expire(Instant::now());
        if !alive || (self.deadline.is_some() && self.scheduler.is_idle()) {
            return false;
        }
        self.step()
    }

    /// How long the next turn may wait for a message.
    pub(crate) fn rest(&self) -> Option<Duration> {
        if self.scheduler.is_idle() {
            Some(IDLE_TURN)
        } else {
            self.is_blocked.then_some(PAUSED_TURN)
        }
    }

    /// Takes all messages, waiting for one when there is nothing to compute. False when nobody is left
    /// to send any.
    fn receive(&mut self) -> bool {
        let mut wait = self.rest();
        loop {
            let message = match wait.take() {
                Some(turn) => match self.messages.recv_timeout(turn) {
                    Ok(message) => message,
                    Err(RecvTimeoutError::Timeout) => return true,
                    Err(RecvTimeoutError::Disconnected) => return false,
                },
                None => match self.messages.try_recv() {
                    Ok(message) => message,
                    Err(std::sync::mpsc::TryRecvError::Empty) => return true,
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => return false,
                },
            };
            self.handle(message);
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Submit {
                id,
                request,
                events,
            } => {
                let client = Client {
                    events,
                    submitted: Instant::now(),
                    started: None,
                    full_since: None,
                    num_choices: request.num_choices,
                    num_prompt_tokens: request.prompt.len(),
                    open_choices: request.num_choices,
                };
                self.clients.insert(id, client);
                self.scheduler.add(Sequence::new(id, *request));
                if self.deadline.is_some() {
                    self.fail(id, EngineError::Draining);
                }
            }
            Message::Remove { id, choice: None } => self.forget(id),
            Message::Remove { id, choice } => {
                // A choice that had ended by itself is closed already.
                if self.scheduler.remove(id, choice) {
                    self.close_choice(id);
                }
            }
            Message::Drain { deadline } => {
                self.deadline = Some(
                    self.deadline
                        .map_or(deadline, |earlier| earlier.min(deadline)),
                );
                self.fail_where(EngineError::Draining, |client| client.started.is_none());
            }
        }
        self.observe_state();
    }

    /// Fails what waited, ran or stayed unread for too long.
    fn expire(&mut self, now: Instant) {
        let config = self.config.clone();
        let late =
            move |since: Instant, limit: Duration| now.saturating_duration_since(since) > limit;
        for client in self.clients.values_mut() {
            client.full_since = client.is_full().then(|| client.full_since.unwrap_or(now));
        }
        self.fail_where(EngineError::QueueTimeout, |c| {
            c.started.is_none() && late(c.submitted, config.queue_timeout)
        });
        self.fail_where(EngineError::RequestTimeout, |c| {
            late(c.submitted, config.request_timeout)
        });
        self.fail_where(EngineError::SlowReader, |c| {
            c.full_since
                .is_some_and(|s| late(s, config.stream_write_timeout))
        });
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.fail_all(EngineError::Draining);
        }
    }

    /// One step. False when the engine must end.
    fn step(&mut self) -> bool {
        let clients = &self.clients;
        self.scheduler
            .set_paused(|id| clients.get(&id).is_some_and(Client::is_full));
        let Work {
            batch,
            samples,
            events,
        } = self.scheduler.schedule();
        self.deliver(events);
        self.is_blocked = batch.token_ids.is_empty();
        if self.is_blocked {
            self.observe_state();
            return true;
        }
        let start = Instant::now();
        let (model, tokens) = (&mut self.model, batch.token_ids.len());
        let in_step = |tokens| self.shared.tokens_in_step.store(tokens, Ordering::Relaxed);
        in_step(tokens);
        let result = catch_unwind(AssertUnwindSafe(|| model.forward(&batch, &samples)));
        in_step(0);
        match result {
            Ok(Ok(output)) if output.rows.len() == samples.rows.len() => {
                self.observe_step(&batch, start.elapsed());
                let events = self.scheduler.commit(output);
                self.deliver(events);
                self.observe_state();
                true
            }
            Ok(Err(BackendError::Device(reason))) => {
                tracing::error!(%reason, "the device failed; the engine ends");
                false
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "a step failed");
                self.recover()
            }
            Ok(Ok(output)) => {
                tracing::error!(
                    rows = output.rows.len(),
                    expected = samples.rows.len(),
                    "a step gave wrong rows"
                );
                self.recover()
            }
            Err(_) => {
                tracing::error!("a step panicked");
                self.recover()
            }
        }
    }

    /// Fails what ran, keeps what waits, and builds the cache anew. False when this happens too often
    /// or cannot be done.
    fn recover(&mut self) -> bool {
        for id in self.scheduler.running_requests() {
            self.fail(id, EngineError::StepFailed);
        }
        let now = Instant::now();
        self.panics
            .retain(|panic| now.saturating_duration_since(*panic) < PANIC_WINDOW);
        self.panics.push(now);
        if self.panics.len() >= MAX_PANICS {
            tracing::error!(count = MAX_PANICS, "too many failed steps; the engine ends");
            return false;
        }
        let model = &mut self.model;
        match catch_unwind(AssertUnwindSafe(|| model.reset())) {
            Ok(Ok(())) => {}
            _ => return false,
        }
        self.scheduler
            .reset(self.model.info(), self.config.enable_prefix_caching);
        self.metrics.engine_restarts_total.inc();
        self.observe_state();
        true
    }

    fn deliver(&mut self, events: Vec<(RequestId, StreamEvent)>) {
        for (id, event) in events {
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            if matches!(event, StreamEvent::Started { .. }) {
                if client.started.is_some() {
                    continue;
                }
                client.started = Some(Instant::now());
                self.metrics
                    .request_queue_time_seconds
                    .observe(client.submitted.elapsed().as_secs_f64());
                self.shared
                    .leave_queue(client.num_choices, client.num_prompt_tokens);
            }
            let (ends_choice, ends_all) = (
                matches!(event, StreamEvent::Finished { .. }),
                matches!(event, StreamEvent::Failed(_)),
            );
            // A client that is gone has sent its cancellation already.
            client.events.try_send(event).ok();
            if ends_choice {
                self.close_choice(id);
            } else if ends_all {
                self.clients.remove(&id);
            }
        }
    }

    fn close_choice(&mut self, id: RequestId) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.open_choices = client.open_choices.saturating_sub(1);
            if client.open_choices == 0 {
                self.clients.remove(&id);
            }
        }
    }

    fn fail_where(&mut self, error: EngineError, is_affected: impl Fn(&Client) -> bool) {
        let mut ids: Vec<_> = self
            .clients
            .iter()
            .filter(|(_, client)| is_affected(client))
            .map(|(id, _)| *id)
            .collect();
        ids.sort_unstable();
        ids.into_iter().for_each(|id| self.fail(id, error));
    }

    fn fail_all(&mut self, error: EngineError) {
        self.fail_where(error, |_| true);
    }

    fn fail(&mut self, id: RequestId, error: EngineError) {
        if let Some(client) = self.clients.get(&id) {
            client.events.try_send(StreamEvent::Failed(error)).ok();
        }
        self.forget(id);
    }

    /// Removes every trace of a request.
    fn forget(&mut self, id: RequestId) {
        self.scheduler.remove(id, None);
        if let Some(client) = self.clients.remove(&id)
            && client.started.is_none()
        {
            self.shared
                .leave_queue(client.num_choices, client.num_prompt_tokens);
        }
    }
}

impl Client {
    /// Whether a step could yield more than there is room for: a token and an end for every choice, one
    /// piece of prompt scores, and a final failure.
    fn is_full(&self) -> bool {
        self.events.capacity() < 2 * self.num_choices + 2
    }
}

/// Says that the engine is gone, however its thread ends.
struct DeadAtTheEnd(Arc<Shared>);

impl Drop for DeadAtTheEnd {
    fn drop(&mut self) {
        self.0.set_status(EngineStatus::Dead);
    }
}
