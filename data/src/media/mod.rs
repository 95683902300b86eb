//! Video and picture files, in and out.
//!
//! In: MP4 with H.264 is read in process ([`probe`], [`VideoReader`]); everything else through the `ffmpeg` program, run
//! as a child, where there is one. A frame's number is its place among the frames that a player shows, from 0: frames
//! outside the edit list are not counted, B-frames stand where they are shown. Rotation in the header is not applied
//! (as `ffmpeg -noautorotate`).
//! Out: [`Mp4Writer`], [`contact_sheet`].
//!
//! Memory is bounded: a file is read sample by sample, and pictures are handed over one at a time.

pub mod image;

mod contact_sheet;
mod error;
mod ffmpeg;
mod h264;
mod mp4;
mod mp4_writer;
mod picture;
mod sps;

use std::path::{Path, PathBuf};

pub use contact_sheet::{Sheet, contact_sheet};
pub use error::MediaError;
pub use mp4_writer::{Mp4Options, Mp4Writer};
pub use picture::{Matrix, Picture, PixelFormat, Plane, Range};

#[cfg(test)]
pub(crate) use ffmpeg::Programs;

use crate::VideoInfo;

/// The largest picture that is decoded, in pixels: what H.264 allows at its highest level (6.2).
pub const MAX_PIXELS: u64 = 139_264 * 256;

/// Reads a video file's header and sample tables, and decodes nothing.
///
/// Errors say why the file cannot be a video: it is empty, is no video at all, has been cut off (and at which byte), or
/// needs a program that is not there. See [`MediaError::is_transient`] for what to do about each.
pub fn probe(path: &Path) -> Result<VideoInfo, MediaError> {
    Ok(VideoReader::open(path)?.info)
}

/// An open video file with a place in it: a read goes on from there where that is nearer than the next keyframe.
pub struct VideoReader {
    path: PathBuf,
    info: VideoInfo,
    source: Source,
}

enum Source {
    H264(Box<h264::H264Reader>),
    Ffmpeg(Box<ffmpeg::FfmpegReader>),
}

impl VideoReader {
    /// Reads what [`probe`] reads.
    pub fn open(path: &Path) -> Result<VideoReader, MediaError> {
        let (info, source) = match h264::open(path)? {
            h264::Opened::Here(info, reader) => (info, Source::H264(reader)),
            h264::Opened::Elsewhere(what) => {
                let (info, reader) = ffmpeg::open(path, &what)?;
                (info, Source::Ffmpeg(Box::new(reader)))
            }
        };
        Ok(VideoReader { path: path.to_owned(), info, source })
    }

    pub fn info(&self) -> &VideoInfo {
        &self.info
    }

    /// Decodes the `wanted` frames (in any order, repeats allowed) and hands each distinct one to `sink` once, as
    /// `(frame number, picture)`, in the decoder's order: with B-frames that is not ascending, so put pictures where
    /// their number says.
    ///
    /// Decodes from the keyframe before the first wanted frame (or from where the last read ended) to the last one, and
    /// leaves out groups of pictures that no wanted frame lies in. A frame that cannot be decoded is an error, never a
    /// gap; after an error the reader can be used again.
    pub fn read(
        &mut self,
        wanted: &[u32],
        sink: &mut dyn FnMut(u32, &Picture) -> Result<(), MediaError>,
    ) -> Result<(), MediaError> {
        if let Some(&frame) = wanted.iter().find(|&&frame| frame >= self.info.frames) {
            return Err(MediaError::NoFrame { path: self.path.clone(), frame, frames: self.info.frames });
        }
        let wanted = wanted.iter().copied().collect();
        match &mut self.source {
            Source::H264(reader) => reader.read(wanted, sink),
            Source::Ffmpeg(reader) => reader.read(wanted, sink),
        }
    }
}

#[cfg(test)]
mod tests;
