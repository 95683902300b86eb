//! All that a run needs to go on bit for bit, in one safetensors file.
//!
//! Names: `weights.*`, and per parameter that has had a gradient `first.*`, `second.*` (AdamW's moments, f32) and `updates.*`
//! (i64 [1]); `*` is the published name. Metadata: `config` (the model's, JSON), `optimizer` (AdamW's, JSON), `step`.
//! The weights alone load from the same file with prefix `weights.`.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use serde::Serialize;

use super::optim::{AdamW, AdamWConfig, Moments};
use crate::weights::{self, Named, NamedClone, SaveType, Weights, device_of, shapes};
use crate::{Error, Result};

const WEIGHTS: &str = "weights.";
const FIRST: &str = "first.";
const SECOND: &str = "second.";
const UPDATES: &str = "updates.";

/// Writes model and optimizer. The same state gives the same bytes.
///
/// # Errors
/// The file cannot be written.
pub fn save(path: impl AsRef<Path>, model: &impl NamedClone, config: &impl Serialize, optimizer: &AdamW) -> Result<()> {
    let json = |value: serde_json::Result<String>| value.map_err(|error| Error::Config(error.to_string()));
    let metadata = BTreeMap::from([
        ("config".to_owned(), json(serde_json::to_string(config))?),
        ("optimizer".to_owned(), json(serde_json::to_string(&optimizer.config))?),
        ("step".to_owned(), optimizer.steps.to_string()),
    ]);
    let mut tensors: Vec<_> =
        weights::collect(model).into_iter().map(|(name, data)| (format!("{WEIGHTS}{name}"), data)).collect();
    for (name, moments) in &optimizer.moments {
        tensors.push((format!("{FIRST}{name}"), moments.first.to_data()));
        tensors.push((format!("{SECOND}{name}"), moments.second.to_data()));
        tensors.push((format!("{UPDATES}{name}"), TensorData::new(vec![moments.updates as i64], [1])));
    }
    weights::save_safetensors(path, &tensors, &metadata, SaveType::F32)
}

/// Fills `model` and returns its optimizer; moments lie on the model's device.
///
/// # Errors
/// The file is no checkpoint, or is one of another model.
pub fn load(path: impl AsRef<Path>, model: &mut impl Named) -> Result<AdamW> {
    let file = Weights::open(path)?;
    let damaged = |reason: String| Error::Format { path: file.path().to_owned(), reason };
    let entry = |key: &str| {
        let found = file.metadata().get(key);
        found.ok_or_else(|| damaged(format!("no `{key}` in its metadata; it is no checkpoint of a training run")))
    };
    let config: AdamWConfig =
        serde_json::from_str(entry("optimizer")?).map_err(|error| damaged(format!("metadata `optimizer`: {error}")))?;
    let steps = entry("step")?.parse().map_err(|error| damaged(format!("metadata `step`: {error}")))?;
    weights::load(model, &file, WEIGHTS)?;

    let mut moments = BTreeMap::new();
    let device = device_of(model).map(|device| device.without_autodiff());
    for (name, shape) in shapes(model) {
        let (first, second, updates) =
            (format!("{FIRST}{name}"), format!("{SECOND}{name}"), format!("{UPDATES}{name}"));
        let Some(device) = device.as_ref().filter(|_| file.contains(&first)) else { continue };
        let length: usize = shape.iter().product();
        let read = |name: &str| -> Result<Tensor<1>> {
            let values = file.f32s(name)?;
            if values.len() != length {
                return Err(damaged(format!("`{name}` has {} values, its parameter {length}", values.len())));
            }
            Ok(Tensor::from_data(TensorData::new(values, [length]), device))
        };
        let updates = file.i64s(&updates)?.first().copied().and_then(|count| u64::try_from(count).ok());
        let updates = updates.ok_or_else(|| damaged(format!("`{UPDATES}{name}` is no count")))?;
        moments.insert(name, Moments { first: read(&first)?, second: read(&second)?, updates });
    }
    Ok(AdamW { config, steps, moments })
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::tensor::{Device, Int};

    use super::*;
    use crate::ar::{Ar, ArConfig, next_id_loss};
    use crate::train::order::Order;
    use crate::train::{Grads, Schedule};

    fn config() -> ArConfig {
        ArConfig {
            num_hidden_layers: 1,
            hidden_size: 16,
            intermediate_size: 24,
            ..ArConfig::preset("tiny", 13).unwrap()
        }
    }

    /// Steps on sentences that count, up to step `until`.
    fn train(decoder: &mut Ar, optimizer: &mut AdamW, until: u64) {
        let device = Device::flex().autodiff();
        let mut order = Order::new(13, 4, 2);
        let schedule = Schedule::warmup_decay(2, 20);
        while optimizer.steps() < until {
            let sentence = |start: usize| (0..6).map(move |i| ((start + i) % 13) as i64);
            let ids: Vec<i64> = order.minibatch(optimizer.steps()).into_iter().flat_map(sentence).collect();
            let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [4, 6]), &device);
            let loss = next_id_loss(decoder.forward(ids.clone(), None), ids);
            let mut grads = Grads::of(&loss, decoder);
            grads.clip(1.0, |_| true);
            optimizer.step(decoder, &grads, 3e-2 * schedule.factor(optimizer.steps()));
        }
    }

    fn start() -> (Ar, AdamW) {
        let decoder = Ar::init(&config(), 9, &Device::flex().autodiff()).unwrap();
        (decoder, AdamW::new(AdamWConfig::default()))
    }

    #[test]
    fn a_resumed_run_ends_in_the_very_bytes_of_one_that_never_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (mut decoder, mut optimizer) = start();
        train(&mut decoder, &mut optimizer, 10);
        save(path("through"), &decoder, &config(), &optimizer).unwrap();

        let (mut decoder, mut optimizer) = start();
        train(&mut decoder, &mut optimizer, 5);
        save(path("half"), &decoder, &config(), &optimizer).unwrap();
        let mut other = Ar::init(&config(), 1, &Device::flex().autodiff()).unwrap();
        let mut optimizer = load(path("half"), &mut other).unwrap();
        assert_eq!(optimizer.steps(), 5);
        train(&mut other, &mut optimizer, 10);
        save(path("resumed"), &other, &config(), &optimizer).unwrap();

        let bytes = |name| std::fs::read(path(name)).unwrap();
        assert!(bytes("through") == bytes("resumed"), "the resumed run differs");
        assert!(bytes("through") != bytes("half"));
    }

    #[test]
    fn a_file_that_is_no_checkpoint_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        let (mut decoder, optimizer) = start();
        weights::save_model(&path, &decoder, &config(), SaveType::F32).unwrap();
        let error = load(&path, &mut decoder).unwrap_err().to_string();
        assert!(error.contains("no `optimizer`") && error.contains("no checkpoint"), "{error}");

        save(&path, &decoder, &config(), &optimizer).unwrap();
        let wider = ArConfig { intermediate_size: 25, ..config() };
        let error = load(&path, &mut Ar::init(&wider, 0, &Device::flex()).unwrap()).unwrap_err().to_string();
        assert!(error.contains("wanted [25, 16], found [24, 16]"), "{error}");
    }

    #[test]
    fn gradients_are_clipped_together_and_only_where_asked() {
        let (mut decoder, _) = start();
        let device = Device::flex().autodiff();
        let ids = Tensor::<2, Int>::from_data([[1, 2, 3, 4]], &device);
        let loss = next_id_loss(decoder.forward(ids.clone(), None), ids).mul_scalar(50.0);
        let mut grads = Grads::of(&loss, &mut decoder);
        let (head, rest) = (|name: &str| name.starts_with("lm_head"), |name: &str| !name.starts_with("lm_head"));
        let before = grads.norm(rest);
        assert!(grads.norm(head) > 1.0, "the test wants a large gradient");
        let norm = grads.clip(1.0, head);
        assert!(norm > 1.0 && (grads.norm(head) - 1.0).abs() < 1e-5);
        assert_eq!(grads.norm(rest), before);
        let small = grads.norm(head);
        grads.clip(2.0, head);
        assert_eq!(grads.norm(head), small, "a small gradient is not scaled");
        assert_eq!(grads.zero_non_finite(), 0);
        assert_eq!(
            decoder.valid().num_params(),
            grads.names().map(|name| grads.get(name).unwrap().dims()[0]).sum::<usize>()
        );
    }
}
