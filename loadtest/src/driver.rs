//! A run in motion: who may send the next request, what part of the run it belongs to, and the
//! records of those that ended. How arrivals come about is left to `closed` and `open`.

mod closed;
mod open;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::args::{Connections, Warmup};
use crate::arrival::Arrival;
use crate::clock::{Clock, Nanos};
use crate::content::Conversation;
use crate::effort::{Effort, Watch};
use crate::exchange::{Exchange, Timeouts, exchange};
use crate::give_up::{Early, GiveUp, Lookout, Overload};
use crate::observe::{StreamFacts, Window};
use crate::outcome::{End, Evidence, Outcome, classify};
use crate::record::{Phase, Reach, RequestRecord};
use crate::slo::Slo;
use crate::target::Target;
use crate::transport::Connection;
use crate::workload::{PlannedRequest, Workload};

/// An end of the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    /// Its beginning.
    Start,
    /// Its end, where it is bounded by time.
    End,
}

/// Answers, from the beginning of the window, whose texts are kept to be made tokens again.
const SAMPLED_TEXTS: u64 = 32;
/// Who finds no connection waits this long, so that a dead server is not hammered.
const PAUSE_WITHOUT_CONNECTION: Duration = Duration::from_millis(100);

/// What a run needs to know.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How requests arrive.
    pub arrival: Arrival,
    /// What goes before the window.
    pub warmup: Warmup,
    /// Measured requests after which no more are sent.
    pub requests: Option<u64>,
    /// Requests that leave in the time that the rate says, where their number is to be exact.
    pub exact_count: Option<u64>,
    /// Length of the window.
    pub duration: Option<Duration>,
    /// Time over which the users of a closed loop start.
    pub ramp_up: Duration,
    /// Time limits of a request.
    pub timeouts: Timeouts,
    /// What becomes of connections.
    pub connections: Connections,
    /// How often a request that failed before its first token is sent again.
    pub retries: u32,
    /// Whether the texts of some answers are kept.
    pub samples_texts: bool,
    /// Objectives without whose hope the run ends early.
    pub gives_up_on: Option<Slo>,
}

/// A run in motion.
pub struct Run {
    /// Clock of every time in the run.
    pub clock: Clock,
    plan: Plan,
    targets: Vec<Target>,
    workload: Workload,
    window: Window,
    state: Mutex<State>,
    changed: Notify,
    stop: watch::Sender<bool>,
    counts: Counts,
    give_up: Option<GiveUp>,
    overload: OnceLock<Overload>,
}

/// Running totals for the progress display.
#[derive(Debug, Default)]
pub struct Counts {
    /// Measured requests that ended.
    pub measured: AtomicU64,
    /// Requests of any phase that ended.
    pub ended: AtomicU64,
    /// Requests of any phase that failed.
    pub failed: AtomicU64,
    /// Generated tokens of all phases.
    pub output_tokens: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// Planned start of the first request.
    begun: Option<Nanos>,
    issued: u64,
    measured_issued: u64,
    measured_open: u64,
    records: Vec<RequestRecord>,
    /// Attempts that were followed by another.
    retried: Vec<RequestRecord>,
}

/// Leave to send request `index`.
#[derive(Debug, Clone, Copy)]
struct Ticket {
    index: u64,
    phase: Phase,
    /// Whether the text of the answer is kept.
    is_sampled: bool,
}

/// A request about to be sent: its leave, its plan, and where it belongs.
#[derive(Debug, Clone, Copy)]
struct Errand {
    ticket: Ticket,
    t_plan: Nanos,
    conversation: u64,
    turn: u32,
    content: usize,
    server: usize,
    keeps_text: bool,
}

/// A conversation whose first request is ready.
#[derive(Debug)]
struct Opening {
    conversation: Conversation,
    first: PlannedRequest,
}

/// The connections of a user, one for each server that was asked.
struct Slots(Vec<Option<Connection>>);

/// What a finished run leaves.
#[derive(Debug)]
pub struct RunResult {
    /// Every request in the order of their numbers.
    pub records: Vec<RequestRecord>,
    /// The window `[w0, w1)`: until `w1` by duration, else until the last measured request ended.
    pub window: (Nanos, Nanos),
    /// The run was stopped from outside, or given up.
    pub stopped: bool,
    /// Why it was given up.
    pub gave_up: Option<Early>,
    /// What it took from the client's machine.
    pub effort: Effort,
}

impl Run {
    /// A run that has not started. Conversations go to `targets` in turn.
    pub fn new(plan: Plan, targets: Vec<Target>, workload: Workload, clock: Clock) -> Arc<Self> {
        assert!(!targets.is_empty(), "a run has a server");
        let give_up = plan
            .gives_up_on
            .and_then(|slo| GiveUp::new(slo, &plan, &workload));
        Arc::new(Self {
            clock,
            give_up,
            overload: OnceLock::new(),
            plan,
            targets,
            workload,
            window: Window::default(),
            state: Mutex::default(),
            changed: Notify::new(),
            stop: watch::Sender::new(false),
            counts: Counts::default(),
        })
    }

    /// Sends the whole load and waits until every answer has ended.
    pub async fn run(self: &Arc<Self>) -> RunResult {
        let watch = Watch::start(self.clock);
        let load = async {
            match self.plan.arrival {
                Arrival::Closed { users } => closed::run(self, users).await,
                arrival => open::run(self, arrival).await,
            }
        };
        tokio::select! {
            biased;
            () = load => {}
            () = self.look_out() => unreachable!("the load is looked at until it ends"),
        }
        let effort = watch.end().await;
        let mut records = std::mem::take(&mut self.state().retried);
        records.append(&mut self.state().records);
        // Attempts in their order, the last one last.
        records.sort_by_key(|record| record.index);
        let measured = records
            .iter()
            .filter(|record| record.phase == Phase::Measured);
        // The window is half open, and the last end belongs to it.
        let last_end = measured.map(|record| record.t_end + 1).max();
        let start = self.window.start().unwrap_or_else(|| self.clock.now());
        let stopped = *self.stop.borrow();
        let end = if stopped {
            last_end
        } else {
            self.window.end().or(last_end)
        };
        RunResult {
            records,
            window: (start, end.unwrap_or(start)),
            stopped,
            gave_up: self.gave_up(),
            effort,
        }
    }

    /// Why the run was given up, where it was.
    fn gave_up(&self) -> Option<Early> {
        let bound = self.give_up.as_ref().and_then(GiveUp::reached);
        let overload = self.overload.get().copied();
        bound
            .map(Early::OutOfReach)
            .or(overload.map(Early::Overload))
    }

    /// Ends a run that may give up once the server falls behind; a closed loop holds its load back instead.
    async fn look_out(&self) {
        let is_watched = self.plan.gives_up_on.is_some();
        if !is_watched || matches!(self.plan.arrival, Arrival::Closed { .. }) {
            std::future::pending::<()>().await;
        }
        let mut lookout = Lookout::default();
        let mut ticks = tokio::time::interval(Lookout::EVERY);
        loop {
            ticks.tick().await;
            let (Some(start), now) = (self.window.start(), self.clock.now()) else {
                continue;
            };
            let in_flight = self.in_flight();
            let found = lookout.look((start, now), in_flight, &self.state().records);
            if let Some(overload) = found {
                let is_open = self.window.end().is_none_or(|end| now < end);
                if is_open && self.overload.set(overload).is_ok() {
                    self.stop();
                }
            }
        }
    }

    /// Ends the run at once: requests in flight become unfinished.
    pub fn stop(&self) {
        self.stop.send_replace(true);
        self.changed.notify_waiters();
    }

    /// Running totals.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The window as far as it is known.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Waits for an end of the window; for none, or one that is not bounded by time, for ever.
    pub async fn edge(&self, edge: Option<Edge>) {
        loop {
            let changed = self.changed.notified();
            match (edge, self.window.start(), self.window.end()) {
                (Some(Edge::Start), Some(_), _) => return,
                (Some(Edge::End), _, Some(end)) => {
                    return tokio::time::sleep_until(self.clock.instant(end)).await;
                }
                (None, ..) => std::future::pending().await,
                _ => changed.await,
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // No code panics while it holds the lock half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives leave for a request planned at `t_plan`, or none when the run is over.
    fn issue(&self, t_plan: Nanos) -> Option<Ticket> {
        let mut state = self.state();
        state.begun.get_or_insert(t_plan);
        let phase = self.next_phase(&state, t_plan)?;
        if phase == Phase::Measured {
            if state.measured_issued == 0 {
                let length = self
                    .plan
                    .duration
                    .map(|d| Nanos::try_from(d.as_nanos()).unwrap_or(Nanos::MAX));
                self.window
                    .open(t_plan, length.map(|l| t_plan.saturating_add(l)));
                self.changed.notify_waiters();
            }
            state.measured_issued += 1;
            state.measured_open += 1;
        }
        let index = state.issued;
        state.issued += 1;
        let is_sampled = self.plan.samples_texts
            && phase == Phase::Measured
            && state.measured_issued <= SAMPLED_TEXTS;
        Some(Ticket {
            index,
            phase,
            is_sampled,
        })
    }

    fn next_phase(&self, state: &State, t_plan: Nanos) -> Option<Phase> {
        if *self.stop.borrow()
            || self
                .plan
                .requests
                .is_some_and(|max| state.measured_issued >= max)
        {
            return None;
        }
        let is_early = match self.plan.warmup {
            Warmup::Requests(requests) => state.issued < requests,
            // Once the window is open, no later leave falls before it.
            Warmup::Time(time) => {
                let begun = state.begun.unwrap_or(t_plan);
                state.measured_issued == 0
                    && u128::from(t_plan - begun.min(t_plan)) < time.as_nanos()
            }
        };
        if is_early {
            return Some(Phase::Warmup);
        }
        if self.window.end().is_none_or(|end| t_plan < end) {
            return Some(Phase::Measured);
        }
        (state.measured_open > 0).then_some(Phase::Background)
    }

    /// Whether no further request will be given leave.
    fn is_over(&self) -> bool {
        self.next_phase(&self.state(), self.clock.now()).is_none()
    }

    /// Waits until no further request will be given leave.
    async fn all_issued(&self) {
        loop {
            let changed = self.changed.notified();
            if self.is_over() {
                return;
            }
            let now = self.clock.now();
            match self.window.end().filter(|end| *end > now) {
                Some(end) => {
                    let _ = tokio::time::timeout_at(self.clock.instant(end), changed).await;
                }
                None => changed.await,
            }
        }
    }

    /// Requests that were given leave and have not ended.
    fn in_flight(&self) -> usize {
        let state = self.state();
        usize::try_from(state.issued).unwrap_or(usize::MAX) - state.records.len()
    }

    fn opening(&self, number: u64) -> Opening {
        let conversation = self.workload.conversation(number);
        Opening {
            first: self.workload.planned(&conversation, &[]),
            conversation,
        }
    }

    fn server_of(&self, conversation: u64) -> usize {
        usize::try_from(conversation % self.targets.len() as u64).expect("it is an index")
    }

    /// Connections for a user who begins now, as far as they can be opened. One that cannot fails
    /// again, and is recorded, with its first request.
    async fn slots(&self) -> Slots {
        let mut slots = Vec::new();
        for server in 0..self.targets.len() {
            slots.push(match self.plan.connections {
                Connections::Warm => self.connect(server).await.ok(),
                Connections::Cold => None,
            });
        }
        Slots(slots)
    }

    /// Performs a conversation to its end, or to the first answer that failed. Later turns are planned
    /// at the end of the answer before them plus the pause.
    async fn converse(
        &self,
        slots: &mut Slots,
        mut ticket: Ticket,
        mut t_plan: Nanos,
        opening: Opening,
    ) {
        let Opening {
            conversation,
            first: mut planned,
        } = opening;
        let server = self.server_of(conversation.number);
        let mut answers = Vec::new();
        loop {
            let errand = Errand {
                ticket,
                t_plan,
                conversation: conversation.number,
                turn: u32::try_from(answers.len()).unwrap_or(u32::MAX),
                content: conversation.content,
                server,
                keeps_text: ticket.is_sampled || answers.len() + 1 < conversation.turns.len(),
            };
            let Some((answer, t_end)) = self.perform(slots, errand, &planned).await else {
                return;
            };
            answers.push(answer);
            let Some(next) = conversation.turns.get(answers.len()) else {
                return;
            };
            planned = self.workload.planned(&conversation, &answers);
            // A user who does not think is ready when the question is written.
            t_plan = match next.think {
                0 => self.clock.now(),
                think => t_end + think,
            };
            self.pause_until(t_plan).await;
            match self.issue(t_plan) {
                Some(next) => ticket = next,
                None => return,
            }
        }
    }

    /// Waits until `t`, or until no further request will be given leave.
    async fn pause_until(&self, t: Nanos) {
        // The runtime's timer wakes up to a millisecond late, so the last millisecond is spun away.
        let early = self.clock.instant(t.saturating_sub(1_000_000));
        tokio::select! {
            () = tokio::time::sleep_until(early) => {}
            () = self.all_issued() => return,
        }
        while self.clock.now() < t {
            tokio::task::yield_now().await;
        }
    }

    /// Performs a request on the user's connection, which is opened if need be and dropped when it
    /// cannot carry another request, and keeps its record. Returns the text, as far as it is wanted,
    /// and the end of a success.
    async fn perform(
        &self,
        slots: &mut Slots,
        errand: Errand,
        planned: &PlannedRequest,
    ) -> Option<(String, Nanos)> {
        let mut stop = self.stop.subscribe();
        let slot = &mut slots.0[errand.server];
        let began = self.clock.now();
        let mut left = self.plan.retries;
        let mut record = loop {
            // What went before this attempt is no delay of the client's own.
            let before = self.clock.now() - began;
            let attempt = tokio::select! {
                biased;
                attempt = self.attempt(slot, &errand, planned) => attempt,
                _ = stop.wait_for(|stop| *stop) => Attempt::without_answer(End::Stopped),
            };
            if attempt.exchange.end != End::Complete || self.plan.connections == Connections::Cold {
                *slot = None;
            }
            let mut record = self.record(&errand, planned, attempt);
            record.excused += before;
            if left == 0 || !record.may_be_retried() {
                break record;
            }
            left -= 1;
            if record.outcome == Outcome::Connect {
                tokio::time::sleep(PAUSE_WITHOUT_CONNECTION).await;
            }
            record.phase = Phase::Retried;
            self.state().retried.push(record);
        };
        let text = std::mem::take(&mut record.stream.text);
        record.text = errand.ticket.is_sampled.then(|| text.clone());
        let answer = record.outcome.is_success().then_some((text, record.t_end));
        self.keep(record);
        answer
    }

    /// Sends a request, once more only if a reused connection turns out to have been closed.
    async fn attempt(
        &self,
        slot: &mut Option<Connection>,
        errand: &Errand,
        planned: &PlannedRequest,
    ) -> Attempt {
        let mut connect = 0;
        let mut reconnects = 0;
        loop {
            let is_open = match slot {
                Some(connection) => connection.is_ready().await,
                None => false,
            };
            if !is_open {
                let started = self.clock.now();
                match self.connect(errand.server).await {
                    Ok(connection) => *slot = Some(connection),
                    Err(reason) => {
                        *slot = None;
                        return Attempt {
                            connect,
                            reconnects,
                            ..Attempt::without_answer(End::NoConnection(reason))
                        };
                    }
                }
                connect += self.clock.now() - started;
            }
            let connection = slot.as_mut().expect("a connection was just opened");
            let request =
                self.targets[errand.server].post(self.workload.api.path(), planned.body.clone());
            let exchange = exchange(
                connection,
                request,
                &self.plan.timeouts,
                self.clock,
                &self.window,
                errand.keeps_text,
            )
            .await;
            if !exchange.stale_connection {
                return Attempt {
                    exchange,
                    connect,
                    reconnects,
                };
            }
            *slot = None;
            reconnects += 1;
        }
    }

    async fn connect(&self, server: usize) -> Result<Connection, String> {
        tokio::time::timeout(self.plan.timeouts.connect, self.targets[server].connect())
            .await
            .unwrap_or_else(|_| Err("no connection in time".into()))
    }

    fn record(&self, errand: &Errand, planned: &PlannedRequest, attempt: Attempt) -> RequestRecord {
        let Attempt {
            exchange,
            connect,
            reconnects,
        } = attempt;
        let (outcome, detail) = classify(&Evidence {
            end: &exchange.end,
            status: exchange.status,
            error_body: &exchange.error_body,
            stream: &exchange.stream,
            asked_output_tokens: planned.output_tokens,
        });
        RequestRecord {
            index: errand.ticket.index,
            conversation: errand.conversation,
            turn: errand.turn,
            content: errand.content,
            server: errand.server,
            phase: errand.ticket.phase,
            t_plan: errand.t_plan,
            t_send: exchange.t_send,
            t_head: exchange.t_head,
            t_end: exchange.stream.t_done.unwrap_or_else(|| self.clock.now()),
            connect,
            excused: match self.plan.connections {
                Connections::Warm => 0,
                Connections::Cold => connect,
            },
            asked_prompt_tokens: planned.prompt_tokens,
            asked_output_tokens: planned.output_tokens,
            status: exchange.status,
            reach: reach(&exchange),
            outcome,
            detail,
            reconnects,
            text: None,
            stream: exchange.stream,
        }
    }

    fn keep(&self, record: RequestRecord) {
        let is_measured = record.phase == Phase::Measured;
        let add = |counter: &AtomicU64, n| counter.fetch_add(n, Ordering::Relaxed);
        add(&self.counts.ended, 1);
        add(&self.counts.measured, u64::from(is_measured));
        add(&self.counts.failed, u64::from(!record.outcome.is_success()));
        add(&self.counts.output_tokens, record.output_tokens());
        let is_hopeless = is_measured && self.give_up.as_ref().is_some_and(|g| g.note(&record));
        let mut state = self.state();
        state.measured_open -= u64::from(is_measured);
        state.records.push(record);
        drop(state);
        if is_hopeless {
            self.stop();
        }
        self.changed.notify_waiters();
    }
}

/// An exchange and what it took to get a connection for it.
struct Attempt {
    exchange: Exchange,
    connect: Nanos,
    reconnects: u32,
}

impl Attempt {
    fn without_answer(end: End) -> Self {
        let exchange = Exchange {
            t_send: None,
            t_head: None,
            status: None,
            end,
            error_body: Vec::new(),
            stream: StreamFacts::default(),
            stale_connection: false,
        };
        Self {
            exchange,
            connect: 0,
            reconnects: 0,
        }
    }
}

fn reach(exchange: &Exchange) -> Reach {
    match (&exchange.end, exchange.status) {
        (End::NoConnection(_) | End::Shed, _) => Reach::NotSent,
        (End::Stopped, _) => Reach::Unknown,
        (End::Complete, Some(_)) => Reach::Complete,
        (_, Some(_)) => Reach::Partial,
        (_, None) if exchange.t_send.is_some() => Reach::Unknown,
        (_, None) => Reach::NotSent,
    }
}

#[cfg(test)]
mod tests;
