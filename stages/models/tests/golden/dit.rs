//! `dit*` and `rope*`: the diffusion transformer, its control branch, its loss, guided sampling; rotary angles.

use burn::tensor::{Device, Tensor};
use vw2_models::dit::{Conditions, Denoiser, DitConfig, Guidance, Inputs, VideoDit, flow_loss, positions, sinusoid};
use vw2_models::nn::{Rotary, Tap};
use vw2_models::sampler::{Solver, Trajectory};
use vw2_models::train::Grads;
use vw2_models::weights::{Weights, load};

use super::harness::{Mids, Report, cases, config, folder, open, parts};

const ACTIVATIONS: f64 = 1e-5;
const GRADIENTS: f64 = 1e-4;
const SAMPLING: f64 = 1e-4;

#[test]
fn video_to_world() {
    for case in cases("dit_v2w").into_iter().chain(cases("dit_ctrl")) {
        let golden = open(&case, "io");
        let mut report = Report::new(&case);
        let case = Case::new(&case, &golden);
        denoising(&case, &mut report);
        direct(&case, &mut report);
        loss(&case, &mut report);
        sampling(&case, &mut report);
        let input = |name: &str| ["in.", "sample.in.", "cfg."].iter().any(|start| name.starts_with(start));
        let known = ["direct.timesteps", "sample.sigmas", "sample.guidance"];
        // The mids' comparison is by their own list; rotary tables go with them.
        report.nothing_left_out(&golden, |name| input(name) || known.contains(&name));
        report.finish();
    }
}

/// A recorded network with its inputs.
struct Case<'a> {
    golden: &'a Weights,
    config: DitConfig,
    base: Weights,
    branch: Option<Weights>,
}

impl<'a> Case<'a> {
    fn new(case: &str, golden: &'a Weights) -> Case<'a> {
        let mut config: DitConfig = config(golden);
        if golden.contains("cfg.crossattn_len") {
            config.context_tokens = golden.i64s("cfg.crossattn_len").unwrap()[0] as usize;
        }
        let branch = parts(case, "weights_ctrl").pop();
        let branch = branch.map(|part| Weights::open(folder().join(format!("{case}.{part}.safetensors"))).unwrap());
        Case { golden, config, base: open(case, "weights"), branch }
    }

    /// The base and the branch are files with the same names, so each is loaded into its part.
    fn network(&self, device: &Device) -> VideoDit {
        let mut dit = VideoDit::new(&self.config, device, 0).unwrap();
        let (base, branch) = dit.parts();
        load(base, &self.base, "").unwrap();
        if let (Some(branch), Some(weights)) = (branch, &self.branch) {
            load(branch, weights, "").unwrap();
        }
        dit
    }

    fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        self.golden.tensor(name, device).unwrap()
    }

    fn sigmas(&self) -> Vec<f64> {
        self.golden.f64s("in.sigma_B_T").unwrap()
    }

    fn conditions(&self, device: &Device) -> Conditions {
        let golden = self.golden;
        Conditions {
            clean: self.tensor("in.x0", device),
            given: golden.i64s("cfg.num_conditional_frames").unwrap()[0] as usize,
            hint: golden.contains("in.hint").then(|| self.tensor("in.hint", device)),
            padding: golden.contains("in.padding_mask").then(|| self.tensor("in.padding_mask", device)),
            fps: golden.contains("in.fps").then(|| golden.f64s("in.fps").unwrap()[0]),
        }
    }
}

fn denoising(case: &Case<'_>, report: &mut Report) {
    let (golden, device) = (case.golden, Device::flex());
    let dit = case.network(&device);
    let denoiser = Denoiser::new(&dit, case.conditions(&device)).unwrap();
    let x: Tensor<5> = case.tensor("in.xt", &device);
    let mut mids = Mids::new(golden, "");
    let clean = {
        let mut see = |name: &str, data| mids.see(name, data);
        let context = case.tensor("in.crossattn_tokens", &device);
        denoiser.clean_tapped(x.clone(), &case.sigmas(), context, &mut Tap::new(&mut see)).unwrap()
    };
    let [_, _, t, h, w] = x.dims();
    let rotary = dit.rotary([t, h, w], None, &device);
    let column = |x: Tensor<2>| x.unsqueeze_dim::<3>(1).unsqueeze_dim::<4>(1).into_data();
    mids.see("rope_cos", column(rotary.cos));
    mids.see("rope_sin", column(rotary.sin));
    let p = case.config.patch_spatial;
    let angles = positions(&case.config, [t / case.config.patch_temporal, h / p, w / p], None);
    let angles = angles.chunks(case.config.head_size() / 2).flat_map(|row| row.iter().chain(row).copied());
    let angles: Vec<f32> = angles.collect();
    let tokens = angles.len() / case.config.head_size();
    mids.see("rope_freqs", burn::tensor::TensorData::new(angles, [tokens, 1, 1, case.config.head_size()]));
    mids.compare(report, |_| ACTIVATIONS);

    report.tensor(golden, "out.x0_pred", clean.clone(), ACTIVATIONS);
    // Clips of one batch with one noise level each.
    let sigma = case.sigmas()[0];
    report.tensor(golden, "out.eps_pred", (x - clean) / sigma, ACTIVATIONS);
}

/// The network alone, without control.
fn direct(case: &Case<'_>, report: &mut Report) {
    let device = Device::flex();
    let x: Tensor<5> = case.tensor("in.xt", &device);
    let [_, _, t, h, w] = x.dims();
    let conditions = case.conditions(&device);
    let dit = case.network(&device);
    let output = dit.forward(&Inputs {
        x,
        times: case.tensor("direct.timesteps", &device),
        mask: Some(case.tensor("in.condition_mask", &device)),
        padding: conditions.padding,
        context: case.tensor("in.crossattn_tokens", &device),
        hint: None,
        rotary: dit.rotary([t, h, w], conditions.fps, &device),
    });
    report.tensor(case.golden, "direct.out", output.unwrap(), ACTIVATIONS);
}

fn loss(case: &Case<'_>, report: &mut Report) {
    let (golden, device) = (case.golden, Device::flex().autodiff());
    let mut dit = case.network(&device);
    let clean: Tensor<5> = case.tensor("in.x0", &device);
    let context = case.tensor::<3>("in.crossattn_tokens", &device).require_grad();
    let sigmas = case.sigmas();
    let predicted = {
        let denoiser = Denoiser::new(&dit, case.conditions(&device)).unwrap();
        denoiser.clean(case.tensor("in.xt", &device), &sigmas, context.clone()).unwrap()
    };
    let per_frame = flow_loss(clean.clone(), predicted.clone(), &sigmas);
    let weight = sigmas.iter().map(|&sigma| vw2_models::sampler::Scaling::TRAINING.loss_weight(sigma));
    report.values(golden, "loss.weights_per_sigma", weight, ACTIVATIONS);
    report.tensor(golden, "loss.edm_per_frame", per_frame.clone(), ACTIVATIONS);
    report.values(golden, "loss.mse", number((clean - predicted).square().mean()), ACTIVATIONS);
    report.values(golden, "loss.edm", number(per_frame.clone().mean()), ACTIVATIONS);
    let total = per_frame.mean() * 10.0;
    report.values(golden, "loss.total_x10", number(total.clone()), ACTIVATIONS);

    let mut gradients = total.backward();
    let of_context = context.grad(&gradients).unwrap();
    report.tensor(golden, "loss.grad.crossattn_tokens", of_context, GRADIENTS);
    let grads = Grads::take(&mut gradients, &mut dit);
    report.values(golden, "loss.grad_norm", [grads.norm(|_| true)], GRADIENTS);
    for (start, part) in [("loss.grad.", "net."), ("loss.grad_ctrl.", "net_ctrl.")] {
        let names = golden.names().filter_map(|name| name.strip_prefix(start));
        for name in names.filter(|name| *name != "crossattn_tokens") {
            let grad = grads.get(&format!("{part}{name}")).unwrap_or_else(|| panic!("no gradient for `{part}{name}`"));
            let values: Vec<f32> = grad.to_data().try_into_vec().unwrap();
            report.values(golden, &format!("{start}{name}"), values.into_iter().map(f64::from), GRADIENTS);
        }
    }
}

fn number(loss: Tensor<1>) -> [f64; 1] {
    [f64::from(loss.into_scalar::<f32>())]
}

/// The released loop in a few steps, with both passes of guidance one by one and in one batch.
fn sampling(case: &Case<'_>, report: &mut Report) {
    let (golden, device) = (case.golden, Device::flex());
    let dit = case.network(&device);
    let denoiser = Denoiser::new(&dit, case.conditions(&device)).unwrap();
    let context: Tensor<3> = case.tensor("in.crossattn_tokens", &device);
    let sigmas = golden.f64s("sample.sigmas").unwrap();
    let noise = golden.f32s("sample.in.noise").unwrap();
    let shape = golden.shape("sample.in.noise").unwrap().to_vec();
    for batched in [false, true] {
        let guidance = Guidance {
            weight: golden.f64s("sample.guidance").unwrap()[0],
            context: case.tensor("sample.in.neg_tokens", &device),
            batched,
        };
        let mut cleans = Vec::new();
        let mut model = |x: &[f32], sigma: f64| {
            let x = Tensor::from_data(burn::tensor::TensorData::new(x.to_vec(), shape.clone()), &device);
            let clean = denoiser.guided(x, sigma, context.clone(), &guidance)?;
            let clean: Vec<f32> = clean.into_data().try_into_vec().unwrap();
            cleans.push(clean.clone());
            Ok::<_, vw2_models::Error>(clean)
        };
        let start = noise.iter().map(|noise| noise * sigmas[0] as f32).collect();
        let mut path = Trajectory::new(Solver::AdamsBashforth2, sigmas.clone(), start);
        let mut states = Vec::new();
        while path.step(&mut model).unwrap() {
            states.push(path.state().to_vec());
        }
        let end = path.finish(&mut model).unwrap();
        let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<f64>>();
        for (step, state) in states.iter().enumerate() {
            report.values(golden, &format!("sample.step{step}.x"), wide(state), SAMPLING);
            report.values(golden, &format!("sample.step{step}.x0"), wide(&cleans[step]), SAMPLING);
        }
        report.values(golden, "sample.final", wide(&end), SAMPLING);
    }
}

/// The variants that VideoWorld 2 does not use: an image network, and causal cross-attention.
#[test]
fn variants() {
    let found = |prefix: &str| parts(prefix, "io").pop().map(|_| prefix.to_owned());
    for case in ["dit_t2i", "dit_causal"].into_iter().filter_map(found) {
        let (golden, device) = (open(&case, "io"), Device::flex());
        let mut report = Report::new(&case);
        let mut config: DitConfig = config(&golden);
        config.condition_mask = golden.contains("in.condition_mask");
        config.context_tokens = golden.shape("in.crossattn").unwrap()[1];
        let case = Case { config, ..Case::new(&case, &golden) };
        let dit = case.network(&device);
        let x: Tensor<5> = case.tensor("in.x", &device);
        let [_, _, t, h, w] = x.dims();
        let times: Tensor<2> = case.tensor("in.timesteps", &device);
        let context: Tensor<3> = case.tensor("in.crossattn", &device);
        let inputs = Inputs {
            times: times.repeat_dim(1, t),
            mask: case.config.condition_mask.then(|| case.tensor("in.condition_mask", &device)),
            padding: golden.contains("in.padding_mask").then(|| case.tensor("in.padding_mask", &device)),
            hint: None,
            rotary: dit.rotary([t, h, w], None, &device),
            context,
            x,
        };
        let mut mids = Mids::new(&golden, "");
        let output = {
            let mut see = |name: &str, data| mids.see(name, data);
            dit.forward_tapped(&inputs, &mut Tap::new(&mut see)).unwrap()
        };
        let head = case.config.head_size();
        let p = case.config.patch_spatial;
        let angles = positions(&case.config, [t, h / p, w / p], None);
        let angles: Vec<f32> = angles.chunks(head / 2).flat_map(|row| row.iter().chain(row).copied()).collect();
        mids.see("rope_freqs", burn::tensor::TensorData::new(angles, [t * h * w / p / p, 1, 1, head]));
        mids.compare(&mut report, |_| ACTIVATIONS);
        report.tensor(&golden, "out", output, ACTIVATIONS);
        report.nothing_left_out(&golden, |name| name.starts_with("in."));
        report.finish();
    }
}

#[test]
fn rotary_and_times() {
    for case in cases("rope") {
        let (golden, device) = (open(&case, ""), Device::flex());
        let mut report = Report::new(&case);
        let kinds: Vec<String> =
            golden.names().filter_map(|name| Some(name.strip_suffix(".freqs")?.to_owned())).collect();
        for kind in kinds {
            let field = |key: &str| -> f64 {
                let part = kind.split('_').find_map(|part| part.strip_prefix(key));
                part.unwrap_or_else(|| panic!("`{kind}` names no {key}")).parse().unwrap()
            };
            let [t, h, w] = ["T", "H", "W"].map(|key| field(key) as usize);
            let ratios = golden.f64s(&format!("{kind}.extrapolation_hwt")).unwrap();
            let config = DitConfig {
                num_heads: 1,
                model_channels: field("hd") as usize,
                rope_h_extrapolation_ratio: ratios[0],
                rope_w_extrapolation_ratio: ratios[1],
                rope_t_extrapolation_ratio: ratios[2],
                rope_enable_fps_modulation: field("mod") != 0.0,
                ..DitConfig::preset("tiny").unwrap()
            };
            let angles = positions(&config, [t, h, w], Some(field("fps")));
            let head = config.head_size();
            let twice = angles.chunks(head / 2).flat_map(|row| row.iter().chain(row).copied().map(f64::from));
            report.values(&golden, &format!("{kind}.freqs"), twice, 1e-6);
            let q: Tensor<4> = golden.tensor(&format!("{kind}.in.q"), &device).unwrap();
            let turned = Rotary::new(angles, t * h * w, &device).turn(q.swap_dims(1, 2)).swap_dims(1, 2);
            report.tensor(&golden, &format!("{kind}.out.q_rot"), turned, ACTIVATIONS);
        }
        let times: Tensor<2> = golden.tensor("timesteps.in", &device).unwrap();
        report.tensor(&golden, "timesteps.out64", sinusoid(times.clone(), 64), 1e-6);
        let wide: Vec<f32> = sinusoid(times, 2048).into_data().try_into_vec().unwrap();
        let every = wide.into_iter().step_by(32).map(f64::from);
        report.values(&golden, "timesteps.out2048", every, 1e-6);
        let input = |name: &str| {
            name.contains("in.")
                || name.ends_with("_range")
                || name.ends_with("extrapolation_hwt")
                || name == "timesteps.in"
        };
        report.nothing_left_out(&golden, input);
        report.finish();
    }
}
