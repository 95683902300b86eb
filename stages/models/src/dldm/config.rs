//! Configuration of the dLDM, with the published names.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::weights::{Weights, config_of, preset};

pub(crate) const PRESETS: &str = include_str!("../../presets/dldm.toml");

/// How pixels are gathered into patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PatchMethod {
    /// Haar wavelets, once per factor 2.
    Haar,
    /// The patch's pixels as channels.
    Rearrange,
}

/// Sizes and variants of a dLDM. Variants other than the released ones are known by name, and refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DldmConfig {
    /// Base width; a level has `channels * channels_mult[level]`.
    pub channels: usize,
    pub channels_mult: Vec<usize>,
    pub num_res_blocks: usize,
    /// Width of the code tokens before and after quantisation.
    pub z_channels: usize,
    /// Dimensions of a code; one for each of `levels`.
    pub embedding_dim: usize,
    /// Quantisation levels of each dimension of a code; their product is the size of the codebook.
    pub levels: Vec<u32>,
    /// Codes per pair of adjacent latent frames.
    #[serde(alias = "act_embedding_num")]
    pub queries: usize,
    /// Edge of a patch in pixels and in frames; a power of two.
    pub patch_size: usize,
    pub patch_method: PatchMethod,
    /// Width of the last level, which is the Q-Former's.
    pub encoder_out_dim: usize,
    /// Width of the tokens for the DiT.
    pub dit_dim: usize,
    /// Pixels per latent cell, patch included.
    pub spatial_compression: usize,
    /// Frames per latent frame, patch included.
    pub temporal_compression: usize,
    /// A nominal input size, which only serves to say at which levels attention stands.
    pub resolution: usize,
    /// Nominal sizes at which the encoder attends within and across frames.
    pub attn_resolutions: Vec<usize>,
    /// Nominal sizes at which the decoder attends to the codes, within and across frames.
    #[serde(default = "decoder_attn_resolutions")]
    pub decoder_attn_resolutions: Vec<usize>,
    #[serde(default = "one")]
    pub num_groups: usize,
    #[serde(default)]
    pub legacy_mode: bool,
    #[serde(default = "encoder")]
    pub encoder: String,
    #[serde(default = "decoder")]
    pub decoder: String,
    #[serde(default = "quantizer")]
    pub quantizer: String,
    #[serde(default = "qformer_type")]
    pub qformer_type: String,
    #[serde(default = "connector_type")]
    pub connector_type: String,
}

fn decoder_attn_resolutions() -> Vec<usize> {
    vec![64]
}

fn one() -> usize {
    1
}

fn encoder() -> String {
    "LDM".into()
}

fn decoder() -> String {
    "LDM_V2".into()
}

fn quantizer() -> String {
    "FSQ".into()
}

fn qformer_type() -> String {
    "QFormerAdjacentFSingleQ".into()
}

fn connector_type() -> String {
    "conv".into()
}

impl DldmConfig {
    /// `tiny` or `released`.
    ///
    /// # Errors
    /// There is no such preset.
    pub fn preset(name: &str) -> Result<DldmConfig> {
        preset(PRESETS, name)
    }

    /// The configuration in the file's metadata, else `released`: upstream's files carry none.
    ///
    /// # Errors
    /// The metadata cannot be parsed.
    pub fn of(weights: &Weights) -> Result<DldmConfig> {
        config_of(weights, "dldm")?.map_or_else(|| DldmConfig::preset("released"), Ok)
    }

    /// Codes of the codebook, `K`.
    pub fn codebook_size(&self) -> usize {
        self.levels.iter().map(|level| *level as usize).product()
    }

    /// Latent frames of a clip: `1 + (frames - 1) / temporal_compression`.
    pub fn latent_frames(&self, frames: usize) -> usize {
        1 + frames.saturating_sub(1) / self.temporal_compression
    }

    /// Codes of a clip: `queries` per pair of adjacent latent frames.
    pub fn codes(&self, frames: usize) -> usize {
        self.queries * (self.latent_frames(frames) - 1)
    }

    pub(super) fn width(&self, level: usize) -> usize {
        self.channels * self.channels_mult[level]
    }

    pub(super) fn level_count(&self) -> usize {
        self.channels_mult.len()
    }

    /// Channels of a cell of patched RGB.
    pub(super) fn patch_channels(&self) -> usize {
        3 * self.patch_size.pow(3)
    }

    fn halvings(&self, compression: usize) -> usize {
        compression.ilog2().saturating_sub(self.patch_size.ilog2()) as usize
    }

    /// Whether the encoder halves space and time after a level that is not the last.
    pub(super) fn down(&self, level: usize) -> Halve {
        Halve {
            space: level < self.halvings(self.spatial_compression),
            time: level < self.halvings(self.temporal_compression),
        }
    }

    /// Whether the decoder doubles space and time after a level that is not the first.
    pub(super) fn up(&self, level: usize) -> Halve {
        let (space, time) = (self.halvings(self.spatial_compression), self.halvings(self.temporal_compression));
        // Counted from the decoder's start. Time waits for one step, so that its last doubling pairs with the
        // encoder's first halving where there are three levels.
        let position = self.level_count() - 1 - level;
        let double_time = (1..=time).contains(&position);
        Halve { space: double_time || (position < space && space > time), time: double_time }
    }

    /// Whether the steps between the levels halve, and double, as often as the compression asks for.
    fn levels_hold_compression(&self) -> bool {
        let last = self.level_count() - 1;
        let downs: Vec<Halve> = (0..last).map(|level| self.down(level)).collect();
        let ups: Vec<Halve> = (1..=last).map(|level| self.up(level)).collect();
        let wanted = (self.halvings(self.spatial_compression), self.halvings(self.temporal_compression));
        [downs, ups].iter().all(|steps| {
            let count = |which: fn(&Halve) -> bool| steps.iter().filter(|step| which(step)).count();
            (count(|step| step.space), count(|step| step.time)) == wanted
        })
    }

    pub(super) fn nominal_size(&self, level: usize) -> usize {
        (self.resolution / self.patch_size) >> level
    }

    /// # Errors
    /// [`Error::Unsupported`] for variants that other checkpoints of upstream use, [`Error::Config`] for sizes that do
    /// not fit together.
    pub fn check(&self) -> Result<()> {
        let variants = [
            ("encoder", &self.encoder, encoder()),
            ("decoder", &self.decoder, decoder()),
            ("quantizer", &self.quantizer, quantizer()),
            ("qformer_type", &self.qformer_type, qformer_type()),
            ("connector_type", &self.connector_type, connector_type()),
        ];
        for (key, found, known) in variants {
            if *found != known {
                return Err(Error::Unsupported(format!("{key}={found} (only {known})")));
            }
        }
        if self.num_groups != 1 || self.legacy_mode {
            let (groups, legacy) = (self.num_groups, self.legacy_mode);
            return Err(Error::Unsupported(format!("num_groups={groups}, legacy_mode={legacy} (only 1 and false)")));
        }
        let sizes = [self.channels, self.z_channels, self.queries, self.dit_dim, self.level_count()];
        let wrong = if sizes.contains(&0) || self.channels_mult.contains(&0) {
            "channels, channels_mult, z_channels, queries and dit_dim must be at least 1".to_owned()
        } else if [self.patch_size, self.spatial_compression, self.temporal_compression]
            .iter()
            .any(|size| !size.is_power_of_two())
        {
            "patch_size, spatial_compression and temporal_compression must be powers of two".to_owned()
        } else if self.spatial_compression.min(self.temporal_compression) < self.patch_size {
            format!("compression must be at least patch_size = {}", self.patch_size)
        } else if self.levels.len() != self.embedding_dim || self.levels.iter().any(|level| *level < 2) {
            format!("levels = {:?} must be {} numbers from 2 on", self.levels, self.embedding_dim)
        } else if self.levels.iter().try_fold(1u32, |size, level| size.checked_mul(*level)).is_none() {
            format!("the codebook of levels = {:?} is too large", self.levels)
        } else if self.encoder_out_dim != self.width(self.level_count() - 1) {
            let width = self.width(self.level_count() - 1);
            format!("encoder_out_dim = {} must be the last level's width {width}", self.encoder_out_dim)
        } else if !self.encoder_out_dim.is_multiple_of(8) {
            format!(
                "encoder_out_dim = {} must be a multiple of 8: the Q-Former halves it over 4 heads",
                self.encoder_out_dim
            )
        } else if !self.levels_hold_compression() {
            let (space, time) = (self.spatial_compression, self.temporal_compression);
            format!("{} levels cannot hold a compression of {space} in space and {time} in time", self.level_count())
        } else {
            return Ok(());
        };
        Err(Error::Config(format!("dldm: {wrong}")))
    }
}

/// What a step between two levels changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Halve {
    pub(super) space: bool,
    pub(super) time: bool,
}
