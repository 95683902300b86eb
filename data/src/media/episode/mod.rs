//! An episode of Open-X: a Python pickle that holds the pictures of a robot's camera, read as a video of them.
//!
//! Layouts: `steps` (or `step`), a list of dictionaries with a picture in `observation`, under the first of
//!          [`PICTURES`] that is there; or `obs_images`, all pictures in one tensor or array [T, C, H, W].
//! Pictures: the bytes of a JPEG, PNG or WebP file, or an array [H, W, C] (see [`raster`]). All of them become RGB.
//! A step without a picture that can be read is a bad frame: it is left out, counted, and takes no number, so frame n is the
//! n-th good one. An episode of which more than a tenth is bad is an error, as is one without any.
//! Source: spec section 1.3; the pickles are read by [`vw2_pickle`], which executes nothing.
//! Differs: upstream puts a white frame in the place of a bad one, fails on `step`, leaves gray and transparent pictures
//! as they are, and always gives the last frame of `obs_images` (spec 10.1, Q8).

mod raster;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use vw2_pickle::{Array, Limits, Tensor, Value};

use self::raster::Raster;
use super::image::{RgbImage, decode_bytes};
use super::{Matrix, MediaError, Picture, PixelFormat, Plane, Range};
use crate::VideoInfo;

/// Where a step's observation may have its picture.
const PICTURES: [&str; 7] = ["image", "rgb", "front_rgb", "hand_image", "image_1", "rgb_static", "agentview_rgb"];

/// Frames per second that upstream takes for an episode, which does not tell its own.
const FPS: u32 = 24;

/// Of so many frames, one may be bad.
const FRAMES_PER_BAD: usize = 10;

/// An open episode. All of the file is in memory; pictures are decoded as they are asked for.
pub struct Episode {
    pictures: Pictures,
    /// The steps that have a good picture, in order.
    good: Vec<usize>,
    codec: &'static str,
    /// Of the first good picture.
    width: u32,
    height: u32,
    bad: usize,
}

/// The pictures of an episode, not yet decoded.
enum Pictures {
    /// Of each step; the error says what is wrong with it.
    Steps(Vec<Result<Still, String>>),
    /// [T, C, H, W] in one.
    Tensor(Arc<Tensor>),
    Array(Arc<Array>),
}

/// The picture of a step.
enum Still {
    /// A file's bytes.
    Encoded(Arc<[u8]>),
    /// [H, W, C] or [H, W].
    Array(Arc<Array>),
}

impl Episode {
    /// Does the file begin as a pickle of protocols 2 to 5 does? No video file does.
    pub fn is_one(path: &Path) -> Result<bool, MediaError> {
        let mut start = Vec::new();
        let read = File::open(path).and_then(|file| file.take(2).read_to_end(&mut start));
        read.map_err(|error| MediaError::io(path, error))?;
        Ok(matches!(start[..], [0x80, 2..=5]))
    }

    /// Reads a file and decodes every picture once, to know which are good.
    ///
    /// # Errors
    /// The file cannot be read or is no episode, or too many of its frames are bad; the first of them is named.
    pub fn open(path: &Path) -> Result<Episode, MediaError> {
        let value = vw2_pickle::read(path, &Limits::default()).map_err(|error| match error {
            vw2_pickle::Error::Io(source) => MediaError::io(path, source),
            error => MediaError::broken(path, format!("no pickle of an episode: {error}")),
        })?;
        let pictures = pictures(&value).map_err(|reason| MediaError::broken(path, reason))?;
        drop(value);
        Episode::of(pictures).map_err(|reason| MediaError::broken(path, reason))
    }

    pub(super) fn info(&self) -> VideoInfo {
        let frames = self.good.len() as u32;
        VideoInfo {
            container: "pickle".into(),
            codec: self.codec.into(),
            width: self.width,
            height: self.height,
            fps_num: FPS,
            fps_den: 1,
            frames,
            duration_s: f64::from(frames) / f64::from(FPS),
            decoder: "image".into(),
            bad_frames: self.bad as u32,
        }
    }

    /// See [`super::VideoReader::read`]; `wanted` are numbers of good frames.
    pub(super) fn read(
        &self,
        wanted: &BTreeSet<u32>,
        sink: &mut dyn FnMut(u32, &Picture) -> Result<(), MediaError>,
    ) -> Result<(), MediaError> {
        for &frame in wanted {
            let (_, image) = self.pictures.decode(self.good[frame as usize]).expect("it was decoded in `open`");
            sink(frame, &picture(image))?;
        }
        Ok(())
    }

    fn of(pictures: Pictures) -> Result<Episode, String> {
        let count = pictures.count();
        let (mut good, mut first, mut bad) = (Vec::with_capacity(count), None, None);
        for step in 0..count {
            match pictures.decode(step) {
                Ok((codec, image)) => {
                    first.get_or_insert((codec, image.width, image.height));
                    good.push(step);
                }
                Err(reason) => _ = bad.get_or_insert((step, reason)),
            }
        }
        let bad_count = count - good.len();
        let told =
            |(step, reason)| format!("{bad_count} of {count} frames are bad, the first in step {step}: {reason}");
        match (first, bad) {
            (_, Some(bad)) if bad_count * FRAMES_PER_BAD > count => {
                Err(format!("{}; at most one in {FRAMES_PER_BAD} may be left out", told(bad)))
            }
            (Some((codec, width, height)), _) => Ok(Episode { pictures, good, codec, width, height, bad: bad_count }),
            (None, _) => Err("the episode has no steps".into()),
        }
    }
}

impl Pictures {
    fn count(&self) -> usize {
        match self {
            Pictures::Steps(steps) => steps.len(),
            Pictures::Tensor(tensor) => tensor.shape[0],
            Pictures::Array(array) => array.shape[0],
        }
    }

    /// A step's picture and how it is kept; the error says what is wrong with it.
    fn decode(&self, step: usize) -> Result<(&'static str, RgbImage), String> {
        let image = match self {
            Pictures::Steps(steps) => match &steps[step] {
                Ok(Still::Encoded(bytes)) => return decode_bytes(bytes),
                Ok(Still::Array(array)) => Raster::of_still(array.dtype, &array.shape, &array.bytes)?.rgb()?,
                Err(reason) => return Err(reason.clone()),
            },
            Pictures::Array(array) => {
                let frame_bytes = array.shape[1..].iter().product::<usize>() * array.dtype.size();
                let bytes = &array.bytes[step * frame_bytes..][..frame_bytes];
                Raster::of_planes(array.dtype, &array.shape[1..], bytes)?.rgb()?
            }
            Pictures::Tensor(tensor) => {
                let frame = Tensor {
                    storage: tensor.storage.clone(),
                    dtype: tensor.dtype,
                    offset: tensor.offset + step * tensor.strides[0],
                    shape: tensor.shape[1..].to_vec(),
                    strides: tensor.strides[1..].to_vec(),
                };
                let bytes = tensor.storage.bytes().and_then(|bytes| frame.row_major(bytes));
                let bytes = bytes.ok_or("its tensor has no bytes in the file; save the episode with pickle.dump")?;
                Raster::of_planes(frame.dtype, &frame.shape, &bytes)?.rgb()?
            }
        };
        Ok(("raw", image))
    }
}

/// The pictures of either layout; the error says why there are none.
fn pictures(episode: &Value) -> Result<Pictures, String> {
    let Value::Dict(entries) = episode else {
        return Err(format!("an episode is a dictionary, but this is {}", episode.kind()));
    };
    if let Some(steps) = episode.get("steps").or_else(|| episode.get("step")) {
        let steps = steps.as_items().ok_or_else(|| format!("`steps` is {}, but a list is wanted", steps.kind()))?;
        return Ok(Pictures::Steps(steps.iter().map(still).collect()));
    }
    let shape = |shape: &[usize]| match shape.len() {
        4 => Ok(()),
        _ => Err(format!("`obs_images` has shape {shape:?}, but [T, C, H, W] is wanted")),
    };
    match episode.get("obs_images") {
        Some(Value::Tensor(tensor)) => shape(&tensor.shape).map(|()| Pictures::Tensor(tensor.clone())),
        Some(Value::Array(array)) => shape(&array.shape).map(|()| Pictures::Array(array.clone())),
        Some(other) => Err(format!("`obs_images` is {}, but a tensor or an array is wanted", other.kind())),
        None => {
            let keys: Vec<String> =
                entries.iter().take(8).filter_map(|(key, _)| Some(format!("`{}`", key.as_str()?))).collect();
            Err(format!("neither `steps` nor `obs_images` is in this pickle, but {}", keys.join(", ")))
        }
    }
}

fn still(step: &Value) -> Result<Still, String> {
    let observation = step.get("observation").ok_or("it has no `observation`")?;
    let (key, value) = PICTURES
        .iter()
        .find_map(|key| Some((key, observation.get(key)?)))
        .ok_or_else(|| format!("its observation has none of {}", PICTURES.join(", ")))?;
    match value {
        Value::Bytes(bytes) => Ok(Still::Encoded(bytes.clone())),
        Value::Array(array) => Ok(Still::Array(array.clone())),
        other => Err(format!("`{key}` is {}, but a picture's bytes or an array is wanted", other.kind())),
    }
}

/// RGB as a decoder's picture.
fn picture(image: RgbImage) -> Picture {
    let none = || Plane { data: Vec::new(), stride: 1 };
    let stride = 3 * image.width as usize;
    Picture {
        width: image.width,
        height: image.height,
        format: PixelFormat::Rgb,
        planes: [Plane { data: image.pixels, stride }, none(), none()],
        matrix: Matrix::Bt601,
        range: Range::Full,
    }
}

#[cfg(test)]
mod tests;
