//! What pool threads take their work from: later stages first, then first come first served.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::work::{Answer, Job};
use crate::run::shared::Shared;

pub(crate) enum Task {
    /// Compute a unit.
    Unit(Job),
    /// Store what a device thread has computed. It holds memory that others wait for, so it goes first.
    Keep(Answer),
}

#[derive(Default)]
pub(crate) struct JobQueue {
    state: Mutex<State>,
    changed: Condvar,
    /// Waiting or being worked on.
    open: AtomicUsize,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<(Reverse<usize>, u64), Task>,
    next: u64,
    closed: bool,
}

impl JobQueue {
    pub(crate) fn push_job(&self, job: Job) {
        self.push(job.group, Task::Unit(job));
    }

    pub(crate) fn push_answer(&self, answer: Answer) {
        self.push(usize::MAX, Task::Keep(answer));
    }

    fn push(&self, priority: usize, task: Task) {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.waiting.insert((Reverse(priority), number), task);
        self.open.fetch_add(1, SeqCst);
        self.changed.notify_one();
    }

    /// No job waits or runs, so nothing more comes to the device's queue by itself.
    pub(crate) fn is_idle(&self) -> bool {
        self.open.load(SeqCst) == 0
    }

    /// Threads end when nothing is left.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    fn pop(&self) -> Option<Task> {
        let mut state = self.state();
        loop {
            if let Some((_, task)) = state.waiting.pop_first() {
                return Some(task);
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of a pool thread.
pub(super) fn pool_loop(shared: &Arc<Shared>) {
    while let Some(task) = shared.jobs.pop() {
        match task {
            Task::Unit(job) if !shared.stopping() => job.run(shared),
            // The dataflow no longer listens; the next run finds the unit missing again.
            Task::Unit(_) => {}
            Task::Keep(answer) => answer.keep(shared),
        }
        if shared.jobs.open.fetch_sub(1, SeqCst) == 1 {
            shared.device_jobs.look_again();
        }
    }
}
