use burn::tensor::{Device, Distribution};

use super::*;

fn draw(seed: u64, shape: [usize; 4]) -> Tensor<4> {
    let device = Device::flex();
    device.seed(seed);
    Tensor::random(shape, Distribution::Normal(0.0, 2.0), &device)
}

fn floats(x: Tensor<4>) -> Vec<f32> {
    x.into_data().try_into_vec().unwrap()
}

fn difference(a: Tensor<4>, b: Tensor<4>) -> f32 {
    (a - b).abs().max().into_scalar()
}

#[test]
fn zeros_that_are_not_made_count_as_those_that_are() {
    for (seed, zeros) in [(1, 0), (2, 1), (3, 60), (4, 420)] {
        let (q, k, v) = (draw(seed, [3, 2, 5, 8]), draw(seed + 10, [3, 2, 4, 8]), draw(seed + 20, [3, 2, 4, 8]));
        let padded = |x: &Tensor<4>| match zeros {
            0 => x.clone(),
            _ => Tensor::cat(vec![x.clone(), Tensor::zeros([3, 2, zeros, 8], &Device::flex())], 2),
        };
        let made = attention(q.clone(), padded(&k), padded(&v), &Sight::all());
        let counted = attention(q, k, v, &Sight { zeros, ..Sight::all() });
        let difference = difference(made, counted);
        assert!(difference < 1e-5, "{zeros} zeros, seed {seed}: {difference}");
    }
}

#[test]
fn queries_one_by_one_see_what_all_at_once_do() {
    let (q, k, v) = (draw(5, [2, 4, 9, 16]), draw(6, [2, 2, 9, 16]), draw(7, [2, 2, 9, 16]));
    let whole = attention(q.clone(), k.clone(), v.clone(), &Sight::causal());
    for place in 0..9 {
        let seen = |x: &Tensor<4>| x.clone().narrow(2, 0, place + 1);
        let one = attention(q.clone().narrow(2, place, 1), seen(&k), seen(&v), &Sight::causal());
        let difference = difference(whole.clone().narrow(2, place, 1), one);
        assert!(difference < 1e-6, "place {place}: {difference}");
    }
}

#[test]
fn threads_change_no_bit() {
    let run = || {
        let device = Device::flex().autodiff();
        device.seed(8);
        let [q, k, v] = [0; 3]
            .map(|_| Tensor::<4>::random([1, 3, 700, 24], Distribution::Normal(0.0, 1.0), &device).require_grad());
        let out = attention(q.clone(), k.clone(), v.clone(), &Sight::causal());
        let grads = out.clone().powi_scalar(2).sum().backward();
        let grads = [q, k, v].map(|x| floats(x.grad(&grads).unwrap()));
        (floats(out.inner()), grads)
    };
    let on = |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run);
    assert!(on(1) == on(3), "seed 8");
}

#[test]
fn strides_are_read_as_they_are() {
    let [q, k, v] = [9, 10, 11].map(|seed| draw(seed, [2, 6, 3, 10]));
    let plain = attention(q.clone(), k.clone(), v.clone(), &Sight::all());
    // The same values, stored [B, N, heads, D], stored with D before N, and as a part of something larger.
    let stored = |x: Tensor<4>, a: usize, b: usize| {
        let swapped = x.swap_dims(a, b);
        let (shape, data) = (swapped.dims(), swapped.into_data());
        Tensor::<4>::from_data(
            burn::tensor::TensorData::new(data.try_into_vec::<f32>().unwrap(), shape),
            &Device::flex(),
        )
        .swap_dims(a, b)
    };
    let larger = Tensor::cat(vec![draw(12, [2, 6, 3, 10]), v, draw(13, [2, 6, 3, 10])], 2);
    let strided = attention(stored(q, 1, 2), stored(k, 2, 3), larger.narrow(2, 3, 3), &Sight::all());
    assert!(difference(plain, strided) < 1e-6);
}

#[test]
fn a_query_that_sees_nothing_yields_zero_and_passes_no_gradient() {
    let device = Device::flex().autodiff();
    let x = Tensor::<4>::ones([1, 1, 3, 4], &device).require_grad();
    let real = Tensor::<2>::from_floats([[0.0, 1.0, 1.0]], &device);
    let sight = Sight { real: Some(real), ..Sight::causal() };
    let out = attention(x.clone(), x.clone(), x.clone(), &sight);
    let grads = out.clone().sum().backward();
    assert_eq!(floats(out.inner()), [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    let grad = floats(x.grad(&grads).unwrap());
    assert!(grad[..4].iter().all(|&g| g == 0.0) && grad.iter().all(|g| g.is_finite()), "{grad:?}");
}

#[test]
fn damaged_values_are_not_hidden() {
    let x = Tensor::<4>::from_floats([[[[1.0, f32::NAN]]]], &Device::flex());
    assert!(floats(attention(x.clone(), x.clone(), x, &Sight::all())).iter().all(|value| value.is_nan()));
}

#[test]
#[should_panic(expected = "4 query heads cannot share 3 key heads evenly")]
fn heads_that_cannot_be_shared_are_refused() {
    attention(draw(1, [1, 4, 2, 8]), draw(2, [1, 3, 2, 8]), draw(3, [1, 3, 2, 8]), &Sight::all());
}
