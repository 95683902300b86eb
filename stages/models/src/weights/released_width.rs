//! Every key of the released checkpoints loads: a sparse file with all of their names and shapes fits the models exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Conversion, Format, Origin, Precision, Renaming, SaveType, Weights, config_of, fits, shapes};
use crate::dit::{DitConfig, Inputs, VideoDit};
use crate::dldm::{Dldm, DldmConfig};
use crate::vae::{Vae, VaeConfig};

/// Name, shape and kind (`param`, `buffer`, `buffer(i64)`).
type Key = (String, Vec<usize>, String);

/// All of `tests/data/keys/<file>`.
fn keys(file: &str) -> Vec<Key> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/keys").join(file);
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().skip(1).map(|line| {
        let columns: Vec<&str> = line.split('\t').collect();
        let shape = match columns[1] {
            "scalar" => Vec::new(),
            lengths => lengths.split('x').map(|length| length.parse().unwrap()).collect(),
        };
        (columns[0].to_owned(), shape, columns[2].to_owned())
    });
    rows.collect()
}

/// A safetensors file of zeros, which takes no space on disk.
fn write_zeros(path: &Path, keys: &[Key], float: &str) {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape, kind) in keys {
        let (dtype, size_bytes) = match kind.as_str() {
            "buffer(i64)" => ("I64", 8),
            "buffer(i32)" => ("I32", 4),
            _ => (float, 2),
        };
        let start = end;
        end += shape.iter().product::<usize>() * size_bytes;
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
}

/// The file of `keys` and a folder that keeps it.
fn zeros(keys: &[Key], float: &str) -> (TempDir, Weights) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("released.safetensors");
    write_zeros(&path, keys, float);
    let weights = Weights::open(&path).unwrap();
    (folder, weights)
}

/// Keys that no model asks for: counters, and tables that are computed.
fn kept_by_upstream_alone(name: &str) -> bool {
    name.contains(".accum_") || name.contains(".pos_embedder.")
}

fn check(
    file: &str,
    float: &str,
    prefix: &str,
    parameters: usize,
    load: impl FnOnce(&Weights) -> Vec<(String, Vec<usize>)>,
) {
    let keys = keys(file);
    let (_folder, weights) = zeros(&keys, float);
    assert_eq!(found(&weights).len(), 1);
    let ours: BTreeMap<_, _> = load(&weights).into_iter().collect();
    let floats = keys.into_iter().filter(|(name, _, kind)| !kind.contains('(') && !kept_by_upstream_alone(name));
    let recorded: BTreeMap<_, _> =
        floats.map(|(name, shape, _)| (name.strip_prefix(prefix).unwrap().to_owned(), shape)).collect();
    assert_eq!(ours, recorded);
    assert_eq!(ours.values().map(|shape| shape.iter().product::<usize>()).sum::<usize>(), parameters);
}

/// Model and prefix of all that a file holds, which must fit the released presets.
fn found(weights: &Weights) -> Vec<(&'static str, String)> {
    let found = fits(weights).unwrap();
    let released = Origin::Preset("released".to_owned());
    assert!(found.iter().all(|fit| fit.fits() && fit.origin == released), "{found:?}");
    found.into_iter().map(|fit| (fit.model, fit.prefix)).collect()
}

#[test]
fn the_released_vae_loads_by_every_key() {
    check("vae_tokenizer.tsv", "BF16", "", 126_892_531, |weights| {
        let mut vae = Vae::load(weights, &Device::flex()).unwrap();
        assert_eq!(*vae.config(), VaeConfig::preset("released").unwrap());
        shapes(&mut vae)
    });
}

#[test]
fn the_released_dldm_loads_by_every_key() {
    check("dldm.tsv", "F16", "network.", 142_588_552, |weights| {
        let mut dldm = Dldm::load(weights, &Device::flex()).unwrap();
        assert_eq!(*dldm.config(), DldmConfig::preset("released").unwrap());
        shapes(&mut dldm)
    });
}

/// Compared by names and shapes, since loading takes minutes and gigabytes: `examples/load_released.rs` does that.
#[test]
fn the_released_dit_and_its_branch_have_every_key() {
    let released = || VideoDit::new(&DitConfig::preset("released").unwrap(), &Device::flex(), 0).unwrap();
    check("dit_base.tsv", "BF16", "net.", 1_956_413_440, |_| shapes(released().parts().0));
    check("dit_ctrl.tsv", "BF16", "net_ctrl.", 240_494_368, |_| shapes(released().parts().1.unwrap()));
}

/// As upstream stores them, with what its norms and checkpoints may add.
fn combined() -> Vec<Key> {
    let dldm = keys("dldm.tsv").into_iter().map(|(name, shape, kind)| (format!("ldm_net.{name}"), shape, kind));
    let mut all: Vec<Key> = [keys("dit_base.tsv"), keys("dit_ctrl.tsv"), dldm.collect()].concat();
    for norm in ["net.blocks.0.self_attn.q_norm", "net_ctrl.t_embedding_norm"] {
        all.push((format!("{norm}._extra_state"), vec![0], "buffer".to_owned()));
    }
    all
}

/// A copy of what stands below `prefix`.
fn copy<'a>(weights: &'a Weights, prefix: &str, float_type: Option<SaveType>) -> Conversion<'a> {
    Conversion::new(weights, &Renaming::below(prefix), float_type, Format::Safetensors).unwrap()
}

#[test]
fn a_combined_checkpoint_is_told_apart() {
    let (_folder, weights) = zeros(&combined(), "BF16");
    let wanted = [("dLDM", "ldm_net.network."), ("DiT", "net."), ("DiT's control branch", "net_ctrl.")];
    assert_eq!(found(&weights), wanted.map(|(model, prefix)| (model, prefix.to_owned())));
    // A part of it takes its configuration along; the whole has two.
    for (prefix, has_config) in [("", false), ("net.", true), ("net_ctrl.", true), ("ldm_net.", true)] {
        let copy = copy(&weights, prefix, Some(SaveType::F16));
        assert_eq!(copy.metadata().contains_key("config"), has_config, "{prefix}");
    }
}

#[test]
fn a_branch_that_stands_beside_the_base_is_told_apart() {
    let own = ["x_embedder2.", "input_hint_block.", "zero_blocks."];
    let mut all = keys("dit_base.tsv");
    for (name, shape, kind) in keys("dit_ctrl.tsv") {
        let name = name.strip_prefix("net_ctrl.").unwrap();
        if own.iter().any(|part| name.starts_with(part)) {
            all.push((format!("net.{name}"), shape, kind));
        }
    }
    let (_folder, weights) = zeros(&all, "BF16");
    assert_eq!(found(&weights), ["DiT", "DiT's control branch"].map(|model| (model, "net.".to_owned())));
}

#[test]
fn a_block_of_the_released_width_loads_in_bf16_and_runs() {
    let config = DitConfig { num_blocks: 1, control_blocks: 1, ..DitConfig::preset("released").unwrap() };
    let mut keys = combined();
    keys.retain(|(name, ..)| !(1..28).any(|block| name.contains(&format!("blocks.{block}."))));
    keys.retain(|(name, ..)| !name.contains("zero_blocks") || name.contains("block0"));
    let (_folder, weights) = zeros(&keys, "BF16");
    let device = &Device::flex();
    let dit = VideoDit::load_held(&config, &weights, device, Precision::Bf16).unwrap();
    let size = [2, 8, 8];
    let latents = Tensor::<5>::ones([1, 16, 2, 8, 8], device);
    let inputs = Inputs {
        x: latents.clone(),
        times: Tensor::ones([1, 2], device),
        mask: Some(Tensor::ones([1, 1, 2, 8, 8], device)),
        padding: None,
        context: Tensor::ones([1, 3, 1024], device),
        hint: Some(latents),
        rotary: dit.rotary(size, None, device),
    };
    let y = dit.forward(&inputs).unwrap();
    assert_eq!(y.dims(), [1, 16, 2, 8, 8]);
    assert!(y.into_data().try_into_vec::<f32>().unwrap().iter().all(|value| *value == 0.0));
}

/// The recorded listings of the original's own modules.
#[test]
fn the_key_lists_are_those_of_the_original() {
    let Some(golden) = std::env::var_os("VW2_GOLDEN").map(PathBuf::from) else {
        let required = std::env::var("VW2_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|word| word == "golden"), "VW2_REQUIRE asks for golden, so set VW2_GOLDEN");
        println!("skipped: VW2_GOLDEN names no folder");
        return;
    };
    let golden =
        if golden.is_dir() { golden } else { Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(golden) };
    let pairs = [
        ("keys_dit_2b.json", "dit_base.tsv", "net."),
        ("keys_dit_ctrl_2b.json", "dit_ctrl.tsv", "net_ctrl."),
        ("keys_vae.json", "vae_tokenizer.tsv", ""),
        ("keys_dldm.json", "dldm.tsv", "network."),
    ];
    for (recorded, file, prefix) in pairs {
        let recorded: Value = serde_json::from_slice(&std::fs::read(golden.join(recorded)).unwrap()).unwrap();
        let entries = recorded["entries"].as_array().unwrap().iter();
        let recorded: BTreeSet<(String, Vec<usize>)> = entries
            .map(|entry| {
                let shape = serde_json::from_value(entry["shape"].clone()).unwrap();
                (format!("{prefix}{}", entry["key"].as_str().unwrap()), shape)
            })
            .collect();
        assert_eq!(keys(file).into_iter().map(|(name, shape, _)| (name, shape)).collect::<BTreeSet<_>>(), recorded);
    }
}

#[test]
fn a_copy_of_a_released_model_loads_without_guessing() {
    let (folder, weights) = zeros(&keys("vae_tokenizer.tsv"), "BF16");
    let path = folder.path().join("copy.safetensors");
    let copy = copy(&weights, "", None);
    copy.write(&mut File::create(&path).unwrap(), &path, |_| {}).unwrap();
    let copy = Weights::open(&path).unwrap();
    assert_eq!(config_of::<VaeConfig>(&copy, "vae").unwrap(), Some(VaeConfig::preset("released").unwrap()));
    assert!(fits(&copy).unwrap()[0].fits());
}
