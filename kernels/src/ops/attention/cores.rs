//! The kernels of `cube` on tensor cores, where a device has those for TF32: a plane of 32 units owns 16 rows and what is
//! gathered for them, in squares of 16 x 16 cells; the rows of the other side pass all planes of a cube in tiles of 32.
//!
//! What is on a tensor core cannot be reached by row. So scores go through shared memory, where two units have a row, and
//! what is gathered forward is shrunk only when a row's largest score has grown by 2^8 (as FlashAttention-4 does): until
//! then weights are just as much too large as their sum is, which f32 holds.
//!
//! TF32 keeps 10 bits after the point. An operand that has more goes there as two values and three products are summed, as
//! in `conv3d::cores`. One that was bf16 is exact in one value; of the weights, which then are rounded, as much is kept.

use cubecl::client::Client;
use cubecl::features::MmaConfig;
use cubecl::prelude::*;

use super::cube::{Block, Bounds, NEVER, Sizes, exp2, limit, log2};

/// A name that the macro takes for a type.
type Tf32 = tf32;

/// Units that drive a tensor core together.
const PLANE: usize = 32;
/// Edge of a square of cells, which is a plane's rows, and the lines that one instruction sums.
pub(super) const SQUARE: usize = 16;
const DEPTH: usize = 8;
/// Rows of the other side that pass at a time: two squares.
const TILE: usize = 32;
/// Places from one row of scores to the next: no bank of memory has two rows of eight, and squares start on 32 bytes.
const STEP: usize = TILE + 4;
/// By which power of two a row's scores may grow before what was gathered is shrunk.
const GROWTH: f32 = 8.0;

/// What a kernel on tensor cores is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Cut {
    sizes: Sizes,
    /// Planes of a cube.
    planes: usize,
    /// Whether operands have more bits than TF32.
    fine: bool,
}

impl Cut {
    fn squares(&self) -> usize {
        self.sizes.width.div_ceil(SQUARE)
    }

    /// Places from one row of an operand to the next, as [`STEP`].
    fn step(&self) -> usize {
        self.squares() * SQUARE + 4
    }

    /// Rows of a cube.
    pub(super) fn rows(&self) -> usize {
        self.planes * SQUARE
    }

    pub(super) fn units(&self) -> usize {
        self.planes * PLANE
    }

    /// Bytes of a cube's memory for operands of `resident` x [`Cut::rows`] and `passing` x [`TILE`] rows, for the scores and
    /// weights of as many products as each has, and for a few values per unit and per row of a tile.
    fn bytes(&self, scores: usize, weights: usize, resident: usize, passing: usize) -> usize {
        let values = if self.fine { 2 } else { 1 };
        let operands = (resident * self.rows() + passing * TILE) * self.step() * values;
        4 * (operands + self.rows() * STEP * (scores + weights * values) + 2 * self.units() + 3 * TILE)
    }
}

/// How a kernel is cut for the device; `None` where it has no tensor cores for it, or too little shared memory.
pub(super) fn cut(client: &Client, sizes: Sizes, fine: bool, pass: Pass) -> Option<Cut> {
    if !has_tensor_cores(client) {
        return None;
    }
    let [scores, weights, resident, passing] = match pass {
        Pass::Forward => [1, 1, 1, 1],
        Pass::BackwardQueries => [2, 1, 2, 2],
        Pass::BackwardKeys => [2, 2, 2, 2],
    };
    let memory = client.properties().hardware.max_shared_memory_size;
    let cuts = [4, 2, 1].map(|planes| Cut { sizes, planes, fine });
    cuts.into_iter().find(|cut| cut.bytes(scores, weights, resident, passing) <= memory)
}

/// The three kernels.
#[derive(Clone, Copy)]
pub(super) enum Pass {
    Forward,
    BackwardQueries,
    BackwardKeys,
}

fn has_tensor_cores(client: &Client) -> bool {
    let tf32 = Tf32::cube_type();
    let [m, n, k] = [SQUARE, SQUARE, DEPTH].map(|edge| edge as u32);
    let wanted = MmaConfig { a_type: tf32, b_type: tf32, cd_type: f32::cube_type(), m, n, k };
    let hardware = &client.properties().hardware;
    let planes = [hardware.plane_size_min, hardware.plane_size_max];
    client.features().matmul.cmma.contains(&wanted) && planes == [PLANE as u32; 2]
}

/// Values for tensor cores: the nearest TF32, and that of what is left where [`Cut::fine`] wants it.
#[derive(CubeType)]
struct Operand {
    near: Shared<[Tf32]>,
    rest: Shared<[Tf32]>,
}

#[cube]
impl Operand {
    fn new(#[comptime] count: usize, #[comptime] cut: Cut) -> Operand {
        Operand {
            near: Shared::<[Tf32]>::new_slice(count),
            // Where there is no rest, what keeps the next operand on 32 bytes.
            rest: Shared::<[Tf32]>::new_slice(comptime!(if cut.fine { count } else { DEPTH })),
        }
    }

    fn put(&mut self, at: usize, value: f32, #[comptime] cut: Cut) {
        let near = Tf32::cast_from(value);
        self.near[at] = near;
        if comptime!(cut.fine) {
            self.rest[at] = Tf32::cast_from(value - f32::cast_from(near));
        }
    }

    /// `rows` rows from `start` (in values) on, 0 beyond `count` rows and the width. All units of the cube do it together.
    fn fill(&mut self, from: &[f32], start: usize, count: usize, #[comptime] rows: usize, #[comptime] cut: Cut) {
        let (width, columns) = comptime!((cut.sizes.width, cut.squares() * SQUARE));
        let (units, step) = comptime!((cut.units(), cut.step()));
        for turn in 0..comptime!((rows * columns).div_ceil(units)) {
            let at = turn * units + UNIT_POS as usize;
            let (row, column) = (at / columns, at % columns);
            if row < rows {
                let mut value = 0.0f32;
                if row < count && column < width {
                    value = from[start + row * width + column];
                }
                self.put(row * step + column, value, cut);
            }
        }
    }
}

/// Squares of zeros.
#[cube]
fn zeros(#[comptime] count: usize) -> Sequence<cmma::Matrix<f32>> {
    let mut squares = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..count {
        squares.push(cmma::Matrix::<f32>::from_value(
            cmma::MatrixIdent::Accumulator,
            comptime!(SQUARE),
            comptime!(SQUARE),
            comptime!(DEPTH),
            cmma::MatrixLayout::Undefined,
            0.0f32,
        ));
    }
    squares
}

/// Adds the products of a plane's 16 rows of `a`, from `a_at` on, with the squares of `b`. `lines` times [`DEPTH`] are summed,
/// which is known at run time only: a compiler would unroll the loop, and run out of registers.
#[cube]
fn add(
    a: &Shared<[Tf32]>,
    a_at: usize,
    b: &Shared<[Tf32]>,
    lines: usize,
    squares: &Sequence<cmma::Matrix<f32>>,
    #[comptime] shape: Product,
) {
    let (m, n, k) = comptime!((SQUARE, SQUARE, DEPTH));
    for line in 0..lines {
        let line = line * DEPTH;
        let left = cmma::Matrix::<Tf32>::from_slice(
            cmma::MatrixIdent::A,
            m,
            n,
            k,
            cmma::MatrixLayout::RowMajor,
            &a[a_at + line..a.len()],
            comptime!(shape.a_step as u32),
        );
        #[unroll]
        for square in 0..comptime!(shape.squares) {
            if comptime!(shape.by_row) {
                let right = cmma::Matrix::<Tf32>::from_slice(
                    cmma::MatrixIdent::B,
                    m,
                    n,
                    k,
                    cmma::MatrixLayout::RowMajor,
                    &b[line * shape.b_step + square * SQUARE..b.len()],
                    comptime!(shape.b_step as u32),
                );
                cmma::execute(&left, &right, squares.index(square), squares.index(square));
            } else {
                let right = cmma::Matrix::<Tf32>::from_slice(
                    cmma::MatrixIdent::B,
                    m,
                    n,
                    k,
                    cmma::MatrixLayout::ColMajor,
                    &b[square * comptime!(SQUARE * shape.b_step) + line..b.len()],
                    comptime!(shape.b_step as u32),
                );
                cmma::execute(&left, &right, squares.index(square), squares.index(square));
            }
        }
    }
}

/// The form of a product; see [`add`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Product {
    squares: usize,
    a_step: usize,
    b_step: usize,
    /// A row of b is a line of the sum; else it is a column of the result.
    by_row: bool,
}

impl Product {
    /// Rows with the rows of a tile: scores.
    fn scores(cut: Cut) -> Product {
        Product { squares: TILE / SQUARE, a_step: cut.step(), b_step: cut.step(), by_row: false }
    }

    /// Weights with a tile: what is gathered.
    fn gather(cut: Cut) -> Product {
        Product { squares: cut.squares(), a_step: STEP, b_step: cut.step(), by_row: true }
    }
}

/// As [`add`], the small products first.
#[cube]
fn add_all(
    a: &Operand,
    a_at: usize,
    b: &Operand,
    lines: usize,
    squares: &Sequence<cmma::Matrix<f32>>,
    #[comptime] shape: Product,
    #[comptime] cut: Cut,
) {
    if comptime!(cut.fine) {
        add(&a.rest, a_at, &b.near, lines, squares, shape);
        add(&a.near, a_at, &b.rest, lines, squares, shape);
    }
    add(&a.near, a_at, &b.near, lines, squares, shape);
}

/// The scores of a plane's rows with a tile, in its part of `scores`.
#[cube]
fn score(
    rows: &Operand,
    tile: &Operand,
    scores: &mut Shared<[f32]>,
    place: &Place,
    bounds: &Bounds,
    #[comptime] cut: Cut,
) {
    let found = zeros(comptime!(TILE / SQUARE));
    let (at, lines) = (place.plane * comptime!(SQUARE * cut.step()), (bounds.width as usize).div_ceil(DEPTH));
    add_all(rows, at, tile, lines, &found, comptime!(Product::scores(cut)), cut);
    let end = scores.len();
    #[unroll]
    for square in 0..comptime!(TILE / SQUARE) {
        let at = place.scores + square * SQUARE;
        cmma::store(&mut scores[at..end], found.index(square), comptime!(STEP as u32), cmma::MatrixLayout::RowMajor);
    }
}

/// Where a unit stands: its plane, the first of its plane's scores, its row, and which half of that it has (every other
/// column).
#[derive(CubeType, Clone, Copy)]
struct Place {
    plane: usize,
    scores: usize,
    row: usize,
    half: usize,
}

#[cube]
impl Place {
    fn of_unit() -> Place {
        let (plane, lane) = (UNIT_POS as usize / PLANE, UNIT_POS as usize % PLANE);
        Place { plane, scores: plane * comptime!(SQUARE * STEP), row: lane / 2, half: lane % 2 }
    }

    /// Where the unit's score number `turn` lies.
    fn score(&self, turn: usize) -> usize {
        self.scores + self.row * STEP + self.column(turn)
    }

    fn column(&self, turn: usize) -> usize {
        turn * 2 + self.half
    }
}

/// Multiplies each row of a plane's squares by what its units say, by way of the plane's part of `scores`.
#[cube]
fn shrink(
    squares: &mut Sequence<cmma::Matrix<f32>>,
    by: f32,
    scores: &mut Shared<[f32]>,
    place: &Place,
    #[comptime] cut: Cut,
) {
    let end = scores.len();
    let (step, layout) = comptime!((STEP as u32, cmma::MatrixLayout::RowMajor));
    #[unroll]
    for square in 0..comptime!(cut.squares()) {
        cmma::store(&mut scores[place.scores..end], squares.index(square), step, layout);
        sync_plane();
        for turn in 0..comptime!(SQUARE / 2) {
            scores[place.score(turn)] *= by;
        }
        sync_plane();
        cmma::load_with_layout(squares.index_mut(square), &scores[place.scores..end], step, layout);
        sync_plane();
    }
}

/// Writes the unit's half of its row, times a factor, to `start` on, if it is `wanted`.
#[cube]
fn store(
    squares: &Sequence<cmma::Matrix<f32>>,
    factor: f32,
    scores: &mut Shared<[f32]>,
    place: &Place,
    out: &mut [f32],
    start: usize,
    wanted: bool,
    #[comptime] cut: Cut,
) {
    let end = scores.len();
    let (step, layout) = comptime!((STEP as u32, cmma::MatrixLayout::RowMajor));
    #[unroll]
    for square in 0..comptime!(cut.squares()) {
        sync_plane();
        cmma::store(&mut scores[place.scores..end], squares.index(square), step, layout);
        sync_plane();
        for turn in 0..comptime!(SQUARE / 2) {
            let column = square * SQUARE + place.column(turn);
            if wanted && column < cut.sizes.width {
                out[start + column] = scores[place.score(turn)] * factor;
            }
        }
    }
}

/// Whether a query that sees the keys below `limit` meets one, as [`super::cube::sees`].
#[cube]
fn meets(limit: usize, key: usize, real: &[f32], marks: usize, bounds: &Bounds, #[comptime] sizes: Sizes) -> bool {
    let mut seen = key < bounds.keys as usize && (key < limit || key >= bounds.rest as usize);
    if comptime!(sizes.marked) {
        if seen {
            seen = real[marks + key] != 0.0f32;
        }
    }
    seen
}

/// As [`super::cube::forward`].
#[cube(launch)]
pub(super) fn forward_on_tensor_cores(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    real: &[f32],
    out: &mut [f32],
    sums: &mut [f32],
    bounds: Bounds,
    cubes: u32,
    #[comptime] cut: Cut,
) {
    if CUBE_POS as u32 >= cubes {
        terminate!();
    }
    let (n, m) = (bounds.queries as usize, bounds.keys as usize);
    let (side, sizes) = comptime!((cut.rows(), cut.sizes));
    let block = Block::of_queries(&bounds, side, sizes);
    let head = block.met(sizes);
    let place = Place::of_unit();
    let row = place.plane * SQUARE + place.row;
    let query = block.start + row;

    let mut rows = Operand::new(comptime!(cut.rows() * cut.step()), cut);
    let mut tile = Operand::new(comptime!(TILE * cut.step()), cut);
    let mut scores = Shared::<[f32]>::new_slice(comptime!(cut.rows() * STEP));
    let mut weights = Operand::new(comptime!(cut.rows() * STEP), cut);
    let mut tops = Shared::<[f32]>::new_slice(comptime!(cut.units()));
    let mut growths = Shared::<[f32]>::new_slice(comptime!(cut.units()));
    let mut gathered = zeros(comptime!(cut.squares()));
    let mut largest = select(bounds.zeros > 0.0f32, 0.0f32, NEVER);
    // Of the unit's half of the row.
    let mut sum = select(place.half == 0, bounds.zeros, 0.0f32);
    let last = limit(block.start + block.count - 1, &bounds);
    let (inside, own) = (row < block.count, limit(query, &bounds));
    rows.fill(q, block.at, block.count, side, cut);

    for tile_index in 0..m.div_ceil(TILE) {
        let first = tile_index * TILE;
        if first < last || first + TILE > bounds.rest as usize {
            let keys = usize::min(m - first, TILE);
            let key_start = (head * m + first) * sizes.width;
            sync_cube();
            tile.fill(k, key_start, keys, TILE, cut);
            sync_cube();
            score(&rows, &tile, &mut scores, &place, &bounds, cut);
            sync_plane();
            let mut top = NEVER.runtime();
            for turn in 0..comptime!(TILE / 2) {
                let at = place.score(turn);
                // Those out of sight are as far away as can be.
                let mut found = f32::NEG_INFINITY.runtime();
                if inside && meets(own, first + place.column(turn), real, block.batch * m, &bounds, cut.sizes) {
                    found = scores[at] * bounds.scale;
                }
                scores[at] = found;
                top = f32::max(top, found);
            }
            tops[UNIT_POS as usize] = top;
            sync_plane();
            top = f32::max(top, tops[UNIT_POS as usize - place.half + 1 - place.half]);
            growths[UNIT_POS as usize] = top - largest;
            sync_plane();
            let mut growth = 0.0f32;
            for other in 0..PLANE {
                growth = f32::max(growth, growths[place.plane * PLANE + other]);
            }
            let mut by = 1.0f32;
            if growth > GROWTH {
                let new = f32::max(largest, top);
                by = exp2(f32::max(largest - new, -200.0f32));
                largest = new;
                sum *= by;
            }
            for turn in 0..comptime!(TILE / 2) {
                let at = place.score(turn);
                let weight = exp2(scores[at] - largest);
                sum += weight;
                weights.put(at, weight, cut);
            }
            sync_plane();
            if growth > GROWTH {
                shrink(&mut gathered, by, &mut scores, &place, cut);
            }
            sync_cube();
            tile.fill(v, key_start, keys, TILE, cut);
            sync_cube();
            add_all(
                &weights,
                place.scores,
                &tile,
                keys.div_ceil(DEPTH),
                &gathered,
                comptime!(Product::gather(cut)),
                cut,
            );
        }
    }
    sync_plane();
    tops[UNIT_POS as usize] = sum;
    sync_plane();
    sum += tops[UNIT_POS as usize - place.half + 1 - place.half];
    let factor = select(sum > 0.0f32, 1.0f32 / sum, 0.0f32);
    store(&gathered, factor, &mut scores, &place, out, block.at + row * sizes.width, row < block.count, cut);
    if row < block.count && place.half == 0 {
        // A row that sees nothing has an infinite sum: the largest number stands for it.
        sums[block.head * n + query] = select(sum > 0.0f32, largest + log2(sum), 1e30f32);
    }
}

/// As [`super::cube::backward_queries`].
#[cube(launch)]
pub(super) fn backward_queries_on_tensor_cores(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    real: &[f32],
    sums: &[f32],
    inner: &[f32],
    grad: &[f32],
    dq: &mut [f32],
    bounds: Bounds,
    cubes: u32,
    #[comptime] cut: Cut,
) {
    if CUBE_POS as u32 >= cubes {
        terminate!();
    }
    let (n, m) = (bounds.queries as usize, bounds.keys as usize);
    let (side, sizes) = comptime!((cut.rows(), cut.sizes));
    let block = Block::of_queries(&bounds, side, sizes);
    let head = block.met(sizes);
    let place = Place::of_unit();
    let row = place.plane * SQUARE + place.row;
    let query = block.start + row;

    let mut rows = Operand::new(comptime!(cut.rows() * cut.step()), cut);
    let mut row_grads = Operand::new(comptime!(cut.rows() * cut.step()), cut);
    let mut keys = Operand::new(comptime!(TILE * cut.step()), cut);
    let mut values = Operand::new(comptime!(TILE * cut.step()), cut);
    let mut scores = Shared::<[f32]>::new_slice(comptime!(cut.rows() * STEP));
    let mut products = Shared::<[f32]>::new_slice(comptime!(cut.rows() * STEP));
    let mut slopes = Operand::new(comptime!(cut.rows() * STEP), cut);
    let gathered = zeros(comptime!(cut.squares()));
    let mut row_sum = 0.0f32;
    let mut row_inner = 0.0f32;
    if row < block.count {
        row_sum = sums[block.head * n + query];
        row_inner = inner[block.head * n + query];
    }
    let last = limit(block.start + block.count - 1, &bounds);
    let (inside, own) = (row < block.count, limit(query, &bounds));
    rows.fill(q, block.at, block.count, side, cut);
    row_grads.fill(grad, block.at, block.count, side, cut);

    for tile_index in 0..m.div_ceil(TILE) {
        let first = tile_index * TILE;
        if first < last || first + TILE > bounds.rest as usize {
            let count = usize::min(m - first, TILE);
            let key_start = (head * m + first) * sizes.width;
            sync_cube();
            keys.fill(k, key_start, count, TILE, cut);
            values.fill(v, key_start, count, TILE, cut);
            sync_cube();
            score(&rows, &keys, &mut scores, &place, &bounds, cut);
            score(&row_grads, &values, &mut products, &place, &bounds, cut);
            sync_plane();
            for turn in 0..comptime!(TILE / 2) {
                let at = place.score(turn);
                let mut slope = 0.0f32;
                if inside && meets(own, first + place.column(turn), real, block.batch * m, &bounds, cut.sizes) {
                    slope = exp2(scores[at] * bounds.scale - row_sum) * (products[at] - row_inner);
                }
                slopes.put(at, slope, cut);
            }
            sync_plane();
            add_all(
                &slopes,
                place.scores,
                &keys,
                count.div_ceil(DEPTH),
                &gathered,
                comptime!(Product::gather(cut)),
                cut,
            );
        }
    }
    let factor = bounds.scale * comptime!(std::f32::consts::LN_2);
    store(&gathered, factor, &mut scores, &place, dq, block.at + row * sizes.width, row < block.count, cut);
}

/// As [`super::cube::backward_keys`].
#[cube(launch)]
pub(super) fn backward_keys_on_tensor_cores(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    real: &[f32],
    sums: &[f32],
    inner: &[f32],
    grad: &[f32],
    dk: &mut [f32],
    dv: &mut [f32],
    bounds: Bounds,
    cubes: u32,
    #[comptime] cut: Cut,
) {
    if CUBE_POS as u32 >= cubes {
        terminate!();
    }
    let (n, m) = (bounds.queries as usize, bounds.keys as usize);
    let (side, sizes) = comptime!((cut.rows(), cut.sizes));
    let block = Block::of_keys(&bounds, side, sizes);
    let place = Place::of_unit();
    let row = place.plane * SQUARE + place.row;
    let key = block.start + row;

    let mut rows = Operand::new(comptime!(cut.rows() * cut.step()), cut);
    let mut row_values = Operand::new(comptime!(cut.rows() * cut.step()), cut);
    let mut queries = Operand::new(comptime!(TILE * cut.step()), cut);
    let mut grads = Operand::new(comptime!(TILE * cut.step()), cut);
    let mut scores = Shared::<[f32]>::new_slice(comptime!(cut.rows() * STEP));
    let mut products = Shared::<[f32]>::new_slice(comptime!(cut.rows() * STEP));
    let mut weights = Operand::new(comptime!(cut.rows() * STEP), cut);
    let mut slopes = Operand::new(comptime!(cut.rows() * STEP), cut);
    // Of the queries that pass: the sum of their rows, the product of result and gradient, and the keys in sight.
    let mut query_sums = Shared::<[f32]>::new_slice(comptime!(TILE));
    let mut query_inner = Shared::<[f32]>::new_slice(comptime!(TILE));
    let mut query_limits = Shared::<[u32]>::new_slice(comptime!(TILE));
    let of_keys = zeros(comptime!(cut.squares()));
    let of_values = zeros(comptime!(cut.squares()));
    rows.fill(k, block.at, block.count, side, cut);
    row_values.fill(v, block.at, block.count, side, cut);

    for member in 0..comptime!(sizes.heads / sizes.shared) {
        let head = block.meeting(member, sizes);
        for tile_index in 0..n.div_ceil(TILE) {
            let first = tile_index * TILE;
            let passing = usize::min(n - first, TILE);
            if block.start < limit(first + passing - 1, &bounds) || block.start + side > bounds.rest as usize {
                let q_start = (head * n + first) * sizes.width;
                sync_cube();
                queries.fill(q, q_start, passing, TILE, cut);
                grads.fill(grad, q_start, passing, TILE, cut);
                let unit = UNIT_POS as usize;
                if unit < passing {
                    query_sums[unit] = sums[head * n + first + unit];
                    query_inner[unit] = inner[head * n + first + unit];
                    query_limits[unit] = limit(first + unit, &bounds) as u32;
                }
                sync_cube();
                score(&rows, &queries, &mut scores, &place, &bounds, cut);
                score(&row_values, &grads, &mut products, &place, &bounds, cut);
                sync_plane();
                for turn in 0..comptime!(TILE / 2) {
                    let (at, query) = (place.score(turn), place.column(turn));
                    let mut weight = 0.0f32;
                    let mut slope = 0.0f32;
                    if query < passing
                        && meets(query_limits[query] as usize, key, real, block.batch * m, &bounds, cut.sizes)
                    {
                        weight = exp2(scores[at] * bounds.scale - query_sums[query]);
                        slope = weight * (products[at] - query_inner[query]);
                    }
                    weights.put(at, weight, cut);
                    slopes.put(at, slope, cut);
                }
                sync_plane();
                let lines = passing.div_ceil(DEPTH);
                let shape = comptime!(Product::gather(cut));
                add_all(&weights, place.scores, &grads, lines, &of_values, shape, cut);
                add_all(&slopes, place.scores, &queries, lines, &of_keys, shape, cut);
            }
        }
    }
    let factor = bounds.scale * comptime!(std::f32::consts::LN_2);
    let at = block.at + row * sizes.width;
    store(&of_keys, factor, &mut scores, &place, dk, at, row < block.count, cut);
    store(&of_values, 1.0f32, &mut scores, &place, dv, at, row < block.count, cut);
}
