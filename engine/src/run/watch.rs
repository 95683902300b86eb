//! Hearing of changes in the sources' folders: file events where the system has them, a look from time to time where not.

use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use crate::run::shared::Shared;

/// How often a stop is noticed while nothing happens.
const LOOK: Duration = Duration::from_millis(50);
/// Folders are listed again at least so often: events get lost, and some file systems have none.
const AT_LEAST: Duration = Duration::from_secs(30);
const WITHOUT_EVENTS: Duration = Duration::from_secs(2);
/// Under steady change, a look is put off at most so many times the settling time.
const PATIENCE: u32 = 10;

/// Listens to the folders of a plan's sources.
pub(crate) struct Events {
    settle: Duration,
    heard: Receiver<()>,
    at_least: Duration,
    /// Stops listening when it is dropped.
    _watcher: Option<RecommendedWatcher>,
}

impl Events {
    /// Events count once nothing has happened for `settle`.
    pub(crate) fn listen(shared: &Shared, settle: Duration) -> Events {
        let (sender, heard) = crossbeam_channel::bounded(1);
        // One word is enough, however many events there are: all folders are listed again.
        let told = move |_: notify::Result<notify::Event>| {
            sender.try_send(()).ok();
        };
        let folders: Vec<PathBuf> = shared.graph.stages.iter().flat_map(|stage| stage.stage.watched()).collect();
        let watcher = notify::recommended_watcher(told).and_then(|mut watcher| {
            folders.iter().try_for_each(|folder| watcher.watch(folder, RecursiveMode::Recursive))?;
            Ok(watcher)
        });
        let (watcher, at_least) = match watcher {
            Ok(watcher) if !folders.is_empty() => (Some(watcher), AT_LEAST),
            Ok(_) => (None, WITHOUT_EVENTS),
            Err(error) => {
                tracing::warn!("no file events, so folders are listed every {WITHOUT_EVENTS:?}: {error}");
                (None, WITHOUT_EVENTS)
            }
        };
        Events { settle, heard, at_least, _watcher: watcher }
    }

    pub(crate) fn settle(&self) -> Duration {
        self.settle
    }

    /// Waits until it is worth a look; `soon`: something was held back at the last one. `false`: the run stops.
    pub(crate) fn wait(&self, shared: &Shared, soon: bool) -> bool {
        let began = Instant::now();
        let patience = if soon { self.settle } else { self.at_least };
        while began.elapsed() < patience {
            if shared.stopping() {
                return false;
            }
            let passing = !shared.passing.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
            if passing && began.elapsed() >= self.settle {
                return true;
            }
            match self.heard.recv_timeout(LOOK.min(patience)) {
                Ok(()) => return self.settled(shared),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK),
            }
        }
        !shared.stopping()
    }

    /// Waits until nothing more happens, or patience ends.
    fn settled(&self, shared: &Shared) -> bool {
        let began = Instant::now();
        while began.elapsed() < self.settle * PATIENCE && self.heard.recv_timeout(self.settle).is_ok() {}
        !shared.stopping()
    }
}
