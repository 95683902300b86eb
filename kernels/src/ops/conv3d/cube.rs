//! The op on CubeCL devices: one tiled matrix product, whose operands are found where they lie.
//!
//! Every cube computes 64 x 64 cells in steps of 16 lines: its 256 units fetch both operands to shared memory, then each
//! adds up 4 x 4 cells in registers; `cores` does that on tensor cores. What a cell means depends on the [`Role`]; no operand
//! is ever copied to memory.

use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::cores::{has_tensor_cores, product_on_tensor_cores};
use super::{Call, Conv3dOps};
use crate::cube::dense;

/// Edge of a cube's square of cells.
pub(super) const TILE: u32 = 64;
/// Lines that are in shared memory at a time.
pub(super) const LINES: u32 = 16;
pub(super) const UNITS: u32 = 256;
/// Edge of a unit's square of cells, which are 16 apart, so that neighbouring units touch neighbouring memory.
const CELLS: u32 = 4;
/// Cubes along one axis of a launch that every device takes.
const CUBES: u32 = 32_768;

/// What rows, columns and summed lines of the product are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Role {
    /// Output channels x output pixels; sums over (input channel, taps). The result of the convolution.
    Result,
    /// Input channels x input pixels; sums over (output channel, taps).
    InputGradient,
    /// Output channels x (input channel, taps); sums over output pixels.
    WeightGradient,
}

/// What the kernel is compiled for. Sizes are arguments, so that one compilation serves clips of any size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    role: Role,
    kt: u32,
    kh: u32,
    kw: u32,
    time_step: u32,
    space_step: u32,
    before: u32,
    front: u32,
    repeats: bool,
    given: bool,
    adds: bool,
    /// Operands have more bits than TF32; of no account without tensor cores.
    pub(super) fine: bool,
}

impl Form {
    fn new(role: Role, call: &Call, cores: bool) -> Form {
        let [_, _, kt, kh, kw] = call.weight.map(|size| size as u32);
        Form {
            role,
            kt,
            kh,
            kw,
            time_step: call.steps.time as u32,
            space_step: call.steps.space as u32,
            before: call.steps.pad[0] as u32,
            front: call.front as u32,
            repeats: call.repeats,
            given: call.given,
            adds: call.adds,
            fine: call.fine || !cores,
        }
    }
}

/// Sizes of one call, on the device.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Sizes {
    /// Frames, channels, height and width of x.
    t: u32,
    c: u32,
    h: u32,
    w: u32,
    /// The same of the result.
    to: u32,
    o: u32,
    ho: u32,
    wo: u32,
    /// Frames whose gradient is wanted, and the first of them, counted from the first in front.
    frames: u32,
    first: u32,
    /// Cells of the product, lines that are summed, and how many of them by one slice of cubes.
    pub(super) rows: u32,
    pub(super) columns: u32,
    lines: u32,
    slice: u32,
}

/// A pixel, or channel and taps: four numbers, the last one the fastest.
#[derive(CubeType, Clone, Copy)]
struct Place {
    /// Clip, or channel.
    outer: u32,
    time: u32,
    row: u32,
    column: u32,
}

#[cube]
fn place(index: u32, time: u32, rows: u32, columns: u32) -> Place {
    Place {
        outer: index / (time * rows * columns),
        time: index / (rows * columns) % time,
        row: index / columns % rows,
        column: index % columns,
    }
}

#[cube]
fn tap(index: u32, #[comptime] form: Form) -> Place {
    let (kt, kh, kw) = comptime!((form.kt, form.kh, form.kw));
    place(index, kt, kh, kw)
}

/// The input that an output pixel and a tap meet.
#[cube]
fn input(x: &[f32], past: &[f32], pixel: &Place, tap: &Place, sizes: &Sizes, #[comptime] form: Form) -> f32 {
    let (before, front) = comptime!((form.before, form.front));
    let row = pixel.row * comptime!(form.space_step) + tap.row;
    let column = pixel.column * comptime!(form.space_step) + tap.column;
    let frame = pixel.time * comptime!(form.time_step) + tap.time;
    let mut value = 0.0f32;
    if row >= before && row < sizes.h + before && column >= before && column < sizes.w + before {
        let size = sizes.c * sizes.h * sizes.w;
        let at = (tap.outer * sizes.h + (row - before)) * sizes.w + (column - before);
        if frame >= front {
            value = x[((pixel.outer * sizes.t + (frame - front)) * size + at) as usize];
        } else if comptime!(form.given) {
            value = past[((pixel.outer * front + frame) * size + at) as usize];
        } else if comptime!(form.repeats) {
            value = x[(pixel.outer * sizes.t * size + at) as usize];
        }
    }
    value
}

/// The gradient of the output pixel that an input pixel meets by a tap.
#[cube]
fn output(grad: &[f32], pixel: &Place, frame: u32, tap: &Place, sizes: &Sizes, #[comptime] form: Form) -> f32 {
    let (time_step, space_step) = comptime!((form.time_step, form.space_step));
    let row = pixel.row + comptime!(form.before);
    let column = pixel.column + comptime!(form.before);
    let mut value = 0.0f32;
    if frame >= tap.time && row >= tap.row && column >= tap.column {
        let (frame, row, column) = (frame - tap.time, row - tap.row, column - tap.column);
        let whole = frame % time_step + row % space_step + column % space_step == 0u32;
        let (frame, row, column) = (frame / time_step, row / space_step, column / space_step);
        if whole && frame < sizes.to && row < sizes.ho && column < sizes.wo {
            let channel = (pixel.outer * sizes.to + frame) * sizes.o + tap.outer;
            value = grad[((channel * sizes.ho + row) * sizes.wo + column) as usize];
        }
    }
    value
}

/// Line `line` of row `row` of the first operand: a weight, or a gradient of the result.
#[cube]
fn left(a: &[f32], row: u32, line: u32, sizes: &Sizes, #[comptime] form: Form) -> f32 {
    match comptime!(form.role) {
        Role::Result => a[(row * sizes.lines + line) as usize],
        Role::InputGradient => {
            let taps = comptime!(form.kt * form.kh * form.kw);
            a[((line / taps * sizes.c + row) * taps + line % taps) as usize]
        }
        Role::WeightGradient => {
            let plane = sizes.ho * sizes.wo;
            a[((line / plane * sizes.o + row) * plane + line % plane) as usize]
        }
    }
}

/// Line `line` of column `column` of the second operand: an input, or a gradient of the result.
#[cube]
fn right(b: &[f32], past: &[f32], column: u32, line: u32, sizes: &Sizes, #[comptime] form: Form) -> f32 {
    match comptime!(form.role) {
        Role::Result => {
            let pixel = place(column, sizes.to, sizes.ho, sizes.wo);
            input(b, past, &pixel, &tap(line, form), sizes, form)
        }
        Role::InputGradient => {
            let pixel = place(column, sizes.frames, sizes.h, sizes.w);
            let frame = pixel.time + sizes.first;
            let by = tap(line, form);
            let mut sum = output(b, &pixel, frame, &by, sizes, form);
            if comptime!(form.repeats) && frame == comptime!(form.front) {
                // The frames in front are copies of this one.
                for copy in 0..comptime!(form.front) {
                    sum += output(b, &pixel, copy, &by, sizes, form);
                }
            }
            sum
        }
        Role::WeightGradient => {
            let pixel = place(line, sizes.to, sizes.ho, sizes.wo);
            input(b, past, &pixel, &tap(column, form), sizes, form)
        }
    }
}

/// [`left`] of a cube's cell, 0 beyond the end.
#[cube]
pub(super) fn fetch_left(a: &[f32], row: u32, line: u32, end: u32, sizes: &Sizes, #[comptime] form: Form) -> f32 {
    let mut value = 0.0f32;
    if row < sizes.rows && line < end {
        value = left(a, row, line, sizes, form);
    }
    value
}

/// [`right`] of a cube's cell, 0 beyond the end.
#[cube]
pub(super) fn fetch_right(
    b: &[f32],
    past: &[f32],
    column: u32,
    line: u32,
    end: u32,
    sizes: &Sizes,
    #[comptime] form: Form,
) -> f32 {
    let mut value = 0.0f32;
    if column < sizes.columns && line < end {
        value = right(b, past, column, line, sizes, form);
    }
    value
}

/// A cube's part of the product: its first row and column, its slice of lines, and their range.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Part {
    pub(super) row: u32,
    pub(super) column: u32,
    pub(super) slice: u32,
    pub(super) start: u32,
    pub(super) end: u32,
}

/// Cubes count columns along x and y, rows and slices along z.
#[cube]
pub(super) fn part(sizes: &Sizes) -> Part {
    let squares = (sizes.rows + comptime!(TILE - 1)) / TILE;
    let slice = CUBE_POS_Z / squares;
    Part {
        row: CUBE_POS_Z % squares * TILE,
        column: (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * TILE,
        slice,
        start: slice * sizes.slice,
        end: u32::min((slice + 1u32) * sizes.slice, sizes.lines),
    }
}

/// Where a cell of the product lies in the result, and the sum of it and what is added.
#[cube]
pub(super) fn finish(
    sum: f32,
    bias: &[f32],
    onto: &[f32],
    out: &mut [f32],
    row: u32,
    column: u32,
    slice: u32,
    sizes: &Sizes,
    #[comptime] form: Form,
) {
    match comptime!(form.role) {
        Role::Result => {
            let plane = sizes.ho * sizes.wo;
            let at = ((column / plane * sizes.o + row) * plane + column % plane) as usize;
            let mut value = sum + bias[row as usize];
            if comptime!(form.adds) {
                value += onto[at];
            }
            out[at] = value;
        }
        Role::InputGradient => {
            let plane = sizes.h * sizes.w;
            out[((column / plane * sizes.c + row) * plane + column % plane) as usize] = sum;
        }
        Role::WeightGradient => out[((slice * sizes.rows + row) * sizes.columns + column) as usize] = sum,
    }
}

/// One cube per square of cells and slice of lines.
#[cube(launch)]
fn product(
    a: &[f32],
    b: &[f32],
    past: &[f32],
    bias: &[f32],
    onto: &[f32],
    out: &mut [f32],
    sizes: Sizes,
    #[comptime] form: Form,
) {
    let mut left_tile = Shared::<[f32]>::new_slice(comptime!((TILE * LINES) as usize));
    let mut right_tile = Shared::<[f32]>::new_slice(comptime!((TILE * LINES) as usize));
    let mut sums = Array::<f32>::new(comptime!((CELLS * CELLS) as usize));

    let part = part(&sizes);
    let (unit_row, unit_column) = (UNIT_POS / 16u32, UNIT_POS % 16u32);
    let steps = (part.end - part.start + comptime!(LINES - 1)) / LINES;
    for step in 0..steps {
        let first_line = part.start + step * LINES;
        // Not unrolled: the code that finds an operand is long, and drivers compile it slowly.
        for turn in 0..comptime!(TILE * LINES / UNITS) {
            let at = UNIT_POS + turn * UNITS;
            // Units that follow one another fetch what lies side by side: lines of weights, and columns of pixels.
            let (row, line) = (at / LINES, at % LINES);
            left_tile[(line * TILE + row) as usize] =
                fetch_left(a, part.row + row, first_line + line, part.end, &sizes, form);
            let (line, column) = (at / TILE, at % TILE);
            right_tile[(line * TILE + column) as usize] =
                fetch_right(b, past, part.column + column, first_line + line, part.end, &sizes, form);
        }
        sync_cube();
        for line in 0..LINES {
            #[unroll]
            for i in 0..CELLS {
                let value = left_tile[(line * TILE + unit_row + i * 16u32) as usize];
                #[unroll]
                for j in 0..CELLS {
                    sums[(i * CELLS + j) as usize] +=
                        value * right_tile[(line * TILE + unit_column + j * 16u32) as usize];
                }
            }
        }
        sync_cube();
    }

    #[unroll]
    for i in 0..CELLS {
        #[unroll]
        for j in 0..CELLS {
            let (row, column) = (part.row + unit_row + i * 16u32, part.column + unit_column + j * 16u32);
            if row < sizes.rows && column < sizes.columns {
                finish(sums[(i * CELLS + j) as usize], bias, onto, out, row, column, part.slice, &sizes, form);
            }
        }
    }
}

/// The operands of one launch.
struct Operands {
    a: CubeTensor,
    b: CubeTensor,
    past: CubeTensor,
    bias: CubeTensor,
    onto: CubeTensor,
}

/// Launches the product; `frames` are those whose gradient is wanted, and each slice of `slice` lines has a result.
fn launch(role: Role, call: &Call, operands: Operands, frames: std::ops::Range<usize>, slice: usize, out: &CubeTensor) {
    let [_, to, o, ho, wo] = call.result();
    let [b, t, c, h, w] = call.x;
    let taps = call.weight[2..].iter().product::<usize>();
    let pixels = b * to * ho * wo;
    let [rows, columns, lines] = match role {
        Role::Result => [o, pixels, c * taps],
        Role::InputGradient => [c, b * frames.len() * h * w, o * taps],
        Role::WeightGradient => [o, c * taps, pixels],
    };
    let cubes = (columns as u32).div_ceil(TILE);
    let across = cubes.min(CUBES);
    let deep = (rows as u32).div_ceil(TILE) * lines.div_ceil(slice) as u32;
    let number = |value: usize| value as u32;
    let client = out.client.clone();
    let count = CubeCount::Static(across, cubes.div_ceil(across), deep);
    let sizes = SizesLaunch::new(
        number(t),
        number(c),
        number(h),
        number(w),
        number(to),
        number(o),
        number(ho),
        number(wo),
        number(frames.len()),
        number(frames.start),
        number(rows),
        number(columns),
        number(lines),
        number(slice),
    );
    let cores = has_tensor_cores(&client);
    let kernel = if cores { product_on_tensor_cores::launch } else { product::launch };
    kernel(
        &client,
        count,
        CubeDim::new_1d(UNITS),
        operands.a.into_buffer_arg(),
        operands.b.into_buffer_arg(),
        operands.past.into_buffer_arg(),
        operands.bias.into_buffer_arg(),
        operands.onto.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        sizes,
        Form::new(role, call, cores),
    );
}

fn empty<const D: usize>(like: &CubeTensor, shape: [usize; D]) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), Shape::new(shape), DType::F32)
}

impl Conv3dOps for CubeBackend {
    fn causal_conv3d(
        x: FloatTensor<Self>,
        past: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        onto: FloatTensor<Self>,
        call: Call,
    ) -> FloatTensor<Self> {
        let [b, past, a, bias, onto] = [x, past, weight, bias, onto].map(dense);
        let out = empty(&b, call.result());
        let lines = call.weight[1..].iter().product();
        launch(Role::Result, &call, Operands { a, b, past, bias, onto }, 0..0, lines, &out);
        out
    }

    fn conv3d_input_gradient(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        of_past: bool,
        call: Call,
    ) -> FloatTensor<Self> {
        let [a, b] = [weight, grad].map(dense);
        let (frames, shape) =
            if of_past { (0..call.front, call.past()) } else { (call.front..call.front + call.x[1], call.x) };
        let out = empty(&b, shape);
        let lines = call.outputs() * call.weight[2..].iter().product::<usize>();
        let operands = Operands { past: b.clone(), bias: b.clone(), onto: b.clone(), a, b };
        launch(Role::InputGradient, &call, operands, frames, lines, &out);
        out
    }

    fn conv3d_weight_gradient(
        x: FloatTensor<Self>,
        past: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        call: Call,
    ) -> FloatTensor<Self> {
        let [b, past, a] = [x, past, grad].map(dense);
        let [clips, to, o, ho, wo] = call.result();
        let pixels = clips * to * ho * wo;
        // A weight has few cells: slices of its pixels keep a device busy, and are added up afterwards.
        let slice = pixels.div_ceil(64).max(1024);
        let slices = pixels.div_ceil(slice);
        let cells = call.weight[1..].iter().product::<usize>();
        let out = empty(&b, [slices, o, cells]);
        let operands = Operands { bias: a.clone(), onto: a.clone(), a, b, past };
        launch(Role::WeightGradient, &call, operands, 0..0, slice, &out);
        let sum = if slices == 1 { out } else { Self::float_sum_dim(out, 0) };
        Self::float_reshape(sum, Shape::new(call.weight))
    }

    fn conv3d_bias_gradient(grad: FloatTensor<Self>, call: Call) -> FloatTensor<Self> {
        let [b, t, o, h, w] = call.result();
        let planes = Self::float_reshape(grad, Shape::new([b * t, o, h * w]));
        let sums = Self::float_sum_dim(Self::float_sum_dim(planes, 2), 0);
        Self::float_reshape(sums, Shape::new([o]))
    }
}
