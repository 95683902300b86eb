//! Decoded pictures to RGB frames of the wanted size: colour conversion and resize in one pass.
//!
//! Shapes: frames u8, T of them back to back, each `frame_bytes` long -> levels u8 [T, H, W, 3], or f32 [T, 3, H, W] in
//!         [-1, 1] as v / 127.5 - 1 of the same levels: the two forms of a result differ in no level.
//! Way:    YUV to 8-bit RGB as ffmpeg does (chroma of the nearest sample), then resize columns, then rows.
//! Source: VideoWorld 2 resizes RGB frames with an antialiased bilinear filter and truncates to 8 bits.
//! Differs: whole numbers instead of floats (weights of 22 and 16 bits, 8 bits below a level in between), so that every
//!         device and every order of summation gives the same bytes. Against exact arithmetic the value before
//!         truncation is off by less than 0.1 level.

mod colour;
#[cfg(feature = "cube")]
mod cube;
mod flex;
mod reference;
mod taps;
#[cfg(test)]
mod tests;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::{Cost, Kernel, Tolerance};
use taps::Taps;

/// Where the samples of a picture lie. Chroma planes of an odd size are rounded up, rows are not padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Y, then U and V at half width and half height.
    I420,
    /// Y, then U and V at half width.
    I422,
    /// Y, then U and V at full size.
    I444,
    /// Y, then one plane of U, V pairs at half width and half height.
    Nv12,
    /// I420 of 10 bits: two bytes per sample, the low one first, values below 1024.
    I010,
    /// Nv12 of 10 bits: two bytes per sample, the low one first, the value in the upper ten bits.
    P010,
    /// R, G, B triples; needs no conversion.
    Rgb,
}

impl Layout {
    fn sample_bytes(self) -> usize {
        self.sample_bits().div_ceil(8) as usize
    }

    fn sample_bits(self) -> u32 {
        if self.unused_bits().is_some() { 10 } else { 8 }
    }

    /// Of samples of 10 bits in two bytes: bits below the value.
    fn unused_bits(self) -> Option<u32> {
        match self {
            Layout::I010 => Some(0),
            Layout::P010 => Some(6),
            Layout::I420 | Layout::I422 | Layout::I444 | Layout::Nv12 | Layout::Rgb => None,
        }
    }

    /// U and V follow one another in one plane.
    fn is_paired(self) -> bool {
        matches!(self, Layout::Nv12 | Layout::P010)
    }
}

/// The YUV matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Matrix {
    Bt601,
    Bt709,
    /// Non-constant luminance.
    Bt2020,
}

/// The levels that black and white have in YUV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Range {
    /// Luma 16..=235, chroma 16..=240.
    Limited,
    /// 0..=255
    Full,
}

/// What the bytes of a frame mean. Width and height count pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Picture {
    pub layout: Layout,
    pub matrix: Matrix,
    pub range: Range,
    pub width: usize,
    pub height: usize,
}

impl Picture {
    /// Interleaved 8-bit RGB, for which matrix and range mean nothing.
    pub fn rgb(width: usize, height: usize) -> Picture {
        Picture { layout: Layout::Rgb, matrix: Matrix::Bt709, range: Range::Full, width, height }
    }

    /// Bytes of one frame.
    pub fn frame_bytes(&self) -> usize {
        let (luma, chroma) = (self.width * self.height, self.chroma_width() * self.chroma_height());
        match self.layout {
            Layout::Rgb => 3 * luma,
            _ => self.layout.sample_bytes() * (luma + 2 * chroma),
        }
    }

    fn chroma_width(&self) -> usize {
        match self.layout {
            Layout::I420 | Layout::I422 | Layout::Nv12 | Layout::I010 | Layout::P010 => self.width.div_ceil(2),
            Layout::I444 | Layout::Rgb => self.width,
        }
    }

    fn chroma_height(&self) -> usize {
        match self.layout {
            Layout::I420 | Layout::Nv12 | Layout::I010 | Layout::P010 => self.height.div_ceil(2),
            Layout::I422 | Layout::I444 | Layout::Rgb => self.height,
        }
    }
}

/// How pixels between samples are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    /// A triangle that widens with the reduction, so that every source pixel counts: torchvision with antialias, PIL.
    Antialias,
    /// The two nearest samples of each axis, half-pixel centres (`align_corners = false`).
    Bilinear,
}

/// How a value between two levels becomes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// Towards zero, as upstream's data sets do.
    Truncate,
    /// To the nearest, as image libraries do.
    Nearest,
}

/// The wanted frames. A size equal to the picture's leaves the pixels alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Resize {
    pub height: usize,
    pub width: usize,
    pub filter: Filter,
    pub rounding: Rounding,
}

impl Resize {
    /// As training frames are made: antialiased, truncated.
    pub fn to(height: usize, width: usize) -> Resize {
        Resize { height, width, filter: Filter::Antialias, rounding: Rounding::Truncate }
    }

    /// As start scenes are made: antialiased, rounded to the nearest level.
    pub fn scene(height: usize, width: usize) -> Resize {
        Resize { rounding: Rounding::Nearest, ..Resize::to(height, width) }
    }
}

/// Frames that do not fit their description.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PictureError {
    #[error("pictures of {width}x{height} cannot become frames of {to_width}x{to_height}; every side is 1 to 32768")]
    Size { width: usize, height: usize, to_width: usize, to_height: usize },
    #[error(
        "{found} bytes are not a whole number of {layout:?} frames of {width}x{height}, which have {frame_bytes} bytes"
    )]
    Bytes { found: usize, layout: Layout, width: usize, height: usize, frame_bytes: usize },
}

/// Frames to levels u8 [T, H, W, 3], on the CPU; frames are shared out over rayon's threads.
pub fn picture_to_levels(frames: &[u8], picture: &Picture, resize: &Resize) -> Result<Vec<u8>, PictureError> {
    let job = Job::new(frames.len(), picture, resize)?;
    let taps = Taps::new(picture, resize);
    let mut levels = vec![0; job.frames * 3 * resize.height * resize.width];
    flex::levels(frames, &job, &taps, &mut levels);
    Ok(levels)
}

/// Frames to f32 [T, 3, H, W] in [-1, 1], on the device.
pub fn picture_to_rgb(
    frames: &[u8],
    picture: &Picture,
    resize: &Resize,
    device: &Device,
) -> Result<Tensor<4>, PictureError> {
    let job = Job::new(frames.len(), picture, resize)?;
    let taps = Taps::new(picture, resize);
    let device = device.clone().without_autodiff();
    Ok(run(upload(words(frames), &device), upload(taps.into_table(), &device), job))
}

/// One interleaved 8-bit RGB image, resized and rounded as image libraries do: u8 [H, W, 3].
pub fn rgb_resize(image: &[u8], [height, width]: [usize; 2], to: [usize; 2]) -> Result<Vec<u8>, PictureError> {
    picture_to_levels(image, &Picture::rgb(width, height), &Resize::scene(to[0], to[1]))
}

/// Levels u8 [T, H, W, 3] to a clip f32 [1, 3, T, H, W] in [-1, 1].
pub fn normalise(levels: &[u8], [t, h, w]: [usize; 3], device: &Device) -> Result<Tensor<5>, PictureError> {
    let picture = Picture::rgb(w, h);
    let job = Job::new(levels.len(), &picture, &Resize::to(h, w))?;
    if job.frames != t {
        let frame_bytes = picture.frame_bytes();
        return Err(PictureError::Bytes { found: levels.len(), layout: Layout::Rgb, width: w, height: h, frame_bytes });
    }
    let plane = t * h * w;
    let mut values = vec![0.0; 3 * plane];
    let table = flex::level_values();
    for (channel, values) in values.chunks_exact_mut(plane).enumerate() {
        for (value, level) in values.iter_mut().zip(levels[channel..].iter().step_by(3)) {
            *value = table[usize::from(*level)];
        }
    }
    Ok(Tensor::from_data(TensorData::new(values, [1, 3, t, h, w]), (device, DType::F32)))
}

/// A clip [1, 3, T, H, W] to levels u8 [T, H, W, 3]: clamped to [-1, 1], to the nearest level.
///
/// # Panics
/// If the first two sizes are not 1 and 3.
pub fn denormalise(clip: Tensor<5>) -> Vec<u8> {
    let [b, c, t, h, w] = clip.dims();
    assert_eq!([b, c], [1, 3], "a clip has shape [1, 3, T, H, W]");
    let data = clip.cast(burn::tensor::FloatDType::F32).into_data();
    let values = data.as_slice::<f32>().expect("the line above makes f32");
    let plane = t * h * w;
    let mut levels = vec![0; 3 * plane];
    for (i, level) in levels.chunks_exact_mut(3).enumerate() {
        for (channel, level) in level.iter_mut().enumerate() {
            // `as` also takes a NaN, to 0.
            *level = ((values[channel * plane + i] + 1.0) * 127.5).clamp(0.0, 255.0).round_ties_even() as u8;
        }
    }
    levels
}

/// The op's plain arguments.
#[derive(Clone, Copy, Debug)]
struct Job {
    picture: Picture,
    resize: Resize,
    frames: usize,
}

impl Job {
    fn new(bytes: usize, picture: &Picture, resize: &Resize) -> Result<Job, PictureError> {
        let sides = [picture.width, picture.height, resize.width, resize.height];
        if sides.iter().any(|side| !(1..=1 << 15).contains(side)) {
            let [width, height, to_width, to_height] = sides;
            return Err(PictureError::Size { width, height, to_width, to_height });
        }
        let frame_bytes = picture.frame_bytes();
        if !bytes.is_multiple_of(frame_bytes) {
            let Picture { layout, width, height, .. } = *picture;
            return Err(PictureError::Bytes { found: bytes, layout, width, height, frame_bytes });
        }
        Ok(Job { picture: *picture, resize: *resize, frames: bytes / frame_bytes })
    }
}

/// Bytes as words of four, the last one padded: no GPU language has 8-bit buffers everywhere.
fn words(bytes: &[u8]) -> Vec<u32> {
    let mut words = vec![0u32; bytes.len().div_ceil(4)];
    bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
    words
}

fn upload(words: Vec<u32>, device: &Device) -> Tensor<1, Int> {
    let count = words.len();
    Tensor::from_data(TensorData::new(words, [count]), (device, DType::U32))
}

fn run(frames: Tensor<1, Int>, taps: Tensor<1, Int>, job: Job) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::picture(frames.into_dispatch(), taps.into_dispatch(), job))
}

/// The op on each backend: frames as little-endian u32 words, taps as [`Taps::into_table`] writes them.
#[backend_extension(Cube: cfg(feature = "cube"), Flex)]
trait PictureOps: Backend {
    fn picture(frames: IntTensor<Self>, taps: IntTensor<Self>, job: Job) -> FloatTensor<Self>;
}

/// Case: [frames, source height, source width, height, width, layout, matrix, range, filter].
pub(crate) const KERNEL: Kernel = Kernel {
    name: "picture",
    cases: &[
        &[1, 1, 1, 1, 1, 0, 0, 0, 0],
        &[2, 5, 7, 3, 2, 0, 0, 0, 0],
        &[3, 7, 5, 11, 13, 3, 1, 0, 1],
        &[1, 9, 15, 4, 31, 1, 1, 1, 0],
        &[2, 33, 17, 9, 17, 2, 2, 0, 0],
        &[1, 65, 31, 16, 12, 4, 0, 0, 1],
        &[2, 97, 131, 64, 64, 3, 1, 0, 0],
        &[2, 9, 11, 5, 6, 5, 2, 0, 0],
        &[3, 13, 7, 6, 9, 6, 2, 1, 1],
    ],
    sizes: &[
        &[17, 720, 1280, 64, 64, 0, 1, 0, 0],
        &[17, 720, 1280, 64, 64, 6, 2, 0, 0],
        &[17, 720, 1280, 480, 832, 0, 1, 0, 0],
    ],
    inputs: reference::inputs,
    reference: reference::normalised,
    run: |case, inputs| run(inputs[0].int(), inputs[1].int(), reference::job(case)).reshape([-1]),
    gradient: None,
    tolerance: Tolerance {
        reference: 1.0 / 127.5 + 1e-6,
        devices: 0.0,
        gradient: 0.0,
        reason: "whole-number weights may truncate to the next level; devices do the same whole-number arithmetic",
    },
    cost: |case| {
        let job = reference::job(case);
        let (picture, resize) = (job.picture, job.resize);
        let taps = Taps::new(&picture, &resize);
        let columns = 3 * resize.height * picture.width * taps.rows.count;
        let rows = 3 * resize.height * resize.width * taps.columns.count;
        let convert = 11 * picture.width * picture.height;
        Cost {
            bytes: (job.frames * (picture.frame_bytes() + 12 * resize.height * resize.width)) as u64,
            flops: (job.frames * (convert + 2 * columns + 2 * rows)) as u64,
        }
    },
};
