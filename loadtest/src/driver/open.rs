//! The open loop: requests leave when the schedule says, whatever became of those before.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Attempt, Run};
use crate::clock::Nanos;
use crate::outcome::End;
use crate::schedule::Arrivals;
use crate::transport::Connection;
use crate::workload::PlannedRequest;

/// The longest sleep of the dispatcher, so that it notices the end of the run.
const MAX_SLEEP: Duration = Duration::from_millis(50);
/// Between the start of the dispatcher and the origin of the schedule.
const LEAD: Nanos = 5_000_000;

type Arrival = (Nanos, PlannedRequest);

/// Sends requests at `rate` until the run has issued its last one, then waits for the answers.
pub async fn run(run: &Arc<Run>, rate: f64, max_in_flight: usize) {
    let (sender, mut arrivals) = mpsc::unbounded_channel();
    let is_over = Arc::new(AtomicBool::new(false));
    let dispatcher = {
        let (run, is_over) = (Arc::clone(run), Arc::clone(&is_over));
        std::thread::spawn(move || dispatch(&run, rate, &is_over, &sender))
    };
    let idle: Arc<Mutex<Vec<Connection>>> = Arc::default();
    let mut tasks = JoinSet::new();
    loop {
        let arrival = tokio::select! {
            biased;
            arrival = arrivals.recv() => arrival,
            () = run.all_issued() => None,
        };
        let Some((t_plan, planned)) = arrival else {
            break;
        };
        let Some(ticket) = run.issue(t_plan) else {
            break;
        };
        while tasks.try_join_next().is_some() {}
        if tasks.len() >= max_in_flight {
            run.keep(run.record(ticket, t_plan, &planned, Attempt::without_answer(End::Shed)));
            continue;
        }
        let (run, idle) = (Arc::clone(run), Arc::clone(&idle));
        tasks.spawn(async move {
            let mut connection = lock(&idle).pop();
            run.perform(&mut connection, ticket, t_plan, planned).await;
            lock(&idle).extend(connection);
        });
    }
    is_over.store(true, Ordering::Relaxed);
    while let Some(result) = tasks.join_next().await {
        result.expect("a request does not panic");
    }
    dispatcher.join().expect("the dispatcher does not panic");
}

fn lock(idle: &Mutex<Vec<Connection>>) -> std::sync::MutexGuard<'_, Vec<Connection>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands out each request at its planned time. A thread of its own, because the timer of the
/// asynchronous runtime is only a millisecond fine and waits behind other work.
fn dispatch(run: &Run, rate: f64, is_over: &AtomicBool, sender: &mpsc::UnboundedSender<Arrival>) {
    let origin = run.clock.now() + LEAD;
    for (index, offset) in (0..).zip(Arrivals::poisson(run.workload.seed, rate)) {
        let planned = run.workload.request(index);
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
        if sender.send((t_plan, planned)).is_err() {
            return;
        }
    }
}
