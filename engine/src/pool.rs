//! Threads that compute: a pool for the CPU, one thread for each device, and the byte budget that all live in.
//!
//! A miss becomes a job. A pool thread reads the unit's row, runs the transient stages before the stored ones, and then
//! each stored stage that wants the unit; where that one needs a device, the unit goes on to the device threads, which
//! form batches. What comes out is stored by a pool thread and made known by the committer, many units per
//! transaction; only then does the dataflow hear of it. Later stages go first everywhere, so that little is half done.

mod budget;
mod commit;
mod device;
mod operators;
mod progress;
mod queue;
mod work;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

pub use budget::{Budget, Permit, Turn};
pub(crate) use commit::{CommitMessage, Done, commit_loop};
pub(crate) use device::DeviceQueue;
pub(crate) use operators::quietly;
pub(crate) use progress::StageCounters;
pub use progress::{Progress, StageProgress, Steps};
pub(crate) use queue::JobQueue;
pub(crate) use work::{Job, Reply};

use crate::error::{Error, Result};
use crate::run::shared::Shared;
use crate::stage::Needs;

/// A request to stop, shared by all who hold a clone. Units that run are finished and kept; no new ones start.
#[derive(Clone, Default)]
pub struct Cancel {
    own: Arc<AtomicBool>,
    caller: Option<Arc<AtomicBool>>,
}

impl Cancel {
    pub fn new() -> Cancel {
        Cancel::default()
    }

    pub fn cancel(&self) {
        self.own.store(true, Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.own.load(Relaxed) || self.caller.as_ref().is_some_and(|caller| caller.load(Relaxed))
    }

    /// One that is cancelled with this one, and can be cancelled without it.
    pub(crate) fn child(&self) -> Cancel {
        Cancel { own: Arc::default(), caller: Some(self.own.clone()) }
    }
}

/// The running threads of one run.
pub(crate) struct Threads {
    shared: Arc<Shared>,
    pool: Vec<JoinHandle<()>>,
    devices: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Starts `count` pool threads, and a thread for each device if a stage wants one.
    pub(crate) fn start(shared: &Arc<Shared>, count: usize) -> Result<Threads> {
        let mut threads = Threads { shared: shared.clone(), pool: Vec::new(), devices: Vec::new() };
        for index in 0..count {
            threads.pool.push(spawn(format!("vw2-pool-{index}"), shared, queue::pool_loop)?);
        }
        if shared.graph.stages.iter().any(|stage| stage.needs == Needs::Device) {
            for index in 0..shared.devices.len() {
                let body = move |shared: &Arc<Shared>| device::device_loop(shared, index);
                threads.devices.push(spawn(format!("vw2-device-{index}"), shared, body)?);
            }
        }
        Ok(threads)
    }
}

/// What runs is finished and handed to the committer; what waits is dropped if the run stops, else finished too.
impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.device_jobs.close();
        for device in self.devices.drain(..) {
            device.join().ok();
        }
        // The device threads' last results are stored by the pool, so the pool ends after them.
        self.shared.jobs.close();
        for thread in self.pool.drain(..) {
            thread.join().ok();
        }
    }
}

pub(crate) fn spawn(
    name: String,
    shared: &Arc<Shared>,
    body: impl FnOnce(&Arc<Shared>) + Send + 'static,
) -> Result<JoinHandle<()>> {
    let shared = shared.clone();
    let guarded = move || {
        if let Err(panic) = quietly(|| body(&shared)) {
            shared.fail(Error::Failed(format!("a thread of the engine panicked, which is a bug: {panic}")));
        }
    };
    let thread = std::thread::Builder::new().name(name).spawn(guarded);
    thread.map_err(|e| Error::Failed(format!("cannot start a thread: {e}")))
}
