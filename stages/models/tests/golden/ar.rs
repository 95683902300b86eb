//! The autoregressive decoder against the recorded ones: outputs, gradients, training, generation.

use std::collections::BTreeSet;

use burn::tensor::{Device, Int, Tensor};
use vw2_models::ar::{Ar, ArConfig, Sampling, Stop, causal_sight, next_id_loss, positions};
use vw2_models::train::{AdamW, AdamWConfig, Grads};
use vw2_models::weights::{Weights, collect};

use crate::harness::{self, Report, cases, integers, open};

const LOGITS: f64 = 1e-5;
const GRADIENTS: f64 = 3e-5;
const TRAINING: f64 = 1e-3;

#[test]
fn decoders_are_the_recorded_ones() {
    for case in cases("ar_") {
        let (golden, weights) = (open(&case, "io"), harness::weights(&case));
        let config = config(&golden);
        let mut report = Report::new(&case);
        outputs(&golden, &Ar::load(&weights, &config, &Device::flex()).unwrap(), &mut report);
        generation(&golden, &Ar::load(&weights, &config, &Device::flex()).unwrap(), &mut report);
        training(&golden, Ar::load(&weights, &config, &Device::flex().autodiff()).unwrap(), &mut report);
        report.finish();
    }
}

/// What of the metadata is the decoder's; a case may say more about itself.
fn config(golden: &Weights) -> ArConfig {
    let known = [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "rms_norm_eps",
        "rope_theta",
        "max_position_embeddings",
        "bias",
        "tie_word_embeddings",
    ];
    let mut entries: serde_json::Map<String, serde_json::Value> = harness::config(golden);
    entries.retain(|key, _| known.contains(&key.as_str()));
    serde_json::from_value(entries.into()).unwrap()
}

fn ids(golden: &Weights, name: &str, device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(integers::<2>(golden, name), device)
}

fn outputs(golden: &Weights, decoder: &Ar, report: &mut Report) {
    let device = Device::flex();
    let input = ids(golden, "in.input_ids", &device);
    let mask = ids(golden, "in.attention_mask", &device);
    let [_, length] = input.dims();

    let rotary = positions(&decoder.config, 0, length, &device);
    report.tensor(golden, "mid.rope_cos", rotary.cos.clone(), LOGITS);
    report.tensor(golden, "mid.rope_sin", rotary.sin.clone(), LOGITS);
    let sight = causal_sight(Some(mask.clone()));
    let mut seen = BTreeSet::from(["mid.rope_cos".to_owned(), "mid.rope_sin".to_owned()]);
    // What stands at padded positions means nothing.
    let mut real = |name: String, ours: Tensor<3>| {
        seen.insert(name.clone());
        if let Some(shape) = golden.shape(&name) {
            assert_eq!(ours.dims()[..], *shape, "{name}");
            let keep = golden.i64s("in.attention_mask").unwrap();
            let real = |values: Vec<f64>| -> Vec<f64> {
                let rows = values.chunks_exact(shape[2]).zip(&keep).filter(|(_, keep)| **keep == 1);
                rows.flat_map(|(row, _)| row.to_vec()).collect()
            };
            let ours: Vec<f32> = ours.into_data().try_into_vec().unwrap();
            let ours = ours.into_iter().map(f64::from).collect();
            report.pairs(&name, real(ours), real(golden.f64s(&name).unwrap()), LOGITS);
        }
    };
    let mut x = decoder.embed(input.clone());
    real("mid.embed.call0".to_owned(), x.clone());
    for (index, layer) in decoder.model.layers.iter().enumerate() {
        let attended = layer.self_attn.forward(layer.input_layernorm.forward(x.clone()), &rotary, &sight);
        real(format!("mid.layers.{index}.self_attn.call0"), attended.clone());
        let fed = layer.mlp.forward(layer.post_attention_layernorm.forward(x.clone() + attended));
        real(format!("mid.layers.{index}.mlp.call0"), fed);
        x = layer.forward(x, &rotary, &sight);
        real(format!("mid.layers.{index}.call0"), x.clone());
    }
    real("mid.norm.call0".to_owned(), decoder.model.norm.forward(x));
    real("out.logits".to_owned(), decoder.forward(input, Some(mask)));
    for name in golden.names().filter(|name| name.starts_with("mid.") && !seen.contains(*name)) {
        report.fault(format!("{name} was recorded, but nothing here corresponds to it"));
    }

    let embeddings = golden.tensor::<3>("embeds.in", &device).unwrap();
    report.tensor(golden, "embeds.out.logits", decoder.forward_embeddings(embeddings, None), LOGITS);
}

fn generation(golden: &Weights, decoder: &Ar, report: &mut Report) {
    let prompt = golden.i64s("gen.in.prompt").unwrap();
    let recorded = golden.i64s("gen.out.ids").unwrap();
    let count = recorded.len() - prompt.len();
    let embedded = decoder.embed(ids(golden, "gen.in.prompt", &Device::flex()));
    let mut steps = Vec::new();
    let look = |_: &[u32], logits: Tensor<2>| {
        steps.extend(logits.to_data().iter::<f64>());
        logits
    };
    let new = decoder.generate(embedded, count, &Sampling::GREEDY, look, |_| Stop::No).unwrap();
    let all: Vec<i64> = prompt.into_iter().chain(new.into_iter().map(i64::from)).collect();
    report.equal("gen.out.ids", all, recorded);
    report.values(golden, "gen.out.step_logits", steps, LOGITS);
}

fn training(golden: &Weights, mut decoder: Ar, report: &mut Report) {
    let device = Device::flex().autodiff();
    let input = |name| ids(golden, name, &device);
    let loss = |decoder: &Ar| {
        let logits = decoder.forward(input("in.input_ids"), Some(input("in.attention_mask")));
        next_id_loss(logits, input("in.labels"))
    };
    let number = |loss: &Tensor<1>| f64::from(loss.clone().into_scalar::<f32>());

    let config = golden.f64s("adamw.cfg.lr_b1_b2_wd_eps_clip").unwrap();
    let (rate, max) = (config[0], config[5]);
    let mut optimizer =
        AdamW::new(AdamWConfig { beta1: config[1], beta2: config[2], weight_decay: config[3], eps: config[4] });
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 0..5 {
        let loss = loss(&decoder);
        losses.push(number(&loss));
        let mut grads = Grads::of(&loss, &mut decoder);
        if step == 0 {
            report.values(golden, "out.loss", [number(&loss)], LOGITS);
            report.values(golden, "out.grad_norm", [grads.norm(|_| true)], GRADIENTS);
            for name in golden.names().filter_map(|name| name.strip_prefix("grad.")) {
                let grad = grads.get(name).unwrap_or_else(|| panic!("no gradient for `{name}`"));
                let values: Vec<f32> = grad.to_data().try_into_vec().unwrap();
                report.values(golden, &format!("grad.{name}"), values.into_iter().map(f64::from), GRADIENTS);
            }
        }
        norms.push(grads.clip(max, |_| true));
        optimizer.step(&mut decoder, &grads, rate);
    }
    losses.push(number(&loss(&decoder)));
    report.values(golden, "adamw.losses", losses, TRAINING);
    report.values(golden, "adamw.grad_norms_preclip", norms, TRAINING);
    let trained = collect(&decoder);
    for recorded in golden.names().filter(|name| name.starts_with("adamw.param_after5.")) {
        let ours = trained.iter().find(|(name, _)| recorded.ends_with(&format!("after5.{name}")));
        let (_, data) = ours.unwrap_or_else(|| panic!("no parameter for `{recorded}`"));
        report.data(golden, recorded, data, TRAINING);
    }
}
