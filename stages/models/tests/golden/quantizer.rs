//! Finite scalar quantisation against the recorded one, for every list of levels that is recorded.

use std::collections::BTreeSet;

use burn::tensor::{Device, Int, Tensor, TensorData};
use vw2_kernels::{fsq, fsq_bound, fsq_dequantise, fsq_indices};
use vw2_models::weights::Weights;

use crate::harness::{Report, cases, folder, open};

#[test]
fn quantisers_are_the_recorded_ones() {
    for case in cases("fsq") {
        let golden = open(&case, "");
        let mut report = Report::new(&case);
        let lists: BTreeSet<&str> = golden.names().filter_map(|name| name.strip_suffix(".levels")).collect();
        assert!(!lists.is_empty(), "{case}: no `*.levels`");
        for list in lists {
            compare(&golden, list, &mut report);
        }
        report.finish();
    }
    let files = std::fs::read_dir(folder()).unwrap().filter_map(|file| file.unwrap().file_name().into_string().ok());
    for file in files.filter(|name| name.starts_with("residual_fsq")) {
        eprintln!("{file}: not supported: quantizer=residual FSQ");
    }
}

fn compare(golden: &Weights, list: &str, report: &mut Report) {
    let levels: Vec<u32> = golden.i64s(&format!("{list}.levels")).unwrap().iter().map(|level| *level as u32).collect();
    let d = levels.len();
    let basis: Vec<i64> = levels
        .iter()
        .scan(1, |product, level| Some(std::mem::replace(product, *product * i64::from(*level))))
        .collect();
    report.equal("basis", basis, golden.i64s(&format!("{list}.basis")).unwrap());
    let groups: BTreeSet<&str> = golden
        .names()
        .filter_map(|name| name.strip_prefix(list)?.strip_prefix('.')?.split_once('.'))
        .map(|(group, _)| group)
        .collect();
    for group in groups {
        let name = |part: &str| format!("{list}.{group}.{part}");
        if golden.contains(&name("in.indices")) {
            let indices = golden.i64s(&name("in.indices")).unwrap();
            let rows = indices.len();
            let indices = Tensor::<2, Int>::from_data(TensorData::new(indices, [rows, 1]), &Device::flex());
            report.values(golden, &name("out.codes"), columns(fsq_dequantise(indices, &levels)), 1e-7);
            continue;
        }
        if golden.contains(&name("out.dz")) {
            let z = vectors(golden, &name("in.z"), d, &Device::flex().autodiff()).detach().require_grad();
            let w = vectors(golden, &name("in.w"), d, &z.device());
            let grads = (fsq(z.clone(), &levels) * w).sum().backward();
            report.tensor(golden, &name("out.dz"), z.grad(&grads).unwrap(), 1e-5);
            continue;
        }
        let z = vectors(golden, &name("in.z"), d, &Device::flex());
        // bf16 holds every code of these levels but for rounding.
        let tolerance = if group == "bf16" { 4e-3 } else { 1e-7 };
        report.values(golden, &name("out.codes"), columns(fsq(z.clone(), &levels)), tolerance);
        let indices: Vec<i64> = fsq_indices(z.clone(), &levels).into_data().convert::<i64>().try_into_vec().unwrap();
        report.equal(&name("out.indices"), indices, golden.i64s(&name("out.indices")).unwrap());
        if golden.contains(&name("out.bound")) {
            report.tensor(golden, &name("out.bound"), fsq_bound(z, &levels), 1e-5);
        }
    }
}

/// Recorded as `[N, D]` or as `[1, D, N, 1, 1]`.
fn vectors(golden: &Weights, name: &str, d: usize, device: &Device) -> Tensor<2> {
    match golden.shape(name).unwrap().len() {
        2 => golden.tensor(name, device).unwrap(),
        _ => golden.tensor::<5>(name, device).unwrap().reshape([d as i32, -1]).transpose(),
    }
}

/// `[N, D]` in the recorded order of `[1, D, N, 1, 1]`.
fn columns(x: Tensor<2>) -> Vec<f64> {
    let values: Vec<f32> = x.transpose().into_data().try_into_vec().unwrap();
    values.into_iter().map(f64::from).collect()
}
