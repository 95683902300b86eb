//! A decoded picture: 8-bit samples, and how to read them as colour.

/// How samples lie in planes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelFormat {
    /// Half width and half height.
    I420,
    /// Half width, full height.
    I422,
    /// Full size.
    I444,
    /// R, G, B triples in the first plane; the others are empty.
    Rgb,
}

impl PixelFormat {
    /// Width and height of the U and V planes; odd sizes round up.
    pub fn chroma_size(self, width: u32, height: u32) -> (u32, u32) {
        match self {
            PixelFormat::I420 => (width.div_ceil(2), height.div_ceil(2)),
            PixelFormat::I422 => (width.div_ceil(2), height),
            PixelFormat::I444 => (width, height),
            PixelFormat::Rgb => (0, 0),
        }
    }
}

/// From luma and chroma to RGB. What a file leaves open is BT.601, as in ffmpeg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrix {
    Bt601,
    Bt709,
    Bt2020,
}

impl Matrix {
    /// From the code of ISO/IEC 23091-2 (MatrixCoefficients) that H.264 and MP4 carry.
    pub(crate) fn from_code(code: u8) -> Matrix {
        match code {
            1 | 7 => Matrix::Bt709, // 7 is SMPTE 240M, which differs from BT.709 by less than 0.015 in each weight.
            9 | 10 => Matrix::Bt2020,
            _ => Matrix::Bt601,
        }
    }
}

/// Which values stand for black and white: 16 and 235, or 0 and 255.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    Limited,
    Full,
}

/// One plane, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plane {
    pub data: Vec<u8>,
    /// Bytes from one row to the next.
    pub stride: usize,
}

/// A decoded picture at its shown (cropped) size. Sources with more than 8 bits are rounded to 8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    pub width: u32,
    pub height: u32,
    pub format: PixelFormat,
    /// Y, U, V; or RGB and nothing else.
    pub planes: [Plane; 3],
    /// Means nothing for RGB, as does the range.
    pub matrix: Matrix,
    pub range: Range,
}

impl Picture {
    /// Bytes of the picture's pixels.
    pub fn size_bytes(&self) -> usize {
        self.planes.iter().map(|plane| plane.data.len()).sum()
    }
}
