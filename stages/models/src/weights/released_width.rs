//! Every key of the released checkpoints loads: a sparse file with all of their names and shapes fits the models exactly.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use burn::tensor::Device;
use serde_json::json;
use tempfile::TempDir;

use super::{Origin, Weights, fits, shapes};
use crate::dldm::{Dldm, DldmConfig};
use crate::vae::{Vae, VaeConfig};

/// Names, shapes and kinds (`param`, `buffer`, `buffer(i64)`) of `tests/data/keys/<file>`.
fn keys(file: &str) -> Vec<(String, Vec<usize>, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/keys").join(file);
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().skip(1).map(|line| {
        let columns: Vec<&str> = line.split('\t').collect();
        let shape = columns[1].split('x').map(|length| length.parse().unwrap()).collect();
        (columns[0].to_owned(), shape, columns[2].to_owned())
    });
    rows.collect()
}

/// A safetensors file of zeros, which takes no space on disk.
fn write_zeros(path: &Path, keys: &[(String, Vec<usize>, String)], float: &str) {
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

fn check(
    file: &str,
    float: &str,
    prefix: &str,
    parameters: usize,
    load: impl FnOnce(&Weights) -> Vec<(String, Vec<usize>)>,
) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("released.safetensors");
    let keys = keys(file);
    write_zeros(&path, &keys, float);
    let weights = Weights::open(&path).unwrap();
    let found = fits(&weights).unwrap();
    assert!(matches!(&found[..], [fit] if fit.fits() && fit.prefix == prefix && fit.origin == released()), "{found:?}");
    let ours: BTreeMap<_, _> = load(&weights).into_iter().collect();
    let floats = keys.into_iter().filter(|(_, _, kind)| !kind.contains('('));
    let recorded: BTreeMap<_, _> =
        floats.map(|(name, shape, _)| (name.strip_prefix(prefix).unwrap().to_owned(), shape)).collect();
    assert_eq!(ours, recorded);
    assert_eq!(ours.values().map(|shape| shape.iter().product::<usize>()).sum::<usize>(), parameters);
}

fn released() -> Origin {
    Origin::Preset("released".to_owned())
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
