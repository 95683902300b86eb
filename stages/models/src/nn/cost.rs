//! An estimate of arithmetic: the floating-point operations of linear maps and convolutions, counted as they are asked for.
//!
//! A product of `[m, k]` and `[k, n]` counts 2 m k n. Attention's scores, norms and all that works element by element are
//! left out: a few hundredths of the models here. Counts are of one thread, the one that calls the model.

use std::cell::Cell;

thread_local! {
    static COUNT: Cell<f64> = const { Cell::new(0.0) };
}

/// What a piece of work returns, and what its linear maps and convolutions cost.
pub fn counted<R>(work: impl FnOnce() -> R) -> (R, f64) {
    let before = COUNT.get();
    let result = work();
    (result, COUNT.get() - before)
}

/// A linear map of `inputs` values is asked for `outputs` values in all.
pub(crate) fn product(inputs: usize, outputs: usize) {
    COUNT.set(COUNT.get() + 2.0 * inputs as f64 * outputs as f64);
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};
    use vw2_kernels::Front;

    use super::*;
    use crate::nn::{CausalConv3d, Init, Linear};

    #[test]
    fn maps_and_convolutions_count_their_products() {
        let device = Device::flex();
        let init = &mut Init::new(&device, 1);
        let (linear, conv) = (Linear::new(init, 5, 7, true), CausalConv3d::new(init, 2, 3, [3, 3, 3]));
        let (_, flops) = counted(|| linear.forward(Tensor::<3>::zeros([2, 4, 5], &device)));
        assert_eq!(flops, 2.0 * 8.0 * 5.0 * 7.0);
        let (_, flops) = counted(|| conv.forward(Tensor::zeros([1, 6, 2, 4, 4], &device), Front::Zeros(0), None));
        assert_eq!(flops, 2.0 * (4.0 * 16.0 * 3.0) * (2.0 * 27.0));
    }
}
