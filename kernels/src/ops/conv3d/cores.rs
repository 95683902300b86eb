//! The product of `cube` on tensor cores, where a device has those for TF32: each plane adds up two squares of 16 x 16 cells.
//!
//! TF32 keeps 10 bits after the point. An operand goes there as two values, the nearest one and the nearest of what is left,
//! 21 bits in all, and three of the four products are summed; the fourth is below the last bit of an f32. So results keep
//! the accuracy of f32, at three times the work of one product, which tensor cores still do faster than plain units.
//! Operands that were bf16 are exact in one value, and there is one product.

use cubecl::client::Client;
use cubecl::features::MmaConfig;
use cubecl::prelude::*;

use super::cube::{Form, LINES, Sizes, TILE, UNITS, fetch_left, fetch_right, finish, part};

/// A name that the macro takes for a type.
type Tf32 = tf32;

/// Units that drive a tensor core together.
const PLANE: u32 = 32;
/// Edge of a square of cells on a tensor core, and the lines that one instruction sums.
const SQUARE: u32 = 16;
const DEPTH: u32 = 8;

/// Two squares of a plane side by side, a step of [`DEPTH`] lines further. Tiles hold lines of [`TILE`] values.
#[cube]
fn add_squares(
    left_tile: &Shared<[Tf32]>,
    right_tile: &Shared<[Tf32]>,
    line: u32,
    row: u32,
    column: u32,
    first: &cmma::Matrix<f32>,
    second: &cmma::Matrix<f32>,
) {
    let len = comptime!((TILE * LINES) as usize);
    let (m, n, k) = comptime!((SQUARE as usize, SQUARE as usize, DEPTH as usize));
    let start = (line * TILE) as usize;
    let a = cmma::Matrix::<Tf32>::from_slice(
        cmma::MatrixIdent::A,
        m,
        n,
        k,
        cmma::MatrixLayout::ColMajor,
        &left_tile[start + row as usize..len],
        TILE,
    );
    let at = start + column as usize;
    let b = cmma::Matrix::<Tf32>::from_slice(
        cmma::MatrixIdent::B,
        m,
        n,
        k,
        cmma::MatrixLayout::RowMajor,
        &right_tile[at..len],
        TILE,
    );
    cmma::execute(&a, &b, first, first);
    let b = cmma::Matrix::<Tf32>::from_slice(
        cmma::MatrixIdent::B,
        m,
        n,
        k,
        cmma::MatrixLayout::RowMajor,
        &right_tile[at + comptime!(SQUARE as usize)..len],
        TILE,
    );
    cmma::execute(&a, &b, second, second);
}

/// The nearest TF32, and that of what is left.
#[cube]
fn split(value: f32) -> (Tf32, Tf32) {
    let near = Tf32::cast_from(value);
    (near, Tf32::cast_from(value - f32::cast_from(near)))
}

/// As [`product`], on tensor cores: each of the eight planes of a cube has a row of two squares of 16 x 16 cells.
#[cube(launch)]
pub(super) fn product_on_tensor_cores(
    a: &[f32],
    b: &[f32],
    past: &[f32],
    bias: &[f32],
    onto: &[f32],
    out: &mut [f32],
    sizes: Sizes,
    #[comptime] form: Form,
) {
    let len = comptime!((TILE * LINES) as usize);
    let mut left_near = Shared::<[Tf32]>::new_slice(len);
    // Where there is no rest, what keeps the next operand on 32 bytes.
    let rest = comptime!(if form.fine { len } else { DEPTH as usize });
    let mut left_rest = Shared::<[Tf32]>::new_slice(rest);
    let mut right_near = Shared::<[Tf32]>::new_slice(len);
    let mut right_rest = Shared::<[Tf32]>::new_slice(rest);
    let mut cells = Shared::<[f32]>::new_slice(comptime!((TILE * TILE) as usize));
    let (m, n, k) = comptime!((SQUARE as usize, SQUARE as usize, DEPTH as usize));
    let undefined = cmma::MatrixLayout::Undefined;
    let first = cmma::Matrix::<f32>::from_value(cmma::MatrixIdent::Accumulator, m, n, k, undefined, 0.0f32);
    let second = cmma::Matrix::<f32>::from_value(cmma::MatrixIdent::Accumulator, m, n, k, undefined, 0.0f32);

    let part = part(&sizes);
    let plane = UNIT_POS / PLANE;
    let (plane_row, plane_column) = (plane / 2u32 * SQUARE, plane % 2u32 * comptime!(2 * SQUARE));
    let steps = (part.end - part.start + comptime!(LINES - 1)) / LINES;
    for step in 0..steps {
        let first_line = part.start + step * LINES;
        for turn in 0..comptime!(TILE * LINES / UNITS) {
            let at = UNIT_POS + turn * UNITS;
            let (row, line) = (at / LINES, at % LINES);
            let value = fetch_left(a, part.row + row, first_line + line, part.end, &sizes, form);
            let (near, rest) = split(value);
            left_near[(line * TILE + row) as usize] = near;
            if comptime!(form.fine) {
                left_rest[(line * TILE + row) as usize] = rest;
            }
            let (line, column) = (at / TILE, at % TILE);
            let value = fetch_right(b, past, part.column + column, first_line + line, part.end, &sizes, form);
            let (near, rest) = split(value);
            right_near[at as usize] = near;
            if comptime!(form.fine) {
                right_rest[at as usize] = rest;
            }
        }
        sync_cube();
        #[unroll]
        for turn in 0..comptime!(LINES / DEPTH) {
            let line = comptime!(turn * DEPTH).runtime();
            // The small products first.
            if comptime!(form.fine) {
                add_squares(&left_rest, &right_near, line, plane_row, plane_column, &first, &second);
                add_squares(&left_near, &right_rest, line, plane_row, plane_column, &first, &second);
            }
            add_squares(&left_near, &right_near, line, plane_row, plane_column, &first, &second);
        }
        sync_cube();
    }

    let at = (plane_row * TILE + plane_column) as usize;
    let all = comptime!((TILE * TILE) as usize);
    cmma::store(&mut cells[at..all], &first, TILE, cmma::MatrixLayout::RowMajor);
    cmma::store(&mut cells[at + comptime!(SQUARE as usize)..all], &second, TILE, cmma::MatrixLayout::RowMajor);
    sync_cube();
    for turn in 0..comptime!(TILE * TILE / UNITS) {
        let at = UNIT_POS + turn * UNITS;
        let (row, column) = (part.row + at / TILE, part.column + at % TILE);
        if row < sizes.rows && column < sizes.columns {
            finish(cells[at as usize], bias, onto, out, row, column, part.slice, &sizes, form);
        }
    }
}

/// Whether the device has tensor cores for TF32, and planes of the size that drives one.
pub(super) fn has_tensor_cores(client: &Client) -> bool {
    let tf32 = Tf32::cube_type();
    let wanted = MmaConfig { a_type: tf32, b_type: tf32, cd_type: f32::cube_type(), m: SQUARE, n: SQUARE, k: DEPTH };
    let hardware = &client.properties().hardware;
    let planes = [hardware.plane_size_min, hardware.plane_size_max];
    client.features().matmul.cmma.contains(&wanted) && planes == [PLANE; 2]
}
