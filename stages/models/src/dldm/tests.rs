use burn::tensor::{DType, Distribution, Tolerance};
use tempfile::TempDir;

use super::*;
use crate::weights::{SaveType, save_model};

fn small() -> DldmConfig {
    DldmConfig {
        channels: 4,
        z_channels: 8,
        encoder_out_dim: 16,
        dit_dim: 8,
        queries: 2,
        ..DldmConfig::preset("tiny").unwrap()
    }
}

fn clip(shape: [usize; 5], seed: u64) -> Tensor<5> {
    let device = Device::flex();
    device.seed(seed);
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &device)
}

fn close<const D: usize>(ours: Tensor<D>, expected: Tensor<D>) {
    ours.into_data().assert_approx_eq::<f32>(&expected.into_data(), Tolerance::rel_abs(1e-4, 1e-4));
}

#[test]
fn every_output_has_its_shape_whatever_the_sizes() {
    let cases = [
        (small(), [2, 3, 9, 16, 32]),
        (DldmConfig { queries: 3, levels: vec![7, 5, 8], embedding_dim: 3, ..small() }, [1, 3, 5, 32, 16]),
        (DldmConfig { patch_size: 2, spatial_compression: 8, resolution: 512, ..small() }, [1, 3, 17, 8, 8]),
        (DldmConfig { patch_method: PatchMethod::Rearrange, num_res_blocks: 2, ..small() }, [1, 3, 5, 16, 16]),
        (DldmConfig { attn_resolutions: vec![128], decoder_attn_resolutions: vec![256], ..small() }, [1, 3, 5, 16, 16]),
    ];
    for (config, shape) in cases {
        let [b, _, t, h, w] = shape;
        let dldm = Dldm::new(&config, &Device::flex(), 3).unwrap();
        let (recon, encoded) = dldm.reconstruct(clip(shape, 1)).unwrap();
        let (k, s) = (config.latent_frames(t), config.spatial_compression);
        let n = config.codes(t);
        assert_eq!(n, config.queries * (k - 1), "{config:?}");
        assert_eq!(encoded.h.dims(), [b, 16, k, h / s, w / s]);
        assert_eq!(encoded.codes.dims(), [b, n, config.embedding_dim]);
        assert_eq!(encoded.indices.dims(), [b, n]);
        assert_eq!(recon.dims(), shape);
        assert_eq!(dldm.condition(encoded.codes.clone()).unwrap().dims(), [b, n, config.dit_dim]);
        close(dldm.codes_of(encoded.indices.clone()), encoded.codes);
        let indices: Vec<i64> = encoded.indices.into_data().convert::<i64>().try_into_vec().unwrap();
        assert!(indices.iter().all(|index| (0..config.codebook_size() as i64).contains(index)), "{indices:?}");
    }
}

#[test]
fn one_image_gives_the_clip_s_first_map_and_early_codes_do_not_see_late_frames() {
    let dldm = Dldm::new(&small(), &Device::flex(), 4).unwrap();
    let (a, b) = (clip([1, 3, 13, 16, 16], 1), clip([1, 3, 13, 16, 16], 2));
    let whole = dldm.encode(a.clone()).unwrap();
    close(dldm.first_frame_feature(a.clone().narrow(2, 0, 1)).unwrap(), whole.first());
    // Frames 0..=4 are latent frames 0 and 1, hence the first pair and its 2 codes.
    let mixed = Tensor::cat(vec![a.narrow(2, 0, 5), b.narrow(2, 5, 8)], 2);
    let mixed = dldm.encode(mixed).unwrap();
    let change = |start, count| {
        let difference = (mixed.query.clone() - whole.query.clone()).narrow(1, start, count);
        difference.abs().max().into_scalar::<f32>()
    };
    assert!(change(0, 2) < 1e-6 && change(2, 4) > 1e-5, "early {}, late {}", change(0, 2), change(2, 4));
}

struct Shake;

impl Visitor for Shake {
    fn param<const D: usize>(&mut self, _: &str, param: &mut burn::module::Param<Tensor<D>>) {
        let value = param.val();
        let noise = Tensor::random(value.dims(), Distribution::Normal(0.0, 0.1), &value.device());
        *param = burn::module::Param::initialized(param.id, value + noise);
    }
}

#[test]
fn a_decoded_frame_does_not_depend_on_later_codes() {
    let mut dldm = Dldm::new(&small(), &Device::flex(), 4).unwrap();
    dldm.walk(&mut Names::new(&mut Shake)); // a fresh one is deaf to codes
    let first = dldm.first_frame_feature(clip([1, 3, 1, 16, 16], 1)).unwrap();
    let decode = |indices: [i64; 4]| {
        let indices = Tensor::from_data([indices], &Device::flex());
        dldm.decode(dldm.codes_of(indices), first.clone()).unwrap()
    };
    let (a, b) = (decode([1, 2, 3, 4]), decode([1, 2, 999, 0]));
    close(a.clone().narrow(2, 0, 5), b.clone().narrow(2, 0, 5));
    assert!((a - b).narrow(2, 5, 4).abs().max().into_scalar::<f32>() > 1e-6);
}

#[test]
fn every_parameter_but_the_connector_s_learns_from_a_reconstruction() {
    let mut dldm = Dldm::new(&small(), &Device::flex().autodiff(), 4).unwrap();
    let x = Tensor::from_data(clip([1, 3, 5, 16, 16], 1).into_data(), &Device::flex().autodiff());
    let (recon, _) = dldm.reconstruct(x.clone()).unwrap();
    let grads = crate::train::Grads::of(&(recon - x).abs().mean(), &mut dldm);
    for (name, _) in crate::weights::shapes(&mut dldm) {
        let wanted = !name.starts_with("quant_to_dit_dim") && !name.contains("wavelets") && !name.contains("gaussian");
        assert_eq!(grads.get(&name).is_some(), wanted, "{name}");
    }
}

#[test]
fn inputs_that_do_not_fit_are_errors_that_say_what_to_do() {
    let dldm = Dldm::new(&small(), &Device::flex(), 0).unwrap();
    let cases = [
        ([1, 3, 1, 16, 16], "dldm: a clip of 1 frame has no codes; take 5 frames or more"),
        ([1, 3, 18, 16, 16], "dldm: the clip has 18 frames; 1 + 4k are wanted, so cut to 17"),
        ([1, 3, 5, 16, 24], "dldm: the clip has 24x16 pixels; width and height must be multiples of 16, so resize"),
    ];
    for (shape, message) in cases {
        assert_eq!(dldm.encode(clip(shape, 0)).unwrap_err().to_string(), message);
    }
    let first = Tensor::zeros([1, 16, 1, 1], &Device::flex());
    let decode = |n, d, first: &Tensor<4>| dldm.decode(Tensor::zeros([1, n, d], &Device::flex()), first.clone());
    for (n, d) in [(3, 4), (0, 4), (4, 3)] {
        let error = decode(n, d, &first).unwrap_err().to_string();
        assert!(error.contains(&format!("{n} codes of {d} dimensions")), "{error}");
    }
    assert!(
        decode(4, 4, &Tensor::zeros([1, 8, 1, 1], &Device::flex())).unwrap_err().to_string().contains("8 channels")
    );
}

type Change = fn(&mut DldmConfig);

#[test]
fn configurations_are_checked_and_unknown_variants_named() {
    let cases: [(Change, &str); 9] = [
        (|c| c.decoder = "LDM".into(), "configuration not supported: decoder=LDM (only LDM_V2)"),
        (|c| c.qformer_type = "QFormerMF".into(), "configuration not supported: qformer_type=QFormerMF"),
        (|c| c.num_groups = 32, "configuration not supported: num_groups=32"),
        (|c| c.queries = 0, "at least 1"),
        (|c| c.patch_size = 3, "powers of two"),
        (|c| c.temporal_compression = 2, "at least patch_size = 4"),
        (|c| c.levels = vec![8, 5], "must be 4 numbers from 2 on"),
        (|c| c.encoder_out_dim = 24, "must be the last level's width 16"),
        (|c| c.spatial_compression = 64, "3 levels cannot hold a compression of 64 in space"),
    ];
    for (change, message) in cases {
        let mut config = small();
        change(&mut config);
        let error = Dldm::new(&config, &Device::flex(), 0).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn the_tiny_preset_fits_into_the_repository_and_loads_with_its_own_configuration() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("dldm.safetensors");
    let config = DldmConfig::preset("tiny").unwrap();
    assert_eq!((config.codes(17), config.codebook_size()), (16, 1000));
    let dldm = Dldm::new(&config, &Device::flex(), 1).unwrap();
    save_model(&path, &dldm, dldm.config(), SaveType::F16).unwrap();
    let size_bytes = std::fs::metadata(&path).unwrap().len();
    assert!(size_bytes < 6_000_000, "{size_bytes}");
    let loaded = Dldm::load(&Weights::open(&path).unwrap(), &Device::flex()).unwrap();
    assert_eq!(*loaded.config(), config);
}

#[test]
fn bf16_keeps_what_its_bits_can_hold() {
    let dldm = Dldm::new(&small(), &Device::flex(), 3).unwrap();
    let x = clip([1, 3, 9, 16, 32], 2);
    let (wide, short) = (dldm.encode(x.clone()).unwrap(), dldm.encode(x.cast(DType::BF16)).unwrap());
    let apart = |a: Tensor<5>, b: Tensor<5>| -> f32 {
        ((a.cast(DType::F32) - b.clone()).abs().mean() / b.abs().mean()).into_scalar()
    };
    let difference = apart(short.h, wide.h);
    assert!(difference > 0.0 && difference < 0.02, "{difference}");
    assert_eq!(short.indices.dims(), wide.indices.dims());
}
