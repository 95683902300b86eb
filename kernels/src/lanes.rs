//! Vector lanes of the CPU, found at run time, and the register tile on which its matrix products are built.
//!
//! Code that computes in lanes is written once, generic over [`Lanes`], and entered through [`with_lanes`], which compiles
//! it for AVX-512, for AVX2 with FMA and for whatever the target has at least. A tile adds, for each of its cells, products
//! in the order of their depth; so a cell depends on its row, its column and the depth alone, never on its neighbours,
//! the size of the matrix or the thread that computes it.

/// Rows of the tallest tile: arrays that hold one value per row have this length.
pub(crate) const MOST_ROWS: usize = 8;

/// One instruction set.
///
/// # Safety
/// Every function wants what the implementation names: that the machine has the instructions. Pointers are valid for
/// [`Lanes::COUNT`] values, or for as many as an argument says; alignment does not matter.
pub(crate) trait Lanes: Copy {
    type Vector: Copy;
    /// Values in a vector.
    const COUNT: usize;
    /// Rows of a tile of full height.
    const ROWS: usize;
    /// Columns of a tile of full width, three vectors: tile and operands fill the registers, and the sums of one step do
    /// not wait for one another.
    const WIDTH: usize = 3 * Self::COUNT;

    unsafe fn splat(value: f32) -> Self::Vector;
    unsafe fn load(from: *const f32) -> Self::Vector;
    unsafe fn store(vector: Self::Vector, to: *mut f32);
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// a x b + c, rounded once where the instruction set can.
    unsafe fn mul_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// Copies `count` values, at most [`Lanes::COUNT`].
    unsafe fn copy_part(from: *const f32, to: *mut f32, count: usize);
    /// Every second of `2 * count - 1` values, at most [`Lanes::COUNT`] of them.
    unsafe fn copy_even(from: *const f32, to: *mut f32, count: usize);
    /// [`tile_body`], compiled for this instruction set.
    unsafe fn tile<const ROWS: usize, const VECTORS: usize>(tile: Tile);
}

/// What a tile computes: `c[i][j] = sum over k of a[i][k] b[k][j]`, added to what `c` holds unless it is `fresh`.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    pub(crate) depth: usize,
    /// Rows of `depth` values, `a_step` apart.
    pub(crate) a: *const f32,
    pub(crate) a_step: usize,
    /// `depth` rows of [`Lanes::WIDTH`] values.
    pub(crate) b: *const f32,
    /// Rows `c_step` apart.
    pub(crate) c: *mut f32,
    pub(crate) c_step: usize,
    pub(crate) fresh: bool,
}

/// Computes a tile of `rows` (at most [`Lanes::ROWS`]) x `columns` (at most [`Lanes::WIDTH`], rounded up to vectors).
///
/// # Safety
/// As [`Lanes`]; `a`, `b` and `c` are valid for what [`Tile`] says of them, `c` also for the rounded columns.
#[inline(always)]
pub(crate) unsafe fn tile<S: Lanes>(tile: Tile, rows: usize, columns: usize) {
    debug_assert!((1..=S::ROWS).contains(&rows) && (1..=S::WIDTH).contains(&columns));
    // SAFETY: the caller's.
    unsafe {
        match columns.div_ceil(S::COUNT) {
            1 => tile_of_rows::<S, 1>(tile, rows),
            2 => tile_of_rows::<S, 2>(tile, rows),
            _ => tile_of_rows::<S, 3>(tile, rows),
        }
    }
}

#[inline(always)]
unsafe fn tile_of_rows<S: Lanes, const VECTORS: usize>(tile: Tile, rows: usize) {
    // SAFETY: the caller's.
    unsafe {
        match rows {
            1 => S::tile::<1, VECTORS>(tile),
            2 => S::tile::<2, VECTORS>(tile),
            3 => S::tile::<3, VECTORS>(tile),
            4 => S::tile::<4, VECTORS>(tile),
            5 => S::tile::<5, VECTORS>(tile),
            6 => S::tile::<6, VECTORS>(tile),
            7 => S::tile::<7, VECTORS>(tile),
            _ => S::tile::<MOST_ROWS, VECTORS>(tile),
        }
    }
}

#[inline(always)]
unsafe fn tile_body<S: Lanes, const ROWS: usize, const VECTORS: usize>(tile: Tile) {
    let Tile { depth, a, a_step, mut b, c, c_step, fresh } = tile;
    // SAFETY: the caller's; rows stay below ROWS, steps below `depth`, vectors below VECTORS.
    unsafe {
        let rows: [*const f32; ROWS] = std::array::from_fn(|i| a.add(i * a_step));
        let mut sums = [[S::splat(0.0); VECTORS]; ROWS];
        for k in 0..depth {
            let line: [S::Vector; VECTORS] = std::array::from_fn(|j| S::load(b.add(j * S::COUNT)));
            for i in 0..ROWS {
                let value = S::splat(*rows[i].add(k));
                for j in 0..VECTORS {
                    sums[i][j] = S::mul_add(value, line[j], sums[i][j]);
                }
            }
            b = b.add(S::WIDTH);
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                let to = c.add(i * c_step + j * S::COUNT);
                S::store(if fresh { sum } else { S::add(S::load(to), sum) }, to);
            }
        }
    }
}

/// Work that is written for any lanes.
pub(crate) trait Work {
    /// # Safety
    /// The machine has the instructions of `S`. Implementations say `#[inline(always)]`, or they are compiled without.
    unsafe fn run<S: Lanes>(self);
}

/// Does the work with the widest lanes of this machine.
#[inline]
pub(crate) fn with_lanes(work: impl Work) {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the line above has checked that the machine has AVX-512.
            return unsafe { x86::avx512(work) };
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            // SAFETY: the line above has checked that the machine has AVX2 and FMA.
            return unsafe { x86::avx2(work) };
        }
    }
    // SAFETY: these lanes need nothing.
    unsafe { work.run::<Portable>() }
}

/// Columns of a full tile, in the lanes that [`with_lanes`] takes.
pub(crate) fn tile_width() -> usize {
    struct Ask<'a>(&'a mut usize);
    impl Work for Ask<'_> {
        #[inline(always)]
        unsafe fn run<S: Lanes>(self) {
            *self.0 = S::WIDTH;
        }
    }
    let mut width = 0;
    with_lanes(Ask(&mut width));
    width
}

/// Four lanes in plain Rust, which every target has in one way or another.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Lanes for Portable {
    type Vector = [f32; 4];
    const COUNT: usize = 4;
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; 4] {
        [value; 4]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; 4] {
        // SAFETY: the caller's.
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(vector: [f32; 4], to: *mut f32) {
        // SAFETY: the caller's.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(vector) }
    }

    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn mul_add(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        // `f32::mul_add` is a call into a library where the target has no such instruction.
        std::array::from_fn(|i| {
            if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
                a[i].mul_add(b[i], c[i])
            } else {
                a[i] * b[i] + c[i]
            }
        })
    }

    #[inline(always)]
    unsafe fn copy_part(from: *const f32, to: *mut f32, count: usize) {
        // SAFETY: the caller's.
        unsafe { std::ptr::copy_nonoverlapping(from, to, count) }
    }

    #[inline(always)]
    unsafe fn copy_even(from: *const f32, to: *mut f32, count: usize) {
        for i in 0..count {
            // SAFETY: the caller's.
            unsafe { *to.add(i) = *from.add(2 * i) }
        }
    }

    unsafe fn tile<const ROWS: usize, const VECTORS: usize>(tile: Tile) {
        // SAFETY: the caller's.
        unsafe { tile_body::<Portable, ROWS, VECTORS>(tile) }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Lanes, Tile, Work, tile_body};

    /// # Safety
    /// The machine has AVX-512.
    #[target_feature(enable = "avx512f,avx2,fma")]
    pub(super) unsafe fn avx512(work: impl Work) {
        // SAFETY: the caller's.
        unsafe { work.run::<Avx512>() }
    }

    /// # Safety
    /// The machine has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(work: impl Work) {
        // SAFETY: the caller's.
        unsafe { work.run::<Avx2>() }
    }

    #[derive(Clone, Copy)]
    pub(super) struct Avx512;

    impl Lanes for Avx512 {
        type Vector = __m512;
        const COUNT: usize = 16;
        const ROWS: usize = 8;

        #[inline(always)]
        unsafe fn splat(value: f32) -> __m512 {
            // SAFETY: the caller's; so it is below.
            unsafe { _mm512_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m512 {
            // SAFETY: the caller's.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(vector: __m512, to: *mut f32) {
            // SAFETY: the caller's.
            unsafe { _mm512_storeu_ps(to, vector) }
        }

        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            // SAFETY: the caller's.
            unsafe { _mm512_add_ps(a, b) }
        }

        #[inline(always)]
        unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: the caller's.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        unsafe fn copy_part(from: *const f32, to: *mut f32, count: usize) {
            let mask = ((1u32 << count) - 1) as __mmask16;
            // SAFETY: the caller's.
            unsafe { _mm512_mask_storeu_ps(to, mask, _mm512_maskz_loadu_ps(mask, from)) }
        }

        #[inline(always)]
        unsafe fn copy_even(from: *const f32, to: *mut f32, count: usize) {
            // The last of 2 x count - 1 values: bits of the first vector, then of the second.
            let mask = ((1u64 << (2 * count - 1)) - 1) as u32;
            // SAFETY: the caller's.
            unsafe {
                let low = _mm512_maskz_loadu_ps(mask as __mmask16, from);
                let high = _mm512_maskz_loadu_ps((mask >> 16) as __mmask16, from.wrapping_add(16));
                let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
                let mask = ((1u32 << count) - 1) as __mmask16;
                _mm512_mask_storeu_ps(to, mask, _mm512_permutex2var_ps(low, even, high));
            }
        }

        unsafe fn tile<const ROWS: usize, const VECTORS: usize>(tile: Tile) {
            #[target_feature(enable = "avx512f,avx2,fma")]
            unsafe fn compiled<const ROWS: usize, const VECTORS: usize>(tile: Tile) {
                // SAFETY: the caller's.
                unsafe { tile_body::<Avx512, ROWS, VECTORS>(tile) }
            }
            // SAFETY: the caller's.
            unsafe { compiled::<ROWS, VECTORS>(tile) }
        }
    }

    #[derive(Clone, Copy)]
    pub(super) struct Avx2;

    impl Lanes for Avx2 {
        type Vector = __m256;
        const COUNT: usize = 8;
        const ROWS: usize = 4;

        #[inline(always)]
        unsafe fn splat(value: f32) -> __m256 {
            // SAFETY: the caller's; so it is below.
            unsafe { _mm256_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m256 {
            // SAFETY: the caller's.
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(vector: __m256, to: *mut f32) {
            // SAFETY: the caller's.
            unsafe { _mm256_storeu_ps(to, vector) }
        }

        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            // SAFETY: the caller's.
            unsafe { _mm256_add_ps(a, b) }
        }

        #[inline(always)]
        unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: the caller's.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        unsafe fn copy_part(from: *const f32, to: *mut f32, count: usize) {
            for i in 0..count {
                // SAFETY: the caller's.
                unsafe { *to.add(i) = *from.add(i) }
            }
        }

        #[inline(always)]
        unsafe fn copy_even(from: *const f32, to: *mut f32, count: usize) {
            for i in 0..count {
                // SAFETY: the caller's.
                unsafe { *to.add(i) = *from.add(2 * i) }
            }
        }

        unsafe fn tile<const ROWS: usize, const VECTORS: usize>(tile: Tile) {
            #[target_feature(enable = "avx2,fma")]
            unsafe fn compiled<const ROWS: usize, const VECTORS: usize>(tile: Tile) {
                // SAFETY: the caller's.
                unsafe { tile_body::<Avx2, ROWS, VECTORS>(tile) }
            }
            // SAFETY: the caller's.
            unsafe { compiled::<ROWS, VECTORS>(tile) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Draws;

    /// Does the work with every kind of lanes that this machine has.
    fn with_each_lanes(work: impl Work + Copy) {
        // SAFETY: each kind is asked for only where the machine has it.
        unsafe {
            work.run::<Portable>();
            #[cfg(target_arch = "x86_64")]
            {
                if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                    x86::avx2(work);
                }
                if std::arch::is_x86_feature_detected!("avx512f") {
                    x86::avx512(work);
                }
            }
        }
    }

    #[derive(Clone, Copy)]
    struct Tiles;

    impl Work for Tiles {
        #[inline(always)]
        unsafe fn run<S: Lanes>(self) {
            let mut draws = Draws::new(7);
            let mut draw = |count: usize| -> Vec<f32> { (0..count).map(|_| (draws.unit() - 0.5) as f32).collect() };
            for depth in [0, 1, 37] {
                for rows in 1..=S::ROWS {
                    for columns in 1..=S::WIDTH {
                        let (a, b, before) = (draw(rows * 40), draw(depth * S::WIDTH), draw(rows * S::WIDTH));
                        for fresh in [false, true] {
                            let mut c = before.clone();
                            let part = Tile {
                                depth,
                                a: a.as_ptr(),
                                a_step: 40,
                                b: b.as_ptr(),
                                c: c.as_mut_ptr(),
                                c_step: S::WIDTH,
                                fresh,
                            };
                            // SAFETY: the vectors above have the sizes that the tile says.
                            unsafe { tile::<S>(part, rows, columns) }
                            for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
                                let product = |k: usize| f64::from(a[i * 40 + k]) * f64::from(b[k * S::WIDTH + j]);
                                let start = if fresh { 0.0 } else { f64::from(before[i * S::WIDTH + j]) };
                                let wanted = start + (0..depth).map(product).sum::<f64>();
                                let found = f64::from(c[i * S::WIDTH + j]);
                                assert!(
                                    (found - wanted).abs() < 1e-5,
                                    "{} lanes, {rows} x {columns} x {depth}, {i}, {j}: {found} for {wanted}",
                                    S::COUNT
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_tile_of_every_kind_of_lanes_is_a_matrix_product() {
        with_each_lanes(Tiles);
    }

    #[derive(Clone, Copy)]
    struct Copies;

    impl Work for Copies {
        #[inline(always)]
        unsafe fn run<S: Lanes>(self) {
            for count in 1..=S::COUNT {
                let from: Vec<f32> = (0..2 * count - 1).map(|value| value as f32).collect();
                let mut to = vec![-1.0; S::COUNT + 1];
                // SAFETY: `from` has as many values as each of them reads, and `to` more.
                unsafe {
                    S::copy_even(from.as_ptr(), to.as_mut_ptr(), count);
                    let wanted: Vec<f32> = (0..count).map(|value| 2.0 * value as f32).collect();
                    assert_eq!((&to[..count], to[count]), (&wanted[..], -1.0), "every second of {count}");
                    S::copy_part(from.as_ptr(), to.as_mut_ptr(), count);
                    assert_eq!((&to[..count], to[count]), (&from[..count], -1.0), "the first {count}");
                }
            }
        }
    }

    #[test]
    fn copies_take_what_they_are_asked_for_and_touch_nothing_else() {
        with_each_lanes(Copies);
    }
}
