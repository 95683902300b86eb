//! Configuration of the diffusion transformer, with the published names.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::weights::{Weights, config_of, preset};

pub(crate) const PRESETS: &str = include_str!("../../presets/dit.toml");

/// Sizes and variants of a DiT with its control branch. Variants other than the released ones are known by name, and
/// refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DitConfig {
    /// Width of a token.
    pub model_channels: usize,
    pub num_blocks: usize,
    pub num_heads: usize,
    /// Hidden width of the feed-forward, over `model_channels`.
    pub mlp_ratio: f64,
    /// Latent channels, without the mask channels that the network adds.
    pub in_channels: usize,
    pub out_channels: usize,
    /// Latent cells per token, along height and width, and along time.
    #[serde(default = "two")]
    pub patch_spatial: usize,
    #[serde(default = "one")]
    pub patch_temporal: usize,
    /// Width of the context tokens that cross-attention reads.
    pub crossattn_emb_channels: usize,
    /// Length to which the context is filled with zero tokens, which take part in the softmax.
    #[serde(default = "context_tokens")]
    pub context_tokens: usize,
    /// Rank of the modulation's two-step maps.
    pub adaln_lora_dim: usize,
    /// The largest latent size, in cells and frames.
    pub max_img_h: usize,
    pub max_img_w: usize,
    pub max_frames: usize,
    /// Stretch of the rotary frequencies beyond the size that the network was first trained at.
    #[serde(default = "unit")]
    pub rope_h_extrapolation_ratio: f64,
    #[serde(default = "unit")]
    pub rope_w_extrapolation_ratio: f64,
    #[serde(default = "unit")]
    pub rope_t_extrapolation_ratio: f64,
    /// Scale time positions by 24 / fps.
    #[serde(default)]
    pub rope_enable_fps_modulation: bool,
    /// Whether a channel marks the given frames. Text-to-image has none.
    #[serde(default = "yes")]
    pub condition_mask: bool,
    /// Let latent frame i see context tokens 0..=i of the first T only, and all after these (spec 4.5).
    #[serde(default)]
    pub causal_cross_attn: bool,
    /// Blocks of the control branch; 0 if there is none.
    #[serde(default, alias = "ctrl_blocks", deserialize_with = "none_is_zero")]
    pub control_blocks: usize,
    /// Factor on the branch's outputs.
    #[serde(default = "half")]
    pub control_weight: f64,
    /// Channels to which the hint's latents are filled with zeros.
    #[serde(default = "hint_channels")]
    pub hint_channels: usize,
    /// Round times to bf16 before their sinusoid, as the released network saw them (spec 10.4).
    #[serde(default)]
    pub round_times: bool,

    // What upstream could vary and this network has in one form only.
    #[serde(default = "yes")]
    pub concat_padding_mask: bool,
    #[serde(default = "yes")]
    pub use_adaln_lora: bool,
    #[serde(default)]
    pub extra_per_block_abs_pos_emb: bool,
    #[serde(default = "rope3d")]
    pub pos_emb_cls: String,
}

fn one() -> usize {
    1
}

fn two() -> usize {
    2
}

fn unit() -> f64 {
    1.0
}

fn half() -> f64 {
    0.5
}

fn yes() -> bool {
    true
}

fn context_tokens() -> usize {
    512
}

fn hint_channels() -> usize {
    128
}

fn rope3d() -> String {
    "rope3d".into()
}

fn none_is_zero<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<usize, D::Error> {
    Ok(Option::<usize>::deserialize(from)?.unwrap_or(0))
}

impl DitConfig {
    /// `tiny` or `released`.
    ///
    /// # Errors
    /// There is no such preset.
    pub fn preset(name: &str) -> Result<DitConfig> {
        preset(PRESETS, name)
    }

    /// The configuration in the file's metadata, else `released`: upstream's files carry none.
    ///
    /// # Errors
    /// The metadata cannot be parsed.
    pub fn of(weights: &Weights) -> Result<DitConfig> {
        config_of(weights, "dit")?.map_or_else(|| DitConfig::preset("released"), Ok)
    }

    pub fn head_size(&self) -> usize {
        self.model_channels / self.num_heads
    }

    /// Values of one token's patch of latents with `channels` channels.
    pub(crate) fn patch_values(&self, channels: usize) -> usize {
        channels * self.patch_temporal * self.patch_spatial * self.patch_spatial
    }

    /// # Errors
    /// Sizes that make no network, or a variant that is not supported.
    pub fn check(&self) -> Result<()> {
        let DitConfig { model_channels, num_heads, num_blocks, control_blocks, .. } = self;
        let counts = [
            ("model_channels", *model_channels),
            ("num_blocks", *num_blocks),
            ("num_heads", *num_heads),
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("patch_spatial", self.patch_spatial),
            ("patch_temporal", self.patch_temporal),
            ("crossattn_emb_channels", self.crossattn_emb_channels),
            ("adaln_lora_dim", self.adaln_lora_dim),
        ];
        let wrong = if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            format!("{name} must be at least 1")
        } else if !model_channels.is_multiple_of(2 * num_heads) || self.head_size() < 8 {
            format!(
                "model_channels = {model_channels} must be num_heads = {num_heads} times an even head size, 8 or more"
            )
        } else if control_blocks > num_blocks {
            format!("control_blocks = {control_blocks} must be at most num_blocks = {num_blocks}")
        } else if *control_blocks > 0 && self.hint_channels < self.in_channels {
            format!("hint_channels = {} must be at least in_channels = {}", self.hint_channels, self.in_channels)
        } else {
            return self.check_variant();
        };
        Err(Error::Config(format!("dit: {wrong}")))
    }

    fn check_variant(&self) -> Result<()> {
        let what = if !self.concat_padding_mask {
            "concat_padding_mask = false".to_owned()
        } else if !self.use_adaln_lora {
            "use_adaln_lora = false".to_owned()
        } else if self.extra_per_block_abs_pos_emb {
            "extra_per_block_abs_pos_emb = true".to_owned()
        } else if self.pos_emb_cls != "rope3d" {
            format!("pos_emb_cls = `{}`", self.pos_emb_cls)
        } else {
            return Ok(());
        };
        Err(Error::Unsupported(format!("dit: {what}")))
    }
}
