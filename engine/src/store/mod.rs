//! What outlives a run: results by key, the rows that each pipeline publishes, and the files they name.
//!
//! A store is a folder: `manifest.sqlite` (any SQLite program opens it), `blobs/ab/cdef…` (files named by their content),
//! `scratch` (how far unfinished units have come) and `lock`. One store serves many pipelines and one run at a time.
//!
//! Order of durable writes: blob, then memo row, then published row, then files outside the store. A crash between any
//! two leaves something unused or something missing, never something wrong; the next run mends it.
//!
//! What nothing needs any more goes by [`Store::gc`] alone, in the other order: manifest first, then files.

mod blobs;
mod costs;
mod fail;
mod gc;
mod lineage;
mod manifest;
mod publish;
mod published;
mod quarantine;
mod rows;
mod scratch;
mod seen;
mod verify;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use rusqlite::Connection;

pub use blobs::Blobs;
pub use costs::Cost;
pub use fail::{FAIL_POINTS, abort_at};
pub use gc::{Freed, Garbage, LeftFolder};
pub use lineage::{MadeBy, PublishedRow, Seen, Sizes};
pub use manifest::{Finished, Memo, MemoRow, RunRecord};
pub(crate) use publish::take_back;
pub use publish::{Placed, place};
pub use published::Row;
pub(crate) use published::{RowName, name_of};
pub use quarantine::{Class, Quarantined};
pub use scratch::Scratch;
pub use verify::{Damage, DamageKind, Verified};

use crate::error::{Error, Result};
use crate::fingerprint::Hash;
use fail::fail_point;

/// An open store. Clones are the same store; it stays open until the last one is dropped.
#[derive(Clone)]
pub struct Store {
    dir: Arc<Path>,
    blobs: Blobs,
    /// For look-ups of results, which then wait for no writer. Closed before the writer: the last one to close a manifest
    /// brings its log in, which a reader may not.
    reader: Arc<Mutex<Connection>>,
    manifest: Arc<Mutex<Connection>>,
    seen: Arc<seen::SeenFiles>,
    /// Held as long as the store is open; the system lets go of it when the process dies.
    lock: Option<Arc<Lock>>,
}

/// A row that is stored but not yet known to the manifest: hand it to [`Store::commit`] with the memo it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRow {
    /// Names the row's values and files.
    pub content: Hash,
    pub bytes: Payload,
    /// Length of the row as Arrow IPC, in bytes.
    pub len: u64,
}

/// Where the bytes of a row are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    Inline(Vec<u8>),
    Blob(Hash),
}

impl Store {
    /// Opens the store for a run, and makes it where there is none. `Err`: another run uses it, a newer program wrote it,
    /// or the folder cannot be written.
    pub fn open(dir: impl AsRef<Path>) -> Result<Store> {
        let dir = dir.as_ref().to_owned();
        fs::create_dir_all(&dir).map_err(Error::io("make the store's folder", &dir))?;
        let store = Store::open_for_upkeep(&dir, Lock::take(&dir)?)?;
        store.blobs.remove_stale_temp_files()?;
        Ok(store)
    }

    /// Opens an existing store for upkeep: as [`Store::open`], but makes none, and leaves stale files to [`Store::gc`].
    pub fn open_existing(dir: impl AsRef<Path>) -> Result<Store> {
        let dir = dir.as_ref();
        manifest::find(dir)?;
        Store::open_for_upkeep(dir, Lock::take(dir)?)
    }

    fn open_for_upkeep(dir: &Path, lock: Lock) -> Result<Store> {
        let manifest = manifest::open(dir)?;
        let blobs = Blobs::create(dir)?;
        Store::of(dir, manifest, blobs, Some(lock))
    }

    /// Opens an existing store for looking only: takes no lock, so it works beside a run.
    pub fn open_read(dir: impl AsRef<Path>) -> Result<Store> {
        let dir = dir.as_ref();
        Store::of(dir, manifest::open_read(dir)?, Blobs::at(dir), None)
    }

    /// Opens an existing store for looking while nobody changes it: `Err` beside a run.
    pub fn open_still(dir: impl AsRef<Path>) -> Result<Store> {
        let dir = dir.as_ref();
        manifest::find(dir)?;
        let lock = Lock::take(dir)?;
        Store::of(dir, manifest::open_read(dir)?, Blobs::at(dir), Some(lock))
    }

    fn of(dir: &Path, manifest: Connection, blobs: Blobs, lock: Option<Lock>) -> Result<Store> {
        let [manifest, reader] = [manifest, manifest::open_read(dir)?].map(|open| Arc::new(Mutex::new(open)));
        Ok(Store { dir: dir.into(), blobs, manifest, reader, seen: Arc::default(), lock: lock.map(Arc::new) })
    }

    /// The same store for looking; blobs and scratch files that are made now stand in `dir`.
    pub(crate) fn aside(&self, dir: &Path) -> Result<Store> {
        let blobs = self.blobs.aside(dir)?;
        let (manifest, reader) = (self.manifest.clone(), self.reader.clone());
        Ok(Store { dir: dir.into(), blobs, manifest, reader, seen: Arc::default(), lock: None })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn blobs(&self) -> Blobs {
        self.blobs.clone()
    }

    pub fn scratch(&self) -> Scratch {
        Scratch::at(&self.dir)
    }

    /// Stores one output row with the files that go with it. A long row becomes a blob at once; a short one is durable
    /// only after [`Store::commit`]. Touches no manifest, so any thread may call it.
    pub fn put_row(&self, row: &RecordBatch, files: &[(String, Hash)]) -> Result<StoredRow> {
        let bytes = rows::to_bytes(row)?;
        let content = rows::content(&bytes, files);
        let len = bytes.len() as u64;
        let bytes = if bytes.len() < rows::INLINE_BYTES {
            Payload::Inline(bytes)
        } else {
            Payload::Blob(self.blobs.put(&bytes)?)
        };
        Ok(StoredRow { content, bytes, len })
    }

    /// Reads a committed row back; `schema` is that of the stage's output table.
    pub fn row(&self, content: &Hash, schema: &SchemaRef) -> Result<RecordBatch> {
        let bytes = match self.payload(content)? {
            Payload::Inline(bytes) => bytes,
            Payload::Blob(hash) => self.blobs.read(&hash)?,
        };
        rows::from_bytes(&bytes, schema)
    }

    /// Gives back the memory that holds pages of the manifest, which would grow for hours in a process that stays.
    pub(crate) fn forget_pages(&self) {
        for open in [self.manifest(), self.reader()] {
            if let Err(error) = open.release_memory() {
                tracing::debug!("pages of the manifest stay in memory: {error}");
            }
        }
    }

    fn manifest(&self) -> MutexGuard<'_, Connection> {
        // A panic inside a transaction rolls it back, so the connection stays good.
        self.manifest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let last = self.lock.as_ref().is_some_and(|lock| Arc::strong_count(lock) == 1);
        if last && let Err(error) = self.flush_seen() {
            tracing::debug!("the cache of file hashes is not saved: {error}");
        }
    }
}

/// The right to write to the store.
struct Lock(File);

impl Lock {
    fn take(dir: &Path) -> Result<Lock> {
        let path = dir.join("lock");
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(Error::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let known = file.read_to_string(&mut pid).is_ok() && !pid.trim().is_empty();
                let holder = if known { format!(" (process {})", pid.trim()) } else { String::new() };
                return Err(Error::Locked { dir: dir.to_owned(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(Error::Io { what: "lock", path, source }),
        }
        fail_point("lock.write");
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(Error::io("write", &path))?;
        Ok(Lock(file))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child process that is just being started holds a copy of it until its exec.
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests;
