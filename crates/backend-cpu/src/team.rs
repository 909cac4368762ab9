//! The worker team: a fixed set of threads that run the tasks of a region together with the caller.
//!
//! The caller is worker 0. Tasks are handed out one by one, so a slow core delays its own task only,
//! and a worker that never gets to a region is not waited for. Between regions workers spin for some
//! microseconds, then park. A panic in a task ends the region and goes on in the caller. This is the
//! only file of the crate with unsafe code.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fmt, hint, io};

use kernels_cpu::TaskRunner;

/// How long a worker looks for the next region before it parks: longer than the serial work between
/// two regions of a step, shorter than the time between steps of an idle server.
const SPIN: Duration = Duration::from_micros(50);
/// Looks at the gate between two looks at the clock, or before the caller yields its core.
const LOOKS: u32 = 64;

/// In [`Shared::gate`]: whether workers may enter the region.
const OPEN: u64 = 1 << 31;
/// In [`Shared::gate`]: how many workers are inside.
const INSIDE: u64 = OPEN - 1;
/// In [`Shared::gate`]: one step of the region's number, in the upper half.
const REGION: u64 = 1 << 32;

/// The threads of the CPU target.
pub(crate) struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Whether a region runs. Being a cell, it also keeps the team on one thread.
    is_running: Cell<bool>,
}

/// What caller and workers share. Each hot field has a cache line of its own.
struct Shared {
    /// Region number, [`OPEN`], and the number of workers inside.
    gate: Line<AtomicU64>,
    /// The next task to hand out; at or past the end when the region has no more.
    next: Line<AtomicUsize>,
    /// Written by the caller while the gate is closed and nobody is inside, read by workers inside.
    job: UnsafeCell<Job>,
    /// Whether each worker is parked or about to be.
    parked: Vec<Line<AtomicBool>>,
    /// The first panic of a region.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

#[repr(align(64))]
struct Line<T>(T);

#[derive(Clone, Copy)]
struct Job {
    /// Lives until `run` returns.
    task: *const (dyn Fn(usize) + Sync),
    num_tasks: usize,
}

// SAFETY: `job` is the only field that is not `Sync`. It is written in `Team::open` only, when the gate
// is closed and no worker is inside, and read by workers inside only; entering and leaving the gate
// order the two. The closure it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it is tied to a thread.
unsafe impl Send for Shared {}

impl Team {
    /// Starts `threads − 1` workers.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        let num_workers = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            gate: Line(AtomicU64::new(0)),
            next: Line(AtomicUsize::new(0)),
            job: UnsafeCell::new(Job {
                task: &|_| {},
                num_tasks: 0,
            }),
            parked: (0..num_workers)
                .map(|_| Line(AtomicBool::new(false)))
                .collect(),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let mut team = Self {
            shared,
            workers: Vec::with_capacity(num_workers),
            is_running: Cell::new(false),
        };
        for index in 0..num_workers {
            let shared = Arc::clone(&team.shared);
            let worker = thread::Builder::new()
                .name(format!("octet-worker-{}", index + 1))
                .spawn(move || shared.work(index))?;
            team.workers.push(worker);
        }
        Ok(team)
    }

    /// Threads that run a region, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Lets workers into a new region.
    ///
    /// # Safety
    /// `task` stays alive until `close` has returned, and `close` is called before the next `open`.
    unsafe fn open(&self, num_tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Job {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; `Job` is used between `open` and `close` only.
        let task: *const (dyn Fn(usize) + Sync) = unsafe {
            std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task)
        };
        let job = Job { task, num_tasks };
        // SAFETY: the gate is closed and nobody is inside: `close` waited for that, and the team is on
        // one thread, whose calls of `run` do not nest (`is_running`).
        unsafe { *shared.job.get() = job };
        shared.next.0.store(0, Ordering::Relaxed);
        let region = shared.gate.0.load(Ordering::Relaxed) & !(REGION - 1);
        let gate = region.wrapping_add(REGION) | OPEN;
        // In one order with `parked`: either a worker sees the open gate before it parks, or we see
        // that it is about to.
        shared.gate.0.store(gate, Ordering::SeqCst);
        for (worker, parked) in self.workers.iter().zip(&shared.parked) {
            if parked.0.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        job
    }

    /// Lets nobody in any more and waits until everybody has left.
    fn close(&self) {
        let gate = &self.shared.gate.0;
        let mut inside = gate.fetch_and(!OPEN, Ordering::AcqRel) & INSIDE;
        let mut looks = 0;
        while inside > 0 {
            hint::spin_loop();
            looks += 1;
            if looks % LOOKS == 0 {
                thread::yield_now();
            }
            inside = gate.load(Ordering::Acquire) & INSIDE;
        }
    }
}

// SAFETY: `next` hands out each index once. `run` returns after `close`, when no worker is inside; a
// region that ended early because of a panic unwinds instead of returning.
unsafe impl TaskRunner for Team {
    fn threads(&self) -> usize {
        self.threads()
    }

    fn run(&self, num_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if num_tasks <= 1 || self.workers.is_empty() {
            return (0..num_tasks).for_each(task);
        }
        assert!(!self.is_running.replace(true), "regions do not nest");
        // SAFETY: `task` is borrowed until this function ends, and `close` comes before that: nothing
        // between here and there unwinds, panics of tasks being caught.
        let job = unsafe { self.open(num_tasks, task) };
        self.shared.run_tasks(job);
        self.close();
        self.is_running.set(false);
        let panic = lock(&self.shared.panic).take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its tasks, so there is nothing to report.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for Team {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Team")
            .field("threads", &self.threads())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// The life of a worker.
    fn work(&self, index: usize) {
        let mut region = 0;
        while let Some(entered) = self.enter(index, region) {
            region = entered;
            // SAFETY: this worker is inside, so the caller does not write the job.
            let job = unsafe { *self.job.get() };
            self.run_tasks(job);
            self.gate.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a region other than `last` and enters it; none when the team is dropped.
    fn enter(&self, index: usize, last: u64) -> Option<u64> {
        loop {
            let deadline = Instant::now() + SPIN;
            loop {
                for _ in 0..LOOKS {
                    if let Some(region) = self.try_enter(last) {
                        return Some(region);
                    }
                    hint::spin_loop();
                }
                if Instant::now() >= deadline {
                    break;
                }
            }
            let parked = &self.parked[index].0;
            parked.store(true, Ordering::SeqCst);
            while !self.stop.load(Ordering::SeqCst) && !self.is_open(last) {
                thread::park();
            }
            parked.store(false, Ordering::SeqCst);
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
        }
    }

    fn is_open(&self, last: u64) -> bool {
        let gate = self.gate.0.load(Ordering::SeqCst);
        gate & OPEN != 0 && gate & !(REGION - 1) != last
    }

    fn try_enter(&self, last: u64) -> Option<u64> {
        let gate = self.gate.0.load(Ordering::Acquire);
        let region = gate & !(REGION - 1);
        if gate & OPEN == 0 || region == last {
            return None;
        }
        self.gate
            .0
            .compare_exchange(gate, gate + 1, Ordering::AcqRel, Ordering::Relaxed)
            .ok()
            .map(|_| region)
    }

    /// Takes tasks until there are no more. A panic ends the region: no further task is handed out.
    fn run_tasks(&self, job: Job) {
        let tasks = AssertUnwindSafe(|| {
            loop {
                let index = self.next.0.fetch_add(1, Ordering::Relaxed);
                if index >= job.num_tasks {
                    break;
                }
                // SAFETY: the caller keeps the closure alive until everybody has left the region, and
                // we are inside or are the caller.
                unsafe { (*job.task)(index) };
            }
        });
        if let Err(payload) = catch_unwind(tasks) {
            self.next.0.store(job.num_tasks, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(payload);
        }
    }
}

/// The mutex guards a plain option, which a panic cannot leave half-written.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels_cpu::for_each_chunk;

    #[test]
    fn every_task_runs_once_in_every_region() {
        for threads in [1, 2, 3] {
            let team = Team::new(threads).expect("threads");
            assert_eq!(team.threads(), threads);
            let mut counts = vec![0usize; 257];
            for region in 0..500 {
                let len = region % counts.len();
                for_each_chunk(&team, &mut counts[..len], 1, |index, count| {
                    count[0] += index + 1;
                });
            }
            for (index, count) in counts.iter().enumerate() {
                let regions = (0..500).filter(|region| region % 257 > index).count();
                assert_eq!(*count, regions * (index + 1), "task {index}");
            }
        }
    }

    #[test]
    fn workers_take_part() {
        let team = Team::new(2).expect("threads");
        let caller = thread::current().id();
        let helped = AtomicBool::new(false);
        // The caller's own task waits for the worker's, so the region ends only if the worker woke.
        team.run(2, &|_| {
            if thread::current().id() != caller {
                helped.store(true, Ordering::Release);
            }
            while !helped.load(Ordering::Acquire) {
                thread::yield_now();
            }
        });
        assert!(helped.into_inner());
    }

    #[test]
    fn a_parked_worker_wakes() {
        let team = Team::new(2).expect("threads");
        while !team.shared.parked[0].0.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        let caller = thread::current().id();
        let helped = AtomicBool::new(false);
        team.run(2, &|_| {
            if thread::current().id() != caller {
                helped.store(true, Ordering::Release);
            }
            while !helped.load(Ordering::Acquire) {
                thread::yield_now();
            }
        });
        assert!(helped.into_inner());
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        for threads in [1, 2, 3] {
            let team = Team::new(threads).expect("threads");
            for bad in [0, 7, 99] {
                let payload = catch_unwind(AssertUnwindSafe(|| {
                    team.run(100, &|index| assert_ne!(index, bad, "task {bad}"));
                }))
                .expect_err("the region panics");
                let message = payload.downcast_ref::<String>().expect("a message");
                assert!(message.contains(&format!("task {bad}")), "{message}");
                let sum = AtomicUsize::new(0);
                team.run(10, &|index| {
                    sum.fetch_add(index, Ordering::Relaxed);
                });
                assert_eq!(sum.into_inner(), 45);
            }
        }
    }
}
