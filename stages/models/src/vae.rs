//! Video VAE of Wan 2.1: frames to continuous latents, and back.
//!
//! Shapes: frames f32 `[B, 3, T, H, W]` in [-1, 1] -> latents f32 `[B, 16, 1 + (T-1)/4, H/8, W/8]`, about unit variance.
//! T is 1 + 4k; H and W are multiples of 8. Inside, tensors lie with frames first: `[B, T, C, H, W]`.
//! Source: the public Wan 2.1 checkpoint as VideoWorld 2 uses it; latents are means, nothing is sampled.
//! Differs: convolutions see each call's frames at once, whatever its length, where the source special-cases the first.
//!
//! All is causal in time. A stream remembers the last frames that each time convolution saw, so that a clip can pass
//! in windows: one frame, then `temporal_window` at a time to encode; one latent at a time to decode. The result is that
//! of the whole clip in one call, which training uses.

mod layers;
mod network;
mod stream;
#[cfg(test)]
mod tests;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vw2_kernels::Front;

use crate::error::{Error, Result};
use crate::nn::{CausalConv3d, Init, Tap};
use crate::weights::{Named, Names, Visitor, Weights, config_of, load, preset};
use network::{Decoder, Encoder};
use stream::Stream;

pub(crate) const PRESETS: &str = include_str!("../presets/vae.toml");

/// A name that every VAE has.
pub(crate) const PROBE: &str = "encoder.conv1.weight";

/// What the frames of one window may take at the first level, f32. A handful of tensors of this size live at a time, so
/// that a clip of 480 x 832 pixels is encoded within 8 GiB at released width, four frames at a time.
const WINDOW_BYTES: usize = 1 << 30;

/// Sizes of a VAE. Names are the published ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VaeConfig {
    /// Channels of the first level.
    pub dim: usize,
    /// Latent channels.
    pub z_dim: usize,
    /// Channels of each level, as multiples of `dim`; each level but the first halves height and width.
    pub dim_mult: Vec<usize>,
    pub num_res_blocks: usize,
    /// Which of the steps between levels also halve the time.
    #[serde(alias = "temperal_downsample")]
    pub temporal_downsample: Vec<bool>,
    /// Frames that are encoded at a time, after the first. A multiple of the temporal compression.
    #[serde(default = "default_window")]
    pub temporal_window: usize,
    /// Mean and standard deviation of each latent channel; empty: 0 and 1.
    #[serde(default)]
    pub latent_mean: Vec<f32>,
    #[serde(default)]
    pub latent_std: Vec<f32>,
}

fn default_window() -> usize {
    16
}

impl VaeConfig {
    /// `tiny` or `released`.
    ///
    /// # Errors
    /// There is no such preset.
    pub fn preset(name: &str) -> Result<VaeConfig> {
        preset(PRESETS, name)
    }

    /// The configuration in the file's metadata, else `released`: upstream's files carry none.
    ///
    /// # Errors
    /// The metadata cannot be parsed.
    pub fn of(weights: &Weights) -> Result<VaeConfig> {
        config_of(weights, "vae")?.map_or_else(|| VaeConfig::preset("released"), Ok)
    }

    /// Frames of video per latent frame, after the first.
    pub fn time_step(&self) -> usize {
        1 << self.temporal_downsample.iter().filter(|down| **down).count()
    }

    /// Pixels per latent cell along height and along width.
    pub fn space_step(&self) -> usize {
        1 << (self.dim_mult.len() - 1)
    }

    /// # Errors
    /// Lists that do not fit together.
    pub fn check(&self) -> Result<()> {
        let VaeConfig { dim, z_dim, dim_mult, temporal_downsample, temporal_window, latent_mean, latent_std, .. } =
            self;
        let wrong = if *dim == 0 || *z_dim == 0 || dim_mult.is_empty() || dim_mult.contains(&0) {
            "dim, z_dim and every dim_mult must be at least 1".to_owned()
        } else if temporal_downsample.len() + 1 != dim_mult.len() {
            format!("dim_mult names {} levels, so temporal_downsample needs one entry less", dim_mult.len())
        } else if *temporal_window == 0 || !temporal_window.is_multiple_of(self.time_step()) {
            format!("temporal_window = {temporal_window} must be a multiple of {}", self.time_step())
        } else if ![latent_mean, latent_std].iter().all(|list| list.is_empty() || list.len() == *z_dim) {
            format!("latent_mean and latent_std need z_dim = {z_dim} entries, or none")
        } else if latent_std.iter().any(|std| *std <= 0.0) {
            "latent_std must be positive".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::Config(format!("vae: {wrong}")))
    }
}

/// The VAE. A Burn module, so that it can be trained.
#[derive(Module, Debug)]
pub struct Vae {
    encoder: Encoder,
    conv1: CausalConv3d,
    conv2: CausalConv3d,
    decoder: Decoder,
    #[module(skip)]
    config: VaeConfig,
}

impl Vae {
    /// A VAE with fresh weights.
    ///
    /// # Errors
    /// The configuration makes no sense.
    pub fn new(config: &VaeConfig, device: &Device, seed: u64) -> Result<Vae> {
        config.check()?;
        let init = &mut Init::new(device, seed);
        Ok(Vae {
            encoder: Encoder::new(init, config),
            conv1: CausalConv3d::new(init, 2 * config.z_dim, 2 * config.z_dim, [1; 3]),
            conv2: CausalConv3d::new(init, config.z_dim, config.z_dim, [1; 3]),
            decoder: Decoder::new(init, config),
            config: config.clone(),
        })
    }

    /// A VAE from its checkpoint, in the configuration of [`VaeConfig::of`].
    ///
    /// # Errors
    /// Unreadable weights, or weights that do not fit the configuration.
    pub fn load(weights: &Weights, device: &Device) -> Result<Vae> {
        Vae::load_as(&VaeConfig::of(weights)?, weights, device)
    }

    /// # Errors
    /// As [`Vae::load`].
    pub fn load_as(config: &VaeConfig, weights: &Weights, device: &Device) -> Result<Vae> {
        let mut vae = Vae::new(config, device, 0)?;
        load(&mut vae, weights, &weights.prefix_of(PROBE))?;
        Ok(vae)
    }

    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Other latent statistics, measured after training: of each channel of [`Vae::mu`].
    pub fn with_latent_statistics(mut self, mean: Vec<f32>, std: Vec<f32>) -> Result<Vae> {
        self.config.latent_mean = mean;
        self.config.latent_std = std;
        self.config.check()?;
        Ok(self)
    }

    /// Normalised latents: `[B, 3, T, H, W] -> [B, z, T', H', W']`.
    ///
    /// # Errors
    /// T is not 1 + 4k, or H or W no multiple of 8 (the steps of this configuration).
    pub fn encode(&self, x: Tensor<5>) -> Result<Tensor<5>> {
        Ok(self.normalise(self.mu(x)?))
    }

    /// Latent means before normalisation: `[B, 3, T, H, W] -> [B, z, T', H', W']`.
    ///
    /// # Errors
    /// As [`Vae::encode`].
    pub fn mu(&self, x: Tensor<5>) -> Result<Tensor<5>> {
        let window = self.window(x.dims());
        self.mu_in_windows(x, window, &mut Tap::off())
    }

    /// Frames at a time: as configured, or fewer where these would be larger than [`WINDOW_BYTES`] at the first level.
    fn window(&self, [b, _, _, h, w]: [usize; 5]) -> usize {
        let step = self.config.time_step();
        let frame_bytes = 4 * b * self.config.dim * h * w;
        (WINDOW_BYTES / frame_bytes.max(1) / step * step).clamp(step, self.config.temporal_window)
    }

    /// As [`Vae::mu`], with another window and a tap. Windows change the memory that is needed, not the result.
    ///
    /// # Errors
    /// As [`Vae::encode`].
    pub fn mu_in_windows(&self, x: Tensor<5>, window: usize, tap: &mut Tap<'_>) -> Result<Tensor<5>> {
        self.check_frames(&x)?;
        if window == 0 || !window.is_multiple_of(self.config.time_step()) {
            let step = self.config.time_step();
            return Err(Error::Input(format!("a window of {window} frames was asked for; take a multiple of {step}")));
        }
        let x = x.swap_dims(1, 2);
        let frames = x.dims()[1];
        let mut stream = Stream::keeping();
        let mut parts = vec![self.encoder.forward(x.clone().narrow(1, 0, 1), &mut stream, tap)];
        for start in (1..frames).step_by(window) {
            let part = x.clone().narrow(1, start, window.min(frames - start));
            parts.push(self.encoder.forward(part, &mut stream, tap));
        }
        let moments = self.conv1.forward(Tensor::cat(parts, 1), Front::Zeros(0), None);
        Ok(moments.narrow(2, 0, self.config.z_dim).swap_dims(1, 2))
    }

    /// Mean and log variance of the latents, of the whole clip in one call, for training.
    ///
    /// # Errors
    /// As [`Vae::encode`].
    pub fn moments(&self, x: Tensor<5>) -> Result<(Tensor<5>, Tensor<5>)> {
        self.check_frames(&x)?;
        let h = self.encoder.forward(x.swap_dims(1, 2), &mut Stream::once(), &mut Tap::off());
        let moments = self.conv1.forward(h, Front::Zeros(0), None).swap_dims(1, 2);
        let z = self.config.z_dim;
        Ok((moments.clone().narrow(1, 0, z), moments.narrow(1, z, z)))
    }

    /// Frames of normalised latents: `[B, z, T', H', W'] -> [B, 3, T, H, W]`, not clamped.
    ///
    /// # Errors
    /// The number of channels is not that of the latents.
    pub fn decode(&self, z: Tensor<5>) -> Result<Tensor<5>> {
        self.decode_tapped(z, &mut Tap::off())
    }

    /// As [`Vae::decode`], with a tap.
    ///
    /// # Errors
    /// As [`Vae::decode`].
    pub fn decode_tapped(&self, z: Tensor<5>, tap: &mut Tap<'_>) -> Result<Tensor<5>> {
        self.check_latents(&z)?;
        let x = self.conv2.forward(self.denormalise(z).swap_dims(1, 2), Front::Zeros(0), None);
        tap.frames(format_args!("conv2"), &x);
        let mut stream = Stream::keeping();
        let frames = (0..x.dims()[1]).map(|index| {
            let latent = x.clone().narrow(1, index, 1);
            self.decoder.forward(latent, &mut stream, tap)
        });
        Ok(Tensor::cat(frames.collect(), 1).swap_dims(1, 2))
    }

    /// Frames of latent means before normalisation, of the whole clip in one call, for training.
    ///
    /// # Errors
    /// As [`Vae::decode`].
    pub fn decode_means(&self, mu: Tensor<5>) -> Result<Tensor<5>> {
        self.check_latents(&mu)?;
        let x = self.conv2.forward(mu.swap_dims(1, 2), Front::Zeros(0), None);
        Ok(self.decoder.forward(x, &mut Stream::once(), &mut Tap::off()).swap_dims(1, 2))
    }

    /// Means to normalised latents: `(mu - mean) / std`.
    pub fn normalise(&self, mu: Tensor<5>) -> Tensor<5> {
        let (mean, std) = self.statistics(&mu.device());
        let dtype = mu.dtype();
        (mu - mean.cast(dtype)) / std.cast(dtype)
    }

    /// The inverse of [`Vae::normalise`].
    pub fn denormalise(&self, z: Tensor<5>) -> Tensor<5> {
        let (mean, std) = self.statistics(&z.device());
        let dtype = z.dtype();
        z * std.cast(dtype) + mean.cast(dtype)
    }

    fn statistics(&self, device: &Device) -> (Tensor<5>, Tensor<5>) {
        let row = |list: &[f32], default: f32| {
            let list = if list.is_empty() { vec![default; self.config.z_dim] } else { list.to_vec() };
            Tensor::<1>::from_floats(list.as_slice(), device).reshape([1, self.config.z_dim, 1, 1, 1])
        };
        (row(&self.config.latent_mean, 0.0), row(&self.config.latent_std, 1.0))
    }

    fn check_frames(&self, x: &Tensor<5>) -> Result<()> {
        let [_, c, t, h, w] = x.dims();
        let (time, space) = (self.config.time_step(), self.config.space_step());
        let wrong = if c != 3 {
            format!("{c} colour channels; 3 are wanted")
        } else if t % time != 1 % time {
            format!("{t} frames; 1 + {time}k are wanted, so cut to {}", t.saturating_sub(1) / time * time + 1)
        } else if h == 0 || w == 0 || h % space != 0 || w % space != 0 {
            format!("{w}x{h} pixels; width and height must be multiples of {space}, so resize")
        } else {
            return Ok(());
        };
        Err(Error::Input(format!("vae: the clip has {wrong}")))
    }

    fn check_latents(&self, z: &Tensor<5>) -> Result<()> {
        let (found, wanted) = (z.dims()[1], self.config.z_dim);
        if found == wanted && z.dims()[2] > 0 {
            return Ok(());
        }
        Err(Error::Input(format!("vae: latents of shape {:?}; {wanted} channels and a frame are wanted", z.dims())))
    }
}

impl Named for Vae {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("encoder", &mut self.encoder);
        names.child("conv1", &mut self.conv1);
        names.child("conv2", &mut self.conv2);
        names.child("decoder", &mut self.decoder);
    }
}
