//! Content-addressed files: `blobs/ab/cdef…` is named by the blake3 of its bytes.
//!
//! A blob appears by rename after its bytes are on the disk, so a name that exists always has all of its bytes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::NamedTempFile;

use super::fail::fail_point;
use crate::error::{Error, Result};
use crate::fingerprint::Hash;

/// The files of a store; a cheap handle for any thread.
#[derive(Clone, Debug)]
pub struct Blobs {
    dir: Arc<Path>,
    /// A second folder of blobs, which is only read.
    beside: Option<Arc<Path>>,
}

impl Blobs {
    pub(super) fn create(store: &Path) -> Result<Blobs> {
        let blobs = Blobs::at(store);
        fs::create_dir_all(blobs.temp_dir()).map_err(Error::io("make folder", &blobs.temp_dir()))?;
        Ok(blobs)
    }

    pub(super) fn at(store: &Path) -> Blobs {
        Blobs { dir: store.join("blobs").into(), beside: None }
    }

    /// These, and a folder of another store for new ones.
    pub(super) fn aside(&self, store: &Path) -> Result<Blobs> {
        Ok(Blobs { beside: Some(self.dir.clone()), ..Blobs::create(store)? })
    }

    /// What a run that was cut short left behind. Only the holder of the store's lock may call this.
    pub(super) fn remove_stale_temp_files(&self) -> Result<()> {
        let dir = self.temp_dir();
        for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
            let path = entry.map_err(Error::io("list", &dir))?.path();
            fail_point("blob.stale");
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        Ok(())
    }

    pub(super) fn temp_dir(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    /// Where the blob stands, or would stand.
    pub fn path(&self, hash: &Hash) -> PathBuf {
        let own = place(&self.dir, hash);
        match &self.beside {
            Some(beside) if !own.is_file() => place(beside, hash),
            _ => own,
        }
    }

    pub fn contains(&self, hash: &Hash) -> bool {
        self.path(hash).is_file()
    }

    /// All that are there, with path and size in bytes. Files with other names are not the store's.
    pub(super) fn list(&self) -> Result<Vec<(Hash, PathBuf, u64)>> {
        let mut found = Vec::new();
        for folder in entries(&self.dir)? {
            let Some(first) = folder.file_name().and_then(|name| name.to_str()).filter(|name| name.len() == 2) else {
                continue;
            };
            for path in entries(&folder)? {
                let rest = path.file_name().and_then(|name| name.to_str());
                let hash = rest.and_then(|rest| format!("{first}{rest}").parse().ok());
                let metadata = fs::symlink_metadata(&path).map_err(Error::io("look at", &path))?;
                found.extend(hash.filter(|_| metadata.is_file()).map(|hash| (hash, path, metadata.len())));
            }
        }
        Ok(found)
    }

    pub fn read(&self, hash: &Hash) -> Result<Vec<u8>> {
        let path = self.path(hash);
        fs::read(&path).map_err(Error::io("read blob", &path))
    }

    /// A file in the store for a writer that streams; finish with [`Blobs::put_file`], or drop it.
    pub fn temp_file(&self) -> Result<NamedTempFile> {
        let dir = self.temp_dir();
        new_temp_file(&dir, "").map_err(Error::io("make a file in", &dir))
    }

    /// Writes the bytes unless the store has them.
    pub fn put(&self, bytes: &[u8]) -> Result<Hash> {
        let hash = Hash::of_bytes(bytes);
        if !self.contains(&hash) {
            let mut temp = self.temp_file()?;
            temp.write_all(bytes).map_err(Error::io("write", temp.path()))?;
            self.settle(&hash, temp.path())?;
        }
        Ok(hash)
    }

    /// Takes in a finished file: a [`Blobs::temp_file`] is moved, any other file copied.
    pub fn put_file(&self, path: &Path) -> Result<Hash> {
        if path.parent() == Some(&self.temp_dir()) {
            let hash = Hash::of_file(path).map_err(Error::io("read", path))?;
            if self.contains(&hash) {
                fs::remove_file(path).map_err(Error::io("remove", path))?;
            } else {
                self.settle(&hash, path)?;
            }
            return Ok(hash);
        }
        // The copy is hashed, not the original: the file may change while it is read.
        let temp = self.temp_file()?;
        let mut from = File::open(path).map_err(Error::io("read", path))?;
        io::copy(&mut from, &mut temp.as_file()).map_err(Error::io("copy into the store", path))?;
        self.put_file(temp.path())
    }

    /// Bytes to the disk, then the name: a crash leaves the blob whole or absent.
    fn settle(&self, hash: &Hash, temp: &Path) -> Result<()> {
        let path = place(&self.dir, hash);
        let dir = path.parent().expect("a blob stands in a folder of its own");
        fs::create_dir_all(dir).map_err(Error::io("make folder", dir))?;
        File::open(temp).and_then(|file| file.sync_all()).map_err(Error::io("flush to the disk", temp))?;
        fail_point("blob.rename");
        fs::rename(temp, &path).map_err(Error::io("rename to", &path))?;
        sync_dir(dir)
    }
}

fn place(dir: &Path, hash: &Hash) -> PathBuf {
    let name = hash.to_string();
    dir.join(&name[..2]).join(&name[2..])
}

/// A temporary file with the permissions that the user's other files have (tempfile's own default is private).
pub(super) fn new_temp_file(dir: &Path, prefix: &str) -> io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(prefix).permissions(fs::Permissions::from_mode(0o666)).tempfile_in(dir)
}

/// What lies in a folder; nothing where there is none.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = || fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    match list() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        list => list.map_err(Error::io("list", folder)),
    }
}

/// Makes names in a folder survive a power cut.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("flush to the disk", dir))
}

/// Whether the file holds the blob's bytes; `false` where either cannot be read.
pub(super) fn holds(path: &Path, blobs: &Blobs, wanted: &Hash) -> bool {
    let size = |path: &Path| fs::metadata(path).ok().filter(|m| m.is_file()).map(|m| m.len());
    size(path).is_some() && size(path) == size(&blobs.path(wanted)) && Hash::of_file(path).is_ok_and(|h| h == *wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_bytes_are_one_blob_and_no_temp_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::create(dir.path()).unwrap();
        let hash = blobs.put(b"frames").unwrap();
        let mut streamed = blobs.temp_file().unwrap();
        streamed.write_all(b"frames").unwrap();
        assert_eq!(blobs.put_file(streamed.path()).unwrap(), hash, "moved in");
        let outside = dir.path().join("outside");
        fs::write(&outside, b"frames").unwrap();
        assert_eq!(blobs.put_file(&outside).unwrap(), hash, "copied in");
        assert!(outside.exists());
        assert_eq!(blobs.read(&hash).unwrap(), b"frames");
        assert_eq!(Hash::of_file(blobs.path(&hash)).unwrap(), hash);
        assert_eq!(fs::read_dir(blobs.temp_dir()).unwrap().count(), 0);
        assert!(!blobs.contains(&Hash::of_bytes(b"else")));
        assert!(blobs.read(&Hash::default()).unwrap_err().to_string().starts_with("cannot read blob `"));
    }

    #[test]
    fn a_file_streamed_into_the_store_becomes_a_blob() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::create(dir.path()).unwrap();
        let mut temp = blobs.temp_file().unwrap();
        temp.write_all(&[7; 100_000]).unwrap();
        let hash = blobs.put_file(temp.path()).unwrap();
        drop(temp);
        assert_eq!(blobs.read(&hash).unwrap(), vec![7; 100_000]);
    }
}
