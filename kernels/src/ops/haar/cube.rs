//! The op on CubeCL devices: one unit per cell and colour turns a patch in its registers; neighbouring units touch
//! neighbouring memory. Patches of 8 and more do not fit there and lie in the unit's own memory.

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::{Form, HaarFront, HaarOps, Sizes, band};
use crate::cube::dense;

/// Edge of the largest patch whose loops are written out.
const UNROLLED: usize = 4;

/// A cell of one colour.
#[derive(CubeType, Clone, Copy)]
struct Cell {
    clip: u32,
    time: u32,
    colour: u32,
    row: u32,
    column: u32,
}

#[cube]
fn cell(times: u32, colours: u32, rows: u32, columns: u32) -> Cell {
    let at = ABSOLUTE_POS as u32;
    Cell {
        clip: at / (columns * rows * colours * times),
        time: at / (columns * rows * colours) % times,
        colour: at / (columns * rows) % colours,
        row: at / columns % rows,
        column: at % columns,
    }
}

/// Pairs along every axis, from neighbours to what lies further apart, to low and high.
#[cube]
fn turn(patch: &mut Array<f32>, a: f32, b: f32, #[comptime] edge: usize) {
    let steps = comptime!(3 * edge.ilog2() as usize);
    let pairs = comptime!(edge.pow(3) / 2);
    #[unroll]
    for step in 0..steps {
        let distance = 1usize << step;
        #[unroll(edge <= UNROLLED)]
        for pair in 0..pairs {
            let low = pair / distance * (2 * distance) + pair % distance;
            let high = low + distance;
            let (first, second) = (patch[low], patch[high]);
            patch[low] = b * first + a * second;
            patch[high] = a * first - b * second;
        }
    }
}

/// One unit per cell and colour.
#[cube(launch)]
fn to_cells(
    x: &[f32],
    taps: &[f32],
    bands: &[u32],
    z: &mut [f32],
    count: u32,
    times: u32,
    colours: u32,
    rows: u32,
    columns: u32,
    scale: f32,
    #[comptime] edge: usize,
    #[comptime] front: HaarFront,
) {
    if ABSOLUTE_POS >= count as usize {
        terminate!();
    }
    let cell = cell(times, colours, rows, columns);
    let volume = comptime!(edge.pow(3));
    let p = comptime!(edge as u32);
    let mut patch = Array::<f32>::new(volume);
    let frames = (times - 1) * p + 1;
    #[unroll(edge <= UNROLLED)]
    for place in 0..volume {
        let t = place as u32 / (p * p);
        let mut frame = 0u32;
        let mut here = true;
        if cell.time > 0 {
            frame = cell.time * p + t + 1 - p;
        } else if comptime!(front == HaarFront::Last) {
            here = t + 1 == p;
        }
        let row = cell.row * p + place as u32 / p % p;
        let at = ((cell.clip * colours + cell.colour) * frames + frame) * (rows * p) + row;
        let at = at * (columns * p) + cell.column * p + place as u32 % p;
        let mut value = 0.0f32;
        if here {
            value = x[at as usize];
        }
        patch[place] = value;
    }
    turn(&mut patch, taps[0], taps[1], edge);
    let start = (cell.clip * times + cell.time) * (volume as u32 * colours);
    #[unroll(edge <= UNROLLED)]
    for place in 0..volume {
        let channel = start + bands[place] * colours + cell.colour;
        z[((channel * rows + cell.row) * columns + cell.column) as usize] = patch[place] * scale;
    }
}

/// One unit per cell and colour.
#[cube(launch)]
fn to_frames(
    z: &[f32],
    taps: &[f32],
    bands: &[u32],
    x: &mut [f32],
    count: u32,
    times: u32,
    colours: u32,
    rows: u32,
    columns: u32,
    scale: f32,
    #[comptime] edge: usize,
    #[comptime] front: HaarFront,
) {
    if ABSOLUTE_POS >= count as usize {
        terminate!();
    }
    let cell = cell(times, colours, rows, columns);
    let volume = comptime!(edge.pow(3));
    let p = comptime!(edge as u32);
    let mut patch = Array::<f32>::new(volume);
    let start = (cell.clip * times + cell.time) * (volume as u32 * colours);
    #[unroll(edge <= UNROLLED)]
    for place in 0..volume {
        let channel = start + bands[place] * colours + cell.colour;
        patch[place] = z[((channel * rows + cell.row) * columns + cell.column) as usize] * scale;
    }
    turn(&mut patch, taps[0], taps[1], edge);
    let frames = (times - 1) * p + 1;
    let plane = comptime!(edge.pow(2));
    #[unroll(edge <= UNROLLED)]
    for place in 0..plane {
        let row = cell.row * p + place as u32 / p;
        let at = (cell.clip * colours + cell.colour) * frames;
        let inner = row * (columns * p) + cell.column * p + place as u32 % p;
        if cell.time == 0 {
            // The first cell makes one frame.
            let mut value = patch[comptime!((edge - 1) * edge * edge) + place];
            if comptime!(front == HaarFront::Copies) {
                #[unroll(edge <= UNROLLED)]
                for t in 0..comptime!(edge - 1) {
                    value += patch[t * plane + place];
                }
            }
            x[(at * (rows * p * columns * p) + inner) as usize] = value;
        } else {
            #[unroll(edge <= UNROLLED)]
            for t in 0..edge {
                let frame = cell.time * p + t as u32 + 1 - p;
                x[((at + frame) * (rows * p * columns * p) + inner) as usize] = patch[t * plane + place];
            }
        }
    }
}

fn like(x: &CubeTensor, shape: [usize; 5]) -> CubeTensor {
    empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), Shape::new(shape), DType::F32)
}

/// The sub-band that stands at each place of a patch.
fn bands(client: &Client, patch: usize) -> BufferArg {
    let place = |place: usize| band([place / (patch * patch), place / patch % patch, place % patch], patch) as u32;
    let bands: Vec<u32> = (0..patch.pow(3)).map(place).collect();
    let handle = client.create_from_slice(u32::as_bytes(&bands));
    // SAFETY: the handle was made from a slice of exactly `bands.len()` numbers.
    unsafe { BufferArg::from_raw_parts(handle, bands.len()) }
}

impl HaarOps for CubeBackend {
    fn haar_cells(x: FloatTensor<Self>, taps: FloatTensor<Self>, form: Form) -> FloatTensor<Self> {
        let (x, taps) = (dense(x), dense(taps));
        let sizes = Sizes::of_frames(x.shape().dims(), form.patch);
        let z = like(&x, sizes.bands());
        let [times, rows, columns] = sizes.cells;
        let count = sizes.clips * sizes.colours * times * rows * columns;
        if count > 0 {
            let client = x.client.clone();
            let dim = CubeDim::new_1d(128);
            to_cells::launch(
                &client,
                calculate_cube_count_elemwise(&client, count, dim),
                dim,
                x.into_buffer_arg(),
                taps.into_buffer_arg(),
                bands(&client, form.patch),
                z.clone().into_buffer_arg(),
                count as u32,
                times as u32,
                sizes.colours as u32,
                rows as u32,
                columns as u32,
                form.scale,
                form.patch,
                form.front,
            );
        }
        z
    }

    fn haar_frames(z: FloatTensor<Self>, taps: FloatTensor<Self>, form: Form) -> FloatTensor<Self> {
        let (z, taps) = (dense(z), dense(taps));
        let sizes = Sizes::of_cells(z.shape().dims(), form.patch);
        let x = like(&z, sizes.frames());
        let [times, rows, columns] = sizes.cells;
        let count = sizes.clips * sizes.colours * times * rows * columns;
        if count > 0 {
            let client = z.client.clone();
            let dim = CubeDim::new_1d(128);
            to_frames::launch(
                &client,
                calculate_cube_count_elemwise(&client, count, dim),
                dim,
                z.into_buffer_arg(),
                taps.into_buffer_arg(),
                bands(&client, form.patch),
                x.clone().into_buffer_arg(),
                count as u32,
                times as u32,
                sizes.colours as u32,
                rows as u32,
                columns as u32,
                form.scale,
                form.patch,
                form.front,
            );
        }
        x
    }
}
