//! Every hot operation of a model is a kernel of the table: what else the models launch on a GPU is listed here, by name
//! and with the reason why it may be Burn's.
//!
//! The tiny models are asked for forward and backward on a GPU of any kind, a software one included; nothing is computed,
//! as kernels are compiled and their launches dropped. A model that falls back on Burn's convolution, pooling, attention or
//! a reduction over positions launches a kernel that is not in the list, and fails. What cannot be told by a kernel's name,
//! a softmax made of elementwise kernels, is told by its name in the models' sources, which `tests/tidy.rs` looks for.

use std::collections::BTreeSet;

use burn::tensor::{Device, Int, Tensor};
use vw2_kernels::{KERNELS, available, launches, parse};
use vw2_models::ar::{Ar, ArConfig, Draws, KvCache, Sampling, next_id_loss};
use vw2_models::dit::{DitConfig, Inputs, VideoDit};
use vw2_models::dldm::{Dldm, DldmConfig};
use vw2_models::train::{AdamW, AdamWConfig, Grads};
use vw2_models::vae::{Vae, VaeConfig};

/// Kernels of Burn that the models may launch, by the start of their path, and why.
const COLD: &[(&str, &str)] = &[
    ("cubek_matmul::", "matrix products are cubek's, on tensor cores where there are any"),
    ("cubek_reduce::", "means and sums of losses, and gradients of biases"),
    ("cubek_pool::", "the average beside the dLDM's strided convolution; it has no row yet"),
    ("cubecl_std::tensor::contiguous::", "copies where an op of ours or cubek's wants its input in order"),
    ("burn_cubecl::kernel::binary::", "sums and products by element"),
    ("burn_cubecl::kernel::unary_float::", "activations, roots and tanh by element, none of them beside a norm"),
    ("burn_cubecl::kernel::index::", "slices, joins, copies of frames, rows of embeddings"),
    ("burn_cubecl::kernel::mask::", "positions that a loss leaves out, and zeros beyond a clip"),
    ("burn_cubecl::kernel::comparison::", "comparisons by element, for masks and clamps"),
    ("burn_cubecl::kernel::cast::", "a change of type of what one model passes on"),
    ("burn_cubecl::ops::numeric::", "zeros and ones to start from"),
];

#[test]
fn what_the_models_launch_is_a_kernel_of_the_table_or_said_to_be_cold() {
    let required = std::env::var("VW2_REQUIRE").unwrap_or_default();
    let Some(name) = available().into_iter().find(|name| name.starts_with("wgpu")) else {
        eprintln!("skipped: no wgpu device");
        assert!(!required.split(',').any(|family| family == "wgpu"), "VW2_REQUIRE asks for wgpu");
        return;
    };
    let device = parse(&name).expect("a listed device opens");
    let mut hot = BTreeSet::new();
    let mut met = BTreeSet::new();
    let mut used = BTreeSet::from(["picture"]); // the decoding stage's
    for (model, pass) in PASSES {
        let launched = launches::watch_dry(|| pass(&device));
        let own = launched.iter().filter(|kernel| launches::own_function(kernel).is_some()).count();
        used.extend(launched.iter().filter_map(|kernel| kernel.strip_prefix("vw2_kernels::ops::")?.split("::").next()));
        eprintln!("{model}: {own} kernels of ours, {} of Burn", launched.len() - own);
        for kernel in launched.into_iter().filter(|kernel| launches::own_function(kernel).is_none()) {
            match COLD.iter().position(|(path, _)| kernel.starts_with(path)) {
                Some(index) => drop(met.insert(index)),
                None => drop(hot.insert((*model, kernel))),
            }
        }
    }
    let hot: Vec<String> = hot.into_iter().map(|(model, kernel)| format!("{model}: {kernel}")).collect();
    assert!(hot.is_empty(), "give these a row in KERNELS, or say in COLD why not:\n{}", hot.join("\n"));
    let unused: Vec<&str> = KERNELS.iter().map(|kernel| kernel.name).filter(|name| !used.contains(name)).collect();
    assert!(unused.is_empty(), "no model uses these kernels: {unused:?}");
    let idle: Vec<&str> =
        COLD.iter().enumerate().filter(|(index, _)| !met.contains(index)).map(|(_, (path, _))| *path).collect();
    assert!(idle.is_empty(), "no model launches these any more, so COLD need not list them: {idle:?}");
}

const PASSES: &[(&str, fn(&Device))] =
    &[("vae", vae), ("dldm", dldm), ("dit", dit), ("ar", ar), ("generation", generation)];

fn vae(device: &Device) {
    let config = VaeConfig::preset("tiny").expect("a preset");
    let vae = Vae::new(&config, &device.clone().autodiff(), 1).expect("a sound preset");
    let clip = Tensor::ones([1, 3, 5, 64, 64], &device.clone().autodiff());
    let (mean, _) = vae.moments(clip).expect("a clip of 1 + 4k frames");
    vae.decode_means(mean).expect("latents of the clip").sum().backward();
}

fn dldm(device: &Device) {
    let config = DldmConfig::preset("tiny").expect("a preset");
    let dldm = Dldm::new(&config, &device.clone().autodiff(), 1).expect("a sound preset");
    let clip = Tensor::ones([1, 3, 17, 64, 64], &device.clone().autodiff());
    let (recon, encoded) = dldm.reconstruct(clip).expect("a clip of the preset's length");
    (recon.sum() + dldm.condition(encoded.codes).expect("codes of the clip").sum()).backward();
}

fn dit(device: &Device) {
    let config = DitConfig::preset("tiny").expect("a preset");
    let device = device.clone().autodiff();
    let dit = VideoDit::new(&config, &device, 1).expect("a sound preset");
    let latents = Tensor::<5>::ones([1, config.in_channels, 2, 8, 8], &device);
    let inputs = Inputs {
        x: latents.clone(),
        times: Tensor::ones([1, 2], &device),
        mask: config.condition_mask.then(|| Tensor::zeros([1, 1, 2, 8, 8], &device)),
        padding: None,
        context: Tensor::ones([1, 8, config.crossattn_emb_channels], &device),
        hint: Some(latents),
        rotary: dit.rotary([2, 8, 8], None, &device),
    };
    dit.forward(&inputs).expect("inputs that fit").sum().backward();
}

fn ar(device: &Device) {
    let config = ArConfig::preset("tiny", 1020).expect("a preset");
    let device = device.clone().autodiff();
    let mut decoder = Ar::init(&config, 1, &device).expect("a sound preset");
    let ids = Tensor::<2, Int>::ones([1, 40], &device);
    let loss = next_id_loss(decoder.forward(ids.clone(), None), ids);
    let mut gradients = Grads::of(&loss, &mut decoder);
    gradients.clip(1.0, |_| true);
    AdamW::new(AdamWConfig::default()).step(&mut decoder, &gradients, 1e-3);
}

/// A prompt, an id, and an id after that, drawn in each of the ways.
fn generation(device: &Device) {
    let config = ArConfig::preset("tiny", 1020).expect("a preset");
    let decoder = Ar::init(&config, 1, device).expect("a sound preset");
    for sampling in [Sampling::GREEDY, Sampling { temperature: 0.8, top_k: 50, top_p: 0.9, seed: 1 }] {
        let (mut cache, mut draws) = (KvCache::new(&config, 1, 12, device), Draws::new(&sampling));
        let mut next = decoder.embed(Tensor::<2, Int>::ones([1, 10], device));
        for _ in 0..2 {
            let [_, length, width] = next.dims();
            let seen = decoder.extend(next, &mut cache).expect("room for 12 positions");
            let logits = decoder.logits(seen.slice([0..1, length - 1..length, 0..width]));
            next = decoder.embed(draws.choose(logits.squeeze_dim(1)).unsqueeze());
        }
    }
}
