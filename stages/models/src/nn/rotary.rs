//! Rotary positions, in the form that turns the two halves of a head against each other.

use burn::tensor::{Device, Tensor, TensorData};

/// Cosines and sines of N positions, `[N, head size]`; the second half of each row repeats the first.
#[derive(Clone, Debug)]
pub struct Rotary {
    pub cos: Tensor<2>,
    pub sin: Tensor<2>,
}

impl Rotary {
    /// From the angles of each position, row by row: half a head size of them per position.
    pub fn new(angles: Vec<f32>, positions: usize, device: &Device) -> Rotary {
        let half = angles.len() / positions.max(1);
        let table = |of: fn(f64) -> f64| {
            let rows = angles.chunks(half.max(1)).flat_map(|row| row.iter().chain(row));
            let values: Vec<f32> = rows.map(|angle| of(f64::from(*angle)) as f32).collect();
            Tensor::from_data(TensorData::new(values, [positions, 2 * half]), device)
        };
        Rotary { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// Turns pairs (x[i], x[i + half]) of `[B, heads, N, head size]` by their positions' angles.
    pub fn turn(&self, x: Tensor<4>) -> Tensor<4> {
        vw2_kernels::rotary(x, self.cos.clone(), self.sin.clone())
    }
}
