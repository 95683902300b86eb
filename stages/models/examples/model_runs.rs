//! Runs the models with random weights on any device, and tells how long each takes.
//!
//! `cargo run -p vw2-models --features cuda --example model_runs -- [--device NAME] [--bf16] [--small] [--times N] [RUN]..`
//!
//! The runs, at released sizes; `--small` takes the tiny presets and small clips, so that every run ends soon anywhere:
//!
//! | run | what |
//! | --- | --- |
//! | `vae-encode` | the VAE's encoder over a clip of 93 frames at 480 x 832 |
//! | `dldm-encode` | codes of a clip of 93 frames at 240 x 416 |
//! | `dit-pass` | one pass of the DiT with its control branch over 24 x 60 x 104 latents, 37,440 tokens |
//! | `ar-step` | a training step of the 300 M decoder over 1 x 2048 ids: forward, backward, clip, AdamW |
//!
//! With `--bf16`, inference computes in bf16, as upstream does, with sums in f32; the training step stays f32.
//!
//! A line of JSON per run on standard output: the run, device, shape, seconds of each time after a first that is not
//! counted, and the process' peak memory on the host. Weights are random, so that only times mean something.

use std::error::Error;
use std::io::Write;
use std::time::Instant;

use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use serde_json::json;
use vw2_kernels::device;
use vw2_models::ar::{Ar, ArConfig, next_id_loss};
use vw2_models::dit::{DitConfig, Inputs, VideoDit};
use vw2_models::dldm::{Dldm, DldmConfig};
use vw2_models::train::{AdamW, AdamWConfig, Grads};
use vw2_models::vae::{Vae, VaeConfig};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// A run: what it is over, and a closure that does it once.
type Run = fn(scale: Scale, device: &Device) -> Outcome<(String, Box<dyn FnMut() -> Outcome>)>;

const RUNS: &[(&str, Run)] =
    &[("vae-encode", vae_encode), ("dldm-encode", dldm_encode), ("dit-pass", dit_pass), ("ar-step", ar_step)];

/// How a run is to be.
#[derive(Clone, Copy)]
struct Scale {
    small: bool,
    dtype: DType,
}

const USAGE: &str =
    "usage: model_runs [--device NAME] [--bf16] [--small] [--times N] [vae-encode|dldm-encode|dit-pass|ar-step]..";

fn main() -> Outcome {
    let (mut name, mut times, mut wanted) = ("auto".to_owned(), 3, Vec::new());
    let mut scale = Scale { small: false, dtype: DType::F32 };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--device" => name = arguments.next().ok_or(USAGE)?,
            "--times" => times = arguments.next().ok_or(USAGE)?.parse::<usize>().map_err(|_| USAGE)?.max(1),
            "--bf16" => scale.dtype = DType::BF16,
            "--small" => scale.small = true,
            run => wanted.push(RUNS.iter().find(|(known, _)| *known == run).ok_or(USAGE)?),
        }
    }
    if wanted.is_empty() {
        wanted.extend(RUNS);
    }
    let device = device::parse(&name)?;
    for (run, prepare) in wanted {
        let (shape, mut once) = prepare(scale, &device)?;
        let mut seconds = Vec::new();
        // The first compiles kernels and fills pools of memory.
        for time in 0..=times {
            let began = Instant::now();
            once()?;
            device.sync()?;
            if time > 0 {
                seconds.push(began.elapsed().as_secs_f64());
            }
        }
        let dtype = if scale.dtype == DType::BF16 && *run != "ar-step" { "bf16" } else { "f32" };
        let line = json!({
            "run": run, "device": name, "shape": shape, "small": scale.small, "dtype": dtype, "seconds": seconds,
            "host_peak_mib": peak_memory(),
        });
        writeln!(std::io::stdout(), "{line}")?;
    }
    Ok(())
}

impl Scale {
    fn preset(self) -> &'static str {
        if self.small { "tiny" } else { "released" }
    }

    fn noise<const D: usize>(self, shape: [usize; D], device: &Device) -> Tensor<D> {
        Tensor::<D>::random(shape, Distribution::Normal(0.0, 1.0), device).cast(self.dtype)
    }
}

fn vae_encode(scale: Scale, device: &Device) -> Outcome<(String, Box<dyn FnMut() -> Outcome>)> {
    let vae = Vae::new(&VaeConfig::preset(scale.preset())?, device, 1)?;
    let shape = if scale.small { [1, 3, 5, 64, 64] } else { [1, 3, 93, 480, 832] };
    let clip = scale.noise(shape, device);
    Ok((format!("{shape:?}"), Box::new(move || vae.encode(clip.clone()).map(drop).map_err(Into::into))))
}

fn dldm_encode(scale: Scale, device: &Device) -> Outcome<(String, Box<dyn FnMut() -> Outcome>)> {
    let dldm = Dldm::new(&DldmConfig::preset(scale.preset())?, device, 1)?;
    let shape = if scale.small { [1, 3, 17, 64, 64] } else { [1, 3, 93, 240, 416] };
    let clip = scale.noise(shape, device);
    Ok((format!("{shape:?}"), Box::new(move || dldm.encode(clip.clone()).map(drop).map_err(Into::into))))
}

fn dit_pass(scale: Scale, device: &Device) -> Outcome<(String, Box<dyn FnMut() -> Outcome>)> {
    let config = DitConfig::preset(scale.preset())?;
    let dit = VideoDit::new(&config, device, 1)?;
    let [t, h, w] = if scale.small { [2, 8, 8] } else { [24, 60, 104] };
    let shape = [1, config.in_channels, t, h, w];
    let inputs = Inputs {
        x: scale.noise(shape, device),
        times: Tensor::ones([1, t], device),
        mask: config.condition_mask.then(|| Tensor::<5>::zeros([1, 1, t, h, w], device).cast(scale.dtype)),
        padding: None,
        context: scale.noise([1, config.context_tokens.min(92), config.crossattn_emb_channels], device),
        hint: (config.control_blocks > 0).then(|| scale.noise(shape, device)),
        rotary: dit.rotary([t, h, w], None, device),
    };
    let tokens =
        t.div_ceil(config.patch_temporal) * h.div_ceil(config.patch_spatial) * w.div_ceil(config.patch_spatial);
    Ok((format!("{tokens} tokens"), Box::new(move || dit.forward(&inputs).map(drop).map_err(Into::into))))
}

fn ar_step(scale: Scale, device: &Device) -> Outcome<(String, Box<dyn FnMut() -> Outcome>)> {
    let vocabulary = 1020;
    let config = ArConfig::preset(if scale.small { "tiny" } else { "vw1-300m" }, vocabulary)?;
    let (length, device) = (if scale.small { 128 } else { 2048 }, device.clone().autodiff());
    let mut decoder = Ar::init(&config, 1, &device)?;
    let mut optimizer = AdamW::new(AdamWConfig::default());
    let ids: Vec<i32> = (0..length).map(|place| place * 7919 % vocabulary as i32).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, length]), &device);
    let once = move || {
        let loss = next_id_loss(decoder.forward(ids.clone(), None), ids.clone());
        let mut gradients = Grads::of(&loss, &mut decoder);
        gradients.clip(1.0, |_| true);
        optimizer.step(&mut decoder, &gradients, 1e-4);
        Ok(())
    };
    Ok((format!("1 x {length} ids"), Box::new(once)))
}

/// Where the system tells it.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? / 1024)
}
