use burn::tensor::{Device, TensorData};

use super::*;
use crate::ops::Draws;

fn random<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<D> {
    let mut draws = Draws::new(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| (draws.unit() * 2.0 - 1.0) as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

/// x, weight and bias of a case that is large enough for several threads.
fn large() -> (Tensor<5>, Tensor<5>, Tensor<1>) {
    (random([1, 6, 20, 33, 40], 1), random([24, 20, 3, 3, 3], 2), random([24], 3))
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

fn with_threads<R: Send>(count: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap().install(work)
}

#[test]
fn results_do_not_depend_on_the_count_of_threads() {
    let all = || {
        let device = Device::flex().autodiff();
        let (x, weight, bias) = large();
        let x = Tensor::from_data(x.into_data(), &device).require_grad();
        let weight = Tensor::from_data(weight.into_data(), &device).require_grad();
        let bias = Tensor::from_data(bias.into_data(), &device).require_grad();
        let y = conv3d(x.clone(), Front::Zeros(2), weight.clone(), bias.clone(), Steps::same(3), None);
        let grads = y.clone().square().sum().backward();
        let grads = (x.grad(&grads).unwrap(), weight.grad(&grads).unwrap(), bias.grad(&grads).unwrap());
        [values(y), values(grads.0), values(grads.1), values(grads.2)]
    };
    let one = with_threads(1, all);
    for count in [2, 3, 7] {
        assert_eq!(with_threads(count, all), one, "{count} threads");
    }
}

#[test]
fn a_clip_in_parts_gives_the_bytes_of_the_whole() {
    let (x, weight, bias) = large();
    let run = |x: Tensor<5>, front| conv3d(x, front, weight.clone(), bias.clone(), Steps::same(3), None);
    let whole = run(x.clone(), Front::Zeros(2));
    for cut in 2..6 {
        let first = run(x.clone().narrow(1, 0, cut), Front::Zeros(2));
        let past = Front::Frames(x.clone().narrow(1, cut - 2, 2));
        let rest = run(x.clone().narrow(1, cut, 6 - cut), past);
        assert_eq!(values(Tensor::cat(vec![first, rest], 1)), values(whole.clone()), "cut before frame {cut}");
    }
}

#[test]
fn a_clip_does_not_depend_on_its_companions() {
    let (x, weight, bias) = large();
    let run = |x| conv3d(x, Front::First(2), weight.clone(), bias.clone(), Steps::same(3), None);
    let both = run(Tensor::cat(vec![random([1, 6, 20, 33, 40], 4), x.clone()], 0));
    assert_eq!(values(both.narrow(0, 1, 1)), values(run(x)));
}

#[test]
fn a_strided_input_is_read_in_its_own_order() {
    let (x, weight, bias) = large();
    let run = |x, weight| conv3d(x, Front::Zeros(2), weight, bias.clone(), Steps::same(3), None);
    let frames_last = x.clone().swap_dims(1, 2);
    let copied = Tensor::from_data(frames_last.clone().into_data(), &Device::flex()).swap_dims(1, 2);
    assert_eq!(values(run(copied, weight.clone())), values(run(x, weight)));
}

#[test]
fn half_precision_in_gives_half_precision_out() {
    let x = random([1, 1, 1, 2, 2], 1).cast(FloatDType::BF16);
    let [weight, bias] = [[2.0], [0.5]].map(|value| Tensor::<1>::from_floats(value, &Device::flex()));
    let weight = weight.reshape([1, 1, 1, 1, 1]);
    let y = conv3d(x.clone(), Front::Zeros(0), weight, bias, Steps::same(1), None);
    assert_eq!(y.dtype(), x.dtype());
    let wanted = (x.cast(FloatDType::F32) * 2.0 + 0.5).cast(FloatDType::BF16).cast(FloatDType::F32);
    assert_eq!(values(y.cast(FloatDType::F32)), values(wanted));
}

#[test]
#[should_panic(expected = "x has the channels that the weight wants")]
fn channels_that_do_not_fit_are_refused() {
    let (x, weight, bias) = large();
    conv3d(x.narrow(2, 0, 19), Front::Zeros(2), weight, bias, Steps::same(3), None);
}
