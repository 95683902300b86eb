//! `encode`: frames to VAE latents.
//!
//! Cost of a 17 x 64 x 64 clip at the tiny width: about 0.2 MB in, 20 kB out.

use burn::tensor::DType;
use serde::{Deserialize, Serialize};
use vw2_data::{Frames, Latents};
use vw2_engine::stage::{Context, InputFile, Needs, Operator, Output, Port, Stage, StageError, Table, Unit};
use vw2_models::vae::Vae;

use crate::model_file::{self, Arithmetic, ModelFile};
use crate::tables;

/// Encodes each clip's frames by the causal VAE.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encode {
    /// The VAE's weights: upstream's `tokenizer.pth` or our `.safetensors`. Left out where port `vae` is connected.
    #[serde(default)]
    pub weights: Option<InputFile>,
    /// The float type in which the model computes: `f32`, or `bf16` for tensor cores.
    #[serde(default, skip_serializing_if = "Arithmetic::is_f32")]
    pub arithmetic: Arithmetic,
}

impl Stage for Encode {
    const KIND: &'static str = "encode";
    const VERSION: u32 = 3;
    const ABOUT: &'static str = "frames to VAE latents";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] =
        &[Port::row("frames", &tables::FRAMES), Port::whole("vae", &tables::CHECKPOINTS).optional()];
    const OUTPUT: &'static Table = &tables::LATENTS;

    fn needs(&self) -> Needs {
        Needs::Device
    }

    fn open(&self, ctx: &Context) -> Result<Box<dyn Operator>, StageError> {
        let vae = ModelFile::new(ctx, self.weights.as_ref(), "vae", |weights, device| Ok(Vae::load(weights, device)?))?;
        let arithmetic = self.arithmetic.on(vae.device())?;
        Ok(Box::new(Encoder { vae, arithmetic }))
    }
}

struct Encoder {
    vae: ModelFile<Vae>,
    arithmetic: DType,
}

impl Operator for Encoder {
    fn process(&mut self, units: &[Unit], out: &mut Output) -> Result<(), StageError> {
        for unit in units {
            let (vae, device) = self.vae.get(unit)?;
            let frames = Frames::view(unit.row("frames"))?;
            let video = model_file::clip_tensor(&frames, device)?.cast(self.arithmetic); // [1, 3, T, H, W]
            match vae.encode(video) {
                Ok(latent) => {
                    let [_, c, t, h, w] = latent.dims();
                    let values = model_file::values(latent);
                    out.push(unit, "", Latents::row(values, [c, t, h, w], frames.origin(0).index)?); // [16, T', H', W']
                }
                Err(error) => out.reject(unit, error.to_string()),
            }
        }
        Ok(())
    }

    fn memory_bytes(&self, unit: &Unit) -> u64 {
        model_file::activation_bytes(unit, 64)
    }
}
