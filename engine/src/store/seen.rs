//! Hashes of files outside the store, remembered by path, size, times and inode, so that unchanged files are not read.

use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, absolute};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{OptionalExtension, params};

use super::fail::fail_point;
use super::{Hash, Store};
use crate::error::{Error, Result};

/// A file that changed less than this before it was read may change again without a new mtime (file systems tick in
/// steps of up to 2 s): such an entry is not trusted.
const TICK_NS: i64 = 2_000_000_000;

/// One lost entry costs one more reading, so entries are saved in groups.
const GROUP: usize = 256;

#[derive(Default)]
pub(super) struct SeenFiles {
    unsaved: Mutex<Vec<Seen>>,
}

struct Seen {
    path: Vec<u8>,
    stamp: Stamp,
    read_ns: i64,
    hash: Hash,
}

/// What changes when a file does.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    size: i64,
    mtime_ns: i64,
    ctime_ns: i64,
    inode: i64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        Stamp {
            size: metadata.size() as i64,
            mtime_ns: mtime_ns(metadata),
            ctime_ns: metadata.ctime().wrapping_mul(1_000_000_000).wrapping_add(metadata.ctime_nsec()),
            inode: metadata.ino() as i64,
        }
    }
}

/// Time of the last change, in ns since 1970.
pub(super) fn mtime_ns(metadata: &Metadata) -> i64 {
    metadata.mtime().wrapping_mul(1_000_000_000).wrapping_add(metadata.mtime_nsec())
}

impl Store {
    /// The content of a file outside the store. It is read only when it was never seen, or its size, times or inode
    /// differ from when it was.
    pub fn file_hash(&self, path: &Path) -> Result<Hash> {
        let metadata = || std::fs::metadata(path).map_err(Error::io("read", path));
        let key = absolute(path).map_err(Error::io("find", path))?.as_os_str().as_bytes().to_owned();
        let before = Stamp::of(&metadata()?);
        if let Some(hash) = self.seen_hash(&key, before)? {
            return Ok(hash);
        }
        let read_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_nanos() as i64);
        let hash = Hash::of_file(path).map_err(Error::io("read", path))?;
        // A file that changed while it was read has no content to remember; without a lock, nothing is written.
        if self.lock.is_some()
            && Stamp::of(&metadata()?) == before
            && before.mtime_ns.max(before.ctime_ns) < read_ns - TICK_NS
        {
            let mut unsaved = self.seen.unsaved.lock().unwrap_or_else(PoisonError::into_inner);
            unsaved.push(Seen { path: key, stamp: before, read_ns, hash });
            if unsaved.len() >= GROUP {
                drop(unsaved);
                self.flush_seen()?;
            }
        }
        Ok(hash)
    }

    /// The content of a file as it stands, if that is known without reading it.
    pub(crate) fn remembered_hash(&self, path: &Path) -> Result<Option<Hash>> {
        let metadata = std::fs::metadata(path).map_err(Error::io("read", path))?;
        let key = absolute(path).map_err(Error::io("find", path))?;
        self.seen_hash(key.as_os_str().as_bytes(), Stamp::of(&metadata))
    }

    fn seen_hash(&self, path: &[u8], stamp: Stamp) -> Result<Option<Hash>> {
        let unsaved = self.seen.unsaved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = unsaved.iter().find(|seen| seen.path == path && seen.stamp == stamp) {
            return Ok(Some(seen.hash));
        }
        drop(unsaved);
        let manifest = self.manifest();
        let sql = "SELECT hash FROM seen_file
                   WHERE path = ?1 AND size = ?2 AND mtime_ns = ?3 AND ctime_ns = ?4 AND inode = ?5";
        let found = manifest.prepare_cached(sql).and_then(|mut found| {
            let values = params![path, stamp.size, stamp.mtime_ns, stamp.ctime_ns, stamp.inode];
            found.query_row(values, |row| row.get::<_, [u8; 32]>(0)).optional()
        });
        Ok(found.map_err(Error::manifest("look up a file"))?.map(Hash))
    }

    /// Saves what was learnt; losing it costs time only.
    pub(super) fn flush_seen(&self) -> Result<()> {
        let seen = std::mem::take(&mut *self.seen.unsaved.lock().unwrap_or_else(PoisonError::into_inner));
        if seen.is_empty() {
            return Ok(());
        }
        let mut manifest = self.manifest();
        let mut save = || {
            let change = manifest.transaction()?;
            let sql = "INSERT OR REPLACE INTO seen_file (path, size, mtime_ns, ctime_ns, inode, read_ns, hash)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
            for Seen { path, stamp, read_ns, hash } in &seen {
                let Stamp { size, mtime_ns, ctime_ns, inode } = stamp;
                let values = params![path, size, mtime_ns, ctime_ns, inode, read_ns, hash.0];
                change.prepare_cached(sql)?.execute(values)?;
            }
            fail_point("file_hash.flush");
            change.commit()
        };
        save().map_err(Error::manifest("save file hashes"))
    }
}
