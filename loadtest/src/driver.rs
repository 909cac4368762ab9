//! A run in motion: who may send the next request, what part of the run it belongs to, and the
//! records of those that ended. How arrivals come about is left to `closed` and `open`.

mod closed;
mod open;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::clock::{Clock, Nanos};
use crate::config::Arrival;
use crate::exchange::{Exchange, Timeouts, exchange};
use crate::observe::{StreamFacts, Window};
use crate::outcome::{End, Evidence, classify};
use crate::record::{Phase, Reach, RequestRecord};
use crate::target::Target;
use crate::transport::Connection;
use crate::workload::{PlannedRequest, Workload};

/// What a run needs to know.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How requests arrive.
    pub arrival: Arrival,
    /// Requests before the window.
    pub warmup: u64,
    /// Measured requests after which no more are sent.
    pub requests: Option<u64>,
    /// Length of the window.
    pub duration: Option<Duration>,
    /// Time limits of a request.
    pub timeouts: Timeouts,
}

/// A run in motion.
pub struct Run {
    /// Clock of every time in the run.
    pub clock: Clock,
    plan: Plan,
    target: Target,
    workload: Workload,
    window: Window,
    state: Mutex<State>,
    changed: Notify,
    stop: watch::Sender<bool>,
    counts: Counts,
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
    issued: u64,
    measured_issued: u64,
    measured_open: u64,
    records: Vec<RequestRecord>,
}

/// Leave to send request `index`.
#[derive(Debug, Clone, Copy)]
struct Ticket {
    index: u64,
    phase: Phase,
}

/// What a finished run leaves.
#[derive(Debug)]
pub struct RunResult {
    /// Every request in the order of their numbers.
    pub records: Vec<RequestRecord>,
    /// The window `[w0, w1)`: until `w1` by duration, else until the last measured request ended.
    pub window: (Nanos, Nanos),
    /// The run was stopped from outside.
    pub stopped: bool,
}

impl Run {
    /// A run that has not started.
    pub fn new(plan: Plan, target: Target, workload: Workload, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            clock,
            plan,
            target,
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
        match self.plan.arrival {
            Arrival::Closed { users } => closed::run(self, users).await,
            Arrival::Poisson {
                rate,
                max_in_flight,
            } => open::run(self, rate, max_in_flight).await,
        }
        let mut records = std::mem::take(&mut self.state().records);
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
        }
    }

    /// Ends the run at once: requests in flight become unfinished.
    pub fn stop(&self) {
        self.stop.send_replace(true);
        self.changed.notify_one();
    }

    /// Running totals.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The window as far as it is known.
    pub fn window(&self) -> &Window {
        &self.window
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // No code panics while it holds the lock half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives leave for a request planned at `t_plan`, or none when the run is over.
    fn issue(&self, t_plan: Nanos) -> Option<Ticket> {
        let mut state = self.state();
        let phase = self.next_phase(&state, t_plan)?;
        if phase == Phase::Measured {
            if state.measured_issued == 0 {
                let length = self
                    .plan
                    .duration
                    .map(|d| Nanos::try_from(d.as_nanos()).unwrap_or(Nanos::MAX));
                self.window
                    .open(t_plan, length.map(|l| t_plan.saturating_add(l)));
                self.changed.notify_one();
            }
            state.measured_issued += 1;
            state.measured_open += 1;
        }
        let index = state.issued;
        state.issued += 1;
        Some(Ticket { index, phase })
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
        if state.issued < self.plan.warmup {
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

    /// Performs a request on the connection in `slot`, which is opened if need be and emptied when
    /// it cannot carry another request, and keeps its record.
    async fn perform(
        &self,
        slot: &mut Option<Connection>,
        ticket: Ticket,
        t_plan: Nanos,
        planned: PlannedRequest,
    ) {
        let mut stop = self.stop.subscribe();
        let attempt = tokio::select! {
            biased;
            attempt = self.attempt(slot, &planned) => attempt,
            _ = stop.wait_for(|stop| *stop) => Attempt::without_answer(End::Stopped),
        };
        if attempt.exchange.end != End::Complete {
            *slot = None;
        }
        self.keep(self.record(ticket, t_plan, &planned, attempt));
    }

    /// Sends a request, once more only if a reused connection turns out to have been closed.
    async fn attempt(&self, slot: &mut Option<Connection>, planned: &PlannedRequest) -> Attempt {
        let mut connect = 0;
        let mut reconnects = 0;
        loop {
            let is_open = match slot {
                Some(connection) => connection.is_ready().await,
                None => false,
            };
            if !is_open {
                let started = self.clock.now();
                match self.connect().await {
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
            let request = self
                .target
                .post(self.workload.api.path(), planned.body.clone());
            let exchange = exchange(
                connection,
                request,
                &self.plan.timeouts,
                self.clock,
                &self.window,
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

    async fn connect(&self) -> Result<Connection, String> {
        tokio::time::timeout(
            self.plan.timeouts.connect,
            Connection::open(self.target.address, self.clock),
        )
        .await
        .unwrap_or_else(|_| Err("no connection in time".into()))
    }

    fn record(
        &self,
        ticket: Ticket,
        t_plan: Nanos,
        planned: &PlannedRequest,
        attempt: Attempt,
    ) -> RequestRecord {
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
            index: ticket.index,
            phase: ticket.phase,
            t_plan,
            t_send: exchange.t_send,
            t_head: exchange.t_head,
            t_end: exchange.stream.t_done.unwrap_or_else(|| self.clock.now()),
            connect,
            asked_prompt_tokens: planned.prompt_tokens,
            asked_output_tokens: planned.output_tokens,
            status: exchange.status,
            reach: reach(&exchange),
            outcome,
            detail,
            reconnects,
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
        let mut state = self.state();
        state.measured_open -= u64::from(is_measured);
        state.records.push(record);
        drop(state);
        self.changed.notify_one();
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
