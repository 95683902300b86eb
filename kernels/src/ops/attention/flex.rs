//! The op on the CPU: blocks of queries are shared out over threads; each meets the keys block by block.
//!
//! A block's scores and its weighted values are products of matrices; in between, rows of scores become weights in one
//! sweep. Which thread does what changes no bit.

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::backward::backward;
use super::{AttentionOps, Form};
use crate::heads::Heads;
use crate::matrix::{Matrix, Old, multiply};
use crate::simd::{LANES, exp2, total, wide};

/// Queries and keys of a block: two tiles of scores fit a core's second cache.
pub(super) const QUERIES: usize = 128;
pub(super) const KEYS: usize = 256;

/// Multiplications below which waking threads costs more than it gains.
pub(super) const ALONE: usize = 1 << 18;

impl AttentionOps for Flex {
    fn mix(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        real: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [q, k, v] = [q, k, v].map(Heads::new);
        let real = form.marked.then(|| real.to_contiguous());
        let real = real.as_ref().map(|real| real.as_slice::<f32>().expect("a contiguous f32 tensor is a slice"));
        let [b, heads, n, d] = q.dims;
        let mut out = vec![0.0; b * heads * n * d];
        let mut sums = vec![0.0; b * heads * n];
        forward(&Inputs { q: &q, k: &k, v: &v, real, form }, &mut out, &mut sums);
        let out = FloatTensor::<Self>::from_data(TensorData::new(out, [b, heads, n, d]));
        (out, FloatTensor::<Self>::from_data(TensorData::new(sums, [b, heads, n])))
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
        let [q, k, v] = [q, k, v].map(Heads::new);
        let real = form.marked.then(|| real.to_contiguous());
        let real = real.as_ref().map(|real| real.as_slice::<f32>().expect("a contiguous f32 tensor is a slice"));
        let (sums, inner) = (sums.to_contiguous(), inner.to_contiguous());
        let [sums, inner] = [&sums, &inner].map(|x| x.as_slice::<f32>().expect("a contiguous f32 tensor is a slice"));
        let grads = backward(&Inputs { q: &q, k: &k, v: &v, real, form }, sums, inner, &Heads::new(grad));
        let [dq, dk, dv] = grads;
        let tensor = |values, dims: [usize; 4]| FloatTensor::<Self>::from_data(TensorData::new(values, dims));
        (tensor(dq, q.dims), tensor(dk, k.dims), tensor(dv, v.dims))
    }
}

/// What both directions read.
pub(super) struct Inputs<'a> {
    pub(super) q: &'a Heads,
    pub(super) k: &'a Heads,
    pub(super) v: &'a Heads,
    pub(super) real: Option<&'a [f32]>,
    pub(super) form: Form,
}

impl Inputs<'_> {
    /// Multiplications of all blocks, at most.
    pub(super) fn work(&self) -> usize {
        let ([b, heads, n, d], m) = (self.q.dims, self.k.dims[2]);
        b * heads * n * m * d
    }

    /// What scores of base e are multiplied by, to be scores of base 2.
    pub(super) fn scale(&self) -> f32 {
        ((self.q.dims[3] as f64).sqrt().recip() * std::f64::consts::LOG2_E) as f32
    }

    /// Scores of queries `start..` and the keys of a block, in base 2; those out of sight are minus infinity.
    pub(super) fn scores(&self, q: Matrix<'_>, start: usize, at: [usize; 2], keys: [usize; 2], scores: &mut [f32]) {
        let ([batch, head], [first, count]) = (at, keys);
        multiply(scores, Old::Dropped, q, self.k.head(batch, head).rows(first, count).transposed(), 1.0);
        let reach = &self.form.reach;
        let real = self.real.map(|real| &real[batch * self.k.dims[2] + first..][..count]);
        let (last, rest) = (first + count, reach.rest.clamp(first, first + count));
        for (row, scores) in scores.chunks_exact_mut(count).enumerate() {
            let limit = reach.limit(start + row).clamp(first, last);
            if limit < rest {
                scores[limit - first..rest - first].fill(f32::NEG_INFINITY);
            }
            if let Some(real) = real {
                for (score, &real) in scores.iter_mut().zip(real) {
                    *score = if real == 0.0 { f32::NEG_INFINITY } else { *score };
                }
            }
        }
    }
}

/// One block of queries of one head, with its part of the results.
struct Block<'a> {
    batch: usize,
    head: usize,
    start: usize,
    out: &'a mut [f32],
    sums: &'a mut [f32],
}

/// What one thread needs beside its results.
#[derive(Default)]
struct Scratch {
    q: Vec<f32>,
    scores: Vec<f32>,
    shrink: Vec<f32>,
    largest: Vec<f32>,
}

fn forward(inputs: &Inputs<'_>, out: &mut [f32], sums: &mut [f32]) {
    let [_, heads, n, d] = inputs.q.dims;
    if out.is_empty() {
        return;
    }
    let all = out.chunks_exact_mut(n * d).zip(sums.chunks_exact_mut(n)).enumerate();
    let mut blocks: Vec<Block> = all
        .flat_map(|(index, (out, sums))| {
            let blocks = out.chunks_mut(QUERIES * d).zip(sums.chunks_mut(QUERIES)).enumerate();
            let (batch, head) = (index / heads, index % heads);
            blocks.map(move |(block, (out, sums))| Block { batch, head, start: block * QUERIES, out, sums })
        })
        .collect();
    let run = |scratch: &mut Scratch, block: &mut Block| forward_block(inputs, block, scratch);
    if inputs.work() < ALONE {
        let mut scratch = Scratch::default();
        blocks.iter_mut().for_each(|block| run(&mut scratch, block));
    } else {
        blocks.par_iter_mut().for_each_init(Scratch::default, run);
    }
}

fn forward_block(inputs: &Inputs<'_>, block: &mut Block<'_>, scratch: &mut Scratch) {
    let ([_, heads, _, d], [_, shared, m, _]) = (inputs.q.dims, inputs.k.dims);
    let (batch, count) = (block.batch, block.sums.len());
    let head = block.head / (heads / shared);
    let Scratch { q, scores, shrink, largest } = scratch;
    scaled(inputs.q.head(batch, block.head).rows(block.start, count), inputs.scale(), q);
    shrink.resize(count, 0.0);
    largest.clear();
    // Scores of 0 stand at the start, as many as there are zero keys.
    largest.resize(count, if inputs.form.zeros > 0 { 0.0 } else { f32::NEG_INFINITY });
    block.sums.fill(inputs.form.zeros as f32);

    let mut old = Old::Dropped;
    let queries = block.start..block.start + count;
    for first in (0..m).step_by(KEYS) {
        let width = KEYS.min(m - first);
        if !inputs.form.reach.meets(&queries, &(first..first + width)) {
            continue;
        }
        scores.resize(count * width, 0.0);
        inputs.scores(Matrix::dense(q, count, d), block.start, [batch, head], [first, width], scores);
        weigh(scores, width, largest, block.sums, shrink);
        if old == Old::Kept {
            scale_rows(block.out, d, shrink);
        }
        let values = inputs.v.head(batch, head).rows(first, width);
        multiply(block.out, old, Matrix::dense(scores, count, width), values, 1.0);
        old = Old::Kept;
    }
    finish(block.out, d, largest, block.sums, shrink);
}

/// Rows of a matrix times a factor, one behind the other.
pub(super) fn scaled(from: Matrix<'_>, factor: f32, to: &mut Vec<f32>) {
    let [rows, columns] = from.size();
    to.clear();
    for row in 0..rows {
        match from.row(row) {
            Some(values) => to.extend(values.iter().map(|value| value * factor)),
            None => to.extend((0..columns).map(|column| from.at(row, column) * factor)),
        }
    }
}

wide! {
    /// Rows of `width` scores to weights 2^(score - largest). Takes along the largest score and the sum of each row;
    /// `shrink` is the factor by which what was gathered before has to become smaller.
    fn weigh(scores: &mut [f32], width: usize, largest: &mut [f32], sums: &mut [f32], shrink: &mut [f32]) {
        let rows = scores.chunks_exact_mut(width).zip(largest).zip(sums).zip(shrink);
        for (((row, largest), row_sum), shrink) in rows {
            let (lanes, tail) = row.as_chunks_mut::<LANES>();
            let mut tops = [*largest; LANES];
            for lane in lanes.iter() {
                for (top, &score) in tops.iter_mut().zip(lane) {
                    *top = if score > *top { score } else { *top };
                }
            }
            let top = tops.iter().chain(&*tail).fold(*largest, |top, &score| if score > top { score } else { top });
            // A row that sees nothing yet has no largest score: any finite number serves.
            let base = if top == f32::NEG_INFINITY { 0.0 } else { top };
            let mut sums = [0.0; LANES];
            for lane in lanes {
                for (score, sum) in lane.iter_mut().zip(&mut sums) {
                    *score = exp2(*score - base);
                    *sum += *score;
                }
            }
            for (score, sum) in tail.iter_mut().zip(&mut sums) {
                *score = exp2(*score - base);
                *sum += *score;
            }
            *shrink = exp2(*largest - base);
            *row_sum = *row_sum * *shrink + total(sums);
            *largest = top;
        }
    }
}

wide! {
    /// Rows of `width` values times a factor each.
    fn scale_rows(values: &mut [f32], width: usize, factors: &[f32]) {
        for (row, &factor) in values.chunks_exact_mut(width).zip(factors) {
            for value in row {
                *value *= factor;
            }
        }
    }
}

/// Divides by the sums, and makes these logarithms of base 2.
fn finish(out: &mut [f32], width: usize, largest: &[f32], sums: &mut [f32], factors: &mut [f32]) {
    for ((sum, &largest), factor) in sums.iter_mut().zip(largest).zip(&mut *factors) {
        // A row that sees nothing gathered nothing; its weights are 2^(score - infinity) = 0.
        let nothing = *sum == 0.0;
        *factor = if nothing { 0.0 } else { 1.0 / *sum };
        *sum = if nothing { f32::INFINITY } else { largest + sum.log2() };
    }
    scale_rows(out, width, factors);
}
