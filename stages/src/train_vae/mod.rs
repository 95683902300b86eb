//! `train-vae`: trains the VAE by reconstruction: L1 on pixels, plus a light pull of the latents to unit scale.
//!
//! Upstream takes its VAE ready-made (Wan 2.1); this stage exists to make one of any width for any video. After training
//! the latent statistics of each channel are measured, so that latents come out with mean 0 and deviation 1.
//! Differs: deterministic (no sampling, no KL), no perceptual or adversarial loss.

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vw2_engine::stage::{Context, Needs, Operator, Placement, Port, Stage, StageError, Table};
use vw2_models::vae::{Vae, VaeConfig};

use vw2_models::weights::Weights;

use crate::tables;
use crate::training::{Drawn, Learn, Picture, Reconstruct, Reconstructed, Reconstruction, Reconstructor};

/// Trains on all clips of a frame table.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub struct TrainVae(pub Reconstruction);

impl Stage for TrainVae {
    const KIND: &'static str = "train-vae";
    const VERSION: u32 = 4;
    const ABOUT: &'static str = "all frames to a VAE, trained by reconstruction";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] =
        &[Port::whole("frames", &tables::FRAMES), Port::whole("init", &tables::CHECKPOINTS).optional()];
    const OUTPUT: &'static Table = &tables::CHECKPOINTS;

    fn expand(params: toml::Table) -> Result<toml::Table, String> {
        crate::training::expand(Self::KIND, params)
    }

    fn check(&self) -> Result<(), String> {
        VaeConfig::preset(&self.0.preset).map_err(|error| error.to_string())?;
        if self.0.parts().iter().any(|part| Learn { video: part.learn.video, ..Learn::default() } != part.learn) {
            return Err("`learn`: a VAE learns `video` alone; the other parts are of a dLDM".into());
        }
        self.0.check()
    }

    fn needs(&self) -> Needs {
        Needs::Device
    }

    fn trains(&self) -> bool {
        true
    }

    fn placement(&self) -> Option<Placement> {
        Some(Placement { path: self.0.path.0.clone(), versioned: false })
    }

    fn open(&self, ctx: &Context) -> Result<Box<dyn Operator>, StageError> {
        Ok(Reconstructor::<Vae>::open(&self.0, ctx))
    }
}

/// Weight of the mean square of the latents. Small: it only keeps their scale from drifting.
const LATENT_WEIGHT: f64 = 1e-4;

impl Reconstruct for Vae {
    const NAME: &'static str = "vae";
    type Guide = ();

    fn init(preset: &str, seed: u64, device: &Device) -> Result<Self, StageError> {
        Ok(Vae::new(&VaeConfig::preset(preset)?, device, seed)?)
    }

    fn load(weights: &Weights, device: &Device) -> Result<Self, StageError> {
        Ok(Vae::load(weights, device)?)
    }

    fn is_preset(&self, preset: &str) -> Result<bool, StageError> {
        let preset = VaeConfig::preset(preset)?;
        // Training measures the statistics of the latents.
        let VaeConfig { latent_mean, latent_std, .. } = preset.clone();
        Ok(VaeConfig { latent_mean, latent_std, ..Vae::config(self).clone() } == preset)
    }

    fn reconstruct(&self, x: Tensor<5>) -> Result<Reconstructed, StageError> {
        let mu = self.mu(x)?;
        let penalty = mu.clone().square().mean().mul_scalar(LATENT_WEIGHT);
        Ok(Reconstructed { video: self.decode_means(mu)?, penalties: vec![("latents", penalty)] })
    }

    fn guide(
        &self,
        _: &[Learn],
        _: &mut dyn Iterator<Item = Result<Tensor<5>, StageError>>,
        _: &Device,
    ) -> Result<(), StageError> {
        Ok(())
    }

    fn learn(&self, x: Tensor<5>, learn: &Learn, (): &()) -> Result<Drawn, StageError> {
        let Reconstructed { video, penalties } = self.reconstruct(x.clone())?;
        Ok(Drawn { pictures: vec![Picture::video(video, x, learn.video)], penalties })
    }

    fn finish(self, clips: &mut dyn Iterator<Item = Result<Tensor<5>, StageError>>) -> Result<Self, StageError> {
        let mut moments = ChannelMoments::default();
        for clip in clips {
            moments.add(self.mu(clip?)?);
        }
        let (mean, std) = moments.finish();
        Ok(self.with_latent_statistics(mean, std)?)
    }

    fn config(&self) -> serde_json::Value {
        serde_json::to_value(Vae::config(self)).expect("a configuration is plain data")
    }
}

/// Mean and deviation of each latent channel over many clips.
#[derive(Default)]
struct ChannelMoments {
    sums: Vec<[f64; 2]>,
    count: f64,
}

impl ChannelMoments {
    /// mu f32 [1, C, T, H, W].
    fn add(&mut self, mu: Tensor<5>) {
        let [_, channels, t, h, w] = mu.dims();
        let values = crate::model_file::values(mu);
        self.sums.resize(channels, [0.0; 2]);
        for (sums, values) in self.sums.iter_mut().zip(values.chunks_exact(t * h * w)) {
            for &value in values {
                sums[0] += f64::from(value);
                sums[1] += f64::from(value) * f64::from(value);
            }
        }
        self.count += (t * h * w) as f64;
    }

    fn finish(self) -> (Vec<f32>, Vec<f32>) {
        let count = self.count.max(1.0);
        let mean = |sums: &[f64; 2]| sums[0] / count;
        let std = |sums: &[f64; 2]| (sums[1] / count - mean(sums).powi(2)).max(1e-6).sqrt();
        (self.sums.iter().map(|s| mean(s) as f32).collect(), self.sums.iter().map(|s| std(s) as f32).collect())
    }
}
