//! The supervisor's side of the process: a listening socket that it opened, and the messages that say
//! ready, alive and stopping. Without a supervisor all of it does nothing.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use gateway::{Gateway, Readiness};
use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::time::MissedTickBehavior;

/// Between two looks at the engine.
const TURN: Duration = Duration::from_secs(1);
/// So many looks find an engine stuck before it is given up.
const STUCK_TURNS: usize = 5;

/// The socket that was handed over (`LISTEN_FDS`), if one was.
///
/// # Errors
/// When what was handed over is no listening TCP socket.
pub fn socket() -> io::Result<Option<TcpListener>> {
    let listener = ListenFd::from_env().take_tcp_listener(0)?;
    if let Some(listener) = &listener {
        listener.set_nonblocking(true)?;
    }
    Ok(listener)
}

/// Says that requests are answered now.
pub fn ready() {
    tell(NotifyState::Ready);
}

/// Says that running requests finish and no others begin.
pub fn stopping() {
    tell(NotifyState::Stopping);
}

/// Resolves once the engine has been stuck for [`STUCK_TURNS`] looks in a row, which a process that was
/// stopped and goes on again does not show. Nothing can be had from such an engine any more.
pub async fn engine_is_stuck(gateway: &Gateway) {
    let mut turns = tokio::time::interval(TURN);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stuck = 0;
    while stuck < STUCK_TURNS {
        turns.tick().await;
        stuck = if gateway.is_stuck() { stuck + 1 } else { 0 };
    }
}

/// Feeds the watchdog, where there is one, for as long as the engine is not dead or stuck.
pub async fn feed_watchdog(gateway: Gateway) {
    let mut micros = 0;
    if !sd_notify::watchdog_enabled(false, &mut micros) {
        return;
    }
    let limit = Duration::from_micros(micros);
    let mut turns = tokio::time::interval(limit / 4);
    loop {
        turns.tick().await;
        if gateway.readiness() != Readiness::Dead {
            tell(NotifyState::Watchdog);
        }
    }
}

/// A supervisor that cannot be told is no reason to stop serving.
fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(false, &[state]) {
        tracing::warn!(%error, "the supervisor cannot be told");
    }
}
