//! All that a run needs to go on bit for bit, as one safetensors file.
//!
//! Names: `weights.*`; per parameter that was updated `first.*`, `second.*` (AdamW's moments, f32) and `updates.*` (i64 [1]);
//! `masters.*`, where the model holds its weights in bf16; `log.*` (figures by step, f64 [n, 2]); and whatever other copies of
//! the model the run keeps (`best.*`, `average.*`). `*` is the published name. Metadata: `optimizer` (AdamW's
//! configuration, JSON), `updates`, `step`. The weights alone load from the same file with prefix `weights.`.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};

use super::log::Log;
use super::optim::{AdamW, AdamWConfig, Moments};
use crate::weights::{self, Named, NamedClone, SaveType, Weights, device_of, shapes};
use crate::{Error, Result};

const WEIGHTS: &str = "weights.";
const FIRST: &str = "first.";
const SECOND: &str = "second.";
const UPDATES: &str = "updates.";
const MASTERS: &str = "masters.";

/// A run at the end of a step.
#[derive(Clone, Debug)]
pub struct State<M> {
    pub model: M,
    pub optimizer: AdamW,
    /// Steps done.
    pub step: u32,
    pub log: Log,
    /// Other weights of the same model, by a word of one's choice.
    pub copies: BTreeMap<&'static str, M>,
}

/// The file's bytes. The same state gives the same bytes.
///
/// # Errors
/// Two tensors have one name, as a copy called `weights` would.
pub fn to_bytes<M: NamedClone>(state: &State<M>) -> Result<Vec<u8>> {
    let State { model, optimizer, step, log, copies } = state;
    let config = serde_json::to_string(&optimizer.config).map_err(|error| Error::Config(error.to_string()))?;
    let metadata = BTreeMap::from([
        ("optimizer".to_owned(), config),
        ("updates".to_owned(), optimizer.steps.to_string()),
        ("step".to_owned(), step.to_string()),
    ]);
    let below = |prefix: &str, model: &M| {
        weights::collect(model).into_iter().map(|(name, data)| (format!("{prefix}{name}"), data)).collect::<Vec<_>>()
    };
    let mut tensors = below(WEIGHTS, model);
    for (word, copy) in copies {
        tensors.extend(below(&format!("{word}."), copy));
    }
    for (name, moments) in &optimizer.moments {
        tensors.push((format!("{FIRST}{name}"), moments.first.to_data()));
        tensors.push((format!("{SECOND}{name}"), moments.second.to_data()));
        tensors.push((format!("{UPDATES}{name}"), TensorData::new(vec![moments.updates as i64], [1])));
    }
    tensors.extend(optimizer.masters.iter().map(|(name, master)| (format!("{MASTERS}{name}"), master.to_data())));
    tensors.extend(log.tensors());
    weights::to_safetensors(&tensors, &metadata, SaveType::F32)
}

/// Reads back what [`to_bytes`] wrote. `model` is filled; each of `copies` too, where the file has it, and left out
/// where not. Moments lie on the model's device.
///
/// # Errors
/// The file is no checkpoint, or is one of another model.
pub fn restore<M: Named>(file: &Weights, mut model: M, copies: BTreeMap<&'static str, M>) -> Result<State<M>> {
    let damaged = |reason: String| Error::Format { path: file.path().to_owned(), reason };
    let entry = |key: &str| {
        let found = file.metadata().get(key);
        found.ok_or_else(|| damaged(format!("no `{key}` in its metadata; it is no checkpoint of a training run")))
    };
    let config: AdamWConfig =
        serde_json::from_str(entry("optimizer")?).map_err(|error| damaged(format!("metadata `optimizer`: {error}")))?;
    let steps = entry("updates")?.parse().map_err(|error| damaged(format!("metadata `updates`: {error}")))?;
    let step = entry("step")?.parse().map_err(|error| damaged(format!("metadata `step`: {error}")))?;
    weights::load(&mut model, file, WEIGHTS)?;
    let mut restored = BTreeMap::new();
    for (word, mut copy) in copies {
        let prefix = format!("{word}.");
        if file.names().any(|name| name.starts_with(&prefix)) {
            weights::load(&mut copy, file, &prefix)?;
            restored.insert(word, copy);
        }
    }

    let mut optimizer = AdamW { config, steps, moments: BTreeMap::new(), masters: BTreeMap::new() };
    let device = device_of(&mut model).map(|device| device.without_autodiff());
    for (name, shape) in shapes(&mut model) {
        let Some(device) = &device else { continue };
        let length: usize = shape.iter().product();
        let read = |prefix: &str| -> Result<Tensor<1>> {
            let name = format!("{prefix}{name}");
            let values = file.f32s(&name)?;
            if values.len() != length {
                return Err(damaged(format!("`{name}` has {} values, its parameter {length}", values.len())));
            }
            Ok(Tensor::from_data(TensorData::new(values, [length]), device))
        };
        if file.contains(&format!("{MASTERS}{name}")) {
            optimizer.masters.insert(name.clone(), read(MASTERS)?);
        }
        if file.contains(&format!("{FIRST}{name}")) {
            let updates = file.i64s(&format!("{UPDATES}{name}"))?;
            let updates = updates.first().copied().and_then(|count| u64::try_from(count).ok());
            let updates = updates.ok_or_else(|| damaged(format!("`{UPDATES}{name}` is no count")))?;
            let moments = Moments { first: read(FIRST)?, second: read(SECOND)?, updates };
            optimizer.moments.insert(name, moments);
        }
    }
    Ok(State { model, optimizer, step, log: Log::read(file)?, copies: restored })
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

    fn bytes(decoder: &Ar, optimizer: &AdamW, step: u32) -> Vec<u8> {
        let mut log = Log::default();
        // Values that text would round.
        (1..=step).for_each(|step| log.push("loss", step, 1.0 / f64::from(step) + f64::EPSILON));
        log.push("other", 0, f64::NAN);
        let copies = BTreeMap::from([("average", decoder.valid())]);
        let state = State { model: decoder.clone(), optimizer: optimizer.clone(), step, log, copies };
        to_bytes(&state).unwrap()
    }

    fn back(bytes: Vec<u8>) -> Result<State<Ar>> {
        let other = |seed| Ar::init(&config(), seed, &Device::flex().autodiff()).unwrap();
        let copies = BTreeMap::from([("average", other(3)), ("best", other(4))]);
        restore(&Weights::from_bytes("memory", bytes).unwrap(), other(1), copies)
    }

    #[test]
    fn a_resumed_run_ends_in_the_very_bytes_of_one_that_never_stopped() {
        for bf16 in [false, true] {
            let run = |until: u64| {
                let (mut decoder, mut optimizer) = start();
                if bf16 {
                    optimizer.hold_bf16(&mut decoder);
                }
                train(&mut decoder, &mut optimizer, until);
                (decoder, optimizer)
            };
            let (decoder, optimizer) = run(10);
            let through = bytes(&decoder, &optimizer, 10);
            let (decoder, optimizer) = run(5);
            let half = bytes(&decoder, &optimizer, 5);
            let state = back(half.clone()).unwrap();
            assert_eq!((state.step, state.optimizer.steps()), (5, 5));
            assert_eq!(state.copies.keys().copied().collect::<Vec<_>>(), ["average"]);
            assert_eq!(to_bytes(&state).unwrap(), half, "what is read back is what was written");
            let (mut decoder, mut optimizer) = (state.model, state.optimizer);
            train(&mut decoder, &mut optimizer, 10);
            assert!(bytes(&decoder, &optimizer, 10) == through, "the resumed run differs, bf16 {bf16}");
            assert!(through != half);
        }
    }

    #[test]
    fn a_file_that_is_no_checkpoint_says_so() {
        let (decoder, optimizer) = start();
        let plain = weights::to_safetensors(&weights::collect(&decoder), &BTreeMap::new(), SaveType::F32).unwrap();
        let error = back(plain).unwrap_err().to_string();
        assert!(error.contains("no `optimizer`") && error.contains("no checkpoint"), "{error}");

        let wider = ArConfig { intermediate_size: 25, ..config() };
        let wider = Ar::init(&wider, 0, &Device::flex()).unwrap();
        let file = Weights::from_bytes("memory", bytes(&decoder, &optimizer, 1)).unwrap();
        let error = restore(&file, wider, BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("wanted [25, 16], found [24, 16]"), "{error}");
        for cut in [0, 7, 100] {
            assert!(Weights::from_bytes("memory", bytes(&decoder, &optimizer, 1)[..cut].to_vec()).is_err());
        }
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
