//! The VAE against the recorded ones: means, latents, reconstructions, and what lies between, in several windows.

use std::collections::BTreeSet;

use burn::tensor::{Device, Tensor};
use vw2_models::nn::Tap;
use vw2_models::vae::{Vae, VaeConfig};
use vw2_models::weights::Weights;

use crate::harness::{Mids, Report, cases, config, open, weights};

const ENCODED: f64 = 1e-5;
const DECODED: f64 = 4e-5;

#[test]
fn vaes_are_the_recorded_ones() {
    for case in cases("vae_") {
        let golden = open(&case, "io");
        let mut report = Report::new(&case);
        let floats = |name: &str| golden.f32s(name).unwrap();
        let config =
            VaeConfig { latent_mean: floats("const.mean"), latent_std: floats("const.std"), ..config(&golden) };
        let vae = Vae::load_as(&config, &weights(&case), &Device::flex()).unwrap();

        let released = VaeConfig::preset("released").unwrap();
        report.values(&golden, "const.mean", released.latent_mean.iter().map(|v| f64::from(*v)), 1e-7);
        report.values(&golden, "const.std", released.latent_std.iter().map(|v| f64::from(*v)), 1e-7);

        let clips = golden.names().filter_map(|name| Some(name.strip_suffix("in.x")?.to_owned()));
        let clips: BTreeSet<String> = clips.collect();
        assert!(!clips.is_empty(), "{case}: no `*.in.x`");
        for clip in clips {
            compare(&golden, &vae, &clip, &mut report);
        }
        report.nothing_left_out(&golden, |name| name.contains("in."));
        report.finish();
    }
}

/// `clip` is the prefix of one recorded run: `T17_24x16_win4.`.
fn compare(golden: &Weights, vae: &Vae, clip: &str, report: &mut Report) {
    let tensor = |name: &str| golden.tensor::<5>(&format!("{clip}{name}"), &Device::flex()).unwrap();
    let window = clip.rsplit_once("_win").unwrap().1.trim_end_matches('.').parse().unwrap();
    let mut mids = Mids::new(golden, clip);
    let mut see = |name: &str, data| mids.see(name, data);
    let mut tap = Tap::new(&mut see);
    let x = tensor("in.x");
    let mu = vae.mu_in_windows(x.clone(), window, &mut tap).unwrap();
    let latent = vae.normalise(mu.clone());
    let recon = vae.decode_tapped(latent.clone(), &mut tap).unwrap();

    let (whole_mu, _) = vae.moments(x).unwrap();
    let whole_recon = vae.decode_means(whole_mu.clone()).unwrap();
    for (mu, recon) in [(mu, recon), (whole_mu, whole_recon)] {
        report.tensor(golden, &format!("{clip}out.mu"), mu.clone(), ENCODED);
        report.tensor(golden, &format!("{clip}out.latent"), vae.normalise(mu), ENCODED);
        report.tensor(golden, &format!("{clip}out.recon"), recon, DECODED);
    }
    if golden.contains(&format!("{clip}in.z")) {
        let decoded: Tensor<5> = vae.decode(tensor("in.z")).unwrap();
        report.tensor(golden, &format!("{clip}out.dec_z"), decoded, DECODED);
    }
    mids.compare(report, |name| if name.contains(".mid.encoder") { ENCODED } else { DECODED });
}
