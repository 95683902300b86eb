//! Runs the tiny models with random weights on a device and on the CPU, and tells how far the results are apart.
//!
//! `cargo run -p vw2-models --features cuda --example models_agree -- cuda:0`
//!
//! Results and gradients of all parameters: the worst difference over the largest value. Where one is above its limit, the
//! program fails.

use std::error::Error;
use std::io::Write;

use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use vw2_kernels::device;
use vw2_models::ar::{Ar, ArConfig, next_id_loss};
use vw2_models::dit::{DitConfig, Inputs, VideoDit};
use vw2_models::dldm::{Dldm, DldmConfig};
use vw2_models::train::Grads;
use vw2_models::vae::{Vae, VaeConfig};
use vw2_models::weights::{Named, shapes};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// A result and the gradients of all parameters, each in one list.
type Numbers = [Vec<f32>; 2];

/// A model's name, its numbers on a device, and how far two devices may be apart.
type Model = (&'static str, fn(&Given, &Device) -> Outcome<Numbers>, f32);

/// Burn's matrix products may run on tensor cores, with 10 bits of each operand; a decoder is a chain of them.
const CORES: f32 = 5e-3;
const MODELS: &[Model] = &[("vae", vae, CORES), ("dldm", dldm, CORES), ("dit", dit, CORES), ("ar", ar, CORES)];

/// What the models are given, from the CPU.
struct Given {
    clip: Tensor<5>,
    latents: Tensor<5>,
    hint: Tensor<5>,
    context: Tensor<3>,
}

fn main() -> Outcome {
    let name = std::env::args().nth(1).ok_or("usage: models_agree DEVICE")?;
    let (cpu, other) = (Device::flex(), device::parse(&name)?);
    let config = DitConfig::preset("tiny")?;
    let latents = [1, config.in_channels, 2, 8, 8];
    let given = Given {
        clip: noise([1, 3, 5, 32, 32], &cpu).clamp(-1.0, 1.0),
        latents: noise(latents, &cpu),
        hint: noise(latents, &cpu),
        context: noise([1, 8, config.crossattn_emb_channels], &cpu),
    };
    let mut apart = Vec::new();
    for (model, numbers, limit) in MODELS {
        let (wanted, found) = (numbers(&given, &cpu)?, numbers(&given, &other)?);
        let [result, gradients] = std::array::from_fn(|part| worst(&wanted[part], &found[part]));
        writeln!(
            std::io::stdout(),
            "{model} on {name}: result {result:.1e}, gradients {gradients:.1e} from the CPU's"
        )?;
        if result.max(gradients) > *limit {
            apart.push(*model);
        }
    }
    if apart.is_empty() { Ok(()) } else { Err(format!("too far from the CPU: {}", apart.join(", ")).into()) }
}

fn noise<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

fn on<const D: usize>(tensor: &Tensor<D>, device: &Device) -> Tensor<D> {
    Tensor::from_data(tensor.to_data(), device)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Outcome<Vec<f32>> {
    Ok(tensor.into_data().try_into_vec()?)
}

/// The largest difference over the largest value; NaN counts as infinite.
fn worst(wanted: &[f32], found: &[f32]) -> f32 {
    let largest = wanted.iter().fold(f32::MIN_POSITIVE, |largest, value| largest.max(value.abs()));
    let apart = |(a, b): (&f32, &f32)| if b.is_nan() { f32::INFINITY } else { (a - b).abs() };
    let most = wanted.iter().zip(found).map(apart).fold(0.0, f32::max);
    if wanted.len() == found.len() { most / largest } else { f32::INFINITY }
}

/// `loss` is a function of the result in which every parameter counts.
fn numbers<const D: usize>(result: Tensor<D>, loss: &Tensor<1>, model: &mut impl Named) -> Outcome<Numbers> {
    let grads = Grads::of(loss, model);
    let names = shapes(model).into_iter().map(|(name, _)| name);
    let gradients = names.filter_map(|name| grads.get(&name)).map(values).collect::<Outcome<Vec<_>>>()?;
    Ok([values(result.inner())?, gradients.concat()])
}

fn vae(given: &Given, device: &Device) -> Outcome<Numbers> {
    let device = device.clone().autodiff();
    let mut vae = Vae::new(&VaeConfig::preset("tiny")?, &device, 1)?;
    let drawn = vae.decode(vae.encode(on(&given.clip, &device))?)?;
    numbers(drawn.clone(), &drawn.square().mean(), &mut vae)
}

fn dldm(given: &Given, device: &Device) -> Outcome<Numbers> {
    let device = device.clone().autodiff();
    let mut dldm = Dldm::new(&DldmConfig::preset("tiny")?, &device, 1)?;
    let (drawn, _) = dldm.reconstruct(on(&given.clip, &device))?;
    numbers(drawn.clone(), &drawn.square().mean(), &mut dldm)
}

/// The last layer starts from zero: with the 1, its gradient shows what all others compute.
fn dit(given: &Given, device: &Device) -> Outcome<Numbers> {
    let device = device.clone().autodiff();
    let config = DitConfig::preset("tiny")?;
    let mut dit = VideoDit::new(&config, &device, 1)?;
    let inputs = Inputs {
        x: on(&given.latents, &device),
        times: Tensor::ones([1, 2], &device),
        mask: config.condition_mask.then(|| Tensor::zeros([1, 1, 2, 8, 8], &device)),
        padding: None,
        context: on(&given.context, &device),
        hint: (config.control_blocks > 0).then(|| on(&given.hint, &device)),
        rotary: dit.rotary([2, 8, 8], None, &device),
    };
    let result = dit.forward(&inputs)?;
    numbers(result.clone(), &result.add_scalar(1.0).square().mean(), &mut dit)
}

fn ar(_: &Given, device: &Device) -> Outcome<Numbers> {
    let (vocabulary, device) = (300, device.clone().autodiff());
    let mut decoder = Ar::init(&ArConfig::preset("tiny", vocabulary)?, 1, &device)?;
    let ids: Vec<i32> = (0..48).map(|place| place * 7919 % vocabulary as i32).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, 48]), &device);
    let scores = decoder.forward(ids.clone(), None);
    numbers(scores.clone(), &next_id_loss(scores, ids), &mut decoder)
}
