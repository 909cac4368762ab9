//! The open loop: requests leave when the schedule says, whatever became of those before.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Attempt, Errand, Opening, Run, Slots};
use crate::arrival::Arrival;
use crate::clock::Nanos;
use crate::outcome::End;
use crate::schedule::{exactly, schedule};
use crate::transport::Connection;

/// The longest sleep of the dispatcher, so that it notices the end of the run.
const MAX_SLEEP: Duration = Duration::from_millis(50);
/// Between the start of the dispatcher and the origin of the schedule.
const LEAD: Nanos = 5_000_000;

type Due = (Nanos, Opening);

/// Begins conversations as `arrival` says until the run has issued its last request or the schedule
/// has ended, then waits for the answers.
pub async fn run(run: &Arc<Run>, arrival: Arrival) {
    let (sender, mut arrivals) = mpsc::unbounded_channel();
    let is_over = Arc::new(AtomicBool::new(false));
    let dispatcher = {
        let (run, is_over) = (Arc::clone(run), Arc::clone(&is_over));
        std::thread::spawn(move || dispatch(&run, &arrival, &is_over, &sender))
    };
    let max_in_flight = arrival.max_in_flight().unwrap_or(usize::MAX);
    let idle: Arc<Pool> = Arc::new(Pool::new(run.targets.len()));
    let mut tasks = JoinSet::new();
    loop {
        let due = tokio::select! {
            biased;
            due = arrivals.recv() => due,
            () = run.all_issued() => None,
        };
        let Some((t_plan, opening)) = due else {
            break;
        };
        let Some(ticket) = run.issue(t_plan) else {
            break;
        };
        while tasks.try_join_next().is_some() {}
        if run.in_flight() > max_in_flight {
            let conversation = &opening.conversation;
            let errand = Errand {
                ticket,
                t_plan,
                conversation: conversation.number,
                turn: 0,
                content: conversation.content,
                server: run.server_of(conversation.number),
                keeps_text: false,
            };
            let shed = Attempt::without_answer(End::Shed);
            run.keep(run.record(&errand, &opening.first, shed));
            continue;
        }
        let (run, idle) = (Arc::clone(run), Arc::clone(&idle));
        tasks.spawn(async move {
            let server = run.server_of(opening.conversation.number);
            let mut slots = idle.take(server);
            run.converse(&mut slots, ticket, t_plan, opening).await;
            idle.put(slots);
        });
    }
    is_over.store(true, Ordering::Relaxed);
    while let Some(result) = tasks.join_next().await {
        result.expect("a request does not panic");
    }
    dispatcher.join().expect("the dispatcher does not panic");
}

/// Open connections that nobody uses, for each server.
struct Pool(Mutex<Vec<Vec<Connection>>>);

impl Pool {
    fn new(servers: usize) -> Self {
        Self(Mutex::new((0..servers).map(|_| Vec::new()).collect()))
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Vec<Connection>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slots of a new user, with a connection to `server` if one is idle.
    fn take(&self, server: usize) -> Slots {
        let mut idle = self.idle();
        let mut slots = Slots((0..idle.len()).map(|_| None).collect());
        slots.0[server] = idle[server].pop();
        slots
    }

    fn put(&self, slots: Slots) {
        for (idle, slot) in self.idle().iter_mut().zip(slots.0) {
            idle.extend(slot);
        }
    }
}

/// Hands out each conversation at its planned time. A thread of its own, because the timer of the
/// asynchronous runtime is only a millisecond fine and waits behind other work.
fn dispatch(
    run: &Run,
    arrival: &Arrival,
    is_over: &AtomicBool,
    sender: &mpsc::UnboundedSender<Due>,
) {
    let origin = run.clock.now() + LEAD;
    let workload = &run.workload;
    let offsets = schedule(arrival, workload.seed, workload.trace.as_ref());
    let offsets = exactly(offsets, arrival, run.plan.exact_count);
    for (number, offset) in (0..).zip(offsets) {
        let opening = run.opening(number);
        let t_plan = origin.saturating_add(offset);
        loop {
            if is_over.load(Ordering::Relaxed) {
                return;
            }
            let left = Duration::from_nanos(t_plan.saturating_sub(run.clock.now()));
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(MAX_SLEEP));
        }
        if sender.send((t_plan, opening)).is_err() {
            return;
        }
    }
}
