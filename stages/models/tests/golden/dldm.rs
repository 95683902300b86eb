//! The dLDM against the recorded ones: all outputs and intermediates, and five training steps.

use burn::tensor::{Device, Int, Tensor};
use vw2_models::Error;
use vw2_models::dldm::{Dldm, DldmConfig};
use vw2_models::nn::Tap;
use vw2_models::train::{AdamW, AdamWConfig, Grads};
use vw2_models::weights::{Weights, collect};

use crate::harness::{Mids, Report, cases, config, open, parts, weights};

const ENCODED: f64 = 1e-5;
const DECODED: f64 = 5e-5;
const LOSS: f64 = 1e-5;
const GRADIENTS: f64 = 3e-4;
const LATER: f64 = 2e-3;
/// Where a code may legitimately flip, as some value lies almost on a tie.
const FLIPPED: f64 = 1e-2;

#[test]
fn dldms_are_the_recorded_ones() {
    let (mut compared, mut unsupported) = (0, 0);
    for case in cases("dldm_") {
        let mut report = Report::new(&case);
        for part in parts(&case, "io") {
            let golden = open(&case, &part);
            match load(&case, &golden, &Device::flex()) {
                Ok(dldm) => {
                    outputs(&golden, &dldm, &mut report);
                    report.nothing_left_out(&golden, |name| name == "in.x");
                }
                Err(Error::Unsupported(what)) => {
                    eprintln!("{case:14} {part}: not supported: {what}");
                    unsupported += 1;
                    continue;
                }
                Err(error) => panic!("{case}: {error}"),
            }
            compared += 1;
        }
        for part in parts(&case, "train") {
            let golden = open(&case, &part);
            training(&golden, load(&case, &golden, &Device::flex().autodiff()).unwrap(), &mut report);
            let inputs = ["in.x", "out.fsq_margin"];
            report.nothing_left_out(&golden, |name| name.starts_with("cfg.") || inputs.contains(&name));
            compared += 1;
        }
        report.finish();
    }
    eprintln!("dldm: {compared} files compared, {unsupported} not supported");
    assert!(compared > 0, "no dLDM could be compared");
}

fn load(case: &str, golden: &Weights, device: &Device) -> Result<Dldm, Error> {
    Dldm::load_as(&config::<DldmConfig>(golden), &weights(case), device)
}

/// `[B, N, D]` as recorded, `[B, D, N, 1, 1]`.
fn recorded_layout(x: Tensor<3>) -> Tensor<5> {
    let [b, n, d] = x.dims();
    x.swap_dims(1, 2).reshape([b, d, n, 1, 1])
}

fn outputs(golden: &Weights, dldm: &Dldm, report: &mut Report) {
    let x = golden.tensor::<5>("in.x", &Device::flex()).unwrap();
    let mut mids = Mids::new(golden, "");
    let mut see = |name: &str, data| mids.see(name, data);
    let mut tap = Tap::new(&mut see);
    let encoded = dldm.encode_tapped(x.clone(), &mut tap).unwrap();
    let recon = dldm.decode_tapped(encoded.codes.clone(), encoded.first(), &mut tap).unwrap();

    report.tensor(golden, "out.h", encoded.h.clone(), ENCODED);
    report.tensor(golden, "out.query", recorded_layout(encoded.query.clone()), ENCODED);
    report.tensor(golden, "out.codes", recorded_layout(encoded.codes.clone()), ENCODED);
    report.equal("out.indices", integers(encoded.indices.clone()), golden.i64s("out.indices").unwrap());
    report.tensor(golden, "out.recon", recon, DECODED);
    let post = dldm.post_quantise(encoded.codes.clone()).unwrap().swap_dims(1, 2);
    report.tensor(golden, "out.post_quant", post, ENCODED);
    report.tensor(golden, "out.dit_tokens", dldm.condition(encoded.codes.clone()).unwrap(), ENCODED);
    mids.compare(report, |name| if name.starts_with("mid.decoder") { DECODED } else { ENCODED });

    // What a rollout has: indices and one image.
    let image = x.narrow(2, 0, 1);
    let from_indices = dldm.codes_of(encoded.indices);
    let again = dldm.decode(from_indices, dldm.first_frame_feature(image).unwrap()).unwrap();
    report.tensor(golden, "out.recon", again, DECODED);
}

fn integers(x: Tensor<2, Int>) -> Vec<i64> {
    x.into_data().convert::<i64>().try_into_vec().unwrap()
}

fn training(golden: &Weights, mut dldm: Dldm, report: &mut Report) {
    let x = golden.tensor::<5>("in.x", &Device::flex().autodiff()).unwrap();
    let number = |name: &str| golden.f64s(name).unwrap()[0];
    let (losses, norms) = (golden.f64s("out.losses").unwrap(), golden.f64s("out.grad_norms").unwrap());
    let aliased = first_step_is_aliased(golden, losses.len());
    let mut tolerance = LATER;
    let margin = golden.f64s("out.fsq_margin").unwrap();
    let mut optimizer = AdamW::new(AdamWConfig {
        beta1: number("cfg.beta1"),
        beta2: number("cfg.beta2"),
        eps: number("cfg.eps"),
        weight_decay: number("cfg.weight_decay"),
    });
    for step in 0..losses.len() {
        let (recon, encoded) = dldm.reconstruct(x.clone()).unwrap();
        let loss = (recon - x.clone()).abs().mean();
        let value = f64::from(loss.clone().into_scalar::<f32>());
        let grads = Grads::of(&loss, &mut dldm);
        let norm = grads.norm(|_| true);
        if step == 0 {
            report.equal("out.indices", integers(encoded.indices), golden.i64s("out.indices").unwrap());
            report.values(golden, "out.loss", [value], LOSS);
            report.values(golden, "out.grad_norm", [norm], GRADIENTS);
            for name in golden.names().filter_map(|name| name.strip_prefix("grad.")) {
                let Some(grad) = grads.get(name) else {
                    report.fault(format!("no gradient for `{name}`"));
                    continue;
                };
                let values: Vec<f32> = grad.to_data().try_into_vec().unwrap();
                report.values(golden, &format!("grad.{name}"), values.into_iter().map(f64::from), GRADIENTS);
            }
        }
        // Once a code could flip, all that follows depends on it.
        tolerance = if step > 0 && margin[step] < 1e-3 { FLIPPED } else { tolerance };
        report.pairs("out.losses", vec![value], vec![losses[step]], tolerance);
        report.pairs("out.grad_norms", vec![norm], vec![norms[step]], tolerance);
        optimizer.step(&mut dldm, &grads, number("cfg.lr"));
        let mut names = vec![format!("param_after_step{}.", step + 1)];
        if aliased {
            match step {
                0 => names.clear(),
                _ if step + 1 == losses.len() => names.push("param_after_step1.".to_owned()),
                _ => {}
            }
        }
        for (name, data) in collect(&dldm) {
            for recorded in names.iter().map(|prefix| format!("{prefix}{name}")).filter(|name| golden.contains(name)) {
                report.data(golden, &recorded, &data, LATER);
            }
        }
    }
}

/// Whether the parameters recorded as those after step 1 are in truth those after the last step: some recordings kept a
/// reference instead of a copy. It shows where both are recorded of one parameter, and are equal to the bit.
fn first_step_is_aliased(golden: &Weights, steps: usize) -> bool {
    let mut both = golden.names().filter_map(|name| {
        let last = format!("param_after_step{steps}.{}", name.strip_prefix("param_after_step1.")?);
        golden.contains(&last).then(|| golden.f32s(name).unwrap() == golden.f32s(&last).unwrap())
    });
    both.next().is_some_and(|first| first && both.all(|equal| equal))
}
