//! What a run is doing right now: counters that the program polls while the engine works.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// Shared counters of a run. Clones share; a clone that is bound to a stage is what [`crate::stage::Context`] carries.
#[derive(Clone, Default)]
pub struct Progress {
    stages: Arc<Mutex<Vec<Arc<StageCounters>>>>,
    own: Option<Arc<StageCounters>>,
}

/// One stage's counters at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageProgress {
    pub stage: String,
    /// Units known so far. It grows while earlier stages still yield rows.
    pub total: u64,
    /// Units that are settled: executed, reused or quarantined.
    pub done: u64,
    /// Of these, taken from the store.
    pub reused: u64,
    /// Of these, set aside.
    pub quarantined: u64,
    /// What a long unit (training) said last.
    pub steps: Option<Steps>,
}

/// How far a long unit has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps {
    pub done: u64,
    pub total: u64,
    pub text: String,
}

/// The counters of one stage, written by workers and pool threads.
#[derive(Default)]
pub(crate) struct StageCounters {
    pub(crate) stage: String,
    pub(crate) total: AtomicU64,
    pub(crate) executed: AtomicU64,
    pub(crate) reused: AtomicU64,
    pub(crate) quarantined: AtomicU64,
    /// Time spent in the stage's operators, over all threads.
    pub(crate) busy_us: AtomicU64,
    done: AtomicU64,
    steps: Mutex<Option<Steps>>,
}

impl StageCounters {
    pub(crate) fn settled(&self, units: u64) {
        self.done.fetch_add(units, Relaxed);
    }
}

impl Progress {
    pub fn new() -> Progress {
        Progress::default()
    }

    /// All stages in the plan's order; empty before the run starts.
    pub fn snapshot(&self) -> Vec<StageProgress> {
        let stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        stages
            .iter()
            .map(|stage| StageProgress {
                stage: stage.stage.clone(),
                total: stage.total.load(Relaxed),
                done: stage.done.load(Relaxed),
                reused: stage.reused.load(Relaxed),
                quarantined: stage.quarantined.load(Relaxed),
                steps: stage.steps.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            })
            .collect()
    }

    /// Long work says how far it is. Without effect on a handle that is bound to no stage, as in a stage's own tests.
    pub fn steps(&self, done: u64, total: u64, text: impl Into<String>) {
        if let Some(own) = &self.own {
            let steps = Steps { done, total, text: text.into() };
            *own.steps.lock().unwrap_or_else(PoisonError::into_inner) = Some(steps);
        }
    }

    /// Starts over with these stages, for a new run.
    pub(crate) fn begin<'a>(&self, stages: impl Iterator<Item = &'a str>) -> Vec<Arc<StageCounters>> {
        let fresh: Vec<_> =
            stages.map(|stage| Arc::new(StageCounters { stage: stage.to_owned(), ..Default::default() })).collect();
        self.stages.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&fresh);
        fresh
    }

    /// The handle for one stage's operator.
    pub(crate) fn bound(&self, own: &Arc<StageCounters>) -> Progress {
        Progress { stages: self.stages.clone(), own: Some(own.clone()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_handle_is_seen_in_the_snapshot_of_its_stage_only() {
        let progress = Progress::new();
        progress.steps(1, 2, "nobody listens");
        let counters = progress.begin(["a", "b"].into_iter());
        progress.bound(&counters[1]).steps(3, 10, "loss 0.5");
        counters[0].settled(2);
        let seen = progress.snapshot();
        assert_eq!((seen[0].done, seen[0].steps.as_ref()), (2, None));
        assert_eq!(seen[1].steps, Some(Steps { done: 3, total: 10, text: "loss 0.5".into() }));
    }
}
