//! Latent-dynamics autoencoder (dLDM): what happens in a clip as a few discrete codes, and a coarse clip from them.
//!
//! Shapes: frames f32 `[B, 3, T, H, W]` in [-1, 1] -> feature map h `[B, C, K, H/16, W/16]`, query `[B, N, D]`, codes
//! `[B, N, D]`, indices `[B, N]`; with K = 1 + (T-1)/4 latent frames and N = queries x (K-1) codes, pair by pair.
//! T is 1 + 4k; H and W are multiples of 16 (released sizes; all of them come from the configuration).
//! Source: VideoWorld 2 (its `LDM` encoder, `LDM_V2` decoder, `QFormerAdjacentFSingleQ`, FSQ, `conv` connector).
//! Differs: decoder attention levels are configuration (`decoder_attn_resolutions`), where the source has them in code.
//!
//! Causal in time: the map of latent frame 0 depends on frame 0 alone, so one image gives what a rollout needs
//! ([`Dldm::first_frame_feature`]).

mod blocks;
mod config;
mod decoder;
mod encoder;
mod patcher;
mod qformer;
#[cfg(test)]
mod tests;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use vw2_kernels::{fsq, fsq_codes_to_indices, fsq_dequantise};

pub(crate) use config::PRESETS;
pub use config::{DldmConfig, PatchMethod};
pub use patcher::Patcher;

use crate::error::{Error, Result};
use crate::nn::{CausalConv3d, Init, Tap, recompute};
use crate::weights::{Named, Names, Visitor, Weights, load};
use blocks::{Residual, pointwise, walk_conv, within};
use decoder::Decoder;
use encoder::Encoder;

/// A name that every dLDM has.
pub(crate) const PROBE: &str = "encoder.conv_in.0.conv3d.weight";

/// The dLDM. A Burn module, so that it can be trained.
#[derive(Module, Debug)]
pub struct Dldm {
    encoder: Encoder,
    quant_conv: CausalConv3d,
    post_quant_conv: CausalConv3d,
    decoder: Decoder,
    connector: Residual,
    #[module(skip)]
    config: DldmConfig,
}

/// What a clip encodes to.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Feature map of each latent frame, `[B, C, K, h, w]`.
    pub h: Tensor<5>,
    /// Codes before quantisation, `[B, N, D]`.
    pub query: Tensor<3>,
    /// Codes, each dimension in [-1, 1], `[B, N, D]`. Gradients pass the rounding unchanged.
    pub codes: Tensor<3>,
    /// Each code as one number below the codebook's size, `[B, N]`.
    pub indices: Tensor<2, Int>,
}

impl Encoded {
    /// The map of the first latent frame, `[B, C, h, w]`, from which a clip is decoded.
    pub fn first(&self) -> Tensor<4> {
        self.h.clone().narrow(2, 0, 1).squeeze_dim(2)
    }
}

impl Dldm {
    /// A dLDM with fresh weights.
    ///
    /// # Errors
    /// The configuration makes no sense, or names a variant that is not supported.
    pub fn new(config: &DldmConfig, device: &Device, seed: u64) -> Result<Dldm> {
        config.check()?;
        let init = &mut Init::new(device, seed);
        Ok(Dldm {
            encoder: Encoder::new(init, config),
            quant_conv: pointwise(init, config.z_channels, config.embedding_dim),
            post_quant_conv: pointwise(init, config.embedding_dim, config.z_channels),
            decoder: Decoder::new(init, config),
            connector: Residual::new(init, config.z_channels, config.dit_dim),
            config: config.clone(),
        })
    }

    /// A dLDM from its checkpoint, in the configuration of [`DldmConfig::of`].
    ///
    /// # Errors
    /// Unreadable weights, or weights that do not fit the configuration.
    pub fn load(weights: &Weights, device: &Device) -> Result<Dldm> {
        Dldm::load_as(&DldmConfig::of(weights)?, weights, device)
    }

    /// # Errors
    /// As [`Dldm::load`].
    pub fn load_as(config: &DldmConfig, weights: &Weights, device: &Device) -> Result<Dldm> {
        let mut dldm = Dldm::new(config, device, 0)?;
        load(&mut dldm, weights, &weights.prefix_of(PROBE))?;
        Ok(dldm)
    }

    pub fn config(&self) -> &DldmConfig {
        &self.config
    }

    /// `[B, 3, T, H, W]` to features and codes.
    ///
    /// # Errors
    /// A size that the configuration cannot take, or a clip of one latent frame, in which nothing happens.
    pub fn encode(&self, x: Tensor<5>) -> Result<Encoded> {
        self.encode_tapped(x, &mut Tap::off())
    }

    /// As [`Dldm::encode`], with a tap.
    ///
    /// # Errors
    /// As [`Dldm::encode`].
    pub fn encode_tapped(&self, x: Tensor<5>, tap: &mut Tap<'_>) -> Result<Encoded> {
        self.check_frames(&x)?;
        if self.config.latent_frames(x.dims()[2]) < 2 {
            let least = 1 + self.config.temporal_compression;
            return Err(Error::Input(format!("dldm: a clip of 1 frame has no codes; take {least} frames or more")));
        }
        let h = recompute::cut(self.encoder.features(x, tap).swap_dims(1, 2));
        let query = within(&self.quant_conv, self.encoder.tokens(h.clone().swap_dims(1, 2), tap), None);
        let [b, n, d, ..] = query.dims();
        let query = recompute::cut(query.reshape([b, n, d]));
        let codes = recompute::cut(fsq(query.clone(), &self.config.levels));
        let indices = fsq_codes_to_indices(codes.clone(), &self.config.levels).reshape([b, n]);
        Ok(Encoded { h, query, codes, indices })
    }

    /// The map from which a clip that starts with this image is decoded: `[B, 3, 1, H, W] -> [B, C, h, w]`.
    ///
    /// # Errors
    /// A size that the configuration cannot take. More frames than one are taken too; only the first has effect.
    pub fn first_frame_feature(&self, image: Tensor<5>) -> Result<Tensor<4>> {
        self.check_frames(&image)?;
        let image = image.narrow(2, 0, 1);
        Ok(self.encoder.features(image, &mut Tap::off()).squeeze_dim(1))
    }

    /// A coarse clip, not clamped: codes `[B, N, D]` and a first frame's map `[B, C, h, w]` -> `[B, 3, T, H, W]`.
    ///
    /// # Errors
    /// N is 0 or no multiple of the queries per pair, or a width differs from the configuration's.
    pub fn decode(&self, codes: Tensor<3>, first: Tensor<4>) -> Result<Tensor<5>> {
        self.decode_tapped(codes, first, &mut Tap::off())
    }

    /// As [`Dldm::decode`], with a tap.
    ///
    /// # Errors
    /// As [`Dldm::decode`].
    pub fn decode_tapped(&self, codes: Tensor<3>, first: Tensor<4>, tap: &mut Tap<'_>) -> Result<Tensor<5>> {
        self.check_map(first.dims()[1])?;
        Ok(self.decoder.forward(self.post_quantise(codes)?, first, tap))
    }

    /// Each latent frame drawn from its own map, as if it were the first of a clip: `[B, C, K, h, w] -> [B, 3, K, H, W]`.
    /// The pictures are those of frames 0, 4, 8, … of the clip from which the maps come.
    ///
    /// # Errors
    /// The maps' width differs from the configuration's.
    pub fn stills(&self, maps: Tensor<5>) -> Result<Tensor<5>> {
        let [b, c, k, h, w] = maps.dims();
        self.check_map(c)?;
        let pictures = self.decoder.stills(maps.swap_dims(1, 2).reshape([b * k, c, h, w]));
        let [_, colours, _, height, width] = pictures.dims();
        Ok(pictures.reshape([b, k, colours, height, width]).swap_dims(1, 2))
    }

    /// Codes of indices: `[B, N] -> [B, N, D]`.
    pub fn codes_of(&self, indices: Tensor<2, Int>) -> Tensor<3> {
        let [b, n] = indices.dims();
        fsq_dequantise(indices.reshape([b, n, 1]), &self.config.levels)
    }

    /// Tokens for the DiT's cross-attention: codes `[B, N, D] -> [B, N, dit_dim]`, causal over N.
    ///
    /// # Errors
    /// As [`Dldm::decode`].
    pub fn condition(&self, codes: Tensor<3>) -> Result<Tensor<3>> {
        let y = self.connector.forward(self.post_quantise(codes)?);
        let [b, n, d, ..] = y.dims();
        Ok(recompute::cut(y.reshape([b, n, d])))
    }

    /// Encodes and decodes a clip: the reconstruction, and what it was made from.
    ///
    /// # Errors
    /// As [`Dldm::encode`].
    pub fn reconstruct(&self, x: Tensor<5>) -> Result<(Tensor<5>, Encoded)> {
        let encoded = self.encode(x)?;
        Ok((self.decode(encoded.codes.clone(), encoded.first())?, encoded))
    }

    /// `[B, N, D] -> [B, N, z_channels, 1, 1]`.
    pub fn post_quantise(&self, codes: Tensor<3>) -> Result<Tensor<5>> {
        let [b, n, d] = codes.dims();
        let DldmConfig { embedding_dim, queries, .. } = &self.config;
        if d != *embedding_dim || n == 0 || n % queries != 0 {
            return Err(Error::Input(format!(
                "dldm: {n} codes of {d} dimensions; wanted are {embedding_dim} dimensions and a multiple of {queries} codes"
            )));
        }
        Ok(within(&self.post_quant_conv, codes.reshape([b, n, d, 1, 1]), None))
    }

    fn check_map(&self, found: usize) -> Result<()> {
        let wanted = self.config.encoder_out_dim;
        match found == wanted {
            true => Ok(()),
            false => {
                Err(Error::Input(format!("dldm: the first frame's map has {found} channels; {wanted} are wanted")))
            }
        }
    }

    fn check_frames(&self, x: &Tensor<5>) -> Result<()> {
        let [_, c, t, h, w] = x.dims();
        let (time, space) = (self.config.temporal_compression, self.config.spatial_compression);
        let wrong = if c != 3 {
            format!("{c} colour channels; 3 are wanted")
        } else if t % time != 1 % time {
            format!("{t} frames; 1 + {time}k are wanted, so cut to {}", t.saturating_sub(1) / time * time + 1)
        } else if h == 0 || w == 0 || h % space != 0 || w % space != 0 {
            format!("{w}x{h} pixels; width and height must be multiples of {space}, so resize")
        } else {
            return Ok(());
        };
        Err(Error::Input(format!("dldm: the clip has {wrong}")))
    }
}

impl Named for Dldm {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("encoder", &mut self.encoder);
        walk_conv(names, "quant_conv", &mut self.quant_conv);
        walk_conv(names, "post_quant_conv", &mut self.post_quant_conv);
        names.child("decoder", &mut self.decoder);
        names.child("quant_to_dit_dim", &mut self.connector);
    }
}
