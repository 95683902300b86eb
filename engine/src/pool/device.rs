//! The threads that own the devices, one each: they form batches of units of one stage, later stages first.
//!
//! All take from one queue, so that a device which is done gets what another has not begun. Which one a unit meets is a
//! matter of time, and its result does not show it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::budget::{Parked, Permit};
use super::operators::{NoOperator, call, memory_bytes, own_device};
use super::work::Recipient;
use crate::run::shared::Shared;
use crate::stage::Unit;

/// A unit that waits for a device, with the memory that it holds meanwhile.
pub(crate) struct DeviceJob {
    pub(crate) unit: Unit,
    pub(crate) recipient: Recipient,
    pub(crate) permit: Option<Arc<Permit>>,
    pub(crate) parked: Parked,
    pub(crate) since: Instant,
}

#[derive(Default)]
pub(crate) struct DeviceQueue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// By stage, oldest first.
    waiting: BTreeMap<usize, VecDeque<DeviceJob>>,
    closed: bool,
}

impl DeviceQueue {
    pub(crate) fn push(&self, job: DeviceJob) {
        self.state().waiting.entry(job.recipient.stage).or_default().push_back(job);
        self.changed.notify_all();
    }

    /// The reasons to wait for a fuller batch may be gone.
    pub(crate) fn look_again(&self) {
        drop(self.state());
        self.changed.notify_all();
    }

    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// The next batch: of the latest stage whose batch is full, has waited long enough, or will not grow any more.
    fn next_batch(&self, shared: &Shared) -> Option<(usize, VecDeque<DeviceJob>)> {
        let mut state = self.state();
        loop {
            let State { waiting, closed } = &mut *state;
            let nothing_comes = *closed || shared.stopping() || shared.jobs.is_idle();
            let mut wake = None;
            for (stage, jobs) in waiting.iter_mut().rev() {
                let limits = &shared.graph.stages[*stage];
                let Some(first) = jobs.front() else { continue };
                let deadline = first.since + limits.max_wait;
                // A unit of whole tables has no companions to wait for.
                let full = jobs.len() >= limits.batch || first.unit.row.is_none();
                if full || nothing_comes || deadline <= Instant::now() {
                    let rest = jobs.split_off(limits.batch.min(jobs.len()));
                    return Some((*stage, std::mem::replace(jobs, rest)));
                }
                wake = Some(wake.map_or(deadline, |earlier: Instant| earlier.min(deadline)));
            }
            if *closed {
                return None;
            }
            state = match wake {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let wait = deadline.saturating_duration_since(Instant::now());
                    self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Units that did not fit into memory together with the others come first next time.
    fn put_back(&self, stage: usize, jobs: VecDeque<DeviceJob>) {
        let mut state = self.state();
        let waiting = state.waiting.entry(stage).or_default();
        for job in jobs.into_iter().rev() {
            waiting.push_front(job);
        }
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of a device's thread.
pub(super) fn device_loop(shared: &Arc<Shared>, index: usize) {
    own_device(index);
    while let Some((stage, jobs)) = shared.device_jobs.next_batch(shared) {
        if !shared.stopping() {
            match run_batch(shared, stage, jobs) {
                Ok(()) | Err(NoOperator::Interrupted) => {}
                Err(NoOperator::Failed(error)) => shared.fail(error),
            }
        }
    }
}

fn run_batch(shared: &Arc<Shared>, stage: usize, mut jobs: VecDeque<DeviceJob>) -> Result<(), NoOperator> {
    let mut turn = shared.budget.device_turn();
    let mut permits: Vec<Permit> = Vec::new();
    let (mut units, mut recipients, mut held) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(job) = jobs.pop_front() {
        let bytes = match memory_bytes(shared, stage, &job.unit)? {
            Ok(bytes) => bytes,
            Err(verdict) => {
                shared.jobs.push_answer(job.recipient.answer(verdict, 0.0));
                continue;
            }
        };
        // Only the first unit is waited for: the others would wait for memory that this batch itself holds.
        let permit = if units.is_empty() { Some(turn.acquire(bytes)) } else { turn.try_acquire(bytes) };
        let Some(permit) = permit else {
            jobs.push_front(job);
            break;
        };
        permits.push(permit);
        units.push(job.unit);
        recipients.push(job.recipient);
        held.push((job.permit, job.parked));
    }
    shared.device_jobs.put_back(stage, jobs);
    if units.is_empty() {
        return Ok(());
    }
    let start = Instant::now();
    let verdicts = call(shared, stage, &units)?;
    let seconds = start.elapsed().as_secs_f64() / units.len() as f64;
    for (recipient, verdict) in recipients.into_iter().zip(verdicts) {
        shared.jobs.push_answer(recipient.answer(verdict, seconds));
    }
    Ok(())
}
