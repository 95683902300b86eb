//! Which source pixels make an output pixel, and with what weight.

use super::{Filter, Picture, Resize};

/// Weights of a column sum to 2^22: times a byte that is 30 bits.
pub(super) const ROW_BITS: u32 = 22;
/// A column's sum keeps 8 bits below a level.
pub(super) const BETWEEN_BITS: u32 = 8;
/// Weights of a row sum to 2^16: times 255 levels with 8 bits below, that just fits 32 bits.
pub(super) const COLUMN_BITS: u32 = 16;

/// Both axes.
#[derive(Clone, Debug)]
pub(super) struct Taps {
    /// Source rows of each output row.
    pub rows: Axis,
    /// Source columns of each output column.
    pub columns: Axis,
}

/// One axis: output `o` is the sum of `weights[o * count + k]` x source `starts[o] + k`.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    pub count: usize,
    pub starts: Vec<u32>,
    pub weights: Vec<u32>,
}

impl Taps {
    pub(super) fn new(picture: &Picture, resize: &Resize) -> Taps {
        Taps {
            rows: Axis::new(picture.height, resize.height, resize.filter, ROW_BITS),
            columns: Axis::new(picture.width, resize.width, resize.filter, COLUMN_BITS),
        }
    }

    /// [row starts, row weights, column starts, column weights]: the form in which a device gets them.
    pub(super) fn into_table(self) -> Vec<u32> {
        [self.rows.starts, self.rows.weights, self.columns.starts, self.columns.weights].concat()
    }

    /// The inverse of [`Taps::into_table`] for outputs of this size.
    pub(super) fn from_table(table: &[u32], picture: &Picture, resize: &Resize) -> Taps {
        let axis = |table: &[u32], count: usize, to: usize| Axis {
            count,
            starts: table[..to].to_vec(),
            weights: table[to..to * (1 + count)].to_vec(),
        };
        let count = tap_count(picture.height, resize.height, resize.filter);
        let rows = axis(table, count, resize.height);
        let rest = &table[resize.height * (1 + count)..];
        let columns = axis(rest, tap_count(picture.width, resize.width, resize.filter), resize.width);
        Taps { rows, columns }
    }
}

/// Taps of each output: a bound that depends on the sizes alone, so that a device knows it without the table.
pub(super) fn tap_count(from: usize, to: usize, filter: Filter) -> usize {
    let wanted = match filter {
        _ if from == to => 1,
        // As many whole numbers as fit strictly inside the triangle, which is 2 from / to wide.
        Filter::Antialias if from > to => (2 * from).div_ceil(to),
        Filter::Antialias | Filter::Bilinear => 2,
    };
    wanted.min(from)
}

impl Axis {
    pub(super) fn new(from: usize, to: usize, filter: Filter, bits: u32) -> Axis {
        let count = tap_count(from, to, filter);
        let scale = from as f64 / to as f64;
        let width = if filter == Filter::Antialias { scale.max(1.0) } else { 1.0 };
        let (mut starts, mut weights) = (Vec::with_capacity(to), Vec::with_capacity(to * count));
        for o in 0..to {
            let mut centre = (o as f64 + 0.5) * scale - 0.5;
            if filter == Filter::Bilinear {
                centre = centre.clamp(0.0, (from - 1) as f64);
            }
            // The first pixel strictly inside the triangle, moved back where the window would leave the picture.
            let start = ((centre - width).floor() as i64 + 1).clamp(0, (from - count) as i64) as usize;
            let triangle = |k: usize| (1.0 - ((start + k) as f64 - centre).abs() / width).max(0.0);
            starts.push(start as u32);
            push_whole(&mut weights, count, bits, triangle);
        }
        Axis { count, starts, weights }
    }
}

/// Appends `count` weights in proportion to `weight(k)` as whole numbers whose sum is exactly 2^bits, so that an even area
/// keeps its level. Each is off by at most one: running sums are rounded, not the weights.
fn push_whole(weights: &mut Vec<u32>, count: usize, bits: u32, weight: impl Fn(usize) -> f64) {
    let sum: f64 = (0..count).map(&weight).sum();
    let scale = f64::from(1u32 << bits) / sum;
    let (mut running, mut given) = (0.0, 0u32);
    for k in 0..count {
        running += weight(k);
        let until = if k + 1 == count { 1 << bits } else { (running * scale).round() as u32 };
        weights.push(until - given);
        given = until;
    }
}
