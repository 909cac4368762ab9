//! The closed loop: each user keeps one connection and asks again when the answer has ended.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::Run;

/// A user who finds no connection waits this long, so that a dead server is not hammered.
const PAUSE_WITHOUT_CONNECTION: Duration = Duration::from_millis(100);

/// Runs `users` users to their end. All connections are opened before the first request leaves.
pub async fn run(run: &Arc<Run>, users: u32) {
    let start = Arc::new(Barrier::new(users as usize));
    let mut tasks = JoinSet::new();
    for _ in 0..users {
        tasks.spawn(user(Arc::clone(run), Arc::clone(&start)));
    }
    while let Some(result) = tasks.join_next().await {
        result.expect("a user does not panic");
    }
}

async fn user(run: Arc<Run>, start: Arc<Barrier>) {
    // A connection that fails here fails again, and is recorded, with the first request.
    let mut connection = run.connect().await.ok();
    start.wait().await;
    while let Some(ticket) = run.issue(run.clock.now()) {
        let planned = run.workload.request(ticket.index);
        let t_plan = run.clock.now();
        run.perform(&mut connection, ticket, t_plan, planned).await;
        if connection.is_none() && !run.is_over() {
            connection = run.connect().await.ok();
            if connection.is_none() {
                tokio::time::sleep(PAUSE_WITHOUT_CONNECTION).await;
            }
        }
    }
}
