//! What the threads of one run share.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::Sender;

use crate::error::Error;
use crate::fingerprint::Hash;
use crate::pool::{Budget, Cancel, CommitMessage, DeviceQueue, JobQueue, Progress};
use crate::run::graph::{Graph, RunStage};
use crate::run::history::History;
use crate::run::published::PublishedNames;
use crate::stage::Context;
use crate::store::Store;

pub(crate) struct Shared {
    /// Tells runs in one process apart.
    pub(crate) serial: u64,
    /// The run's number in the store.
    pub(crate) run: i64,
    pub(crate) graph: Graph,
    pub(crate) published: PublishedNames,
    /// The run goes on with what changes, so it may have to take back what it said.
    pub(crate) watches: bool,
    pub(crate) store: Store,
    pub(crate) budget: Budget,
    pub(crate) jobs: JobQueue,
    pub(crate) device_jobs: DeviceQueue,
    pub(crate) commits: Sender<CommitMessage>,
    /// The caller's request to stop, or a failure's.
    pub(crate) cancel: Cancel,
    pub(crate) progress: Progress,
    /// At least one; each has a thread of its own.
    pub(crate) devices: Vec<String>,
    pub(crate) memory_bytes: u64,
    /// The content of each source file as it was scanned.
    pub(crate) scanned: Mutex<HashMap<Arc<str>, Hash>>,
    /// Source files of units that failed for a reason that may pass; a watching run has another look at them.
    pub(crate) passing: Mutex<BTreeSet<Arc<str>>>,
    pub(crate) history: History,
    pub(crate) failure: Mutex<Option<Error>>,
}

impl Shared {
    pub(crate) fn next_serial() -> u64 {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        SERIAL.fetch_add(1, Relaxed)
    }

    /// Ends the run with this error; the first one counts.
    pub(crate) fn fail(&self, error: Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.cancel.cancel();
    }

    /// No new unit starts any more.
    pub(crate) fn stopping(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// For an operator that is opened by the thread of this device; a pool thread names the first and uses none.
    pub(crate) fn context(&self, stage: &RunStage, device: usize) -> Context {
        Context {
            device: self.devices[device].clone(),
            memory_bytes: self.memory_bytes,
            blobs: self.store.blobs(),
            scratch: self.store.scratch(),
            progress: self.progress.bound(&stage.counters),
            cancel: self.cancel.clone(),
        }
    }

    /// Whether the file is still what the source stage found; the store looks at size and time before it reads.
    pub(crate) fn unchanged(&self, file: &Arc<str>) -> bool {
        let scanned = self.scanned.lock().unwrap_or_else(PoisonError::into_inner).get(file).copied();
        scanned.is_none_or(|hash| self.store.file_hash(Path::new(&**file)).is_ok_and(|now| now == hash))
    }
}
