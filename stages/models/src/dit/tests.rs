use burn::tensor::{DType, Device, Distribution, Tensor};

use super::*;
use crate::weights::{collect, to_safetensors};

const SIZE: [usize; 3] = [3, 4, 6];

fn config() -> DitConfig {
    DitConfig {
        num_blocks: 3,
        model_channels: 32,
        num_heads: 2,
        adaln_lora_dim: 8,
        ..DitConfig::preset("tiny").unwrap()
    }
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

fn latents() -> Tensor<5> {
    random([1, 16, SIZE[0], SIZE[1], SIZE[2]])
}

fn conditions(given: usize, hint: bool) -> Conditions {
    Conditions { clean: latents(), given, hint: hint.then(latents), padding: None, fps: None }
}

/// A network all of whose parts have a say: fresh ones end in zeros.
fn shaken(config: &DitConfig) -> VideoDit {
    struct Shake;
    impl Visitor for Shake {
        fn param<const D: usize>(&mut self, _: &str, param: &mut burn::module::Param<Tensor<D>>) {
            let value = param.val();
            let noise = Tensor::random(value.dims(), Distribution::Normal(0.0, 0.1), &value.device());
            *param = burn::module::Param::initialized(param.id, value + noise);
        }
    }
    let mut dit = VideoDit::new(config, &Device::flex(), 1).unwrap();
    dit.walk(&mut Names::new(&mut Shake));
    dit
}

fn difference(a: Tensor<5>, b: Tensor<5>) -> f32 {
    (a - b).abs().max().into_scalar()
}

#[test]
fn a_fresh_branch_adds_nothing_and_a_trained_one_does() {
    let with = |dit: &VideoDit, conditions: &Conditions| {
        let x = latents();
        let context = random([1, 5, 96]);
        let clean = |conditions: Conditions| {
            Denoiser::new(dit, conditions).unwrap().clean(x.clone(), &[2.0], context.clone()).unwrap()
        };
        difference(clean(conditions.clone()), clean(Conditions { hint: None, ..conditions.clone() }))
    };
    let base = shaken(&DitConfig { control_blocks: 0, ..config() });
    let fresh = base.clone().with_fresh_branch(2, &Device::flex(), 5).unwrap();
    assert_eq!(with(&fresh, &conditions(1, true)), 0.0);
    assert!(with(&shaken(&config()), &conditions(1, true)) > 1e-3);
    assert!(base.with_fresh_branch(4, &Device::flex(), 5).unwrap_err().to_string().contains("at most num_blocks"));
}

#[test]
fn guidance_of_zero_is_the_conditional_pass_and_batching_changes_nothing() {
    let dit = shaken(&config());
    let denoiser = Denoiser::new(&dit, conditions(1, true)).unwrap();
    let (x, context, other) = (latents(), random([1, 5, 96]), random([1, 9, 96]));
    let guided = |weight, batched| {
        let guidance = Guidance { weight, context: other.clone(), batched };
        denoiser.guided(x.clone(), 3.0, context.clone(), &guidance).unwrap()
    };
    let conditional = denoiser.clean(x.clone(), &[3.0], context.clone()).unwrap();
    assert_eq!(difference(guided(0.0, true), conditional.clone()), 0.0);
    assert!(difference(guided(7.0, false), guided(7.0, true)) < 1e-4);
    assert!(difference(guided(7.0, false), conditional) > 1e-3);
}

#[test]
fn given_frames_stay_as_they_are() {
    let dit = shaken(&config());
    for given in 0..=SIZE[0] {
        let conditions = conditions(given, false);
        let clean = conditions.clean.clone();
        let denoised = Denoiser::new(&dit, conditions).unwrap().clean(latents(), &[5.0], random([1, 4, 96])).unwrap();
        for frame in 0..SIZE[0] {
            let at = |x: &Tensor<5>| x.clone().narrow(2, frame, 1);
            assert_eq!(difference(at(&clean), at(&denoised)) == 0.0, frame < given, "frame {frame} of {given} given");
        }
    }
}

#[test]
fn wrong_shapes_are_named() {
    let dit = shaken(&config());
    let denoiser = Denoiser::new(&dit, conditions(1, false)).unwrap();
    let error = |x: Tensor<5>, sigmas: &[f64], context| denoiser.clean(x, sigmas, context).unwrap_err().to_string();
    let context = || random([1, 5, 96]);
    assert!(error(random([1, 16, 3, 4, 4]), &[1.0], context()).contains("is conditioned"));
    assert!(error(latents(), &[1.0, 2.0], context()).contains("2 noise levels"));
    assert!(error(latents(), &[1.0], random([1, 5, 90])).contains("a context of shape [1, 5, 90]"));
    assert!(error(latents(), &[1.0], random([1, 33, 96])).contains("at most 32"));
    let too_many = Denoiser::new(&dit, conditions(4, false)).unwrap_err().to_string();
    assert!(too_many.contains("4 latent frames are given, but a clip has 3"), "{too_many}");
}

#[test]
fn files_with_and_without_a_branch_load() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dit.safetensors");
    let written = |tensors: &[(String, burn::tensor::TensorData)]| {
        std::fs::write(&path, to_safetensors(tensors, &Default::default(), crate::weights::SaveType::F32).unwrap())
            .unwrap();
        VideoDit::load_as(&config(), &Weights::open(&path).unwrap(), &Device::flex())
    };
    let dit = shaken(&config());
    let all = collect(&dit);
    let bytes = |tensors: &[(String, burn::tensor::TensorData)]| -> Vec<(String, Vec<u8>)> {
        tensors.iter().map(|(name, data)| (name.clone(), data.as_bytes().to_vec())).collect()
    };
    assert!(bytes(&all) == bytes(&collect(&written(&all).unwrap())), "base and branch");

    // Upstream's script puts the branch's own tensors beside the base's.
    let beside = all.iter().filter(|(name, _)| !name.starts_with("net_ctrl.")).cloned();
    let branch = all.iter().filter_map(|(name, data)| Some((name.strip_prefix("net_ctrl.")?, data)));
    let branch = branch.filter(|(name, _)| BRANCH.iter().any(|part| name.starts_with(part)));
    let beside: Vec<_> = beside.chain(branch.map(|(name, data)| (format!("net.{name}"), data.clone()))).collect();
    let augmented = written(&beside).unwrap();
    assert_eq!(augmented.config().control_blocks, 2);
    let names = |dit: &VideoDit| collect(dit).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(&augmented), names(&dit));

    let base: Vec<_> = all.iter().filter(|(name, _)| name.starts_with("net.")).cloned().collect();
    assert_eq!(written(&base).unwrap().config().control_blocks, 0);
    let error = written(&base[..base.len() - 1]).unwrap_err().to_string();
    assert!(error.contains("1 missing"), "{error}");
}

#[test]
fn bf16_keeps_what_its_bits_can_hold() {
    let dit = shaken(&config());
    let (conditions, x, context) = (conditions(1, true), latents(), random([1, 5, 96]));
    let clean = |arithmetic| {
        let denoiser = Denoiser::new(&dit, conditions.clone()).unwrap().computing_in(arithmetic);
        denoiser.clean(x.clone(), &[2.0], context.clone()).unwrap()
    };
    let (wide, short) = (clean(DType::F32), clean(DType::BF16));
    let difference: f32 = ((short - wide.clone()).abs().mean() / wide.abs().mean()).into_scalar();
    assert!(difference > 0.0 && difference < 0.02, "{difference}");
}
