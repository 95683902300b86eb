//! Lists the sources' files, hashes them, and hands them to the dataflow in bounded rounds.
//!
//! Hashing reads whole files that were never seen, so it has a thread of its own: a timely worker never waits for a disk
//! that long, and the first round is at work while later files are still read.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};

use crossbeam_channel::Sender;

use crate::derive::{Fault, Item};
use crate::error::{Error, Result};
use crate::run::graph::GroupInput;
use crate::run::shared::Shared;
use crate::stage::Scan;
use crate::store::Class;

/// Files of a round. A round costs the dataflow up to about a millisecond, so it should hold several units.
pub(crate) const ROUND_FILES: usize = 64;

/// A group of source files, each with the index of its stage.
#[derive(Default)]
pub(crate) struct Round {
    pub(crate) files: Vec<(usize, Item)>,
    pub(crate) faults: Vec<(usize, Fault)>,
}

impl Round {
    /// A file that no operator will see.
    fn refuse(&mut self, shared: &Shared, stage: usize, fault: Fault) {
        let counters = &shared.graph.stages[stage].counters;
        counters.total.fetch_add(1, Relaxed);
        counters.quarantined.fetch_add(1, Relaxed);
        counters.settled(1);
        self.faults.push((stage, fault));
    }
}

/// Sends all rounds and returns; `wake` is called after each.
pub(crate) fn feed(shared: &Shared, limit: Option<usize>, rounds: &Sender<Round>, wake: impl Fn()) -> Result<()> {
    let mut round = Round::default();
    for group in &shared.graph.groups {
        let GroupInput::Files(stage) = group.input else { continue };
        let (files, faults) = scan(shared, stage, limit)?;
        faults.into_iter().for_each(|fault| round.refuse(shared, stage, fault));
        for (id, path) in files {
            if shared.stopping() {
                return Ok(());
            }
            match shared.store.file_hash(Path::new(&*path)) {
                Ok(content) => {
                    let mut scanned = shared.scanned.lock().unwrap_or_else(PoisonError::into_inner);
                    scanned.insert(path.clone(), content);
                    round.files.push((
                        stage,
                        Item { id, content, source: Some(content), origin: Some(path), files: Arc::from([]) },
                    ));
                }
                Err(error) => {
                    let fault =
                        Fault { unit: id, path: Some(path), class: Class::Transient, reason: error.to_string() };
                    round.refuse(shared, stage, fault);
                }
            }
            if round.files.len() == ROUND_FILES {
                if rounds.send(std::mem::take(&mut round)).is_err() {
                    return Ok(());
                }
                wake();
            }
        }
    }
    // The worker may have stopped listening; then nobody wants the rest.
    rounds.send(round).ok();
    wake();
    Ok(())
}

/// A file's id and path.
type File = (Arc<str>, Arc<str>);

/// The source's files sorted by id, and what cannot be one.
fn scan(shared: &Shared, stage: usize, limit: Option<usize>) -> Result<(Vec<File>, Vec<Fault>)> {
    let stage = &shared.graph.stages[stage];
    let mut found = Scan::default();
    let listed = stage.stage.scan(&mut found);
    listed.map_err(|error| Error::Failed(format!("stage `{}` cannot list its files: {error}", stage.id)))?;
    let bad = |unit: String, path: &Path, reason: String| Fault {
        unit: unit.into(),
        path: Some(path.to_string_lossy().into()),
        class: Class::Bad,
        reason,
    };
    let mut faults: Vec<Fault> = found.bad.into_iter().map(|(id, path, reason)| bad(id, &path, reason)).collect();
    let mut files = Vec::new();
    let mut ids = BTreeSet::new();
    for (id, path) in found.files {
        if !ids.insert(id.clone()) {
            return Err(Error::Failed(format!("stage `{}` lists two files named `{id}`; ids must differ", stage.id)));
        }
        match path.to_str() {
            Some(text) => files.push((Arc::from(id), Arc::from(text))),
            None => faults.push(bad(id, &path, "its path is not UTF-8; rename it".to_owned())),
        }
    }
    files.sort();
    files.truncate(limit.unwrap_or(usize::MAX));
    Ok((files, faults))
}
