//! What a unit keeps for its next try, if it is cut short: `scratch/<key>/<name>`.
//!
//! Work of minutes or days (rollouts of many clips, training) writes here how far it has come. The unit's key covers all
//! that the work depends on, so whatever lies under it is still right. The folder goes when the unit's result is committed.
//! Nothing here is ever part of a result: a file that is missing or damaged costs time only.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::blobs::new_temp_file;
use super::fail::fail_point;
use crate::error::{Error, Result};
use crate::fingerprint::Hash;
use crate::stage::Unit;

/// The scratch files of a store; a cheap handle for any thread.
#[derive(Clone, Debug)]
pub struct Scratch {
    dir: Arc<Path>,
}

/// Bytes of a hash, which precede the content of every file: a power cut may leave half of it.
const CHECK: usize = size_of::<Hash>();

impl Scratch {
    pub(super) fn at(store: &Path) -> Scratch {
        Scratch { dir: store.join("scratch").into() }
    }

    fn folder(&self, key: &Hash) -> PathBuf {
        self.dir.join(key.to_string())
    }

    /// What [`Scratch::write`] wrote last under this name for a unit of this key, if it is there and whole.
    pub fn read(&self, unit: &Unit, name: &str) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.folder(&unit.key).join(name)).ok()?;
        let content = bytes.split_off(CHECK.min(bytes.len()));
        (Hash::of_bytes(&content).0[..] == bytes[..]).then_some(content)
    }

    /// Replaces the file of this name. A process that is killed leaves the old one or the new one.
    pub fn write(&self, unit: &Unit, name: &str, content: &[u8]) -> Result<()> {
        let folder = self.folder(&unit.key);
        fs::create_dir_all(&folder).map_err(Error::io("make folder", &folder))?;
        let path = folder.join(name);
        let written = new_temp_file(&folder, ".new-").and_then(|mut temp| {
            temp.write_all(&Hash::of_bytes(content).0)?;
            temp.write_all(content)?;
            fail_point("scratch.rename");
            Ok(temp.persist(&path)?)
        });
        written.map_err(Error::io("write", &path))?;
        Ok(())
    }

    /// Removes what these units left. One that stays behind takes space and is otherwise harmless.
    pub(crate) fn clear<'a>(&self, keys: impl Iterator<Item = &'a Hash>) {
        if self.dir.is_dir() {
            for folder in keys.map(|key| self.folder(key)).filter(|folder| folder.is_dir()) {
                fail_point("scratch.clear");
                fs::remove_dir_all(folder).ok();
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn unit(key: &str) -> Unit {
        let key = Hash::of_bytes(key.as_bytes());
        Unit { id: "a".into(), key, file: None, row: None, row_port: "", tables: Vec::new(), parent: None }
    }

    #[test]
    fn what_is_whole_is_read_until_it_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = Scratch::at(folder.path());
        let (a, b) = (unit("a"), unit("b"));
        scratch.clear([&a.key].into_iter());
        assert_eq!(scratch.read(&a, "state"), None);
        for content in [&b"one"[..], b"", b"two"] {
            scratch.write(&a, "state", content).unwrap();
            assert_eq!(scratch.read(&a, "state").as_deref(), Some(content));
        }
        assert_eq!((scratch.read(&a, "other"), scratch.read(&b, "state")), (None, None));

        let path = scratch.folder(&a.key).join("state");
        let bytes = fs::read(&path).unwrap();
        for damaged in [&bytes[..bytes.len() - 1], &bytes[..5], b""] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(scratch.read(&a, "state"), None);
        }
        scratch.clear([&a.key, &b.key].into_iter());
        assert!(!path.exists());
    }
}
