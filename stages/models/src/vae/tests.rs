use burn::tensor::{DType, Distribution, Tolerance};
use tempfile::TempDir;

use super::*;
use crate::weights::{SaveType, save_model};

fn small() -> VaeConfig {
    VaeConfig { dim: 4, z_dim: 3, ..VaeConfig::preset("tiny").unwrap() }
}

fn clip(shape: [usize; 5], seed: u64) -> Tensor<5> {
    let device = Device::flex();
    device.seed(seed);
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &device)
}

fn close(ours: Tensor<5>, expected: Tensor<5>) {
    ours.into_data().assert_approx_eq::<f32>(&expected.into_data(), Tolerance::rel_abs(1e-4, 1e-4));
}

#[test]
fn windows_and_the_whole_clip_give_the_same() {
    let vae = Vae::new(&small(), &Device::flex(), 5).unwrap();
    for (seed, shape) in
        [[1, 3, 17, 8, 16], [2, 3, 5, 16, 8], [1, 3, 1, 8, 8], [1, 3, 13, 8, 8]].into_iter().enumerate()
    {
        let x = clip(shape, seed as u64);
        let (whole, _) = vae.moments(x.clone()).unwrap();
        assert_eq!(whole.dims(), [shape[0], 3, 1 + (shape[2] - 1) / 4, shape[3] / 8, shape[4] / 8]);
        for window in [4, 8, 16] {
            close(vae.mu_in_windows(x.clone(), window, &mut Tap::off()).unwrap(), whole.clone());
        }
        let frames = vae.decode_means(whole.clone()).unwrap();
        assert_eq!(frames.dims(), shape);
        close(vae.decode(vae.normalise(whole)).unwrap(), frames);
    }
}

#[test]
fn the_first_latent_depends_on_the_first_frame_alone() {
    let vae = Vae::new(&small(), &Device::flex(), 5).unwrap();
    let (a, b) = (clip([1, 3, 9, 8, 8], 1), clip([1, 3, 9, 8, 8], 2));
    let mixed = Tensor::cat(vec![a.clone().narrow(2, 0, 1), b.narrow(2, 1, 8)], 2);
    let [first, again] = [a.clone().narrow(2, 0, 1), mixed].map(|x| vae.encode(x).unwrap().narrow(2, 0, 1));
    close(again, first);
}

#[test]
fn latent_statistics_scale_the_latents_and_are_undone_by_decoding() {
    let vae = Vae::new(&small(), &Device::flex(), 5).unwrap();
    let x = clip([1, 3, 5, 8, 8], 3);
    let mu = vae.mu(x.clone()).unwrap();
    let frames = vae.decode(mu.clone()).unwrap();
    let vae = vae.with_latent_statistics(vec![1.0, 0.0, -2.0], vec![2.0, 1.0, 0.5]).unwrap();
    let z = vae.encode(x).unwrap();
    close(z.clone().narrow(1, 0, 1), (mu.clone().narrow(1, 0, 1) - 1.0) / 2.0);
    close(z.clone().narrow(1, 2, 1), (mu.narrow(1, 2, 1) + 2.0) / 0.5);
    close(vae.decode(z).unwrap(), frames);
    let device = Device::flex();
    assert!(Vae::new(&small(), &device, 0).unwrap().with_latent_statistics(vec![0.0], vec![1.0]).is_err());
    assert!(Vae::new(&small(), &device, 0).unwrap().with_latent_statistics(vec![], vec![1.0, 0.0, 1.0]).is_err());
}

#[test]
fn sizes_that_do_not_fit_are_errors_that_say_what_to_do() {
    let vae = Vae::new(&small(), &Device::flex(), 0).unwrap();
    let cases = [
        ([1, 3, 16, 8, 8], "16 frames; 1 + 4k are wanted, so cut to 13"),
        ([1, 3, 5, 12, 8], "8x12 pixels; width and height must be multiples of 8, so resize"),
        ([1, 4, 5, 8, 8], "4 colour channels; 3 are wanted"),
    ];
    for (shape, message) in cases {
        let error = vae.encode(clip(shape, 0)).unwrap_err().to_string();
        assert_eq!(error, format!("vae: the clip has {message}"));
    }
    assert!(vae.decode(clip([1, 16, 2, 1, 1], 0)).unwrap_err().to_string().contains("3 channels"));
    assert!(vae.mu_in_windows(clip([1, 3, 5, 8, 8], 0), 6, &mut Tap::off()).is_err());
}

type Change = fn(&mut VaeConfig);

#[test]
fn configurations_are_checked() {
    let cases: [(Change, &str); 4] = [
        (|c| c.dim = 0, "at least 1"),
        (|c| c.temporal_downsample.truncate(1), "one entry less"),
        (|c| c.temporal_window = 6, "multiple of 4"),
        (|c| c.latent_mean = vec![0.0], "z_dim = 3"),
    ];
    for (change, message) in cases {
        let mut config = small();
        change(&mut config);
        let error = Vae::new(&config, &Device::flex(), 0).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let error = VaeConfig::preset("huge").unwrap_err().to_string();
    assert_eq!(error, "configuration: there is no preset `huge`; take one of released, tiny");
}

#[test]
fn the_tiny_preset_fits_into_the_repository_and_loads_with_its_own_configuration() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("vae.safetensors");
    let vae = Vae::new(&VaeConfig::preset("tiny").unwrap(), &Device::flex(), 1).unwrap();
    save_model(&path, &vae, vae.config(), SaveType::F16).unwrap();
    let size_bytes = std::fs::metadata(&path).unwrap().len();
    assert!(size_bytes < 6_000_000, "{size_bytes}");
    let loaded = Vae::load(&Weights::open(&path).unwrap(), &Device::flex()).unwrap();
    assert_eq!(loaded.config(), vae.config());
}

#[test]
fn bf16_keeps_what_its_bits_can_hold() {
    let vae = Vae::new(&small(), &Device::flex(), 5).unwrap();
    let x = clip([1, 3, 9, 16, 16], 3);
    let latents = vae.encode(x.clone()).unwrap();
    let short = vae.encode(x.cast(DType::BF16)).unwrap();
    assert_eq!(short.dtype(), DType::BF16);
    let apart = |a: Tensor<5>, b: Tensor<5>| -> f32 { ((a - b.clone()).abs().mean() / b.abs().mean()).into_scalar() };
    let difference = apart(short.clone().cast(DType::F32), latents.clone());
    assert!(difference > 0.0 && difference < 0.02, "latents: {difference}");
    let frames = vae.decode(latents).unwrap();
    let difference = apart(vae.decode(short).unwrap().cast(DType::F32), frames);
    assert!(difference > 0.0 && difference < 0.04, "frames: {difference}");
}
