//! Does one piece of work each time it is told to, for a comparison in turns (`kernels/benches/compare.py`).
//!
//! A line on standard input names the work; the answer is its seconds. A first time that is not told prepares it.
//!
//! | work | what |
//! | --- | --- |
//! | `conv3d` | 96 to 96 channels, 3 x 3 x 3 taps, over 5 frames of 120 x 160 |
//! | `vae-encode` | the VAE's encoder at released width over 5 frames of 240 x 320 |
//! | `dldm-encode` | the dLDM's encoder at released width over 17 frames of 240 x 416 |
//! | `dldm-step` | reconstruction and gradients of the tiny dLDM over 4 clips of 17 frames of 64 x 64 |

use std::collections::HashMap;
use std::error::Error;
use std::io::{BufRead, Write};
use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use vw2_kernels::{Front, Steps, conv3d};
use vw2_models::dldm::{Dldm, DldmConfig};
use vw2_models::train::Grads;
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
        _ => return Err(format!("no work is called `{name}`").into()),
    })
}

fn noise<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}
