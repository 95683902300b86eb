//! Files outside the store: makes a folder hold exactly the files that a stage publishes.
//!
//! What was placed is recorded with size and mtime, so that a file which someone deleted or changed is restored, and an
//! unchanged one costs one `stat`. Files that the stage never placed are left alone. Files are copies of blobs, never
//! links into the store: whoever edits an output cannot spoil a result.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf, absolute};

use rusqlite::params;

use super::Store;
use super::blobs::{holds, sync_dir};
use super::fail::fail_point;
use super::seen::mtime_ns;
use crate::error::{Error, Result};
use crate::fingerprint::Hash;
use crate::stage::Placement;

/// What [`place`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The folder that readers open: the placement's path, or `latest` below it.
    pub path: PathBuf,
    /// Whether anything was written or removed.
    pub changed: bool,
    /// The number of the version that `latest` names.
    pub version: Option<u64>,
}

/// A file as it was when it was placed. `size < 0`: about to be written.
struct Record {
    version: u64,
    size: i64,
    mtime_ns: i64,
    blob: Hash,
}

/// Relative paths and the blobs that stand there.
type Wanted = BTreeMap<String, Hash>;

/// The stage's folder on its way from what is recorded to what is wanted.
struct Folder<'a> {
    store: &'a Store,
    pipeline: &'a str,
    stage: &'a str,
    /// Absolute; under this name it is recorded.
    root: PathBuf,
    recorded: BTreeMap<String, Record>,
}

/// Makes the stage's folder hold `files` (path relative to [`Placement::path`], and the blob that stands there).
///
/// Unversioned: files stand directly in the folder; those that the stage placed before and no longer wants are removed.
/// Versioned: a change makes the next directory `v000001`, …, in which unchanged files are hard links to the version
/// before, and swaps the link `latest`; old versions stay.
pub fn place(
    store: &Store,
    pipeline: &str,
    stage_id: &str,
    placement: &Placement,
    files: &BTreeMap<String, Hash>,
) -> Result<Placed> {
    for file in files.keys() {
        check_plain(stage_id, file, &placement.path)?;
    }
    let root = absolute(&placement.path).map_err(Error::io("find", &placement.path))?;
    let mut recorded = read_records(store, pipeline, stage_id, &root)?;
    recorded.retain(|_, record| (record.version > 0) == placement.versioned);
    let folder = Folder { store, pipeline, stage: stage_id, root, recorded };
    if placement.versioned {
        let (version, changed) = folder.place_version(files)?;
        return Ok(Placed { path: placement.path.join("latest"), changed, version });
    }
    Ok(Placed { path: placement.path.clone(), changed: folder.place_flat(files)?, version: None })
}

/// Takes back the files of stages that left the pipeline; `has` knows those that place files now.
pub(crate) fn take_back(store: &Store, pipeline: &str, has: impl Fn(&str) -> bool) -> Result<()> {
    let sql = "SELECT DISTINCT stage, root, version > 0 FROM placed WHERE pipeline = ?1";
    let placed = store.list("read placed files", sql, params![pipeline], |row| {
        let placement = Placement { path: PathBuf::from(row.get::<_, String>(1)?), versioned: row.get(2)? };
        Ok((row.get::<_, String>(0)?, placement))
    })?;
    for (stage, placement) in placed.into_iter().filter(|(stage, _)| !has(stage)) {
        place(store, pipeline, &stage, &placement, &Wanted::new())?;
    }
    Ok(())
}

/// Only names, joined by `/`: nothing that leads out of the folder or has two spellings.
fn check_plain(stage: &str, file: &str, root: &Path) -> Result<()> {
    let names: Vec<_> = Path::new(file).components().collect();
    let plain = names.iter().all(|part| matches!(part, Component::Normal(_)));
    let rejoined: PathBuf = names.iter().collect();
    if plain && !names.is_empty() && rejoined.as_os_str() == file && !file.contains('\0') {
        return Ok(());
    }
    Err(Error::Escapes { stage: stage.to_owned(), file: file.to_owned(), root: root.to_owned() })
}

impl Folder<'_> {
    fn place_flat(self, wanted: &Wanted) -> Result<bool> {
        let gone: Vec<&String> = self.recorded.keys().filter(|file| !wanted.contains_key(*file)).collect();
        let fresh = self.damaged(&self.root, wanted);
        if gone.is_empty() && fresh.is_empty() {
            return Ok(false);
        }
        // Claim the names first: a file that a crash leaves behind is then known as the stage's own.
        self.claim(&fresh)?;
        for file in &gone {
            self.remove(file)?;
        }
        let mut changed = !gone.is_empty();
        for (file, blob) in fresh {
            changed |= self.write(&self.root, file, &blob)?;
        }
        self.record(0, &self.root, wanted)?;
        Ok(changed)
    }

    /// Gives the number of the version that `latest` names, and whether anything changed.
    fn place_version(self, wanted: &Wanted) -> Result<(Option<u64>, bool)> {
        let latest = self.root.join("latest");
        let linked = fs::read_link(&latest).ok().and_then(|to| version_of(to.to_str()?));
        if wanted.is_empty() && self.recorded.is_empty() {
            return Ok((linked, false));
        }
        let before = self.recorded.values().next().map(|record| record.version);
        let as_recorded = wanted.len() == self.recorded.len()
            && wanted.iter().all(|(file, blob)| self.recorded.get(file).is_some_and(|r| r.blob == *blob));
        if let Some(version) = before.filter(|_| as_recorded) {
            let dir = self.root.join(version_name(version));
            let damaged = self.damaged(&dir, wanted);
            let mut changed = false;
            for (file, blob) in &damaged {
                changed |= self.write(&dir, file, blob)?;
            }
            if !damaged.is_empty() {
                self.record(version, &dir, wanted)?;
            }
            return Ok((Some(version), self.link_latest(version)? | changed));
        }
        // A crash after the swap, or a lost store: the version is there and only its record is not.
        if let Some(version) = linked
            && self.holds_exactly(&self.root.join(version_name(version)), wanted)
        {
            self.record(version, &self.root.join(version_name(version)), wanted)?;
            return Ok((Some(version), false));
        }
        let version = before.into_iter().chain(self.versions()?).max().unwrap_or(0) + 1;
        let dir = self.make_version(version, before, wanted)?;
        self.link_latest(version)?;
        self.record(version, &dir, wanted)?;
        Ok((Some(version), true))
    }

    /// Builds the directory aside, then renames it: a version that exists is complete.
    fn make_version(&self, version: u64, before: Option<u64>, wanted: &Wanted) -> Result<PathBuf> {
        let dir = self.root.join(version_name(version));
        let building = self.root.join(format!(".tmp-{}", version_name(version)));
        match fs::remove_dir_all(&building) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io("remove", &building)(e)),
            _ => fs::create_dir_all(&building).map_err(Error::io("make folder", &building))?,
        }
        let before = before.map(|version| self.root.join(version_name(version)));
        for (file, blob) in wanted {
            let linked = before.as_ref().is_some_and(|before| {
                let (from, to) = (before.join(file), building.join(file));
                self.intact(&from, file, blob)
                    && to.parent().is_some_and(|parent| fs::create_dir_all(parent).is_ok())
                    && fs::hard_link(&from, &to).is_ok()
            });
            if !linked {
                self.write(&building, file, blob)?;
            }
        }
        fail_point("place.version");
        fs::rename(&building, &dir).map_err(Error::io("rename to", &dir))?;
        sync_dir(&self.root)?;
        Ok(dir)
    }

    /// Whether the link had to be changed.
    fn link_latest(&self, version: u64) -> Result<bool> {
        let (latest, name) = (self.root.join("latest"), version_name(version));
        if fs::read_link(&latest).is_ok_and(|to| to.as_os_str() == name.as_str()) {
            return Ok(false);
        }
        let aside = self.root.join(".tmp-latest");
        remove_if_there(&aside)?;
        symlink(&name, &aside).map_err(Error::io("make link", &aside))?;
        fail_point("place.latest");
        fs::rename(&aside, &latest).map_err(Error::io("rename to", &latest))?;
        sync_dir(&self.root)?;
        Ok(true)
    }

    /// Numbers of the versions that exist.
    fn versions(&self) -> Result<Vec<u64>> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("list", &self.root)(e)),
        };
        Ok(entries.flatten().filter_map(|entry| version_of(entry.file_name().to_str()?)).collect())
    }

    /// Wanted files that do not stand in `dir` as recorded.
    fn damaged<'w>(&self, dir: &Path, wanted: &'w Wanted) -> Vec<(&'w String, Hash)> {
        let intact = |(file, blob): &(&String, &Hash)| self.intact(&dir.join(file), file, blob);
        wanted.iter().filter(|entry| !intact(entry)).map(|(file, blob)| (file, *blob)).collect()
    }

    fn intact(&self, path: &Path, file: &str, blob: &Hash) -> bool {
        let Some(record) = self.recorded.get(file).filter(|record| record.blob == *blob) else { return false };
        fs::symlink_metadata(path).is_ok_and(|now| now.is_file() && stamp(&now) == (record.size, record.mtime_ns))
    }

    /// Whether `dir` holds these files and no others.
    fn holds_exactly(&self, dir: &Path, wanted: &Wanted) -> bool {
        let mut found = 0;
        let mut folders = vec![dir.to_owned()];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = fs::read_dir(&folder) else { return false };
            for entry in entries.flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                    _ => found += 1,
                }
            }
        }
        found == wanted.len() && wanted.iter().all(|(file, blob)| holds(&dir.join(file), &self.store.blobs, blob))
    }

    /// Copies the blob to `dir/file`, unless it is there; readers see the old file or the new one, never a part.
    fn write(&self, dir: &Path, file: &str, blob: &Hash) -> Result<bool> {
        let path = dir.join(file);
        if holds(&path, &self.store.blobs, blob) {
            return Ok(false);
        }
        let parent = path.parent().expect("a file below a folder has a parent");
        fs::create_dir_all(parent).map_err(Error::io("make folder", parent))?;
        let aside = aside(&path);
        let from = self.store.blobs.path(blob);
        let copied = File::open(&from).map_err(Error::io("read blob", &from)).and_then(|mut from| {
            let copy = File::create(&aside).and_then(|mut to| io::copy(&mut from, &mut to).and_then(|_| to.sync_all()));
            copy.map_err(Error::io("write", &aside))
        });
        if let Err(error) = copied {
            // The error that matters is the first one.
            let _ = fs::remove_file(&aside);
            return Err(error);
        }
        fail_point("place.file");
        fs::rename(&aside, &path).map_err(Error::io("rename to", &path))?;
        sync_dir(parent)?;
        Ok(true)
    }

    /// Removes a file that the stage placed, and folders that it leaves empty.
    fn remove(&self, file: &str) -> Result<()> {
        let path = self.root.join(file);
        fail_point("place.remove");
        remove_if_there(&path)?;
        remove_if_there(&aside(&path))?;
        for folder in Path::new(file).ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()) {
            // Fails where the folder holds something else, which then stays.
            if fs::remove_dir(self.root.join(folder)).is_err() {
                break;
            }
        }
        Ok(())
    }

    fn claim(&self, files: &[(&String, Hash)]) -> Result<()> {
        let unknown: Vec<_> = files.iter().filter(|(file, _)| !self.recorded.contains_key(*file)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        self.store.change("claim placed files", "place.claim", |manifest| {
            let mut insert = manifest.prepare_cached(INSERT)?;
            for (file, blob) in unknown {
                insert.execute(params![self.pipeline, self.stage, self.root_text(), 0, file, -1, 0, blob])?;
            }
            Ok(())
        })
    }

    /// Replaces what is recorded of the folder by these files as they stand in `dir` now.
    fn record(&self, version: u64, dir: &Path, files: &Wanted) -> Result<()> {
        let mut stamps = Vec::with_capacity(files.len());
        for (file, blob) in files {
            let path = dir.join(file);
            let metadata = fs::symlink_metadata(&path).map_err(Error::io("look at", &path))?;
            stamps.push((file, stamp(&metadata), blob));
        }
        self.store.change("record placed files", "place.record", |manifest| {
            let delete = "DELETE FROM placed WHERE pipeline = ?1 AND stage = ?2 AND root = ?3";
            manifest.execute(delete, params![self.pipeline, self.stage, self.root_text()])?;
            let mut insert = manifest.prepare_cached(INSERT)?;
            for (file, (size, mtime_ns), blob) in stamps {
                let version = version as i64;
                insert.execute(params![
                    self.pipeline,
                    self.stage,
                    self.root_text(),
                    version,
                    file,
                    size,
                    mtime_ns,
                    blob
                ])?;
            }
            Ok(())
        })
    }

    fn root_text(&self) -> String {
        self.root.to_string_lossy().into_owned()
    }
}

const INSERT: &str = "INSERT OR REPLACE INTO placed (pipeline, stage, root, version, file, size, mtime_ns, blob)
                      VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

fn read_records(store: &Store, pipeline: &str, stage: &str, root: &Path) -> Result<BTreeMap<String, Record>> {
    let sql = "SELECT file, version, size, mtime_ns, blob FROM placed WHERE pipeline = ?1 AND stage = ?2 AND root = ?3";
    let records = store.list("read placed files", sql, params![pipeline, stage, root.to_string_lossy()], |row| {
        let version = row.get::<_, i64>(1)? as u64;
        Ok((row.get(0)?, Record { version, size: row.get(2)?, mtime_ns: row.get(3)?, blob: row.get(4)? }))
    })?;
    Ok(records.into_iter().collect())
}

fn stamp(metadata: &Metadata) -> (i64, i64) {
    (metadata.len() as i64, mtime_ns(metadata))
}

pub(super) fn version_name(version: u64) -> String {
    format!("v{version:06}")
}

fn version_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix('v').filter(|digits| digits.len() >= 6)?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// The name under which a file is written before it gets its own. Always the same, so that what a crash leaves behind is
/// overwritten or found.
fn aside(path: &Path) -> PathBuf {
    let name = path.file_name().expect("a placed file has a name").to_string_lossy();
    path.with_file_name(format!(".tmp-{name}"))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
