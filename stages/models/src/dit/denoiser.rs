//! From the network to a denoiser: scaling by noise level, given frames, guidance; and the loss that trains it.
//!
//! Source: spec 5.1, 5.2, 5.5 and 7.3. Differs: both passes of guidance may run as one batch, and the unconditional one is
//! left out where its weight is 0.

use burn::tensor::{DType, Tensor, TensorData};

use super::{Inputs, VideoDit};
use crate::error::{Error, Result};
use crate::nn::{Rotary, Tap};
use crate::sampler::Scaling;

/// Noise level at which the network is told that given frames are.
const GIVEN_SIGMA: f64 = 1e-4;

/// What all noise levels of a clip share.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// Clean latents `[B, C, T, H, W]`; only the given frames are used.
    pub clean: Tensor<5>,
    /// Latent frames that are given, from the first on.
    pub given: usize,
    /// Latents of the coarse clip, for networks with a control branch.
    pub hint: Option<Tensor<5>>,
    /// As [`Inputs::padding`].
    pub padding: Option<Tensor<4>>,
    pub fps: Option<f64>,
}

/// How far the result is pushed from what the network makes of another context.
#[derive(Clone, Debug)]
pub struct Guidance {
    /// `x0 = conditional + weight (conditional - unconditional)`; 0: the conditional pass alone.
    pub weight: f64,
    /// The context of the unconditional pass, `[1, M, C]` without zero tokens.
    pub context: Tensor<3>,
    /// Both passes in one batch: faster, for twice the activations.
    pub batched: bool,
}

/// A DiT as a function from noisy latents to clean ones.
#[derive(Debug)]
pub struct Denoiser<'a> {
    dit: &'a VideoDit,
    conditions: Conditions,
    scaling: Scaling,
    /// 1 on given frames: `[B, 1, T, H, W]`.
    mask: Tensor<5>,
    rotary: Rotary,
    arithmetic: DType,
}

impl<'a> Denoiser<'a> {
    /// # Errors
    /// More frames are given than there are.
    pub fn new(dit: &'a VideoDit, conditions: Conditions) -> Result<Denoiser<'a>> {
        let [b, _, t, h, w] = conditions.clean.dims();
        let device = conditions.clean.device();
        if conditions.given > t {
            return Err(Error::Input(format!("dit: {} latent frames are given, but a clip has {t}", conditions.given)));
        }
        let frames: Vec<f32> = (0..t).map(|frame| f32::from(u8::from(frame < conditions.given))).collect();
        let mask = Tensor::<5>::from_data(TensorData::new(frames, [1, 1, t, 1, 1]), &device).expand([b, 1, t, h, w]);
        let rotary = dit.rotary([t, h, w], conditions.fps, &device);
        let (scaling, arithmetic) = (Scaling::RECTIFIED_FLOW, DType::F32);
        Ok(Denoiser { dit, conditions, scaling, mask, rotary, arithmetic })
    }

    /// Has the network compute in another float type than f32; what is made of its output is f32 still.
    pub fn computing_in(self, arithmetic: DType) -> Denoiser<'a> {
        Denoiser { arithmetic, ..self }
    }

    /// Clean latents from noisy ones `[B, C, T, H, W]` with noise levels `sigmas` `[B]`, given `context` `[B, M, C]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn clean(&self, x: Tensor<5>, sigmas: &[f64], context: Tensor<3>) -> Result<Tensor<5>> {
        self.clean_tapped(x, sigmas, context, &mut Tap::off())
    }

    /// As [`Denoiser::clean`], with a tap.
    ///
    /// # Errors
    /// As [`Denoiser::clean`].
    pub fn clean_tapped(
        &self,
        x: Tensor<5>,
        sigmas: &[f64],
        context: Tensor<3>,
        tap: &mut Tap<'_>,
    ) -> Result<Tensor<5>> {
        let Conditions { clean, given, hint, padding, .. } = &self.conditions;
        let [b, _, t, ..] = clean.dims();
        if x.dims() != clean.dims() || sigmas.len() != b {
            let (found, wanted) = (x.dims(), clean.dims());
            let levels = sigmas.len();
            return Err(Error::Input(format!(
                "dit: {found:?} at {levels} noise levels, but {wanted:?} is conditioned"
            )));
        }
        let device = x.device();
        let per_clip = |of: &dyn Fn(f64) -> f64| {
            let values: Vec<f32> = sigmas.iter().map(|&sigma| of(sigma) as f32).collect();
            Tensor::<5>::from_data(TensorData::new(values, [b, 1, 1, 1, 1]), &device)
        };
        let scaling = self.scaling;
        let time = |sigma: f64, frame: usize| scaling.c_noise(if frame < *given { GIVEN_SIGMA } else { sigma }) as f32;
        let times: Vec<f32> = sigmas.iter().flat_map(|&sigma| (0..t).map(move |frame| time(sigma, frame))).collect();
        let times = Tensor::<2>::from_data(TensorData::new(times, [b, t]), &device);
        let scaled = self.replace_given(x.clone() * per_clip(&|sigma| scaling.c_in(sigma)));
        tap.see(format_args!("net_in"), || scaled.clone());
        tap.see(format_args!("net_timesteps"), || times.clone());
        let output = self.dit.forward_tapped(
            &Inputs {
                x: scaled.cast(self.arithmetic),
                times,
                mask: Some(self.mask.clone()),
                padding: padding.clone(),
                context,
                hint: hint.clone(),
                rotary: self.rotary.clone(),
            },
            tap,
        )?;
        let output = output.cast(DType::F32);
        let clean = x * per_clip(&|sigma| scaling.c_skip(sigma)) + output * per_clip(&|sigma| scaling.c_out(sigma));
        Ok(self.replace_given(clean))
    }

    /// As [`Denoiser::clean`] for one clip, with guidance.
    ///
    /// # Errors
    /// As [`Denoiser::clean`]; also if there are several clips.
    pub fn guided(&self, x: Tensor<5>, sigma: f64, context: Tensor<3>, guidance: &Guidance) -> Result<Tensor<5>> {
        if guidance.weight == 0.0 {
            return self.clean(x, &[sigma], context);
        }
        let (conditional, unconditional) = if guidance.batched {
            let both = self.twice();
            let x = Tensor::cat(vec![x.clone(), x], 0);
            let clean = both.clean(x, &[sigma; 2], side_by_side(context, guidance.context.clone()))?;
            (clean.clone().narrow(0, 0, 1), clean.narrow(0, 1, 1))
        } else {
            (self.clean(x.clone(), &[sigma], context)?, self.clean(x, &[sigma], guidance.context.clone())?)
        };
        Ok(conditional.clone() + (conditional - unconditional) * guidance.weight)
    }

    /// The same conditions for two clips.
    fn twice(&self) -> Denoiser<'a> {
        let twice = |x: &Tensor<5>| x.clone().repeat_dim(0, 2);
        let conditions = Conditions {
            clean: twice(&self.conditions.clean),
            hint: self.conditions.hint.as_ref().map(twice),
            padding: self.conditions.padding.as_ref().map(|padding| padding.clone().repeat_dim(0, 2)),
            ..self.conditions
        };
        let (mask, rotary) = (twice(&self.mask), self.rotary.clone());
        Denoiser { dit: self.dit, conditions, scaling: self.scaling, mask, rotary, arithmetic: self.arithmetic }
    }

    /// Given frames from the clean latents, the others from `x`.
    fn replace_given(&self, x: Tensor<5>) -> Tensor<5> {
        let Conditions { clean, given, .. } = &self.conditions;
        let t = x.dims()[2];
        match t - given {
            0 => clean.clone(),
            _ if *given == 0 => x,
            rest => Tensor::cat(vec![clean.clone().narrow(2, 0, *given), x.narrow(2, *given, rest)], 2),
        }
    }
}

/// Two contexts as one batch; the shorter one is filled with zero tokens, as all are in the end.
fn side_by_side(a: Tensor<3>, b: Tensor<3>) -> Tensor<3> {
    let ([_, m, width], [_, n, _]) = (a.dims(), b.dims());
    let fill = |x: Tensor<3>, count: usize| match count {
        0 => x,
        _ => Tensor::cat(vec![x.clone(), Tensor::zeros([1, count, width], &x.device())], 1),
    };
    Tensor::cat(vec![fill(a, n.saturating_sub(m)), fill(b, m.saturating_sub(n))], 0)
}

/// The rectified-flow loss per clip and latent frame, `[B, T]`: the mean over cells of `(x0 - x0_pred)^2 (1 + sigma^2) /
/// sigma^2` (spec 7.3). Latents `[B, C, T, H, W]`, noise levels `[B]`.
pub fn flow_loss(clean: Tensor<5>, predicted: Tensor<5>, sigmas: &[f64]) -> Tensor<2> {
    let [b, c, t, h, w] = clean.dims();
    let weights: Vec<f32> = sigmas.iter().map(|&sigma| Scaling::TRAINING.loss_weight(sigma) as f32).collect();
    let weights = Tensor::<2>::from_data(TensorData::new(weights, [b, 1]), &clean.device());
    let errors = (clean - predicted).square().swap_dims(1, 2).reshape([b, t, c * h * w]);
    errors.mean_dim(2).squeeze_dim::<2>(2) * weights
}
