//! Which models a weights file holds: found by names, compared by names and shapes. No tensor is read or made.

use burn::tensor::Device;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Mismatch, Weights, compare, compare_among, config_of, presets};
use crate::ar::{self, Ar, ArConfig, CodeConfig, CodeModel};
use crate::dit::{self, DitConfig, VideoDit};
use crate::dldm::{self, Dldm, DldmConfig};
use crate::error::{Error, Result};
use crate::vae::{self, Vae, VaeConfig};

/// A model that stands in a file below a prefix.
#[derive(Debug)]
pub struct Fit {
    /// What it is, in words: `VAE`, `dLDM`, …
    pub model: &'static str,
    pub prefix: String,
    /// Where the configuration comes from that it was compared with.
    pub origin: Origin,
    /// As JSON.
    pub config: String,
    pub verdict: Verdict,
}

/// Where a configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The file's own metadata.
    Metadata,
    /// The preset of this name; of several, the one with the fewest differences.
    Preset(String),
}

/// What the comparison gave.
#[derive(Debug)]
pub enum Verdict {
    /// Loading will succeed.
    Fits,
    Differs(Box<Mismatch>),
    /// The configuration in the metadata makes no sense, or is not supported.
    Refused(Error),
}

impl Fit {
    pub fn fits(&self) -> bool {
        matches!(self.verdict, Verdict::Fits)
    }

    fn differences(&self) -> usize {
        match &self.verdict {
            Verdict::Fits => 0,
            Verdict::Differs(mismatch) => mismatch.count(),
            Verdict::Refused(_) => usize::MAX,
        }
    }
}

/// All models that the file holds, the shortest prefix of each kind first. A model is recognised by a name that it always
/// has, and compared with the configuration in the metadata, else with each preset.
///
/// # Errors
/// A preset of ours cannot be read.
pub fn fits(weights: &Weights) -> Result<Vec<Fit>> {
    let device = &Device::flex();
    let mut found = Vec::new();
    for prefix in weights.prefixes_of(vae::PROBE) {
        let differs = |config: &VaeConfig| Ok(compare(&mut Vae::new(config, device, 0)?, weights, &prefix));
        found.extend(nearest("VAE", weights, &prefix, presets(vae::PRESETS)?, differs));
    }
    for prefix in weights.prefixes_of(dldm::PROBE) {
        let differs = |config: &DldmConfig| Ok(compare(&mut Dldm::new(config, device, 0)?, weights, &prefix));
        found.extend(nearest("dLDM", weights, &prefix, presets(dldm::PRESETS)?, differs));
    }
    for prefix in weights.prefixes_of(EMBEDDING) {
        let coder = |config: &CodeConfig| Ok(compare(&mut CodeModel::init(config, 0, device)?, weights, &prefix));
        let decoder = |config: &ArConfig| Ok(compare(&mut Ar::init(config, 0, device)?, weights, &prefix));
        let presets = decoder_presets(weights, &prefix)?;
        // A model over codes always comes with its configuration.
        let fit = nearest("AR model over codes", weights, &prefix, Vec::new(), coder);
        found.extend(fit.or_else(|| nearest("AR decoder", weights, &prefix, presets, decoder)));
    }
    for prefix in weights.prefixes_of(dit::PROBE) {
        found.extend(dit_fits(weights, &prefix, device)?);
    }
    Ok(found)
}

/// The DiT's base, its control branch, or both below one prefix, as upstream's script writes them: what differs least.
fn dit_fits(weights: &Weights, prefix: &str, device: &Device) -> Result<Vec<Fit>> {
    let presets = || presets::<DitConfig>(dit::PRESETS);
    let base = |ours: fn(&str) -> bool| {
        let differs =
            |config: &DitConfig| Ok(compare_among(VideoDit::new(config, device, 0)?.parts().0, weights, prefix, ours));
        Ok::<_, Error>(nearest("DiT", weights, prefix, presets()?, differs))
    };
    let branch = |ours: fn(&str) -> bool| {
        let differs = |config: &DitConfig| match VideoDit::new(config, device, 0)?.parts().1 {
            Some(control) => Ok(compare_among(control, weights, prefix, ours)),
            None => Err(Error::Config("dit: there is a control branch, but control_blocks = 0".to_owned())),
        };
        Ok::<_, Error>(nearest("DiT's control branch", weights, prefix, presets()?, differs))
    };
    let is_branch = weights.names().any(|name| name.strip_prefix(prefix).is_some_and(dit::of_branch));
    if !is_branch {
        return Ok(base(|_| true)?.into_iter().collect());
    }
    let alone: Vec<Fit> = branch(|_| true)?.into_iter().collect();
    let both: Vec<Fit> = base(|name| !dit::of_branch(name))?.into_iter().chain(branch(dit::of_branch)?).collect();
    let differences = |fits: &[Fit]| fits.iter().fold(0, |sum: usize, fit| sum.saturating_add(fit.differences()));
    Ok(if differences(&both) < differences(&alone) { both } else { alone })
}

/// A name that every decoder has; its rows are the vocabulary, which presets leave open.
const EMBEDDING: &str = "model.embed_tokens.weight";

fn decoder_presets(weights: &Weights, prefix: &str) -> Result<Vec<(String, ArConfig)>> {
    let vocabulary = weights.shape(&format!("{prefix}{EMBEDDING}")).and_then(|shape| shape.first().copied());
    let names = presets::<toml::Table>(ar::PRESETS)?.into_iter().map(|(name, _)| name);
    Ok(names.filter_map(|name| ArConfig::preset(&name, vocabulary?).ok().map(|config| (name, config))).collect())
}

/// The model below `prefix` in the file's own configuration; without one, in the preset with the fewest differences.
fn nearest<C>(
    model: &'static str,
    weights: &Weights,
    prefix: &str,
    presets: Vec<(String, C)>,
    differs: impl Fn(&C) -> Result<Mismatch>,
) -> Option<Fit>
where
    C: Serialize + DeserializeOwned,
{
    // Metadata of another kind of model says nothing about this one.
    let key = model.split('\'').next().unwrap_or(model).to_lowercase(); // a branch is in its DiT's configuration
    let candidates: Vec<(Origin, C)> = match config_of(weights, &key) {
        Ok(Some(config)) => vec![(Origin::Metadata, config)],
        _ => presets.into_iter().map(|(name, config)| (Origin::Preset(name), config)).collect(),
    };
    let fit = |(origin, config): (Origin, C)| {
        let verdict = match differs(&config) {
            Ok(mismatch) if mismatch.is_empty() => Verdict::Fits,
            Ok(mismatch) => Verdict::Differs(Box::new(mismatch)),
            Err(error) => Verdict::Refused(error),
        };
        let config =
            serde_json::to_string(&config).expect("a configuration that came from text can be written as text");
        Fit { model, prefix: prefix.to_owned(), origin, config, verdict }
    };
    candidates.into_iter().map(fit).min_by_key(Fit::differences)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    use burn::tensor::TensorData;
    use tempfile::TempDir;

    use super::*;
    use crate::weights::{SaveType, collect, save_model, save_safetensors};

    fn tiny_vae() -> Vae {
        Vae::new(&VaeConfig::preset("tiny").unwrap(), &Device::flex(), 1).unwrap()
    }

    fn tiny_ar() -> Ar {
        Ar::init(&ArConfig::preset("tiny", 20).unwrap(), 1, &Device::flex()).unwrap()
    }

    fn saved(folder: &TempDir, tensors: &[(String, TensorData)]) -> PathBuf {
        let path = folder.path().join("file");
        save_safetensors(&path, tensors, &BTreeMap::new(), SaveType::F16).unwrap();
        path
    }

    fn below(prefix: &str, tensors: Vec<(String, TensorData)>) -> Vec<(String, TensorData)> {
        tensors.into_iter().map(|(name, data)| (format!("{prefix}{name}"), data)).collect()
    }

    fn found(path: &Path) -> Vec<(&'static str, String, Origin, bool)> {
        let found = fits(&Weights::open(path).unwrap()).unwrap();
        found.into_iter().map(|fit| (fit.model, fit.prefix.clone(), fit.origin.clone(), fit.fits())).collect()
    }

    #[test]
    fn models_are_found_below_their_prefixes() {
        let folder = TempDir::new().unwrap();
        let tiny = || Origin::Preset("tiny".to_owned());
        let both = [below("vae.", collect(&tiny_vae())), below("model.", collect(&tiny_ar()))].concat();
        let wanted = [("VAE", "vae.".to_owned(), tiny(), true), ("AR decoder", "model.".to_owned(), tiny(), true)];
        assert_eq!(found(&saved(&folder, &both)), wanted);
        assert_eq!(found(&saved(&folder, &below("a.b.", Vec::new()))), []);
        save_model(folder.path().join("own"), &tiny_vae(), tiny_vae().config(), SaveType::F16).unwrap();
        assert_eq!(found(&folder.path().join("own")), [("VAE", String::new(), Origin::Metadata, true)]);
    }

    #[test]
    fn what_differs_from_the_nearest_preset_is_known() {
        let folder = TempDir::new().unwrap();
        let mut tensors = collect(&tiny_vae());
        tensors.retain(|(name, _)| name != "conv2.bias");
        tensors.push(("extra".to_owned(), TensorData::new(vec![1f32], [1])));
        let fit = fits(&Weights::open(saved(&folder, &tensors)).unwrap()).unwrap().remove(0);
        assert_eq!(fit.origin, Origin::Preset("tiny".to_owned()));
        let Verdict::Differs(mismatch) = fit.verdict else { panic!("{:?}", fit.verdict) };
        assert_eq!((mismatch.count(), mismatch.missing.len(), mismatch.unexpected), (2, 1, vec!["extra".to_owned()]));
    }

    #[test]
    fn a_configuration_that_makes_no_sense_is_refused() {
        let folder = TempDir::new().unwrap();
        let config = VaeConfig { temporal_window: 3, ..tiny_vae().config().clone() };
        save_model(folder.path().join("file"), &tiny_vae(), &config, SaveType::F16).unwrap();
        let fit = fits(&Weights::open(folder.path().join("file")).unwrap()).unwrap().remove(0);
        assert!(matches!(&fit.verdict, Verdict::Refused(error) if error.to_string().contains("temporal_window")));
    }
}
