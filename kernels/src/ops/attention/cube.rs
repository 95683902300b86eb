//! The op on CubeCL devices: a cube of 16 x 16 units owns 16 rows, and meets the other side in tiles of 32 rows.
//!
//! Unit (row, lane) computes the products of its row with rows `lane` and `lane + 16` of the tile, and gathers columns
//! `lane`, `lane + 16`, .. of its row's result in registers. Products pass the width in chunks through shared memory, so
//! that every width fits. Three kernels have this shape: forward (rows are queries), the gradient of queries (the same),
//! and those of keys and values (rows are keys, so that no two cubes add to one value).

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::cores::{
    Cut, Pass, backward_keys_on_tensor_cores, backward_queries_on_tensor_cores, cut, forward_on_tensor_cores,
};
use super::{AttentionOps, Form};
use crate::cube::dense;

/// Rows of a cube, and units to a row.
const SIDE: usize = 16;
/// Rows of the other side that pass at a time: two to a unit.
const TILE: usize = 32;
/// Columns that pass at a time.
const CHUNK: usize = 32;
/// Lower than every score in sight; its power of two is 0.
pub(super) const NEVER: f32 = -1e30;

/// What the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Sizes {
    pub(super) width: usize,
    pub(super) heads: usize,
    pub(super) shared: usize,
    pub(super) marked: bool,
}

impl Sizes {
    fn chunks(&self) -> usize {
        self.width.div_ceil(CHUNK)
    }
}

/// The unit's place in its cube.
#[cube]
fn place() -> (usize, usize) {
    (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE)
}

/// `rows` rows of a chunk of columns from `start` (in values) on, 0 beyond `count` rows and the width.
#[cube]
fn load(
    from: &[f32],
    start: usize,
    count: usize,
    chunk: usize,
    tile: &mut Shared<[f32]>,
    #[comptime] rows: usize,
    #[comptime] width: usize,
) {
    let steps = comptime!(rows * CHUNK / (SIDE * SIDE));
    for step in 0..steps {
        let at = step * comptime!(SIDE * SIDE) + UNIT_POS as usize;
        let (row, column) = (at / CHUNK, chunk * CHUNK + at % CHUNK);
        let mut value = 0.0f32;
        if row < count && column < width {
            value = from[start + row * width + column];
        }
        tile[at] = value;
    }
}

/// Products of the unit's row of `a` with its two rows of `b`.
#[cube]
fn products(
    a: &[f32],
    a_start: usize,
    a_count: usize,
    b: &[f32],
    b_start: usize,
    b_count: usize,
    rows: &mut Shared<[f32]>,
    tile: &mut Shared<[f32]>,
    #[comptime] sizes: Sizes,
) -> (f32, f32) {
    let (row, lane) = place();
    let mut near = 0.0f32;
    let mut far = 0.0f32;
    for chunk in 0..comptime!(sizes.chunks()) {
        sync_cube();
        load(a, a_start, a_count, chunk, rows, SIDE, sizes.width);
        load(b, b_start, b_count, chunk, tile, TILE, sizes.width);
        sync_cube();
        for column in 0..CHUNK {
            let value = rows[row * CHUNK + column];
            near += value * tile[lane * CHUNK + column];
            far += value * tile[(lane + SIDE) * CHUNK + column];
        }
    }
    (near, far)
}

/// Adds the rows of `b`, each times the weight that the unit's row gives it, to what the unit has gathered.
#[cube]
fn gather(
    weights: &Shared<[f32]>,
    b: &[f32],
    b_start: usize,
    b_count: usize,
    tile: &mut Shared<[f32]>,
    gathered: &mut Array<f32>,
    #[comptime] sizes: Sizes,
) {
    let (row, lane) = place();
    #[unroll]
    for chunk in 0..comptime!(sizes.chunks()) {
        sync_cube();
        load(b, b_start, b_count, chunk, tile, TILE, sizes.width);
        sync_cube();
        let mut near = 0.0f32;
        let mut far = 0.0f32;
        for other in 0..TILE {
            let weight = weights[row * TILE + other];
            near += weight * tile[other * CHUNK + lane];
            far += weight * tile[other * CHUNK + lane + SIDE];
        }
        gathered[chunk * 2] += near;
        gathered[chunk * 2 + 1] += far;
    }
}

/// Writes what the unit has gathered, times a factor, to its row at `start`.
#[cube]
fn store(gathered: &Array<f32>, factor: f32, out: &mut [f32], start: usize, #[comptime] sizes: Sizes) {
    let (_, lane) = place();
    #[unroll]
    for chunk in 0..comptime!(sizes.chunks()) {
        let column = chunk * CHUNK + lane;
        if column < sizes.width {
            out[start + column] = gathered[chunk * 2] * factor;
        }
        if column + SIDE < sizes.width {
            out[start + column + SIDE] = gathered[chunk * 2 + 1] * factor;
        }
    }
}

/// Which keys a query sees, as [`super::Reach`] has it, and what goes with that at run time.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Bounds {
    rows: u32,
    step: u32,
    first: i32,
    pub(super) rest: u32,
    pub(super) keys: u32,
    pub(super) queries: u32,
    pub(super) width: u32,
    pub(super) zeros: f32,
    pub(super) scale: f32,
}

/// 2^x; CubeCL has powers and logarithms of e alone.
#[cube]
pub(super) fn exp2(x: f32) -> f32 {
    f32::exp(x * std::f32::consts::LN_2)
}

#[cube]
pub(super) fn log2(x: f32) -> f32 {
    f32::ln(x) * std::f32::consts::LOG2_E
}

/// Keys below this one are seen.
#[cube]
pub(super) fn limit(query: usize, bounds: &Bounds) -> usize {
    let frames = (query as u32 / bounds.rows + 1u32) * bounds.step;
    let limit = i32::max(bounds.first + i32::cast_from(frames), 0i32);
    usize::cast_from(u32::min(u32::cast_from(limit), bounds.keys))
}

#[cube]
fn sees(query: usize, key: usize, real: &[f32], marks: usize, bounds: &Bounds, #[comptime] sizes: Sizes) -> bool {
    let inside = query < bounds.queries as usize && key < bounds.keys as usize;
    let mut seen = inside && (key < limit(query, bounds) || key >= bounds.rest as usize);
    if comptime!(sizes.marked) {
        if seen {
            seen = real[marks + key] != 0.0f32;
        }
    }
    seen
}

/// The rows that a cube owns; cubes are counted per head, then per block of rows.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Block {
    /// Among those of all batches.
    pub(super) head: usize,
    pub(super) batch: usize,
    pub(super) start: usize,
    pub(super) count: usize,
    /// Where its first row lies, in values.
    pub(super) at: usize,
}

#[cube]
impl Block {
    fn of(rows: usize, #[comptime] heads: usize, #[comptime] side: usize, #[comptime] width: usize) -> Block {
        let blocks = rows.div_ceil(side);
        let (head, index) = (CUBE_POS as usize / blocks, CUBE_POS as usize % blocks);
        let start = index * side;
        let count = usize::min(rows - start, side);
        Block { head, batch: head / heads, start, count, at: (head * rows + start) * width }
    }

    /// `side` queries of one head, or fewer at its end.
    pub(super) fn of_queries(bounds: &Bounds, #[comptime] side: usize, #[comptime] sizes: Sizes) -> Block {
        Block::of(bounds.queries as usize, sizes.heads, side, sizes.width)
    }

    /// Likewise, of keys.
    pub(super) fn of_keys(bounds: &Bounds, #[comptime] side: usize, #[comptime] sizes: Sizes) -> Block {
        Block::of(bounds.keys as usize, sizes.shared, side, sizes.width)
    }

    /// The head of keys and values that these queries meet.
    pub(super) fn met(&self, #[comptime] sizes: Sizes) -> usize {
        self.batch * sizes.shared + self.head % sizes.heads / comptime!(sizes.heads / sizes.shared)
    }

    /// The head of queries number `member` of those that meet these keys.
    pub(super) fn meeting(&self, member: usize, #[comptime] sizes: Sizes) -> usize {
        let group = comptime!(sizes.heads / sizes.shared);
        self.batch * sizes.heads + self.head % sizes.shared * group + member
    }
}

#[cube(launch)]
fn forward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    real: &[f32],
    out: &mut [f32],
    sums: &mut [f32],
    bounds: Bounds,
    cubes: u32,
    #[comptime] sizes: Sizes,
) {
    if CUBE_POS as u32 >= cubes {
        terminate!();
    }
    let (n, m) = (bounds.queries as usize, bounds.keys as usize);
    let block = Block::of_queries(&bounds, SIDE, sizes);
    let head = block.met(sizes);
    let (row, lane) = place();
    let query = block.start + row;

    let mut rows = Shared::<[f32]>::new_slice(comptime!(SIDE * CHUNK));
    let mut tile = Shared::<[f32]>::new_slice(comptime!(TILE * CHUNK));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(SIDE * TILE));
    let mut gathered = Array::<f32>::new(comptime!(2 * sizes.chunks()));
    let mut largest = select(bounds.zeros > 0.0f32, 0.0f32, NEVER);
    let mut sum = bounds.zeros;
    let last = limit(block.start + block.count - 1, &bounds);

    for tile_index in 0..m.div_ceil(TILE) {
        let first = tile_index * TILE;
        if first < last || first + TILE > bounds.rest as usize {
            let keys = usize::min(m - first, TILE);
            let key_start = (head * m + first) * sizes.width;
            let (near, far) = products(q, block.at, block.count, k, key_start, keys, &mut rows, &mut tile, sizes);
            let near_seen = sees(query, first + lane, real, block.batch * m, &bounds, sizes);
            let far_seen = sees(query, first + lane + SIDE, real, block.batch * m, &bounds, sizes);
            weights[row * TILE + lane] = select(near_seen, near * bounds.scale, NEVER);
            weights[row * TILE + lane + SIDE] = select(far_seen, far * bounds.scale, NEVER);
            sync_cube();
            let mut top = largest;
            for other in 0..TILE {
                top = f32::max(top, weights[row * TILE + other]);
            }
            sync_cube();
            weights[row * TILE + lane] = select(near_seen, exp2(near * bounds.scale - top), 0.0f32);
            weights[row * TILE + lane + SIDE] = select(far_seen, exp2(far * bounds.scale - top), 0.0f32);
            sync_cube();
            let shrink = exp2(f32::max(largest - top, -200.0f32));
            sum *= shrink;
            for other in 0..TILE {
                sum += weights[row * TILE + other];
            }
            largest = top;
            #[unroll]
            for part in 0..comptime!(2 * sizes.chunks()) {
                gathered[part] *= shrink;
            }
            gather(&weights, v, key_start, keys, &mut tile, &mut gathered, sizes);
        }
    }
    if row < block.count {
        let factor = select(sum > 0.0f32, 1.0f32 / sum, 0.0f32);
        store(&gathered, factor, out, block.at + row * sizes.width, sizes);
        if lane == 0 {
            // A row that sees nothing has an infinite sum: the largest number stands for it.
            sums[block.head * n + query] = select(sum > 0.0f32, largest + log2(sum), 1e30f32);
        }
    }
}

#[cube(launch)]
fn backward_queries(
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
    #[comptime] sizes: Sizes,
) {
    if CUBE_POS as u32 >= cubes {
        terminate!();
    }
    let (n, m) = (bounds.queries as usize, bounds.keys as usize);
    let block = Block::of_queries(&bounds, SIDE, sizes);
    let head = block.met(sizes);
    let (row, lane) = place();
    let query = block.start + row;

    let mut rows = Shared::<[f32]>::new_slice(comptime!(SIDE * CHUNK));
    let mut tile = Shared::<[f32]>::new_slice(comptime!(TILE * CHUNK));
    let mut slopes = Shared::<[f32]>::new_slice(comptime!(SIDE * TILE));
    let mut gathered = Array::<f32>::new(comptime!(2 * sizes.chunks()));
    let mut row_sum = 0.0f32;
    let mut row_inner = 0.0f32;
    if row < block.count {
        row_sum = sums[block.head * n + query];
        row_inner = inner[block.head * n + query];
    }
    let last = limit(block.start + block.count - 1, &bounds);

    for tile_index in 0..m.div_ceil(TILE) {
        let first = tile_index * TILE;
        if first < last || first + TILE > bounds.rest as usize {
            let keys = usize::min(m - first, TILE);
            let key_start = (head * m + first) * sizes.width;
            let (near, far) = products(q, block.at, block.count, k, key_start, keys, &mut rows, &mut tile, sizes);
            let (near_slope, far_slope) =
                products(grad, block.at, block.count, v, key_start, keys, &mut rows, &mut tile, sizes);
            let near_seen = sees(query, first + lane, real, block.batch * m, &bounds, sizes);
            let far_seen = sees(query, first + lane + SIDE, real, block.batch * m, &bounds, sizes);
            let near = select(near_seen, exp2(near * bounds.scale - row_sum), 0.0f32);
            let far = select(far_seen, exp2(far * bounds.scale - row_sum), 0.0f32);
            slopes[row * TILE + lane] = near * (near_slope - row_inner);
            slopes[row * TILE + lane + SIDE] = far * (far_slope - row_inner);
            gather(&slopes, k, key_start, keys, &mut tile, &mut gathered, sizes);
        }
    }
    if row < block.count {
        let ln_2 = comptime!(std::f32::consts::LN_2);
        store(&gathered, bounds.scale * ln_2, dq, block.at + row * sizes.width, sizes);
    }
}

/// Rows are keys; all queries of the heads that share them pass in tiles.
#[cube(launch)]
fn backward_keys(
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
    #[comptime] sizes: Sizes,
) {
    if CUBE_POS as u32 >= cubes {
        terminate!();
    }
    let (n, m) = (bounds.queries as usize, bounds.keys as usize);
    let block = Block::of_keys(&bounds, SIDE, sizes);
    let (row, lane) = place();
    let key = block.start + row;

    let mut rows = Shared::<[f32]>::new_slice(comptime!(SIDE * CHUNK));
    let mut tile = Shared::<[f32]>::new_slice(comptime!(TILE * CHUNK));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(SIDE * TILE));
    let mut slopes = Shared::<[f32]>::new_slice(comptime!(SIDE * TILE));
    let mut of_keys = Array::<f32>::new(comptime!(2 * sizes.chunks()));
    let mut of_values = Array::<f32>::new(comptime!(2 * sizes.chunks()));

    for member in 0..comptime!(sizes.heads / sizes.shared) {
        let head = block.meeting(member, sizes);
        for tile_index in 0..n.div_ceil(TILE) {
            let first = tile_index * TILE;
            let queries = usize::min(n - first, TILE);
            if block.start < limit(first + queries - 1, &bounds) || block.start + SIDE > bounds.rest as usize {
                let q_start = (head * n + first) * sizes.width;
                let (near, far) = products(k, block.at, block.count, q, q_start, queries, &mut rows, &mut tile, sizes);
                let (near_slope, far_slope) =
                    products(v, block.at, block.count, grad, q_start, queries, &mut rows, &mut tile, sizes);
                let near_seen = sees(first + lane, key, real, block.batch * m, &bounds, sizes);
                let far_seen = sees(first + lane + SIDE, key, real, block.batch * m, &bounds, sizes);
                let mut near_weight = 0.0f32;
                let mut far_weight = 0.0f32;
                let mut near_inner = 0.0f32;
                let mut far_inner = 0.0f32;
                if near_seen {
                    near_weight = exp2(near * bounds.scale - sums[head * n + first + lane]);
                    near_inner = inner[head * n + first + lane];
                }
                if far_seen {
                    far_weight = exp2(far * bounds.scale - sums[head * n + first + lane + SIDE]);
                    far_inner = inner[head * n + first + lane + SIDE];
                }
                weights[row * TILE + lane] = near_weight;
                weights[row * TILE + lane + SIDE] = far_weight;
                slopes[row * TILE + lane] = near_weight * (near_slope - near_inner);
                slopes[row * TILE + lane + SIDE] = far_weight * (far_slope - far_inner);
                gather(&weights, grad, q_start, queries, &mut tile, &mut of_values, sizes);
                gather(&slopes, q, q_start, queries, &mut tile, &mut of_keys, sizes);
            }
        }
    }
    if row < block.count {
        let ln_2 = comptime!(std::f32::consts::LN_2);
        store(&of_keys, bounds.scale * ln_2, dk, block.at + row * sizes.width, sizes);
        store(&of_values, 1.0f32, dv, block.at + row * sizes.width, sizes);
    }
}

/// What the three kernels are launched with.
struct Launch {
    client: Client,
    sizes: Sizes,
    form: Form,
    batch: usize,
    queries: usize,
}

impl Launch {
    fn new(q: &CubeTensor, k: &CubeTensor, form: Form) -> Launch {
        let ([batch, heads, queries, width], [_, shared, _, _]) = (q.shape().dims(), k.shape().dims());
        Launch {
            client: q.client.clone(),
            sizes: Sizes { width, heads, shared, marked: form.marked },
            form,
            batch,
            queries,
        }
    }

    fn bounds(&self) -> BoundsLaunch {
        let (reach, clamp) = (self.form.reach, |value: usize| value.min(i32::MAX as usize) as u32);
        BoundsLaunch::new(
            clamp(reach.rows),
            clamp(reach.step),
            reach.first as i32,
            clamp(reach.rest),
            clamp(reach.keys),
            clamp(self.queries),
            clamp(self.sizes.width),
            self.form.zeros as f32,
            ((self.sizes.width as f64).sqrt().recip() * std::f64::consts::LOG2_E) as f32,
        )
    }

    /// How the kernel of a pass is cut for tensor cores, where the device has them.
    fn cut(&self, pass: Pass) -> Option<Cut> {
        cut(&self.client, self.sizes, self.form.fine, pass)
    }

    /// Cubes for `rows` rows of each of `heads` heads.
    fn cubes(&self, cut: Option<Cut>, heads: usize, rows: usize) -> (usize, CubeCount, CubeDim) {
        let [block, units] = cut.map_or([SIDE, SIDE * SIDE], |cut| [cut.rows(), cut.units()]);
        let cubes = self.batch * heads * rows.div_ceil(block);
        let dim = CubeDim::new_1d(units as u32);
        (cubes, calculate_cube_count_elemwise(&self.client, cubes * units, dim), dim)
    }
}

/// Launches a kernel on tensor cores where the device has those, else the plain one, with the same buffers.
macro_rules! launch {
    ($launch:ident, $pass:expr, $heads:expr, $rows:expr, $cores:ident | $plain:ident, $($buffer:expr),+) => {{
        let cut = $launch.cut($pass);
        let (cubes, count, dim) = $launch.cubes(cut, $heads, $rows);
        let (client, bounds, number) = (&$launch.client, $launch.bounds(), cubes as u32);
        match cut {
            _ if cubes == 0 => {}
            Some(cut) => $cores::launch(client, count, dim, $($buffer.clone().into_buffer_arg()),+, bounds, number, cut),
            None => {
                let sizes = $launch.sizes;
                $plain::launch(client, count, dim, $($buffer.clone().into_buffer_arg()),+, bounds, number, sizes);
            }
        }
    }};
}

fn like(x: &CubeTensor) -> CubeTensor {
    empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), x.shape(), x.dtype)
}

impl AttentionOps for CubeBackend {
    fn mix(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        real: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [q, k, v] = [q, k, v].map(dense);
        let real = dense(real);
        let launch = Launch::new(&q, &k, form);
        let [b, heads, n, _] = q.shape().dims();
        let out = like(&q);
        let sums =
            empty_device_contiguous_dtype(q.client.clone(), q.device.clone(), Shape::new([b, heads, n]), DType::F32);
        launch!(launch, Pass::Forward, heads, n, forward_on_tensor_cores | forward, q, k, v, real, out, sums);
        (out, sums)
    }

    fn mix_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        real: FloatTensor<Self>,
        sums: FloatTensor<Self>,
        inner: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [q, k, v] = [q, k, v].map(dense);
        let [sums, inner, grad] = [sums, inner, grad].map(dense);
        let real = dense(real);
        let launch = Launch::new(&q, &k, form);
        let ([_, heads, n, _], [_, shared, m, _]) = (q.shape().dims(), k.shape().dims());
        let (dq, dk, dv) = (like(&q), like(&k), like(&v));
        launch!(
            launch,
            Pass::BackwardQueries,
            heads,
            n,
            backward_queries_on_tensor_cores | backward_queries,
            q,
            k,
            v,
            real,
            sums,
            inner,
            grad,
            dq
        );
        launch!(
            launch,
            Pass::BackwardKeys,
            shared,
            m,
            backward_keys_on_tensor_cores | backward_keys,
            q,
            k,
            v,
            real,
            sums,
            inner,
            grad,
            dk,
            dv
        );
        (dq, dk, dv)
    }
}
