//! The closed loop: each user keeps its connections and asks again when the answer has ended and, where
//! users think, when the pause is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::{PAUSE_WITHOUT_CONNECTION, Run};
use crate::args::Connections;
use crate::clock::Nanos;

/// What the users share.
struct Crowd {
    size: u32,
    start: Barrier,
    /// The next conversation.
    next: AtomicU64,
}

/// Runs `users` users to their end. All connections are opened before the first request leaves; a
/// ramp lets the users begin one after the other.
pub async fn run(run: &Arc<Run>, users: u32) {
    let crowd = Arc::new(Crowd {
        size: users,
        start: Barrier::new(users as usize),
        next: AtomicU64::new(0),
    });
    let mut tasks = JoinSet::new();
    for number in 0..users {
        tasks.spawn(user(Arc::clone(run), Arc::clone(&crowd), number));
    }
    while let Some(result) = tasks.join_next().await {
        result.expect("a user does not panic");
    }
}

async fn user(run: Arc<Run>, crowd: Arc<Crowd>, user: u32) {
    let mut slots = run.slots().await;
    crowd.start.wait().await;
    let share = f64::from(user) / f64::from(crowd.size);
    let mut ready = run.clock.now() + run.plan.ramp_up.mul_f64(share).as_nanos() as Nanos;
    run.pause_until(ready).await;
    let mut is_first = true;
    while !run.is_over() {
        let opening = run.opening(crowd.next.fetch_add(1, Ordering::Relaxed));
        let think = opening.conversation.turns[0].think;
        let pauses = think > 0 && !std::mem::take(&mut is_first);
        let t_plan = if pauses {
            ready + think
        } else {
            run.clock.now()
        };
        // Without a pause nobody else comes between a number and its leave: the last of them have no gaps.
        if pauses {
            run.pause_until(t_plan).await;
        }
        let Some(ticket) = run.issue(t_plan) else {
            break;
        };
        let server = run.server_of(opening.conversation.number);
        run.converse(&mut slots, ticket, t_plan, opening).await;
        ready = run.clock.now();
        let is_kept = run.plan.connections == Connections::Warm;
        if is_kept && slots.0[server].is_none() && !run.is_over() {
            slots.0[server] = run.connect(server).await.ok();
            if slots.0[server].is_none() {
                tokio::time::sleep(PAUSE_WITHOUT_CONNECTION).await;
            }
        }
    }
}
