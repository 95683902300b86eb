//! Does one piece of work each time it is told to, for a comparison in turns (`kernels/benches/compare.py`).
//!
//! A line on standard input names the work; the answer is its seconds. A first time that is not told prepares it.
//!
//! | work | what |
//! | --- | --- |
//! | `conv3d` | 96 to 96 channels, 3 x 3 x 3 taps, over 5 frames of 120 x 160 |
//! | `vae-encode` | the VAE's encoder at released width over 5 frames of 240 x 320 |
//! | `dldm-encode` | the dLDM's encoder at released width over 17 frames of 240 x 416 |
//! | `attention` | causal, 16 heads of 128 over 2048 places |
//! | `attention-step` | the same with its gradients, of the mean of squares |
//! | `ar-step` | a training step of a decoder of 102 M over 512 ids: forward, backward, clip, AdamW |
//! | `dldm-step` | reconstruction and gradients of the tiny dLDM over 4 clips of 17 frames of 64 x 64 |

use std::collections::HashMap;
use std::error::Error;
use std::io::{BufRead, Write};
use std::time::Instant;

use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use vw2_kernels::{Front, Sight, Steps, attention, conv3d};
use vw2_models::ar::{Ar, ArConfig, next_id_loss};
use vw2_models::dldm::{Dldm, DldmConfig};
use vw2_models::train::{AdamW, AdamWConfig, Grads};
use vw2_models::vae::{Vae, VaeConfig};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;
type Work = Box<dyn FnMut() -> Outcome>;

fn main() -> Outcome {
    let mut prepared: HashMap<String, Work> = HashMap::new();
    for line in std::io::stdin().lock().lines() {
        let name = line?;
        if !prepared.contains_key(&name) {
            let mut work = prepare(&name)?;
            work()?;
            prepared.insert(name.clone(), work);
        }
        let work = prepared.get_mut(&name).ok_or("prepared above")?;
        let began = Instant::now();
        work()?;
        let mut out = std::io::stdout();
        writeln!(out, "{}", began.elapsed().as_secs_f64())?;
        out.flush()?;
    }
    Ok(())
}

fn prepare(name: &str) -> Outcome<Work> {
    let device = Device::flex();
    Ok(match name {
        "conv3d" => {
            let (x, weight) = (noise([1, 5, 96, 120, 160], &device), noise([96, 96, 3, 3, 3], &device));
            let bias = Tensor::ones([96], &device);
            Box::new(move || {
                conv3d(x.clone(), Front::Zeros(2), weight.clone(), bias.clone(), Steps::same(3), None);
                Ok(())
            })
        }
        "vae-encode" => {
            let vae = Vae::new(&VaeConfig::preset("released")?, &device, 1)?;
            let clip = noise([1, 3, 5, 240, 320], &device);
            Box::new(move || {
                drop(vae.encode(clip.clone())?);
                Ok(())
            })
        }
        "dldm-encode" => {
            let dldm = Dldm::new(&DldmConfig::preset("released")?, &device, 1)?;
            let clip = noise([1, 3, 17, 240, 416], &device);
            Box::new(move || {
                drop(dldm.encode(clip.clone())?);
                Ok(())
            })
        }
        "dldm-step" => {
            let device = device.autodiff();
            let mut dldm = Dldm::new(&DldmConfig::preset("tiny")?, &device, 1)?;
            let clips = noise([4, 3, 17, 64, 64], &device);
            Box::new(move || {
                let (drawn, _) = dldm.reconstruct(clips.clone())?;
                Grads::of(&(drawn - clips.clone()).abs().mean(), &mut dldm);
                Ok(())
            })
        }
        "attention" => {
            let [q, k, v] = std::array::from_fn(|_| noise([1, 16, 2048, 128], &device));
            Box::new(move || {
                drop(attention(q.clone(), k.clone(), v.clone(), &Sight::causal()));
                Ok(())
            })
        }
        "attention-step" => {
            let device = device.autodiff();
            let [q, k, v] = std::array::from_fn(|_| noise([1, 16, 2048, 128], &device).require_grad());
            Box::new(move || {
                let y: Tensor<4> = attention(q.clone(), k.clone(), v.clone(), &Sight::causal());
                drop(y.square().mean().backward());
                Ok(())
            })
        }
        "ar-step" => {
            let config = ArConfig {
                num_hidden_layers: 12,
                hidden_size: 768,
                num_attention_heads: 12,
                num_key_value_heads: Some(12),
                intermediate_size: 2624,
                ..ArConfig::preset("small", 1020)?
            };
            let device = device.autodiff();
            let mut decoder = Ar::init(&config, 1, &device)?;
            let mut optimizer = AdamW::new(AdamWConfig::default());
            let ids: Vec<i64> = (0..512).map(|place| place * 7919 % 1020).collect();
            let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, 512]), &device);
            Box::new(move || {
                let loss = next_id_loss(decoder.forward(ids.clone(), None), ids.clone());
                let mut grads = Grads::of(&loss, &mut decoder);
                grads.clip(1.0, |_| true);
                optimizer.step(&mut decoder, &grads, 1e-4);
                Ok(())
            })
        }
        _ => return Err(format!("no work is called `{name}`").into()),
    })
}

fn noise<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}
