//! Video and picture files, in and out.
//!
//! In: MP4 with H.264 is read in process ([`probe`], [`VideoReader`]); everything else through the `ffmpeg` program, run
//! as a child, where there is one; so is, where there is one, H.264 of a kind whose damage the decoder in process would
//! not see (several slices to a picture, or CAVLC). A frame's number is its place among the frames that a player shows, from 0: frames
//! outside the edit list are not counted, B-frames stand where they are shown. Rotation in the header is not applied
//! (as `ffmpeg -noautorotate`). A pickle that holds an episode's pictures ([`Episode`]) is read as a video of them.
//! Out: [`Mp4Writer`], [`contact_sheet`].
//!
//! Memory is bounded: a file is read sample by sample, and pictures are handed over one at a time.

pub mod image;

mod contact_sheet;
mod episode;
mod error;
mod ffmpeg;
mod h264;
mod mp4;
mod mp4_writer;
mod picture;
mod sps;
mod stamp;

use std::path::{Path, PathBuf};

pub use contact_sheet::{Sheet, contact_sheet};
pub use episode::Episode;
pub use error::MediaError;
pub use mp4_writer::{Mp4Options, Mp4Writer};
pub use picture::{Matrix, Picture, PixelFormat, Plane, Range};
pub use stamp::kind_of;

pub(crate) use ffmpeg::Programs;
pub(crate) use h264::reduced;

use crate::VideoInfo;
use stamp::Stamp;

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
    stamp: Stamp,
    info: VideoInfo,
    source: Source,
}

enum Source {
    H264(Box<h264::H264Reader>),
    Ffmpeg(Box<ffmpeg::FfmpegReader>),
    Episode(Box<Episode>),
}

impl VideoReader {
    /// Reads what [`probe`] reads.
    pub fn open(path: &Path) -> Result<VideoReader, MediaError> {
        Self::open_with(path, Programs::find())
    }

    /// Some H.264 can be decoded in process, but not checked well: with `programs`, these see to it.
    fn open_with(path: &Path, programs: Option<Programs>) -> Result<VideoReader, MediaError> {
        let stamp = Stamp::of(path)?;
        let opened = open_source(path, programs);
        if !stamp.is_current(path) {
            return Err(MediaError::Changed { path: path.to_owned() });
        }
        let (info, source) = opened?;
        Ok(VideoReader { path: path.to_owned(), stamp, info, source })
    }

    /// Does the path still name the file that this reader has open, unchanged?
    pub fn is_current(&self) -> bool {
        self.stamp.is_current(&self.path)
    }

    pub fn info(&self) -> &VideoInfo {
        &self.info
    }

    /// Bytes of the file that stay in memory while it is open: all of an episode, next to nothing of a video.
    pub fn held_bytes(&self) -> u64 {
        match &self.source {
            Source::Episode(_) => self.stamp.size_bytes(),
            Source::H264(_) | Source::Ffmpeg(_) => 0,
        }
    }

    /// Decodes the `wanted` frames (in any order, repeats allowed) and hands each distinct one to `sink` once, as
    /// `(frame number, picture)`, in the decoder's order: with B-frames that is not ascending, so put pictures where
    /// their number says.
    ///
    /// Decodes from the keyframe before the first wanted frame (or from where the last read ended) to the last one, and
    /// leaves out groups of pictures that no wanted frame lies in. A frame that cannot be decoded is an error, never a
    /// gap; after an error the reader can be used again. [`MediaError::Changed`] where the file was written to, replaced
    /// or removed since it was opened: what `sink` got is then worth nothing, and the file has to be opened anew.
    pub fn read(
        &mut self,
        wanted: &[u32],
        sink: &mut dyn FnMut(u32, &Picture) -> Result<(), MediaError>,
    ) -> Result<(), MediaError> {
        if let Some(&frame) = wanted.iter().find(|&&frame| frame >= self.info.frames) {
            return Err(MediaError::NoFrame { path: self.path.clone(), frame, frames: self.info.frames });
        }
        let wanted = wanted.iter().copied().collect();
        let read = match &mut self.source {
            Source::H264(reader) => reader.read(wanted, sink),
            Source::Ffmpeg(reader) => reader.read(wanted, sink),
            Source::Episode(episode) => episode.read(&wanted, sink),
        };
        match read {
            Err(MediaError::Sink(error)) => Err(MediaError::Sink(error)),
            _ if !self.is_current() => Err(MediaError::Changed { path: self.path.clone() }),
            read => read,
        }
    }
}

fn open_source(path: &Path, programs: Option<Programs>) -> Result<(VideoInfo, Source), MediaError> {
    if Episode::is_one(path)? {
        let episode = Episode::open(path)?;
        return Ok((episode.info(), Source::Episode(Box::new(episode))));
    }
    let what = match (h264::open(path)?, &programs) {
        (h264::Opened::Here(info, reader), Some(_)) if !reader.hides_damage() => {
            return Ok((info, Source::H264(reader)));
        }
        (h264::Opened::Here(info, reader), None) => return Ok((info, Source::H264(reader))),
        (h264::Opened::Here(..), Some(_)) => String::new(),
        (h264::Opened::Elsewhere(what), _) => what,
    };
    let Some(programs) = programs else {
        return Err(MediaError::NeedsFfmpeg { path: path.to_owned(), what });
    };
    let (info, reader) = ffmpeg::open(path, programs)?;
    Ok((info, Source::Ffmpeg(Box::new(reader))))
}

#[cfg(test)]
mod tests;
