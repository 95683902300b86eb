//! Whether a path still names the file that was opened, with the bytes that it had.

use std::fs::{FileType, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::MediaError;

/// What differs once a file was written to or another one took its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// Of the file at `path`, links followed. What is no file (opening a pipe would wait for its writer, a device may
    /// never end) is an error.
    pub(super) fn of(path: &Path) -> Result<Stamp, MediaError> {
        let metadata = std::fs::metadata(path).map_err(|e| MediaError::io(path, e))?;
        match kind_of(metadata.file_type()) {
            None => Ok(Stamp::from(&metadata)),
            Some(kind) => Err(MediaError::broken(path, format!("this is {kind} and no file"))),
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Does the path still name the same, unchanged file?
    pub(super) fn is_current(&self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|now| Stamp::from(&now) == *self)
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// What a path names that is no file, in words.
pub fn kind_of(kind: FileType) -> Option<&'static str> {
    Some(match kind {
        _ if kind.is_file() => return None,
        _ if kind.is_dir() => "a folder",
        _ if kind.is_fifo() => "a pipe",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    })
}
