//! Rendering by diffusion: what `rollout` and `evaluate` share, and what `train-dit` conditions its model on.

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use vw2_data::formats::negative_embedding::{self, NegativeEmbedding};
use vw2_engine::stage::{InputFile, StageError};
use vw2_models::dit::hint::control_hint;
use vw2_models::dit::{Conditions, Denoiser, DitConfig, Guidance, VideoDit};
use vw2_models::dldm::Dldm;
use vw2_models::sampler::{NumpyNormal, Solver, Trajectory, schedule};
use vw2_models::vae::Vae;
use vw2_models::weights::{self, Weights};

use crate::model_file::{Arithmetic, values};

/// How weights are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F32,
    Bf16,
}

/// How a clip is sampled. The defaults are the released ones (spec 5.3 to 5.6).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Diffusion {
    /// Solver steps; the model is asked once more at the end.
    pub steps: usize,
    pub solver: Solver,
    /// Weight of guidance: how far the result is pushed away from what the model makes of the negative context. 0 asks the
    /// model once per step instead of twice. Default: 7 where `negative` is given, else 0.
    pub guidance: Option<f64>,
    /// Upstream's `default_neg.pickle`, the context of the unconditional pass; without it that pass has zero tokens alone.
    pub negative: Option<InputFile>,
    /// Both passes of guidance as one batch: faster, for twice the memory. Default: where a quarter of `runtime.memory` holds
    /// what they need.
    pub batched: Option<bool>,
    pub sigma_min: f64,
    pub sigma_max: f64,
    /// How the DiT's weights are held in memory: `bf16` takes half of it; see `arithmetic` for what is computed.
    pub precision: Precision,
    /// The float type in which the DiT computes: `f32`, or `bf16` for tensor cores.
    #[serde(skip_serializing_if = "Arithmetic::is_f32")]
    pub arithmetic: Arithmetic,
    /// Seed of the start noise; every clip starts from the same, as upstream's do.
    pub seed: u32,
}

impl Default for Diffusion {
    fn default() -> Diffusion {
        Diffusion {
            steps: 35,
            solver: Solver::AdamsBashforth2,
            guidance: None,
            negative: None,
            batched: None,
            sigma_min: 0.002,
            sigma_max: 80.0,
            precision: Precision::F32,
            arithmetic: Arithmetic::F32,
            seed: 0,
        }
    }
}

impl Diffusion {
    /// Params that parse but make no sense.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.steps == 0 {
            return Err("`diffusion.steps` is 0; a sampler makes at least 1 step".into());
        }
        if !(self.sigma_min > 0.0 && self.sigma_max > self.sigma_min && self.sigma_max.is_finite()) {
            let Diffusion { sigma_min, sigma_max, .. } = self;
            return Err(format!(
                "`diffusion` goes from sigma_max = {sigma_max} to sigma_min = {sigma_min}; it wants to fall"
            ));
        }
        match self.guidance {
            Some(weight) if !weight.is_finite() => Err(format!("`diffusion.guidance` is {weight}")),
            _ => Ok(()),
        }
    }

    /// The DiT of a file, held as asked for.
    pub(crate) fn load(&self) -> fn(&Weights, &Device) -> Result<VideoDit, StageError> {
        match self.precision {
            Precision::F32 => |file, device| Ok(VideoDit::load(file, device)?),
            Precision::Bf16 => |file, device| {
                let config = DitConfig::of(file)?;
                Ok(VideoDit::load_held(&config, file, device, weights::Precision::Bf16)?)
            },
        }
    }

    fn guidance(&self) -> f64 {
        self.guidance.unwrap_or(if self.negative.is_some() { 7.0 } else { 0.0 })
    }

    /// The context of the unconditional pass, `[1, M, width]`, if there is such a pass.
    pub(crate) fn negative_context(&self, width: usize, device: &Device) -> Result<Option<Tensor<3>>, StageError> {
        if self.guidance() == 0.0 {
            return Ok(None);
        }
        match &self.negative {
            None => Ok(Some(Tensor::zeros([1, 1, width], device))),
            Some(file) => {
                let NegativeEmbedding { shape, values } = negative_embedding::read(&file.0)?;
                if shape[1] != width {
                    let path = file.0.display();
                    return Err(format!("{path}: tokens of width {}, but the DiT's are {width} wide", shape[1]).into());
                }
                Ok(Some(Tensor::<2>::from_data(TensorData::new(values, shape), device).unsqueeze()))
            }
        }
    }
}

/// The models that turn codes into a sharp clip, and how they are used.
pub(crate) struct Renderer<'a> {
    pub(crate) vae: &'a Vae,
    pub(crate) dldm: &'a Dldm,
    pub(crate) dit: &'a VideoDit,
    pub(crate) params: &'a Diffusion,
    /// See [`Diffusion::negative_context`].
    pub(crate) negative: Option<&'a Tensor<3>>,
    /// The run's byte budget.
    pub(crate) memory_bytes: u64,
}

impl Renderer<'_> {
    /// A clip `[1, 3, T, H, W]` in about [-1, 1] that starts with `first` `[1, 3, 1, H, W]` and does what the codes
    /// `[1, N, D]` say, as the coarse clip `[1, 3, T, h, w]` shows it. `step` hears of each solver step, and may stop the work.
    ///
    /// Source: spec 5.7, steps 4 to 6. Only the first latent frame of the start image counts, so only it is encoded.
    pub(crate) fn render(
        &self,
        first: Tensor<5>,
        codes: Tensor<3>,
        coarse: Tensor<5>,
        step: &mut dyn FnMut(usize, usize) -> Result<(), StageError>,
    ) -> Result<Tensor<5>, StageError> {
        let [.., height, width] = first.dims();
        let device = first.device();
        let first = self.vae.encode(first)?;
        let hint = self.vae.encode(control_hint(coarse, height, width))?;
        let context = self.dldm.condition(codes)?;
        let shape = hint.dims();
        let clean = hint.zeros_like().slice_assign([0..1, 0..shape[1], 0..1, 0..shape[3], 0..shape[4]], first);
        let hint = self.dit.config().control_blocks.gt(&0).then_some(hint);
        let denoiser = Denoiser::new(self.dit, Conditions { clean, given: 1, hint, padding: None, fps: None })?;
        let denoiser = denoiser.computing_in(self.params.arithmetic.on(&device)?);
        let guidance = self.negative.map(|context| Guidance {
            weight: self.params.guidance(),
            context: context.clone(),
            batched: self.params.batched.unwrap_or_else(|| {
                let [_, _, frames, rows, columns] = shape;
                2 * self.dit.activation_bytes([frames, rows, columns]) <= self.memory_bytes / 4
            }),
        });
        let model = |x: &[f32], sigma: f64| -> Result<Vec<f32>, StageError> {
            let x = Tensor::from_data(TensorData::new(x.to_vec(), shape), &device);
            Ok(values(match &guidance {
                Some(guidance) => denoiser.guided(x, sigma, context.clone(), guidance)?,
                None => denoiser.clean(x, &[sigma], context.clone())?,
            }))
        };
        let Diffusion { steps, sigma_min, sigma_max, seed, solver, .. } = *self.params;
        let noise = NumpyNormal::new(seed).take(shape.iter().product());
        let noise = noise.into_iter().map(|value| value * sigma_max as f32).collect();
        let mut path = Trajectory::new(solver, schedule(steps, sigma_min, sigma_max, 7.0), noise);
        step(0, steps + 1)?;
        while path.step(model)? {
            step(path.progress().0, steps + 1)?;
        }
        let clean = path.finish(model)?;
        step(steps + 1, steps + 1)?;
        Ok(self.vae.decode(Tensor::from_data(TensorData::new(clean, shape), &device))?)
    }
}
