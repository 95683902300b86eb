//! Gradients on the CPU: parts of the keys are shared out over threads; each block of keys meets all queries that see it.
//!
//! Gradients of keys and values belong to one part alone. A query's gradient has a term from each part: these are added
//! in order, so that threads change no bit. How many parts there are follows from the shape.

use rayon::prelude::*;

use super::flex::{ALONE, Inputs, KEYS, QUERIES, scaled};
use crate::heads::Heads;
use crate::matrix::{Matrix, Old, multiply};
use crate::simd::{exp2, wide};

/// Parts of all heads together, where there are so many blocks of keys.
const PARTS: usize = 32;

/// Some keys of one head that query heads share, with their part of the results.
struct Part<'a> {
    index: usize,
    start: usize,
    /// The terms of this part for the queries of the group, [group, N, D].
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

/// What one thread needs beside its results.
#[derive(Default)]
struct Scratch {
    q: Vec<f32>,
    grad: Vec<f32>,
    weights: Vec<f32>,
    slopes: Vec<f32>,
}

/// The gradients of q, k and v, each dense.
pub(super) fn backward(inputs: &Inputs<'_>, sums: &[f32], inner: &[f32], grad: &Heads) -> [Vec<f32>; 3] {
    let ([b, heads, n, d], [_, shared, m, _]) = (inputs.q.dims, inputs.k.dims);
    let group = heads / shared;
    let blocks = m.div_ceil(KEYS).max(1);
    let parts = PARTS.div_ceil((b * shared).max(1)).min(blocks);
    let part_keys = blocks.div_ceil(parts) * KEYS;
    let parts = m.div_ceil(part_keys).max(1);

    let mut dq = vec![0.0; parts * b * heads * n * d];
    let (mut dk, mut dv) = (vec![0.0; b * shared * m * d], vec![0.0; b * shared * m * d]);
    if dq.is_empty() || dk.is_empty() {
        dq.truncate(b * heads * n * d);
        return [dq, dk, dv];
    }
    let of_heads = dk.chunks_exact_mut(m * d).zip(dv.chunks_exact_mut(m * d));
    let of_parts = of_heads.enumerate().flat_map(|(index, (dk, dv))| {
        let parts = dk.chunks_mut(part_keys * d).zip(dv.chunks_mut(part_keys * d)).enumerate();
        parts.map(move |(part, (dk, dv))| (index, part * part_keys, dk, dv))
    });
    let of_queries = dq.chunks_exact_mut(group * n * d);
    let mut all: Vec<Part> =
        of_parts.zip(of_queries).map(|((index, start, dk, dv), dq)| Part { index, start, dq, dk, dv }).collect();
    let run = |scratch: &mut Scratch, part: &mut Part| backward_part(inputs, sums, inner, grad, part, scratch);
    if inputs.work() < ALONE {
        let mut scratch = Scratch::default();
        all.iter_mut().for_each(|part| run(&mut scratch, part));
    } else {
        all.par_iter_mut().for_each_init(Scratch::default, run);
    }
    drop(all);
    [add_parts(dq, parts, group * n * d), dk, dv]
}

/// `[.., parts, size]` to `[.., size]`.
fn add_parts(values: Vec<f32>, parts: usize, size: usize) -> Vec<f32> {
    if parts == 1 {
        return values;
    }
    let mut sums = vec![0.0; values.len() / parts];
    sums.par_chunks_mut(size).zip(values.par_chunks_exact(parts * size)).for_each(|(sums, values)| {
        for part in values.chunks_exact(size) {
            for (sum, value) in sums.iter_mut().zip(part) {
                *sum += value;
            }
        }
    });
    sums
}

fn backward_part(
    inputs: &Inputs<'_>,
    sums: &[f32],
    inner: &[f32],
    grad: &Heads,
    part: &mut Part<'_>,
    scratch: &mut Scratch,
) {
    let ([_, heads, n, d], [_, shared, ..]) = (inputs.q.dims, inputs.k.dims);
    let (batch, head, group) = (part.index / shared, part.index % shared, heads / shared);
    let Scratch { q, grad: of_out, weights, slopes } = scratch;
    let scale = (d as f64).sqrt().recip() as f32;
    for ((dk, dv), block) in part.dk.chunks_mut(KEYS * d).zip(part.dv.chunks_mut(KEYS * d)).zip(0..) {
        let (first, width) = (part.start + block * KEYS, dk.len() / d);
        let keys = inputs.k.head(batch, head).rows(first, width);
        let values = inputs.v.head(batch, head).rows(first, width);
        let mut old = Old::Dropped;
        for member in 0..group {
            let query_head = head * group + member;
            for start in (0..n).step_by(QUERIES) {
                let count = QUERIES.min(n - start);
                if !inputs.form.reach.meets(&(start..start + count), &(first..first + width)) {
                    continue;
                }
                scaled(inputs.q.head(batch, query_head).rows(start, count), inputs.scale(), q);
                scaled(grad.head(batch, query_head).rows(start, count), 1.0, of_out);
                weights.resize(count * width, 0.0);
                slopes.resize(count * width, 0.0);
                let (q, of_out) = (Matrix::dense(q, count, d), Matrix::dense(of_out, count, d));
                inputs.scores(q, start, [batch, head], [first, width], weights);
                multiply(slopes, Old::Dropped, of_out, values.transposed(), 1.0);
                let row = (batch * heads + query_head) * n + start;
                slope(weights, slopes, width, &sums[row..][..count], &inner[row..][..count]);

                let (weights, slopes) = (Matrix::dense(weights, count, width), Matrix::dense(slopes, count, width));
                multiply(dv, old, weights.transposed(), of_out, 1.0);
                // `q` holds the scale of base 2; the gradient is that of scores in base e.
                multiply(dk, old, slopes.transposed(), q, std::f32::consts::LN_2);
                let dq = &mut part.dq[(member * n + start) * d..][..count * d];
                multiply(dq, Old::Kept, slopes, keys, scale);
                old = Old::Kept;
            }
        }
    }
}

wide! {
    /// Scores to weights 2^(score - sum), and products of the result's gradient with values to the scores' gradients
    /// weight (product - inner).
    fn slope(scores: &mut [f32], products: &mut [f32], width: usize, sums: &[f32], inner: &[f32]) {
        let rows = scores.chunks_exact_mut(width).zip(products.chunks_exact_mut(width)).zip(sums).zip(inner);
        for (((scores, products), &sum), &inner) in rows {
            for (score, product) in scores.iter_mut().zip(products) {
                let weight = exp2(*score - sum);
                *score = weight;
                *product = weight * (*product - inner);
            }
        }
    }
}
