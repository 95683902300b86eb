//! Loads the DiT at its released width, runs it once on a small latent, and tells times and memory.
//!
//! `cargo run -p vw2-models --example load_released -- FILE f32|bf16`
//!
//! FILE is upstream's checkpoint, or our copy of it. Where there is none, a file of zeros with every published name and
//! shape is written there first; it takes no space on disk.

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use serde_json::{Map, json};
use vw2_models::dit::{DitConfig, Inputs, VideoDit};
use vw2_models::weights::{Precision, Weights};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (path, precision) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [path, "f32"] => (path, Precision::F32),
        [path, "bf16"] => (path, Precision::Bf16),
        _ => return Err("usage: load_released FILE f32|bf16".into()),
    };
    if !Path::new(path).exists() {
        write_zeros(Path::new(path))?;
    }

    let began = Instant::now();
    let weights = Weights::open(path)?;
    told("opened", began)?;
    let device = &Device::flex();
    let dit = VideoDit::load_held(&DitConfig::of(&weights)?, &weights, device, precision)?;
    told("loaded", began)?;
    let latents = Tensor::<5>::ones([1, 16, 2, 8, 8], device);
    let y = dit.forward(&Inputs {
        x: latents.clone(),
        times: Tensor::ones([1, 2], device),
        mask: Some(Tensor::zeros([1, 1, 2, 8, 8], device)),
        padding: None,
        context: Tensor::ones([1, 8, 1024], device),
        hint: Some(latents),
        rotary: dit.rotary([2, 8, 8], None, device),
    })?;
    told(&format!("ran: {} blocks, output {:?}", dit.config().num_blocks, y.dims()), began)
}

fn told(what: &str, began: Instant) -> Outcome {
    let peak = peak_memory().map_or(String::new(), |mib| format!(", peak memory {mib} MiB"));
    writeln!(std::io::stdout(), "{what}: {:.1} s{peak}", began.elapsed().as_secs_f64())?;
    Ok(())
}

/// Where the system tells it.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? / 1024)
}

/// A bf16 safetensors file of every published key of base and branch.
fn write_zeros(path: &Path) -> Outcome {
    let (mut header, mut end) = (Map::new(), 0);
    for keys in [include_str!("../tests/data/keys/dit_base.tsv"), include_str!("../tests/data/keys/dit_ctrl.tsv")] {
        for line in keys.lines().skip(1) {
            let columns: Vec<&str> = line.split('\t').collect();
            let &[name, shape, kind] = &columns[..] else {
                return Err(format!("a key of three columns: {line}").into());
            };
            let shape: Vec<usize> = match shape {
                "scalar" => Vec::new(),
                lengths => lengths.split('x').map(str::parse).collect::<Result<_, _>>()?,
            };
            let (dtype, size_bytes) = if kind == "buffer(i64)" { ("I64", 8) } else { ("BF16", 2) };
            let start = end;
            end += shape.iter().product::<usize>() * size_bytes;
            header.insert(name.to_owned(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
        }
    }
    let header = serde_json::to_vec(&header)?;
    let mut file = File::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    file.set_len((8 + header.len() + end) as u64)?;
    Ok(())
}
