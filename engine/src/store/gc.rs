//! Clears away what nothing needs.
//!
//! A result stays while one of these holds; with it stay its rows' bytes and its files:
//! * a pipeline publishes a row of it, or the last `keep_runs` finished runs (of all pipelines) took such a row back;
//! * one of these runs computed it, or a later one that has not finished;
//! * a run computed it in the last 30 days whose pipeline has finished no run since: the next one goes on from there;
//! * it is a verdict, and a unit in quarantine goes back to it;
//! * it has no rows at all: it takes a few bytes, and no row could tell that it is in use.
//!
//! A pipeline that is to be forgotten publishes nothing and has had no runs, as far as this goes.
//!
//! So a run over inputs that were published, or were so within `keep_runs` runs, executes nothing after [`Store::gc`] that
//! it would not have executed before. Folders outside the store, with older versions of an export, are never touched.
//!
//! One transaction forgets, then files go: a death in between leaves files that the next `gc` finds.

mod mark;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::Store;
use super::blobs::entries;
use super::fail::fail_point;
use crate::error::{Error, Result};
use crate::fingerprint::Hash;
use mark::{Marked, mark, sweep};

/// How long unfinished work is kept for a run that goes on with it.
const PATIENCE: Duration = Duration::from_secs(30 * 24 * 3600);

/// A number of things and their size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Freed {
    pub count: u64,
    pub size_bytes: u64,
}

/// What a store holds in vain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Garbage {
    /// Results of units.
    pub results: u64,
    /// Rows of such results that no other one has; the size is that of those in the manifest, others are blobs.
    pub rows: Freed,
    pub blobs: Freed,
    /// What units left for their next try, which are finished, or were not tried again for 30 days.
    pub scratch: Freed,
    /// Files that a killed run was writing, and blobs that [`Store::verify`] moved aside.
    pub stale: Freed,
    /// Remembered hashes of files that are gone.
    pub seen_files: u64,
    /// Records of runs.
    pub runs: u64,
    /// Published rows of pipelines that are to be forgotten.
    pub published: u64,
    /// Where files of such pipelines stand, which stay.
    pub left: Vec<LeftFolder>,
}

/// A folder outside the store that no pipeline keeps up to date any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftFolder {
    pub path: PathBuf,
    pub files: u64,
}

impl Garbage {
    pub fn size_bytes(&self) -> u64 {
        [self.rows, self.blobs, self.scratch, self.stale].iter().map(|freed| freed.size_bytes).sum()
    }

    pub fn is_empty(&self) -> bool {
        *self == Garbage::default()
    }
}

impl Freed {
    pub(super) fn add(&mut self, size_bytes: u64) {
        self.count += 1;
        self.size_bytes += size_bytes;
    }
}

impl Store {
    /// What [`Store::gc`] would clear away. Changes nothing.
    pub fn garbage(&self, keep_runs: usize, forget: &[String]) -> Result<Garbage> {
        self.check_known(forget)?;
        let scratch = self.scratch_folders()?;
        let marked = {
            let fail = || Error::manifest("look for unused results");
            let mut manifest = self.manifest();
            // Temporary tables need no right to write, and go with the transaction.
            let look = manifest.transaction().map_err(fail())?;
            mark(&look, keep_runs, forget, scratch).map_err(fail())?
        };
        let mut found = marked.found;
        self.each_unused_file(&marked.blobs, |kind, _, size| {
            kind.of(&mut found).add(size);
            Ok(())
        })?;
        for folder in &marked.scratch {
            found.scratch.add(size_of(folder));
        }
        Ok(found)
    }

    /// Clears away what nothing needs, and tells what it was. Of the pipelines to forget, everything goes that no other one
    /// needs; files outside the store stay as they are, and no run knows them any more.
    ///
    /// # Errors
    /// A pipeline to forget that the store does not know.
    pub fn gc(&self, keep_runs: usize, forget: &[String]) -> Result<Garbage> {
        self.check_known(forget)?;
        let scratch = self.scratch_folders()?;
        let mut marked = Marked::default();
        self.change("forget unused results", "gc.manifest", |manifest| {
            marked = mark(manifest, keep_runs, forget, scratch)?;
            sweep(manifest, &marked.seen_files)
        })?;
        let mut found = marked.found;
        self.each_unused_file(&marked.blobs, |kind, path, size| {
            fail_point("gc.file");
            fs::remove_file(path).map_err(Error::io("remove", path))?;
            kind.of(&mut found).add(size);
            Ok(())
        })?;
        for folder in &marked.scratch {
            let size = size_of(folder);
            fail_point("gc.scratch");
            fs::remove_dir_all(folder).map_err(Error::io("remove", folder))?;
            found.scratch.add(size);
        }
        if let Err(error) = self.compact() {
            // All is done that was promised, and later results use the free pages.
            tracing::warn!("the manifest keeps its size: {error}");
        }
        Ok(found)
    }

    fn check_known(&self, forget: &[String]) -> Result<()> {
        let known = self.pipelines()?;
        match forget.iter().find(|pipeline| !known.contains(pipeline)) {
            Some(wrong) => {
                Err(Error::Failed(format!("the store knows no pipeline `{wrong}`; it has {}", known.join(", "))))
            }
            None => Ok(()),
        }
    }

    /// Files of the store that are no blob in `used`.
    fn each_unused_file(
        &self,
        used: &BTreeSet<Hash>,
        mut take: impl FnMut(Loose, &Path, u64) -> Result<()>,
    ) -> Result<()> {
        for (hash, path, size) in self.blobs.list()? {
            if !used.contains(&hash) {
                take(Loose::Blob, &path, size)?;
            }
        }
        for folder in [self.blobs.temp_dir(), self.damaged_dir()] {
            for path in entries(&folder)? {
                take(Loose::Stale, &path, size_of(&path))?;
            }
        }
        Ok(())
    }

    /// Folders of units that were cut short, with their keys and whether it is long ago.
    fn scratch_folders(&self) -> Result<Vec<(Hash, PathBuf, bool)>> {
        let now = SystemTime::now();
        let old = |path: &Path| now.duration_since(newest(path)).is_ok_and(|age| age > PATIENCE);
        let folders = entries(&self.dir.join("scratch"))?.into_iter();
        // What has another name is not the store's.
        Ok(folders
            .filter_map(|path| Some((path.file_name()?.to_str()?.parse().ok()?, old(&path), path)))
            .map(|(key, old, path)| (key, path, old))
            .collect())
    }

    /// Gives the manifest's free pages back, where they are many.
    fn compact(&self) -> Result<()> {
        let manifest = self.manifest();
        let count = |name: &str| manifest.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let compact = || {
            if count("freelist_count")? * 4 > count("page_count")? {
                fail_point("gc.compact");
                manifest.execute_batch("VACUUM")?;
            }
            manifest.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        };
        compact().map_err(Error::manifest("give room back"))
    }
}

/// Files of the store that nothing names.
#[derive(Clone, Copy)]
enum Loose {
    Blob,
    Stale,
}

impl Loose {
    fn of(self, found: &mut Garbage) -> &mut Freed {
        match self {
            Loose::Blob => &mut found.blobs,
            Loose::Stale => &mut found.stale,
        }
    }
}

/// Of a file, or of the files directly in a folder.
pub(super) fn size_of(path: &Path) -> u64 {
    let size = |path: &Path| fs::symlink_metadata(path).map_or(0, |metadata| metadata.len());
    if path.is_dir() { entries(path).unwrap_or_default().iter().map(|path| size(path)).sum() } else { size(path) }
}

/// When the folder or a file in it changed last.
fn newest(folder: &Path) -> SystemTime {
    let changed = |path: &Path| fs::symlink_metadata(path).and_then(|metadata| metadata.modified()).ok();
    let files = entries(folder).unwrap_or_default();
    let times = files.iter().map(PathBuf::as_path).chain([folder]).filter_map(changed);
    times.max().unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests;
