//! `extract`: frames to latent-dynamics codes, by the dLDM's encoder, Q-Former and FSQ.
//!
//! Shapes: frames u8 [1 + 4k, H, W, 3] -> codes u16 [k * queries], pair-major: all queries of the first latent pair, then
//! of the second. The first clip of a video also keeps the dLDM's first-frame feature [C, h, w], which the AR model takes
//! as its picture of the start scene.
//! Units run one at a time: GEMM kernels change their order of summation with the shape, and one flipped code would make
//! a clip's codes depend on its companions in a batch.
//! Source: spec sections 3.4, 3.5, 5.9.

use burn::tensor::DType;
use serde::{Deserialize, Serialize};
use vw2_data::{Code, Codes, Feature, Frames};
use vw2_engine::stage::{Context, InputFile, Needs, Operator, Output, Port, Stage, StageError, Table, Unit};
use vw2_models::dldm::Dldm;

use crate::model_file::{self, Arithmetic, ModelFile};
use crate::tables;

/// Extracts each clip's codes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extract {
    /// The dLDM's weights: upstream's `VideoWorld2_dLDM_VAE.pt` or our `.safetensors`. Left out where port `dldm` is
    /// connected.
    #[serde(default)]
    pub weights: Option<InputFile>,
    /// The float type in which the model computes: `f32`, or `bf16` for tensor cores.
    #[serde(default, skip_serializing_if = "Arithmetic::is_f32")]
    pub arithmetic: Arithmetic,
}

impl Stage for Extract {
    const KIND: &'static str = "extract";
    const VERSION: u32 = 3;
    const ABOUT: &'static str = "frames to dLDM codes";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] =
        &[Port::row("frames", &tables::FRAMES), Port::whole("dldm", &tables::CHECKPOINTS).optional()];
    const OUTPUT: &'static Table = &tables::CODES;

    fn needs(&self) -> Needs {
        Needs::Device
    }

    fn open(&self, ctx: &Context) -> Result<Box<dyn Operator>, StageError> {
        let dldm =
            ModelFile::new(ctx, self.weights.as_ref(), "dldm", |weights, device| Ok(Dldm::load(weights, device)?))?;
        let arithmetic = self.arithmetic.on(dldm.device())?;
        Ok(Box::new(Extractor { dldm, arithmetic }))
    }
}

struct Extractor {
    dldm: ModelFile<Dldm>,
    arithmetic: DType,
}

impl Operator for Extractor {
    fn process(&mut self, units: &[Unit], out: &mut Output) -> Result<(), StageError> {
        for unit in units {
            let frames = Frames::view(unit.row("frames"))?;
            match self.extract(unit, &frames)? {
                Ok(code) => out.push(unit, "", Codes::row(&code)?),
                Err(reason) => out.reject(unit, reason),
            }
        }
        Ok(())
    }

    fn memory_bytes(&self, unit: &Unit) -> u64 {
        model_file::activation_bytes(unit, 64)
    }
}

impl Extractor {
    /// The inner result is the clip's: `Err` says why the model cannot take it.
    fn extract(&mut self, unit: &Unit, frames: &Frames<'_>) -> Result<Result<Code, String>, StageError> {
        let (dldm, device) = self.dldm.get(unit)?;
        let video = model_file::clip_tensor(frames, device)?.cast(self.arithmetic); // [1, 3, T, H, W]
        let encoded = match dldm.encode(video) {
            Ok(encoded) => encoded,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let codes =
            encoded.indices.clone().into_data().convert::<i64>().try_into_vec::<i64>().expect("converted to i64 above");
        let origin = frames.origin(0);
        let feature = (origin.index == 0).then(|| {
            let first = encoded.first();
            let [_, c, h, w] = first.dims();
            Feature {
                shape: [c, h, w],
                values: model_file::values(first).into_iter().map(half::f16::from_f32).collect(),
            }
        });
        let config = dldm.config();
        let (levels, queries) = (config.levels.clone(), config.queries);
        let model = self.dldm.content().map(|hash| hash.to_string()).unwrap_or_default();
        Ok(Ok(Code {
            codes: codes.into_iter().map(|code| code as u16).collect(),
            levels: levels.into_iter().map(|level| level as u16).collect(),
            queries: queries as u16,
            feature,
            model,
            origin,
        }))
    }
}
