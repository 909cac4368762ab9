//! What the handle and the thread share: a few numbers, no locks.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use model::ModelInfo;

use crate::sequence::RequestId;
use crate::step_size::StepSize;

/// Where the engine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum EngineStatus {
    /// The model is being loaded.
    Loading,
    /// Requests are served.
    Ready,
    /// Running requests end, new ones are refused.
    Draining,
    /// The thread has ended.
    Dead,
}

/// The numbers.
#[derive(Debug)]
pub(crate) struct Shared {
    status: AtomicU8,
    pub waiting_requests: AtomicUsize,
    pub waiting_tokens: AtomicUsize,
    next_id: AtomicU64,
    started: Instant,
    heartbeat_millis: AtomicU64,
    /// Tokens of the step that runs now.
    pub tokens_in_step: AtomicUsize,
    pub info: OnceLock<ModelInfo>,
    /// The largest step.
    pub step: OnceLock<StepSize>,
    pub draining: AtomicBool,
}

impl Shared {
    pub fn new() -> Self {
        Self {
            status: AtomicU8::new(EngineStatus::Loading as u8),
            waiting_requests: AtomicUsize::new(0),
            waiting_tokens: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
            started: Instant::now(),
            heartbeat_millis: AtomicU64::new(0),
            tokens_in_step: AtomicUsize::new(0),
            info: OnceLock::new(),
            step: OnceLock::new(),
            draining: AtomicBool::new(false),
        }
    }

    /// Where the engine is in its life.
    pub fn status(&self) -> EngineStatus {
        match self.status.load(Ordering::Acquire) {
            0 => EngineStatus::Loading,
            1 if self.draining.load(Ordering::Acquire) => EngineStatus::Draining,
            1 => EngineStatus::Ready,
            2 => EngineStatus::Draining,
            _ => EngineStatus::Dead,
        }
    }

    pub fn set_status(&self, status: EngineStatus) {
        self.status.store(status as u8, Ordering::Release);
    }

    /// An id that no other request has.
    pub fn next_id(&self) -> RequestId {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// The thread turns its loop.
    pub fn beat(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heartbeat_millis.store(millis, Ordering::Relaxed);
    }

    /// Time since it did so.
    pub fn heartbeat_age(&self) -> Duration {
        let beat = Duration::from_millis(self.heartbeat_millis.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(beat)
    }

    /// A request that waited does so no more.
    pub fn leave_queue(&self, num_choices: usize, num_tokens: usize) {
        self.waiting_requests
            .fetch_sub(num_choices, Ordering::AcqRel);
        self.waiting_tokens.fetch_sub(num_tokens, Ordering::AcqRel);
    }
}
