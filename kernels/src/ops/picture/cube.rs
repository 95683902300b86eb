//! The op on CubeCL devices: one unit per output pixel converts and sums every source pixel that counts for it.
//!
//! The naive kernel: a source pixel is converted once for each of the (at most four, when shrinking) pixels it counts for.
//! Nothing lies between memory and registers, and the sums are those of the CPU, rounding in between included.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::colour::Coefficients;
use super::taps::{BETWEEN_BITS, COLUMN_BITS, ROW_BITS, tap_count};
use super::{Job, Layout, Picture, PictureOps, Rounding};
use crate::cube::dense;

/// What the kernel is compiled for. Sizes are arguments, so that one compilation serves every clip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    rgb: bool,
    paired: bool,
    /// As [`Layout::unused_bits`].
    unused_bits: Option<u32>,
    /// Pixels per chroma sample as a shift, along rows and along columns.
    shift_x: u32,
    shift_y: u32,
    colour: Coefficients,
    rounding: Rounding,
}

impl Form {
    fn new(picture: &Picture, rounding: Rounding) -> Form {
        Form {
            rgb: picture.layout == Layout::Rgb,
            paired: picture.layout.is_paired(),
            unused_bits: picture.layout.unused_bits(),
            shift_x: u32::from(!matches!(picture.layout, Layout::I444 | Layout::Rgb)),
            shift_y: u32::from(!matches!(picture.layout, Layout::I422 | Layout::I444 | Layout::Rgb)),
            colour: Coefficients::new(picture),
            rounding,
        }
    }
}

#[cube]
fn byte(frames: &[u32], at: u32) -> u32 {
    (frames[(at / 4u32) as usize] >> ((at % 4u32) * 8u32)) & 255u32
}

/// Sample `at` of the frame that begins at byte `base`.
#[cube]
fn sample(frames: &[u32], base: u32, at: u32, #[comptime] form: Form) -> u32 {
    if comptime!(form.unused_bits.is_some()) {
        let at = base + at * 2u32;
        let deep = (byte(frames, at) + byte(frames, at + 1u32) * 256u32) >> comptime!(form.unused_bits.unwrap_or(0));
        u32::min(deep, 1023u32)
    } else {
        byte(frames, base + at)
    }
}

/// A sum of colour terms as a level.
#[cube]
fn level(sum: i32, #[comptime] form: Form) -> u32 {
    let level = i32::max(sum, 0i32) >> comptime!(form.colour.drop as i32);
    u32::cast_from(i32::min(level, 255i32))
}

/// R, G or B of the pixel, in 8 bits.
#[cube]
fn pixel(
    frames: &[u32],
    base: u32,
    x: u32,
    y: u32,
    width: u32,
    height: u32,
    #[comptime] form: Form,
) -> (u32, u32, u32) {
    if comptime!(form.rgb) {
        let at = base + (y * width + x) * 3u32;
        (byte(frames, at), byte(frames, at + 1u32), byte(frames, at + 2u32))
    } else {
        let chroma_width = (width + comptime!(form.shift_x)) >> comptime!(form.shift_x);
        let chroma_height = (height + comptime!(form.shift_y)) >> comptime!(form.shift_y);
        let chroma = (y >> comptime!(form.shift_y)) * chroma_width + (x >> comptime!(form.shift_x));
        let planes = width * height;
        let mut at_u = planes + chroma;
        let mut at_v = planes + chroma_width * chroma_height + chroma;
        if comptime!(form.paired) {
            at_u = planes + chroma * 2u32;
            at_v = at_u + 1u32;
        }
        let u = i32::cast_from(sample(frames, base, at_u, form)) - comptime!(form.colour.neutral);
        let v = i32::cast_from(sample(frames, base, at_v, form)) - comptime!(form.colour.neutral);
        let luma = i32::cast_from(sample(frames, base, y * width + x, form)) * comptime!(form.colour.y);
        let luma = luma + comptime!(form.colour.base);
        let mask = comptime!(form.colour.mask);
        let r = luma + ((v * comptime!(form.colour.rv)) & mask);
        let g = luma + ((u * comptime!(form.colour.gu)) & mask) + ((v * comptime!(form.colour.gv)) & mask);
        let b = luma + ((u * comptime!(form.colour.bu)) & mask);
        (level(r, form), level(g, form), level(b, form))
    }
}

/// One unit per output pixel. `taps` is [row starts, row weights, column starts, column weights].
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "scalars of a kernel have no struct on the device")]
fn picture_kernel(
    frames: &[u32],
    taps: &[u32],
    out: &mut [f32],
    count: u32,
    frame_bytes: u32,
    from_width: u32,
    from_height: u32,
    width: u32,
    height: u32,
    row_taps: u32,
    column_taps: u32,
    #[comptime] form: Form,
) {
    let i = ABSOLUTE_POS as u32;
    if i >= count * height * width {
        terminate!();
    }
    let (ox, oy, t) = (i % width, i / width % height, i / (width * height));
    let row_weights = height + oy * row_taps;
    let columns = height * (1u32 + row_taps);
    let column_weights = columns + width + ox * column_taps;
    let (top, left) = (taps[oy as usize], taps[(columns + ox) as usize]);
    let base = t * frame_bytes;

    let mut sum_r = 0u32;
    let mut sum_g = 0u32;
    let mut sum_b = 0u32;
    for kx in 0..column_taps {
        let mut column_r = 0u32;
        let mut column_g = 0u32;
        let mut column_b = 0u32;
        for ky in 0..row_taps {
            let weight = taps[(row_weights + ky) as usize];
            let (r, g, b) = pixel(frames, base, left + kx, top + ky, from_width, from_height, form);
            column_r += r * weight;
            column_g += g * weight;
            column_b += b * weight;
        }
        let weight = taps[(column_weights + kx) as usize];
        sum_r += between(column_r) * weight;
        sum_g += between(column_g) * weight;
        sum_b += between(column_b) * weight;
    }

    let plane = height * width;
    let at = t * 3u32 * plane + oy * width + ox;
    out[at as usize] = normalised(sum_r, form);
    out[(at + plane) as usize] = normalised(sum_g, form);
    out[(at + 2u32 * plane) as usize] = normalised(sum_b, form);
}

/// A column's sum with the bits that are kept below a level.
#[cube]
fn between(sum: u32) -> u32 {
    let drop = comptime!(ROW_BITS - BETWEEN_BITS);
    (sum + comptime!(1u32 << (ROW_BITS - BETWEEN_BITS - 1))) >> drop
}

/// A pixel's sum as a level in [-1, 1].
#[cube]
fn normalised(sum: u32, #[comptime] form: Form) -> f32 {
    let half = comptime!(if form.rounding == Rounding::Nearest { 1u32 << (COLUMN_BITS + BETWEEN_BITS - 1) } else { 0 });
    let level = (sum + half) >> comptime!(COLUMN_BITS + BETWEEN_BITS);
    f32::cast_from(level) / 127.5f32 - 1.0f32
}

impl PictureOps for CubeBackend {
    fn picture(frames: IntTensor<Self>, taps: IntTensor<Self>, job: Job) -> FloatTensor<Self> {
        let (frames, taps) = (dense(frames), dense(taps));
        let (picture, resize) = (job.picture, job.resize);
        let pixels = job.frames * resize.height * resize.width;
        let shape = Shape::new([job.frames, 3, resize.height, resize.width]);
        let client = frames.client.clone();
        let out = empty_device_contiguous_dtype(client.clone(), frames.device.clone(), shape, DType::F32);
        if pixels == 0 {
            return out;
        }
        let dim = CubeDim::new_1d(256);
        picture_kernel::launch(
            &client,
            calculate_cube_count_elemwise(&client, pixels, dim),
            dim,
            frames.into_buffer_arg(),
            taps.into_buffer_arg(),
            out.clone().into_buffer_arg(),
            job.frames as u32,
            picture.frame_bytes() as u32,
            picture.width as u32,
            picture.height as u32,
            resize.width as u32,
            resize.height as u32,
            tap_count(picture.height, resize.height, resize.filter) as u32,
            tap_count(picture.width, resize.width, resize.filter) as u32,
            Form::new(&picture, resize.rounding),
        );
        out
    }
}
