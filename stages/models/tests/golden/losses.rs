//! Losses, metrics and learning rates against the recorded ones.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use vw2_models::dit::hint;
use vw2_models::train::losses::{self, Piecewise, Reconstruction, Reduction};
use vw2_models::train::perceptual::Vgg;
use vw2_models::train::{Schedule, metrics};
use vw2_models::weights::Weights;

use crate::harness::{Report, cases, open};

const TOLERANCE: f64 = 2e-6;
const SSIM_TOLERANCE: f64 = 1e-4;

#[test]
fn losses_are_the_recorded_ones() {
    for case in cases("losses") {
        check(&case);
    }
}

fn check(case: &str) {
    let golden = open(case, "");
    let mut report = Report::new(case);
    let device = Device::flex();
    let clip = |name: &str| golden.tensor::<5>(name, &device).unwrap();
    let (x, recon, mask) = (clip("in.x"), clip("in.recon"), clip("in.mask"));

    // The recorded weights: 1 below iteration 10, 0.5 below 20, then 0.25.
    let weights = Reconstruction {
        color: Piecewise { boundaries: vec![10, 20], values: vec![1.0, 0.5, 0.25] },
        ..Default::default()
    };
    for iteration in [0, 10, 15, 20, 100] {
        let loss = weights.loss(x.clone(), recon.clone(), Some(mask.clone()), iteration);
        report.tensor_scalar(&golden, &format!("color.iter{iteration}.mean"), loss);
    }
    for (name, reduction) in
        [("MEAN", Reduction::Mean), ("SUM", Reduction::Sum), ("SUM_PER_FRAME", Reduction::SumPerFrame)]
    {
        let loss = losses::color(x.clone(), recon.clone(), Some(mask.clone()), reduction);
        report.tensor_scalar(&golden, &format!("color.reduce.{name}"), loss);
    }
    let trained = recon.clone().autodiff().require_grad();
    let loss = losses::color(x.clone().autodiff(), trained.clone(), None, Reduction::Mean);
    let grad = trained.grad(&loss.backward()).unwrap();
    report.tensor(&golden, "color.grad_recon", grad, TOLERANCE);
    report.tensor_scalar(&golden, "color.unmasked.mean", loss);

    let kl = |name| golden.tensor::<4>(name, &device).unwrap();
    let kl = losses::kl(kl("kl.in.mean"), kl("kl.in.logvar"));
    report.tensor(&golden, "kl.unweighted", kl.clone(), TOLERANCE);
    report.tensor(&golden, "kl.weighted", kl.mul_scalar(1e-6), TOLERANCE);

    let count = |name: &str| golden.i64s(name).unwrap()[0] as usize;
    let (frames, step) = (count("consistency.num_frames"), count("consistency.step"));
    report.tensor(&golden, "consistency.shuffled", losses::windows(x.clone(), frames, step), TOLERANCE);
    let windows = losses::consistency(clip("consistency.in.recon"), count("consistency.num_windows"), step);
    report.tensor_scalar(&golden, "consistency.loss", windows.mul_scalar(0.01));

    let features = golden.tensor::<4>("gram.in", &device).unwrap();
    let frames = features.dims()[0] / x.dims()[0];
    report.tensor(&golden, "gram.spatial", losses::gram_spatial(features.clone()), TOLERANCE);
    report.tensor(&golden, "gram.temporal", losses::gram_temporal(features, frames), TOLERANCE);

    // Recorded on both sides of the boundary.
    let flow = Piecewise { boundaries: vec![250_000], values: vec![0.0, 0.01] };
    let weights = [0, 249_999, 250_000, 1_000_000].map(|iteration| flow.at(iteration));
    report.values(&golden, "schedule.flow_default", weights, TOLERANCE);

    let [_, _, _, h, w] = x.dims();
    let [rows, channels, height, width] = golden.shape("resize.out").unwrap().try_into().unwrap();
    let frames = hint::resize(x.clone(), height, width).swap_dims(1, 2).reshape([rows, channels, height, width]);
    report.tensor(&golden, "resize.out", frames, TOLERANCE);
    report.tensor(&golden, "gray.out_pm1", hint::gray(clip("gray.in_255")), TOLERANCE);
    assert_ne!([h, w], [height, width], "the recorded resize keeps the size and shows nothing");

    report.values(&golden, "psnr", [metrics::psnr(x.clone(), recon.clone()).unwrap()], TOLERANCE);
    report.values(&golden, "ssim", [metrics::ssim(x, recon).unwrap()], SSIM_TOLERANCE);
    let codes: Vec<u32> = golden.i64s("usage.in.indices").unwrap().into_iter().map(|code| code as u32).collect();
    report.values(&golden, "usage.perplexity", [metrics::perplexity(&codes)], TOLERANCE);
    report.finish();
}

impl Report {
    /// A loss, which Burn keeps as [1] and the recording as [].
    fn tensor_scalar(&mut self, golden: &Weights, name: &str, ours: Tensor<1>) {
        let ours: f32 = ours.into_scalar();
        self.values(golden, name, [f64::from(ours)], TOLERANCE);
    }
}

/// Recorded by `tests/data/perceptual.py`, with narrow layers.
#[test]
fn the_perceptual_distance_and_its_gradient_are_those_of_torch() {
    let golden =
        Weights::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/perceptual.safetensors")).unwrap();
    let device = Device::flex();
    let vgg = Vgg::load(&golden, &device.clone().autodiff()).unwrap();
    let clip = |name: &str| golden.tensor::<5>(name, &device).unwrap().autodiff();
    let drawn = clip("in.y").require_grad();
    let distance = vgg.distance(clip("in.x"), drawn.clone()).unwrap();
    let mut report = Report::new("perceptual");
    report.tensor(&golden, "grad.y", drawn.grad(&distance.backward()).unwrap(), TOLERANCE);
    report.tensor(&golden, "out.distance", distance, TOLERANCE);
    report.finish();
}

#[test]
fn learning_rates_are_the_recorded_ones() {
    for case in cases("sampler") {
        let golden = open(&case, "");
        if !golden.contains("lr.in.steps") {
            continue;
        }
        let mut report = Report::new(&case);
        let config = golden.f64s("lr.cfg.warmup_cycle_fmax_fmin_fstart").unwrap();
        let (warmup, total) = (config[0] as u64, config[1] as u64);
        let (max, min, start) = (config[2], config[3], config[4]);
        let steps = golden.i64s("lr.in.steps").unwrap();
        for (name, schedule) in [
            ("lr.linear", Schedule::Linear { warmup, total, start, max, min }),
            ("lr.cosine", Schedule::Cosine { warmup, total, start, max, min }),
        ] {
            report.values(&golden, name, steps.iter().map(|&step| schedule.factor(step as u64)), 1e-7);
        }
        report.finish();
    }
}
