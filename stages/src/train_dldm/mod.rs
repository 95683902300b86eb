//! `train-dldm`: trains the dLDM by reconstruction, the warm-up step of VideoWorld 2.
//!
//! Encoder, Q-Former, quantizer (straight through) and coarse decoder learn together; the connector to the DiT gets no
//! gradient and keeps its first values.
//! Metrics show a collapse while it happens: codes in use, their perplexity, and the shuffled-codes gap.
//! Source: spec section 7.2. Differs: the perceptual term is left out (spec 3.7), as its VGG weights are not shipped.

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vw2_engine::stage::{Context, Needs, Operator, Placement, Port, Stage, StageError, Table};
use vw2_models::dldm::{Dldm, DldmConfig};

use vw2_models::weights::Weights;

use crate::tables;
use crate::training::{HeldOut, Listening, Reconstruct, Reconstructed, Reconstruction, Reconstructor};

/// Trains on all clips of a frame table.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub struct TrainDldm(pub Reconstruction);

impl Stage for TrainDldm {
    const KIND: &'static str = "train-dldm";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "all frames to a dLDM, trained by reconstruction (warm-up)";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] =
        &[Port::whole("frames", &tables::FRAMES), Port::whole("init", &tables::CHECKPOINTS).optional()];
    const OUTPUT: &'static Table = &tables::CHECKPOINTS;

    fn check(&self) -> Result<(), String> {
        DldmConfig::preset(&self.0.preset).map_err(|error| error.to_string())?;
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
        Ok(Reconstructor::<Dldm>::open(&self.0, ctx))
    }
}

impl Reconstruct for Dldm {
    const NAME: &'static str = "dldm";

    fn init(preset: &str, seed: u64, device: &Device) -> Result<Self, StageError> {
        Ok(Dldm::new(&DldmConfig::preset(preset)?, device, seed)?)
    }

    fn load(weights: &Weights, device: &Device) -> Result<Self, StageError> {
        Ok(Dldm::load(weights, device)?)
    }

    fn is_preset(&self, preset: &str) -> Result<bool, StageError> {
        Ok(Dldm::config(self) == &DldmConfig::preset(preset)?)
    }

    fn reconstruct(&self, x: Tensor<5>) -> Result<Reconstructed, StageError> {
        Ok(Reconstructed { video: Dldm::reconstruct(self, x)?.0, penalties: Vec::new() })
    }

    fn figures(&self, held: &HeldOut) -> Result<Vec<(&'static str, f64)>, StageError> {
        Ok(Listening::to(self, held)?.figures())
    }

    fn warning(&self, held: &HeldOut) -> Result<Option<String>, StageError> {
        Ok(Listening::to(self, held)?.warning())
    }

    fn config(&self) -> serde_json::Value {
        serde_json::to_value(Dldm::config(self)).expect("a configuration is plain data")
    }
}
