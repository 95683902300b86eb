//! Attention of one head.

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Tensor};

/// `softmax(q k^T / sqrt(D)) v`. q `[B, N, D]`, k and v `[B, M, D]`; where `hidden` `[1 or B, N, M]` is true, a query
/// does not see a key. Every query must see at least one.
pub fn attend(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, hidden: Option<Tensor<3, Bool>>) -> Tensor<3> {
    let width = q.dims()[2];
    let scores = (q * (width as f64).sqrt().recip()).matmul(k.swap_dims(1, 2)); // [B, N, M]
    let scores = match hidden {
        Some(hidden) => {
            let shape = scores.dims();
            scores.mask_fill(hidden.expand(shape), f32::NEG_INFINITY)
        }
        None => scores,
    };
    softmax(scores, 2).matmul(v)
}
