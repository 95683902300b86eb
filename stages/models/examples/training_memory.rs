//! How much memory a training step of the released dLDM and DiT takes, with their blocks computed again on the way back.
//!
//! `cargo run -p vw2-models --example training_memory`
//!
//! The models are too large for most machines without a card, so steps of released width are run on the CPU over less: fewer
//! blocks, fewer tokens, smaller clips, each in a process of its own, whose peak the system tells. They are large enough for
//! the peak to lie in the way back, not in the optimizer. What a step keeps beside the parameters grows in proportion to
//! what it is over, and with its blocks; so the released size follows from there. Parameters count 16 bytes each: weight,
//! gradient and AdamW's two moments, all f32.

use std::error::Error;
use std::io::Write;
use std::process::Command;

use burn::tensor::{Device, Distribution, Tensor};
use vw2_models::dit::{DitConfig, Inputs, VideoDit};
use vw2_models::dldm::{Dldm, DldmConfig};
use vw2_models::nn::recompute::taped;
use vw2_models::train::{AdamW, AdamWConfig};
use vw2_models::weights::{Named, shapes};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Bytes of a parameter in training.
const EACH: f64 = 16.0;
const GIB: f64 = (1u64 << 30) as f64;

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize| arguments[index].parse::<usize>();
    let mut out = std::io::stdout();
    match arguments.first().map(String::as_str) {
        None => report(&mut out),
        Some("dit") if arguments.len() == 3 => Ok(writeln!(out, "{}", dit_step(number(1)?, number(2)?)?)?),
        Some("dldm") if arguments.len() == 3 => Ok(writeln!(out, "{}", dldm_step(number(1)?, number(2)?)?)?),
        _ => Err("usage: training_memory".into()),
    }
}

fn report(out: &mut impl Write) -> Outcome {
    // DiT: blocks of the base, and latent frames of 32 x 32 cells, which are 256 tokens each.
    let config = DitConfig::preset("released")?;
    let parameters =
        |blocks: usize| Ok::<_, Box<dyn Error>>(count(&mut VideoDit::new(&of_blocks(blocks)?, &host(), 1)?));
    let (few, many) = (1, 2);
    let (short, long) = (12, 24);
    let mut slopes = [0.0; 2];
    for (slope, blocks) in slopes.iter_mut().zip([few, many]) {
        let parameters = parameters(blocks)? as f64;
        let [less, more] = [short, long].map(|frames| step("dit", blocks, frames));
        let (less, more) = (less?, more?);
        *slope = (more - less) / (256 * (long - short)) as f64;
        writeln!(
            out,
            "DiT, {blocks} blocks and 1 of the branch, {:.0} M parameters: {:.2} GiB over {} tokens, {:.2} GiB over {}",
            parameters / 1e6,
            less / GIB,
            256 * short,
            more / GIB,
            256 * long
        )?;
    }
    let of_block = (slopes[1] - slopes[0]) / (many - few) as f64;
    let tokens = 37_440.0;
    // The first measure has `few` blocks of the base and one of the branch.
    let blocks = (config.num_blocks + config.control_blocks) as f64;
    let kept = slopes[0] + of_block * (blocks - (few + 1) as f64);
    let of_parameters = EACH * of_released(&config, few, many, parameters)?;
    writeln!(
        out,
        "DiT as released, {} blocks and {} of the branch, 37,440 tokens (93 frames of 480 x 832): {:.1} GiB of parameters + \
         {:.1} GiB of what the step keeps = {:.1} GiB",
        config.num_blocks,
        config.control_blocks,
        of_parameters / GIB,
        kept * tokens / GIB,
        (of_parameters + kept * tokens) / GIB
    )?;

    // dLDM: the whole model over frames of growing size.
    let parameters = count(&mut Dldm::new(&DldmConfig::preset("released")?, &host(), 1)?) as f64;
    let pixels = |frames: usize, side: usize| (frames * side * side) as f64;
    let (small, large) = ((17, 128), (17, 224));
    let (less, more) = (step("dldm", small.0, small.1)?, step("dldm", large.0, large.1)?);
    let slope = (more - less) / (pixels(large.0, large.1) - pixels(small.0, small.1));
    let wanted = (93 * 240 * 416) as f64;
    let whole = less + slope * (wanted - pixels(small.0, small.1));
    writeln!(
        out,
        "dLDM, {:.0} M parameters: {:.2} GiB over {} frames of {}, {:.2} GiB over {} of {}; as released, over 93 frames of \
         240 x 416: {:.1} GiB",
        parameters / 1e6,
        less / GIB,
        small.0,
        small.1,
        more / GIB,
        large.0,
        large.1,
        whole / GIB
    )?;
    Ok(())
}

/// Parameters of the released DiT: each block has as many as another, and so has each of the branch.
fn of_released(
    config: &DitConfig,
    few: usize,
    many: usize,
    parameters: impl Fn(usize) -> Outcome<usize>,
) -> Outcome<f64> {
    let (less, more) = (parameters(few)? as f64, parameters(many)? as f64);
    let each = (more - less) / (many - few) as f64;
    // A block of the branch has its own way out beside, which is a few per cent of it.
    let blocks = config.num_blocks - few + (config.control_blocks - 1);
    Ok(less + each * blocks as f64)
}

fn of_blocks(blocks: usize) -> Outcome<DitConfig> {
    Ok(DitConfig { num_blocks: blocks, control_blocks: 1, ..DitConfig::preset("released")? })
}

fn host() -> Device {
    Device::flex()
}

/// Peak bytes of a step in a process of its own.
fn step(model: &str, first: usize, second: usize) -> Outcome<f64> {
    let program = std::env::current_exe()?;
    let ended = Command::new(program).args([model, &first.to_string(), &second.to_string()]).output()?;
    let told = String::from_utf8(ended.stdout)?;
    let fault = || format!("{model} {first} {second} failed: {}", String::from_utf8_lossy(&ended.stderr));
    Ok(told.trim().parse().map_err(|_| fault())?)
}

fn count(model: &mut impl Named) -> usize {
    shapes(model).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

fn noise<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

fn dit_step(blocks: usize, frames: usize) -> Outcome<u64> {
    let device = host().autodiff();
    let config = of_blocks(blocks)?;
    let dit = VideoDit::new(&config, &device, 1)?;
    let latents = [frames, 32, 32];
    let shape = [1, config.in_channels, frames, 32, 32];
    let inputs = Inputs {
        x: noise(shape, &device),
        times: Tensor::ones([1, frames], &device),
        mask: config.condition_mask.then(|| Tensor::zeros([1, 1, frames, 32, 32], &device)),
        padding: None,
        context: noise([1, config.context_tokens.min(92), config.crossattn_emb_channels], &device),
        hint: Some(noise(shape, &device)),
        rotary: dit.rotary(latents, None, &device),
    };
    learn(dit, |dit| Ok(dit.forward(&inputs)?.square().mean()))
}

fn dldm_step(frames: usize, side: usize) -> Outcome<u64> {
    let device = host().autodiff();
    let dldm = Dldm::new(&DldmConfig::preset("released")?, &device, 1)?;
    let clip = noise([1, 3, frames, side, side], &device);
    learn(dldm, |dldm| Ok((dldm.reconstruct(clip.clone())?.0 - clip.clone()).square().mean()))
}

/// Two steps, as the first has no moments yet; then the peak of this process.
fn learn<M: Named>(mut model: M, loss: impl Fn(&M) -> Outcome<Tensor<1>>) -> Outcome<u64> {
    let mut optimizer = AdamW::new(AdamWConfig::default());
    for _ in 0..2 {
        let (loss, tape) = taped(true, || loss(&model));
        let mut grads = tape.gradients(&loss?, &mut model);
        grads.clip(1.0, |_| true);
        optimizer.step(&mut model, &grads, 1e-4);
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("the system tells no peak")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
