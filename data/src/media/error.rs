//! What can be wrong with a video or picture file.

use std::path::{Path, PathBuf};

/// Every message names the file, what was found and what to do.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },

    #[error("{}: the file changed while it was read; run again once it is complete", path.display())]
    Changed { path: PathBuf },

    /// The file is no video or picture, or is damaged.
    #[error("{}: {reason}", path.display())]
    Broken { path: PathBuf, reason: String },

    #[error("{}: {what} needs the `ffmpeg` program, which is not on PATH; install it or convert the file to H.264 MP4", path.display())]
    NeedsFfmpeg { path: PathBuf, what: String },

    /// `ffmpeg` itself failed: it could not be started, or gave nothing for too long.
    #[error("{}: {reason}", path.display())]
    Ffmpeg { path: PathBuf, reason: String },

    #[error("{}: frame {frame} is wanted, but the video has frames 0 to {}", path.display(), *frames as i64 - 1)]
    NoFrame { path: PathBuf, frame: u32, frames: u32 },

    /// The caller's sink gave up.
    #[error(transparent)]
    Sink(Box<dyn std::error::Error + Send + Sync>),

    #[error("{}: {reason}", path.display())]
    Encode { path: PathBuf, reason: String },
}

impl MediaError {
    /// May another try succeed with the same file? If not, the file's content is at fault.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            MediaError::Io { .. } | MediaError::Changed { .. } | MediaError::Ffmpeg { .. } | MediaError::Sink(_)
        )
    }

    /// The message without the file's path: what is remembered of a file by its content must not name one of its copies.
    pub fn reason(&self) -> String {
        let path = match self {
            MediaError::Io { path, .. }
            | MediaError::Changed { path }
            | MediaError::Broken { path, .. }
            | MediaError::NeedsFfmpeg { path, .. }
            | MediaError::Ffmpeg { path, .. }
            | MediaError::NoFrame { path, .. }
            | MediaError::Encode { path, .. } => path,
            MediaError::Sink(error) => return error.to_string(),
        };
        let text = self.to_string();
        match text.strip_prefix(&format!("{}: ", path.display())) {
            Some(reason) => reason.to_owned(),
            None => text,
        }
    }

    pub(crate) fn broken(path: &Path, reason: impl Into<String>) -> MediaError {
        MediaError::Broken { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> MediaError {
        MediaError::Io { path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_names_no_path() {
        let path = Path::new("a/b.mp4");
        for error in [
            MediaError::broken(path, "the file is empty"),
            MediaError::io(path, std::io::ErrorKind::NotFound.into()),
            MediaError::Changed { path: path.into() },
            MediaError::NoFrame { path: path.into(), frame: 9, frames: 3 },
            MediaError::NeedsFfmpeg { path: path.into(), what: "codec hevc".into() },
        ] {
            let (text, reason) = (error.to_string(), error.reason());
            assert!(text == format!("a/b.mp4: {reason}") && !reason.is_empty(), "{text:?} {reason:?}");
        }
    }
}
