//! `train-dldm`: trains the dLDM by reconstruction, the warm-up step of VideoWorld 2.
//!
//! Encoder, Q-Former, quantizer (straight through) and coarse decoder learn together; the connector to the DiT gets no
//! gradient and keeps its first values.
//! Metrics show a collapse while it happens: codes in use, their perplexity, and the shuffled-codes gap.
//! Source: spec section 7.2, and 3.7 for the perceptual term, which wants VGG-16's weights: they are not shipped.

mod changes;
mod places;
mod pupil;

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use vw2_engine::stage::{Context, Needs, Operator, Placement, Port, Stage, StageError, Table};
use vw2_models::dldm::{Dldm, DldmConfig};

use vw2_models::weights::{self, Weights};

use crate::tables;
use crate::training::{
    Drawn, HeldOut, Learn, Listening, Picture, Reconstruct, Reconstructed, Reconstruction, Reconstructor,
};
use changes::Changes;
use pupil::Pupil;

/// Trains on all clips of a frame table.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub struct TrainDldm(pub Reconstruction);

impl Stage for TrainDldm {
    const KIND: &'static str = "train-dldm";
    const VERSION: u32 = 5;
    const ABOUT: &'static str = "all frames to a dLDM, trained by reconstruction (warm-up)";
    const EXAMPLE: &'static str = include_str!("example.toml");
    const INPUTS: &'static [Port] =
        &[Port::whole("frames", &tables::FRAMES), Port::whole("init", &tables::CHECKPOINTS).optional()];
    const OUTPUT: &'static Table = &tables::CHECKPOINTS;

    fn expand(params: toml::Table) -> Result<toml::Table, String> {
        crate::training::expand(Self::KIND, params)
    }

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
        Ok(Reconstructor::<Pupil>::open(&self.0, ctx))
    }
}

/// How far the numbers of each pair's codes from `from` on, before they are rounded, are from what they are to say: the squared
/// error over the square of the latter. Codes `[B, N, D]`, wanted `[B, pairs, count]`. Where less is wanted than the codes
/// could say, the last numbers are left alone; where more, its last ones; `None` where no number is left.
fn said_wrong(codes: Tensor<3>, from: usize, wanted: Tensor<3>) -> Option<Tensor<1>> {
    let [b, pairs, count] = wanted.dims();
    let [_, n, numbers] = codes.dims();
    let each = n / pairs * numbers;
    let count = count.min(each.saturating_sub(from));
    if count == 0 {
        return None;
    }
    let (said, wanted) = (codes.reshape([b, pairs, each]).narrow(2, from, count), wanted.narrow(2, 0, count));
    Some((said - wanted.clone()).square().mean() / wanted.square().mean().add_scalar(1e-6))
}

impl Reconstruct for Pupil {
    const NAME: &'static str = "dldm";
    type Guide = Option<Changes>;

    fn init(preset: &str, seed: u64, device: &Device) -> Result<Self, StageError> {
        Ok(Pupil::new(Dldm::new(&DldmConfig::preset(preset)?, device, seed)?, device))
    }

    fn load(weights: &Weights, device: &Device) -> Result<Self, StageError> {
        Ok(Pupil::new(Dldm::load(weights, device)?, device))
    }

    fn is_preset(&self, preset: &str) -> Result<bool, StageError> {
        Ok(self.dldm.config() == &DldmConfig::preset(preset)?)
    }

    fn reconstruct(&self, x: Tensor<5>) -> Result<Reconstructed, StageError> {
        Ok(Reconstructed { video: self.dldm.reconstruct(x)?.0, penalties: Vec::new() })
    }

    fn guide(
        &self,
        learn: &[Learn],
        clips: &mut dyn Iterator<Item = Result<Tensor<5>, StageError>>,
        device: &Device,
    ) -> Result<Option<Changes>, StageError> {
        let DldmConfig { queries, embedding_dim, .. } = self.dldm.config();
        let wanted = learn.iter().any(|learn| learn.changes > 0.0 || learn.motion > 0.0);
        wanted.then(|| Changes::of(clips, queries * embedding_dim, device)).transpose()
    }

    fn learn(&self, x: Tensor<5>, learn: &Learn, guide: &Option<Changes>) -> Result<Drawn, StageError> {
        let encoded = self.dldm.encode(x.clone())?;
        let mut drawn = Drawn::default();
        if learn.video > 0.0 {
            let video = self.dldm.decode(encoded.codes.clone(), encoded.first())?;
            drawn.pictures.push(Picture::video(video, x.clone(), learn.video));
        }
        if learn.stills > 0.0 {
            let [b, colours, t, h, w] = x.dims();
            let last = x.clone().narrow(2, 1, t - 1).reshape([b, colours, (t - 1) / 4, 4, h * w]).narrow(3, 3, 1);
            let first = x.clone().narrow(2, 0, 1);
            let truth = Tensor::cat(vec![first, last.reshape([b, colours, (t - 1) / 4, h, w])], 2);
            let video = self.dldm.stills(encoded.h.clone())?;
            drawn.pictures.push(Picture { name: "stills", weight: learn.stills, video, truth });
        }
        if learn.cells > 0.0 {
            let video = self.cells(encoded.h.clone());
            drawn.pictures.push(Picture { name: "cells", weight: learn.cells, video, truth: x.clone() });
        }
        if let Some(changes) = guide {
            let mut said = 0;
            let mut say = |name, weight: f64, wanted: &dyn Fn(Tensor<5>) -> Tensor<3>| {
                if weight > 0.0 {
                    let wanted = Tensor::from_inner(wanted(x.clone().inner()));
                    let count = wanted.dims()[2];
                    let wrong = said_wrong(encoded.query.clone(), said, wanted);
                    drawn.penalties.extend(wrong.map(|wrong| (name, wrong.mul_scalar(weight))));
                    said += count;
                }
            };
            say("motion", learn.motion, &|x| changes.motion(x));
            say("changes", learn.changes, &|x| changes.scores(x));
        }
        Ok(drawn)
    }

    fn figures(&self, held: &HeldOut) -> Result<Vec<(&'static str, f64)>, StageError> {
        Ok(Listening::to(&self.dldm, held)?.figures())
    }

    fn warning(&self, held: &HeldOut) -> Result<Option<String>, StageError> {
        Ok(Listening::to(&self.dldm, held)?.warning())
    }

    fn published(&self) -> Vec<(String, TensorData)> {
        weights::collect(&self.dldm)
    }

    fn config(&self) -> serde_json::Value {
        serde_json::to_value(self.dldm.config()).expect("a configuration is plain data")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_one_thing_after_the_other_as_long_as_they_have_numbers() {
        let tensor = |values: &[f32], shape: [usize; 3]| {
            Tensor::<3>::from_data(TensorData::new(values.to_vec(), shape), &Device::flex())
        };
        // Two pairs, each with two queries of two numbers.
        let codes = tensor(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], [1, 4, 2]);
        let wrong = |from, wanted: &[f32]| {
            let wanted = tensor(wanted, [1, 2, wanted.len() / 2]);
            said_wrong(codes.clone(), from, wanted).map(|wrong| wrong.into_scalar::<f32>())
        };
        assert!(wrong(0, &[1.0, 2.0, 5.0, 6.0]).unwrap() < 1e-6);
        assert!(wrong(2, &[3.0, 4.0, 9.0, 7.0, 8.0, 9.0]).unwrap() < 1e-6, "the third is more than is left");
        assert!((wrong(1, &[2.0, 4.0]).unwrap() - 0.2).abs() < 1e-5, "(0 + 4) over (4 + 16)");
        assert!(wrong(4, &[1.0, 1.0]).is_none() && wrong(9, &[1.0, 1.0]).is_none());
    }
}
