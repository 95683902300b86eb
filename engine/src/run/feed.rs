//! Lists the sources' files, hashes them, and hands what changed to the dataflow in bounded rounds.
//!
//! Hashing reads whole files that were never seen, so it has a thread of its own: a timely worker never waits for a disk
//! that long, and the first round is at work while later files are still read. A run lists its sources once; a watching one
//! lists them again after each change, and hands over the difference.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::Sender;

use crate::derive::{Fault, Item};
use crate::error::{Error, Result};
use crate::fingerprint::Hash;
use crate::run::graph::{GroupInput, RunStage};
use crate::run::shared::Shared;
use crate::run::watch::Events;
use crate::stage::Scan;
use crate::store::Class;

/// Files of a round at least. A round costs the dataflow up to about a millisecond, so it should hold several units.
const ROUND_FILES: usize = 64;
/// Files whose hashes are known come fast; then a round takes more of them, and the store is asked for more keys at once.
const ROUND_TIME: Duration = Duration::from_millis(20);
const ROUND_FILES_AT_MOST: usize = 1024;

/// How often a watching run tries a file again that failed for a reason that may pass, until its content changes.
const TRIES: u32 = 5;

/// What the feeder says.
pub(crate) enum Feed {
    Round(Round),
    /// All that the sources hold has been said.
    EndOfIngest,
}

/// Source files and faults that came (1) or went (-1), each with the index of its stage.
#[derive(Default)]
pub(crate) struct Round {
    pub(crate) files: Vec<(usize, Item, isize)>,
    pub(crate) faults: Vec<(usize, Fault, isize)>,
}

/// What the sources held at the last look.
#[derive(Default)]
struct Listing {
    files: BTreeMap<(usize, Arc<str>), Item>,
    faults: BTreeSet<(usize, Fault)>,
}

struct Feeder<'a, W> {
    shared: &'a Shared,
    limit: Option<usize>,
    sender: &'a Sender<Feed>,
    wake: W,
    round: Round,
    /// When the round was begun.
    began: Instant,
    /// Kept only where somebody will look again.
    listing: Option<Listing>,
    /// Further tries of files, with the content that they were for.
    tries: HashMap<Arc<str>, (Hash, u32)>,
}

/// Why the feeder ends before its time: nobody listens any more.
struct Deaf;

/// Sends all that the sources hold, and with `watch` all that changes in them; `wake` is called after each word.
pub(crate) fn feed(
    shared: &Shared,
    limit: Option<usize>,
    watch: Option<Duration>,
    sender: &Sender<Feed>,
    wake: impl Fn(),
) -> Result<()> {
    // Listens first: what changes while the folders are listed is heard of.
    let events = watch.map(|settle| Events::listen(shared, settle));
    let listing = events.as_ref().map(|_| Listing::default());
    let mut feeder = Feeder {
        shared,
        limit,
        sender,
        wake,
        round: Round::default(),
        began: Instant::now(),
        listing,
        tries: HashMap::new(),
    };
    let mut ended = feeder.ingest(None)?;
    let Some(events) = events else { return Ok(()) };
    while let Ok(held_back) = ended {
        if !events.wait(shared, held_back) {
            break;
        }
        // What the last change needed is settled by now.
        shared.store.forget_pages();
        ended = match feeder.ingest(Some(events.settle())) {
            Ok(ended) => ended,
            Err(error) => {
                // A folder that is gone for a moment; what it held stays until it is back.
                tracing::warn!("{error}; looking again");
                Ok(true)
            }
        };
    }
    Ok(())
}

impl<W: Fn()> Feeder<'_, W> {
    /// Says what changed since the last ingest. The inner `Ok` tells whether files were held back, as they changed less
    /// than `settle` ago and may be half written.
    fn ingest(&mut self, settle: Option<Duration>) -> Result<std::result::Result<bool, Deaf>> {
        let shared = self.shared;
        let mut held_back = false;
        let mut now = Listing::default();
        let passing = std::mem::take(&mut *shared.passing.lock().unwrap_or_else(PoisonError::into_inner));
        let mut scans = Vec::new();
        for group in &shared.graph.groups {
            if let GroupInput::Files(stage) = group.input {
                scans.push((stage, scan(&shared.graph.stages[stage], self.limit)?));
            }
        }
        for (stage, (files, faults)) in scans {
            for fault in faults {
                self.fault(&mut now, stage, fault);
            }
            for (id, path) in files {
                if shared.stopping() {
                    return Ok(Err(Deaf));
                }
                let before = self.listing.as_mut().and_then(|listing| listing.files.remove(&(stage, id.clone())));
                match shared.store.file_hash(Path::new(&*path)) {
                    Ok(content) => {
                        let same = before.as_ref().is_some_and(|item| item.content == content);
                        if !same && settle.is_some_and(|settle| is_fresh(Path::new(&*path), settle)) {
                            held_back = true;
                            if let Some(before) = before {
                                now.files.insert((stage, id), before);
                            }
                            continue;
                        }
                        let item = Item {
                            id: id.clone(),
                            content,
                            source: Some(content),
                            origin: Some(path.clone()),
                            files: Arc::default(),
                        };
                        if self.listing.is_some() {
                            now.files.insert((stage, id), item.clone());
                        }
                        if before.as_ref() == Some(&item) {
                            if passing.contains(&path) && self.tries_again(&path, content) {
                                // Gone in this ingest and back in the next, so that all that follows from it is tried again.
                                now.files.remove(&(stage, item.id.clone()));
                                self.round.files.push((stage, item, -1));
                                held_back = true;
                            }
                            continue;
                        }
                        let mut scanned = shared.scanned.lock().unwrap_or_else(PoisonError::into_inner);
                        scanned.insert(path, content);
                        drop(scanned);
                        self.round.files.extend(before.map(|before| (stage, before, -1)));
                        self.round.files.push((stage, item, 1));
                    }
                    Err(error) => {
                        self.round.files.extend(before.map(|before| (stage, before, -1)));
                        let (class, reason) = (Class::Transient, error.to_string());
                        self.fault(&mut now, stage, Fault { unit: id, path: Some(path), class, reason, key: None });
                    }
                }
                if self.is_full() && self.send().is_err() {
                    return Ok(Err(Deaf));
                }
            }
        }
        if let Some(before) = self.listing.replace(now) {
            self.round.files.extend(before.files.into_iter().map(|((stage, _), item)| (stage, item, -1)));
            self.round.faults.extend(before.faults.into_iter().map(|(stage, fault)| (stage, fault, -1)));
        } else {
            self.listing = None;
        }
        // A look that found nothing is no ingest, except for the first.
        let silent = settle.is_some() && self.round.files.is_empty() && self.round.faults.is_empty();
        if !silent && (self.send().is_err() || self.sender.send(Feed::EndOfIngest).is_err()) {
            return Ok(Err(Deaf));
        }
        (self.wake)();
        Ok(Ok(held_back))
    }

    /// Whether a file that came to grief for a reason that may pass has another try left.
    fn tries_again(&mut self, path: &Arc<str>, content: Hash) -> bool {
        let (of, tries) = self.tries.entry(path.clone()).or_insert((content, 0));
        if *of != content {
            (*of, *tries) = (content, 0);
        }
        *tries += 1;
        *tries <= TRIES
    }

    fn is_full(&self) -> bool {
        let files = self.round.files.len();
        files >= ROUND_FILES && (files >= ROUND_FILES_AT_MOST || self.began.elapsed() >= ROUND_TIME)
    }

    fn send(&mut self) -> std::result::Result<(), Deaf> {
        self.sender.send(Feed::Round(std::mem::take(&mut self.round))).map_err(|_| Deaf)?;
        self.began = Instant::now();
        (self.wake)();
        Ok(())
    }

    /// A file that no operator will see.
    fn fault(&mut self, now: &mut Listing, stage: usize, fault: Fault) {
        let known = match &mut self.listing {
            Some(listing) => {
                now.faults.insert((stage, fault.clone()));
                listing.faults.remove(&(stage, fault.clone()))
            }
            None => false,
        };
        if known {
            return;
        }
        let counters = &self.shared.graph.stages[stage].counters;
        counters.total.fetch_add(1, Relaxed);
        counters.quarantined.fetch_add(1, Relaxed);
        counters.settled(1);
        self.round.faults.push((stage, fault, 1));
    }
}

/// Whether the file changed less than this ago, by its own clock.
fn is_fresh(path: &Path, settle: Duration) -> bool {
    let changed = std::fs::metadata(path).and_then(|about| about.modified());
    changed.is_ok_and(|changed| SystemTime::now().duration_since(changed).unwrap_or_default() < settle)
}

/// A file's id and path.
pub(crate) type File = (Arc<str>, Arc<str>);

/// The source's files sorted by id, and what cannot be one.
pub(crate) fn scan(stage: &RunStage, limit: Option<usize>) -> Result<(Vec<File>, Vec<Fault>)> {
    let mut found = Scan::default();
    let listed = stage.stage.scan(&mut found);
    listed.map_err(|error| Error::Failed(format!("stage `{}` cannot list its files: {error}", stage.id)))?;
    let bad = |unit: String, path: &Path, reason: String| Fault {
        unit: unit.into(),
        path: Some(path.to_string_lossy().into()),
        class: Class::Bad,
        reason,
        key: None,
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
