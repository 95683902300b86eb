//! The 3D patcher and its inverse against the recorded ones.

use std::collections::BTreeSet;

use burn::tensor::Device;
use vw2_models::dldm::{PatchMethod, Patcher};
use vw2_models::nn::Init;

use crate::harness::{Report, cases, open};

const TOLERANCE: f64 = 2e-6;

#[test]
fn patchers_are_the_recorded_ones() {
    for case in cases("patcher3d") {
        let golden = open(&case, "");
        let mut report = Report::new(&case);
        // `case0_p2_haar.in.x`
        let runs: BTreeSet<&str> = golden.names().filter_map(|name| name.split('.').next()).collect();
        for run in runs {
            let mut words = run.split('_').skip(1);
            let patch = words.next().unwrap().trim_start_matches('p').parse().unwrap();
            let method = match words.next().unwrap() {
                "haar" => PatchMethod::Haar,
                "rearrange" => PatchMethod::Rearrange,
                other => panic!("{run}: unknown patch method {other}"),
            };
            let device = Device::flex();
            let patcher = Patcher::new(&mut Init::new(&device, 0), patch, method);
            let x = golden.tensor::<5>(&format!("{run}.in.x"), &device).unwrap();
            let z = golden.tensor::<5>(&format!("{run}.in.z"), &device).unwrap();
            let patched = patcher.patch(x);
            report.tensor(&golden, &format!("{run}.out.patched"), patched.clone().swap_dims(1, 2), TOLERANCE);
            report.tensor(&golden, &format!("{run}.in.x"), patcher.unpatch(patched), TOLERANCE);
            report.tensor(&golden, &format!("{run}.out.unpatched_z"), patcher.unpatch(z.swap_dims(1, 2)), TOLERANCE);
        }
        report.finish();
    }
}
