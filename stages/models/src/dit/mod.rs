//! Diffusion transformer (DiT): noisy latents of a clip, its first frame, codes and a coarse hint to the way out of the
//! noise.
//!
//! Shapes: latents f32 `[B, 16, T, H, W]`, times `[B, T]` in 0..=1, context `[B, M, C]` -> velocity `[B, 16, T, H, W]`.
//! Source: the Cosmos-Predict2 Video2World network with VideoWorld 2's control branch (spec 04); every width and depth
//! comes from the configuration. Names: the published ones below `net.` and `net_ctrl.`.
//! Differs: zero context tokens and the hint's zero channels take part without being made.
//!
//! [`VideoDit`] is the bare network; [`Denoiser`] is what a sampler or a loss asks: noisy latents to clean ones.

mod config;
mod control;
mod denoiser;
pub mod hint;
mod layers;
mod network;
#[cfg(test)]
mod tests;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use vw2_kernels::{Order, Sight};

pub use config::DitConfig;
pub(crate) use config::PRESETS;
pub use control::Control;
pub use denoiser::{Conditions, Denoiser, Guidance, flow_loss};
pub use layers::{positions, sinusoid};

use crate::error::{Error, Result};
use crate::nn::{Init, Rotary, Tap, recompute};
use crate::weights::{Named, Names, Precision, Visitor, Weights, load_among};
use layers::Time;
use network::{Network, Pass};

/// A name that every network has, from which the prefixes of a file are told.
pub(crate) const PROBE: &str = "x_embedder.proj.1.weight";

/// Base network and, where the configuration has one, control branch. A Burn module, so that it can be trained.
#[derive(Module, Debug)]
pub struct VideoDit {
    net: Network,
    net_ctrl: Option<Control>,
    #[module(skip)]
    config: DitConfig,
}

/// What a pass of the network sees.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Latents as scaled for the network, `[B, C, T, H, W]`.
    pub x: Tensor<5>,
    /// Noise level of each latent frame, `[B, T]`.
    pub times: Tensor<2>,
    /// 1 on given frames, `[B, 1, T, H, W]`; left out by networks without this channel.
    pub mask: Option<Tensor<5>>,
    /// Padding mask of any size, `[B, 1, h, w]`; zeros if left out.
    pub padding: Option<Tensor<4>>,
    /// Tokens for cross-attention, `[B, M, C]`, without the zero ones.
    pub context: Tensor<3>,
    /// Latents of the coarse clip, `[B, C, T, H, W]`, for the control branch.
    pub hint: Option<Tensor<5>>,
    /// Places of the tokens, from [`VideoDit::rotary`].
    pub rotary: Rotary,
}

impl VideoDit {
    /// A DiT with fresh weights: its control branch adds nothing, and its final layer yields 0.
    ///
    /// # Errors
    /// The configuration makes no sense, or names a variant that is not supported.
    pub fn new(config: &DitConfig, device: &Device, seed: u64) -> Result<VideoDit> {
        config.check()?;
        let init = &mut Init::new(device, seed);
        Ok(VideoDit {
            net: Network::new(init, config, config.num_blocks),
            net_ctrl: (config.control_blocks > 0).then(|| Control::new(init, config)),
            config: config.clone(),
        })
    }

    /// A DiT from its checkpoint, in the configuration of [`DitConfig::of`].
    ///
    /// The base is found by its names, whatever stands before them. A branch is taken from `net_ctrl.`; from the base's own
    /// prefix, where upstream's script put it beside the base; or left out, where the file has none.
    ///
    /// # Errors
    /// Unreadable weights, or weights that do not fit the configuration.
    pub fn load(weights: &Weights, device: &Device) -> Result<VideoDit> {
        VideoDit::load_as(&DitConfig::of(weights)?, weights, device)
    }

    /// # Errors
    /// As [`VideoDit::load`].
    pub fn load_as(config: &DitConfig, weights: &Weights, device: &Device) -> Result<VideoDit> {
        VideoDit::load_held(config, weights, device, Precision::F32)
    }

    /// As [`VideoDit::load_as`], with a choice of how the weights are held. At the released width, both parts take 8.2 GiB
    /// in f32 and half of that in bf16.
    ///
    /// # Errors
    /// As [`VideoDit::load`].
    pub fn load_held(config: &DitConfig, weights: &Weights, device: &Device, held: Precision) -> Result<VideoDit> {
        let base = weights.prefix_of(PROBE);
        let branch = branch_prefix(weights, &base);
        let control_blocks = if branch.is_some() { config.control_blocks } else { 0 };
        let mut dit = VideoDit::new(&DitConfig { control_blocks, ..config.clone() }, device, 0)?;
        let shared = branch.as_deref() == Some(base.as_str());
        load_among(&mut dit.net, weights, &base, held, |name| !shared || !of_branch(name))?;
        if let (Some(control), Some(prefix)) = (&mut dit.net_ctrl, branch) {
            load_among(control, weights, &prefix, held, |name| !shared || of_branch(name))?;
        }
        Ok(dit)
    }

    pub fn config(&self) -> &DitConfig {
        &self.config
    }

    /// Places of the tokens of latents `[T, H, W]`; made once for a clip.
    pub fn rotary(&self, size: [usize; 3], fps: Option<f64>, device: &Device) -> Rotary {
        let grid = self.grid(size);
        Rotary::new(positions(&self.config, grid, fps), grid.iter().product(), device)
    }

    /// An estimate of what a pass over latents `[T, H, W]` holds at its widest point, the feed-forward: bytes in f32.
    pub fn activation_bytes(&self, size: [usize; 3]) -> u64 {
        let tokens = self.grid(size).iter().product::<usize>() as f64;
        (4.0 * tokens * self.config.model_channels as f64 * (6.0 + 2.0 * self.config.mlp_ratio)) as u64
    }

    /// The network's output, in rectified-flow terms the velocity noise minus data: `[B, C, T, H, W]`. It is computed in the
    /// float type of `x`; times are embedded in f32.
    ///
    /// # Errors
    /// Inputs whose shapes do not fit each other or the configuration.
    pub fn forward(&self, inputs: &Inputs) -> Result<Tensor<5>> {
        self.forward_tapped(inputs, &mut Tap::off())
    }

    /// As [`VideoDit::forward`], with a tap.
    ///
    /// # Errors
    /// As [`VideoDit::forward`].
    pub fn forward_tapped(&self, inputs: &Inputs, tap: &mut Tap<'_>) -> Result<Tensor<5>> {
        self.check(inputs)?;
        let config = &self.config;
        let [b, _, t, h, w] = inputs.x.dims();
        let [frames, rows, columns] = self.grid([t, h, w]);
        let padding = match &inputs.padding {
            Some(padding) => resize_nearest(padding.clone(), [h, w]).unsqueeze_dim::<5>(2).expand([b, 1, t, h, w]),
            None => Tensor::zeros([b, 1, t, h, w], &inputs.x.device()),
        };
        let (dtype, padding) = (inputs.x.dtype(), padding.cast(inputs.x.dtype()));
        let mut channels = vec![inputs.x.clone()];
        channels.extend(inputs.mask.clone().filter(|_| config.condition_mask).map(|mask| mask.cast(dtype)));
        channels.push(padding.clone());
        let x = Tensor::cat(channels, 1);

        let tokens = inputs.context.dims()[1];
        let pass = |time: Time| Pass {
            time: time.cast(dtype),
            rotary: inputs.rotary.clone(),
            context: inputs.context.clone().cast(dtype),
            sight: Sight {
                order: if config.causal_cross_attn { later_hidden(frames, rows * columns) } else { Order::Any },
                zeros: config.context_tokens - tokens,
                ..Sight::all()
            },
            grid: [rows, columns],
        };
        let residuals = match (&self.net_ctrl, &inputs.hint) {
            (Some(control), Some(hint)) => {
                let pass = recompute::cut(pass(control.network.time(inputs.times.clone(), config, &mut Tap::off())));
                control.residuals(x.clone(), hint.clone().cast(dtype), padding, &pass, config, tap)
            }
            _ => Vec::new(),
        };

        let pass = recompute::cut(pass(self.net.time(inputs.times.clone(), config, tap)));
        let mut x = self.net.embed(x, config);
        pass.show(tap, format_args!("x_embedder"), &x);
        let mut residuals = residuals.into_iter();
        for (index, block) in self.net.blocks.iter().enumerate() {
            x = block.forward(x, &pass, tap, &format!("blocks.{index}"));
            if let Some(residual) = residuals.next() {
                x = x + residual;
            }
        }
        Ok(self.net.finish(x, &pass, config, [t, h, w], tap))
    }

    /// Gives a base that was trained without a branch a fresh one, whose blocks start as copies of the base's first ones
    /// (spec 4.7): the branch adds nothing before it is trained.
    ///
    /// # Errors
    /// `blocks` is 0 or more than the base has.
    pub fn with_fresh_branch(mut self, blocks: usize, device: &Device, seed: u64) -> Result<VideoDit> {
        self.config.control_blocks = blocks;
        self.config.check()?;
        let mut control = Control::new(&mut Init::new(device, seed), &self.config);
        control.network = self.net.clone();
        control.network.blocks.truncate(blocks);
        self.net_ctrl = Some(control);
        Ok(self)
    }

    /// Base and branch apart, for files that hold one of them under its bare names.
    pub fn parts(&mut self) -> (&mut impl Named, Option<&mut impl Named>) {
        (&mut self.net, self.net_ctrl.as_mut())
    }

    /// Latent cells and frames to patches.
    fn grid(&self, [t, h, w]: [usize; 3]) -> [usize; 3] {
        let (p, pt) = (self.config.patch_spatial, self.config.patch_temporal);
        [t / pt, h / p, w / p]
    }

    fn check(&self, inputs: &Inputs) -> Result<()> {
        let config = &self.config;
        let [b, c, t, h, w] = inputs.x.dims();
        let (p, pt) = (config.patch_spatial, config.patch_temporal);
        let (context, times) = (inputs.context.dims(), inputs.times.dims());
        let tokens = self.grid([t, h, w]).iter().product::<usize>();
        let wrong = if c != config.in_channels {
            format!("latents have {c} channels; {} are wanted", config.in_channels)
        } else if [t, h, w].contains(&0) || t % pt != 0 || h % p != 0 || w % p != 0 {
            format!("latents of {t} x {h} x {w}; multiples of {pt} frames and {p} cells are wanted, so resize the clip")
        } else if t > config.max_frames || h > config.max_img_h || w > config.max_img_w {
            let DitConfig { max_frames, max_img_h, max_img_w, .. } = config;
            format!("latents of {t} x {h} x {w}; at most {max_frames} x {max_img_h} x {max_img_w} have a place")
        } else if times != [b, t / pt] {
            format!("times of shape {times:?}; one for each of {b} x {} latent frames is wanted", t / pt)
        } else if context[0] != b || context[2] != config.crossattn_emb_channels {
            format!("a context of shape {context:?}; {b} x tokens x {} is wanted", config.crossattn_emb_channels)
        } else if context[1] > config.context_tokens {
            format!("a context of {} tokens; at most {} are wanted", context[1], config.context_tokens)
        } else if config.condition_mask && inputs.mask.as_ref().is_none_or(|mask| mask.dims() != [b, 1, t, h, w]) {
            format!("no mask of given frames of shape {:?}", [b, 1, t, h, w])
        } else if inputs.hint.as_ref().is_some_and(|hint| hint.dims() != [b, c, t, h, w]) {
            format!("a hint of another shape than the latents' {:?}", inputs.x.dims())
        } else if inputs.rotary.cos.dims() != [tokens, config.head_size()] {
            format!("places of {} tokens; {tokens} are wanted", inputs.rotary.cos.dims()[0])
        } else {
            return Ok(());
        };
        Err(Error::Input(format!("dit: {wrong}")))
    }
}

/// What the branch has and the base has not.
const BRANCH: [&str; 3] = ["x_embedder2.", "input_hint_block.", "zero_blocks."];

/// Whether a name, without its prefix, belongs to the branch alone.
pub(crate) fn of_branch(name: &str) -> bool {
    BRANCH.iter().any(|part| name.starts_with(part))
}

/// What stands before the names of a control branch, if the file has one.
fn branch_prefix(weights: &Weights, base: &str) -> Option<String> {
    let hint = format!("{}proj.1.weight", BRANCH[0]);
    let prefixes: Vec<&str> = weights.names().filter_map(|name| name.strip_suffix(hint.as_str())).collect();
    let own = prefixes.iter().find(|prefix| **prefix != base);
    own.or(prefixes.first()).map(|prefix| (*prefix).to_owned())
}

/// Of the first T context tokens, a frame's patches see those up to their frame; of the others, all.
fn later_hidden(frames: usize, patches: usize) -> Order {
    Order::Frames { queries: patches, keys: 1, rest: frames }
}

/// Each cell takes the value at its place in `[B, 1, h, w]`, without averaging: `[B, 1, H, W]`.
fn resize_nearest(mask: Tensor<4>, [height, width]: [usize; 2]) -> Tensor<4> {
    let [_, _, h, w] = mask.dims();
    let device = mask.device();
    let places = |from: usize, to: usize| {
        let places: Vec<i64> = (0..to).map(|place| (place * from / to) as i64).collect();
        Tensor::<1, Int>::from_ints(places.as_slice(), &device)
    };
    mask.select(2, places(h, height)).select(3, places(w, width))
}

impl Named for VideoDit {
    fn walk<V: Visitor>(&mut self, names: &mut Names<'_, V>) {
        names.child("net", &mut self.net);
        if let Some(control) = &mut self.net_ctrl {
            names.child("net_ctrl", control);
        }
    }
}
