//! `decode`: a clip's frames as RGB pixels of the size that the models take.
//!
//! Only the GOPs that hold wanted frames are decoded; each picture is converted and resized as it comes, so memory grows
//! with the clip's output and not with the video (an episode's file is read whole). Normally transient: declared
//! `store = "transient"`, frames are made where they are needed and stored nowhere.
//! Source: spec section 1.2 (bilinear resize with antialias, truncated to u8; no crop, no aspect preservation).

use std::collections::VecDeque;
use std::path::Path;

use serde::{Deserialize, Serialize};
use vw2_data::media::{self, VideoReader};
use vw2_data::{Clips, Frames, MediaError};
use vw2_engine::stage::{Context, Operator, Output, Port, Stage, StageError, Table, Unit};
use vw2_kernels::{Filter, Layout, Matrix, Picture, Range, Resize, picture_to_levels};

use crate::tables;

/// Decodes and resizes the frames that a clip lists.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decode {
    /// Height and width of the frames; multiples of 16.
    pub size: [u32; 2],
    /// How pixels are resized.
    #[serde(default)]
    pub resize: ResizeRule,
}

#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResizeRule {
    /// Bilinear with antialias, as upstream's datasets do.
    #[default]
    Antialias,
    /// Bilinear without antialias.
    Bilinear,
}

impl Stage for Decode {
    const KIND: &'static str = "decode";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "clips to RGB frames of one size";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] = &[Port::row("clips", &tables::CLIPS)];
    const OUTPUT: &'static Table = &tables::FRAMES;

    fn check(&self) -> Result<(), String> {
        match self.size.iter().find(|&&side| side == 0 || side % 16 != 0 || side > 1 << 14) {
            None => Ok(()),
            Some(side) => {
                let near = (side / 16 * 16).clamp(16, 1 << 14);
                Err(format!("`size` has {side}, but both sides are multiples of 16, such as {near}"))
            }
        }
    }

    fn reads_file(&self) -> bool {
        true
    }

    fn open(&self, _ctx: &Context) -> Result<Box<dyn Operator>, StageError> {
        let [height, width] = self.size.map(|side| side as usize);
        let filter = if self.resize == ResizeRule::Antialias { Filter::Antialias } else { Filter::Bilinear };
        let resize = Resize { filter, ..Resize::to(height, width) };
        Ok(Box::new(Decoder { resize, open: VecDeque::new(), scratch: Vec::new() }))
    }
}

/// How many files a decoder keeps open: enough for a pool that works on neighbouring clips of a few long videos.
const OPEN_FILES: usize = 2;

/// The largest file that is kept in memory between two clips: an episode of a few hundred encoded pictures.
const MOST_HELD_BYTES: u64 = 16 << 20;

struct Decoder {
    resize: Resize,
    /// Recently used files, the last used in front; reading goes on from where the file's last clip ended.
    open: VecDeque<(std::path::PathBuf, VideoReader)>,
    /// One picture's planes, back to back.
    scratch: Vec<u8>,
}

impl Operator for Decoder {
    fn process(&mut self, units: &[Unit], out: &mut Output) -> Result<(), StageError> {
        for unit in units {
            let Some(path) = unit.file.clone() else {
                return Err(format!("{}: the clip goes back to no file", unit.id).into());
            };
            let clip = Clips::view(unit.row("clips"))?.clip(0);
            match self.decode(&path, &clip.frames) {
                Ok(pixels) => {
                    self.open.retain(|(_, reader)| reader.held_bytes() <= MOST_HELD_BYTES);
                    let shape = [clip.frames.len(), self.resize.height, self.resize.width, 3];
                    out.push(unit, "", Frames::row(pixels, shape, &clip.origin)?);
                }
                Err(error) => {
                    self.open.retain(|(open, _)| **open != *path);
                    match error.is_transient() {
                        true => out.retry(unit, error.reason()),
                        false => out.reject(unit, error.reason()),
                    }
                }
            }
        }
        Ok(())
    }

    fn memory_bytes(&self, unit: &Unit) -> u64 {
        // The output, and a decoder's reference pictures: at most 16 of 720p, 4:2:0. Larger video is the exception, for
        // which the estimate is low by the excess of those pictures. An episode is read whole, and then taken apart.
        let frames = Clips::view(unit.row("clips")).map_or(0, |clips| clips.frames(0).len());
        let episode = unit.file.as_deref().map_or(0, |path| match media::Episode::is_one(path) {
            Ok(true) => 2 * std::fs::metadata(path).map_or(0, |file| file.len()),
            _ => 0,
        });
        (frames * self.resize.height * self.resize.width * 3 + 16 * 1280 * 720 * 3 / 2) as u64 + episode
    }
}

impl Decoder {
    /// The listed frames, u8 RGB [T, H, W, 3].
    fn decode(&mut self, path: &Path, frames: &[u32]) -> Result<Vec<u8>, MediaError> {
        self.open_file(path)?;
        let (resize, scratch) = (self.resize, &mut self.scratch);
        let frame_bytes = resize.height * resize.width * 3;
        let mut pixels = vec![0; frames.len() * frame_bytes];
        let (_, reader) = &mut self.open[0];
        reader.read(frames, &mut |number, picture| {
            let spec = pack(picture, scratch);
            let levels = picture_to_levels(scratch, &spec, &resize).map_err(|error| MediaError::Sink(error.into()))?;
            for (place, _) in frames.iter().enumerate().filter(|(_, wanted)| **wanted == number) {
                pixels[place * frame_bytes..][..frame_bytes].copy_from_slice(&levels);
            }
            Ok(())
        })?;
        Ok(pixels)
    }

    /// Makes `open[0]` the file's reader, of the file as it is now.
    fn open_file(&mut self, path: &Path) -> Result<(), MediaError> {
        let known = self.open.iter().position(|(open, _)| open == path).and_then(|index| self.open.remove(index));
        let reader = match known {
            Some((_, reader)) if reader.is_current() => reader,
            _ => VideoReader::open(path)?,
        };
        self.open.push_front((path.to_owned(), reader));
        self.open.truncate(OPEN_FILES);
        Ok(())
    }
}

/// Writes a picture's planes back to back without row padding, and says what they are.
fn pack(picture: &media::Picture, planes: &mut Vec<u8>) -> Picture {
    let (width, height) = (picture.width as usize, picture.height as usize);
    let (chroma_width, chroma_height) = picture.format.chroma_size(picture.width, picture.height);
    let samples = if picture.format == media::PixelFormat::Rgb { 3 } else { 1 };
    let sizes = [(samples * width, height), (chroma_width as usize, chroma_height as usize)];
    planes.clear();
    for (index, plane) in picture.planes.iter().enumerate() {
        let (width, height) = sizes[index.min(1)];
        for row in plane.data.chunks(plane.stride).take(height) {
            planes.extend_from_slice(&row[..width]);
        }
    }
    Picture {
        layout: match picture.format {
            media::PixelFormat::I420 => Layout::I420,
            media::PixelFormat::I422 => Layout::I422,
            media::PixelFormat::I444 => Layout::I444,
            media::PixelFormat::Rgb => Layout::Rgb,
        },
        matrix: match picture.matrix {
            media::Matrix::Bt601 => Matrix::Bt601,
            media::Matrix::Bt709 => Matrix::Bt709,
            media::Matrix::Bt2020 => Matrix::Bt2020,
        },
        range: match picture.range {
            media::Range::Limited => Range::Limited,
            media::Range::Full => Range::Full,
        },
        width,
        height,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_took_the_place_of_an_open_one_is_decoded() {
        let folder = tempfile::tempdir().unwrap();
        let sample = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/samples/pusht").join(name);
        let (path, new) = (folder.path().join("clip.mp4"), folder.path().join("new"));
        let mut decoder = Decoder { resize: Resize::to(64, 64), open: VecDeque::new(), scratch: Vec::new() };
        let mut decoded = Vec::new();
        for name in ["ep_0000.mp4", "ep_0001.mp4"] {
            std::fs::copy(sample(name), &new).unwrap();
            std::fs::rename(&new, &path).unwrap();
            decoded.push(decoder.decode(&path, &[0, 9]).unwrap());
            let fresh = decoder.decode(&sample(name), &[0, 9]).unwrap();
            assert!(decoded.last() == Some(&fresh), "{name} is decoded as another file");
        }
        assert_ne!(decoded[0], decoded[1]);
    }
}
