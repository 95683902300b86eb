//! Computes a sample of what the store remembers once more, and holds what comes out against it.
//!
//! The units are those that a run over today's sources and parameters would take from the store; the sample is drawn evenly
//! from them. Each is computed from its inputs by the threads of a run, transient stages included. Nothing is committed or
//! published, and files that operators make stand in a folder of their own: the store stays as it is.
//!
//! Left out are units that a run would compute anyway, and results of `on_change = "warm"` or `"hold"` that follow from what
//! was published before.

mod known;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::derive::Settled;
use crate::error::{Error, Result};
use crate::fingerprint::Hash;
use crate::plan::Plan;
use crate::pool::{Budget, CommitMessage, Done, Job, Reply, Threads};
use crate::report::record;
use crate::run::graph::Graph;
use crate::run::history::History;
use crate::run::published::PublishedNames;
use crate::run::shared::Shared;
use crate::run::{Options, devices};
use crate::store::{MemoRow, Payload, Store};
use known::{Drawn, draw};

/// How often a stop is noticed while nothing is answered.
const LOOK: Duration = Duration::from_millis(50);

/// What was computed once more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Recomputed {
    pub units: u64,
    /// Those that could have been drawn.
    pub all_units: u64,
    /// Rows of the units, and their bytes.
    pub rows: u64,
    pub size_bytes: u64,
    /// By stage and unit.
    pub differences: Vec<Difference>,
    /// It was stopped before all were computed.
    pub interrupted: bool,
}

/// A unit that does not come out as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    pub stage: String,
    pub unit: String,
    pub reason: String,
}

/// Computes `sample` units again, which `seed` chooses. Works on a store that is open for looking.
///
/// # Errors
/// What keeps a run from starting, and what would end it: an operator that cannot be opened, a full disk.
pub fn recompute(plan: &Plan, store: &Store, options: &Options, sample: usize, seed: u64) -> Result<Recomputed> {
    let folder =
        tempfile::tempdir().map_err(|error| Error::Failed(format!("cannot make a temporary folder: {error}")))?;
    let aside = store.aside(folder.path())?;
    let (fingerprints, _) = record(plan, &options.numeric, &mut |path| aside.file_hash(path))?;
    let graph = Graph::new(plan, &fingerprints, &options.progress);
    let (drawn, all_units) = draw(&graph, &aside, options.limit, sample, seed)?;
    let scanned = drawn.iter().filter_map(Drawn::source).collect();
    let (commits, answers) = crossbeam_channel::unbounded();
    let shared = Arc::new(Shared {
        serial: Shared::next_serial(),
        run: 0,
        graph,
        published: PublishedNames::default(),
        watches: false,
        store: aside,
        budget: Budget::new(plan.runtime.memory),
        jobs: Default::default(),
        device_jobs: Default::default(),
        commits,
        cancel: options.cancel.child(),
        progress: options.progress.clone(),
        devices: devices(plan, options),
        memory_bytes: plan.runtime.memory,
        scanned: Mutex::new(scanned),
        passing: Mutex::default(),
        history: History::default(),
        failure: Mutex::default(),
    });
    let mut found = Recomputed { all_units, ..Recomputed::default() };
    let mut open: HashMap<Hash, Drawn> = HashMap::new();
    let threads = Threads::start(&shared, options.threads_or_cores())?;
    let reply = Arc::new(Reply::to_nobody());
    for unit in drawn {
        let counters = &shared.graph.stages[unit.stage(&shared.graph)].counters;
        counters.total.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (work, wanted) = (unit.work.clone(), vec![(unit.member, unit.key)]);
        open.insert(unit.key, unit.clone());
        shared.jobs.push_job(Job { group: unit.group, work, wanted, warm: None, reply: reply.clone() });
    }
    while !open.is_empty() && !shared.stopping() {
        let Ok(CommitMessage::Done(done)) = answers.recv_timeout(LOOK) else { continue };
        if let Some(unit) = open.remove(&done.key) {
            shared.graph.stages[unit.stage(&shared.graph)].counters.settled(1);
            compare(&shared, &unit, &done, &mut found)?;
        }
    }
    drop(threads);
    if let Some(error) = shared.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(error);
    }
    found.interrupted = !open.is_empty();
    found.differences.sort();
    Ok(found)
}

fn compare(shared: &Shared, unit: &Drawn, done: &Done, found: &mut Recomputed) -> Result<()> {
    found.units += 1;
    let reason = match &done.settled {
        Settled::Rows(rows) => {
            found.rows += rows.len() as u64;
            found.size_bytes += rows.iter().map(|row| row.len).sum::<u64>();
            rows_differ(shared, &unit.rows, rows, done)?
        }
        Settled::Fault { reason, .. } => Some(format!("the store has rows of it, and now it has none: {reason}")),
        Settled::Held(_) => unreachable!("nothing is held where nothing has a history"),
    };
    found.differences.extend(reason.map(|reason| Difference {
        stage: shared.graph.stages[unit.stage(&shared.graph)].id.clone(),
        unit: unit.work.item.id.to_string(),
        reason,
    }));
    Ok(())
}

/// In words, if the rows are not the same.
fn rows_differ(shared: &Shared, before: &[MemoRow], now: &[MemoRow], done: &Done) -> Result<Option<String>> {
    let names = |rows: &[MemoRow]| rows.iter().map(|row| format!("`{}`", row.name)).collect::<Vec<_>>().join(", ");
    if names(before) != names(now) {
        return Ok(Some(format!("it yields rows {}, and the store has {}", names(now), names(before))));
    }
    if let Some((before, now)) = before.iter().zip(now).find(|(before, now)| before.content != now.content) {
        let row = if now.name.is_empty() { String::new() } else { format!("row `{}`: ", now.name) };
        if before.files != now.files {
            let file = now.files.iter().find(|file| !before.files.contains(file)).or(before.files.first());
            return Ok(Some(format!("{row}its file `{}` differs", file.map_or("", |(path, _)| path))));
        }
        let payloads = done.finished.iter().flat_map(|unit| &unit.payloads);
        let fresh = payloads.filter(|(content, _)| *content == now.content).map(|(_, payload)| payload.clone()).next();
        let bytes = |payload| match payload {
            Payload::Inline(bytes) => Ok(bytes),
            Payload::Blob(blob) => shared.store.blobs().read(&blob),
        };
        let (old, new) = (bytes(shared.store.payload(&before.content)?)?, fresh.map_or(Ok(Vec::new()), bytes)?);
        let differ = old.iter().zip(&new).filter(|(old, new)| old != new).count() + old.len().abs_diff(new.len());
        let first = old.iter().zip(&new).position(|(old, new)| old != new).unwrap_or(old.len().min(new.len()));
        return Ok(Some(format!("{row}{differ} of its {} bytes differ, the first at {first}", new.len())));
    }
    Ok(None)
}
