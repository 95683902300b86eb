//! The harness that walks [`KERNELS`]: every kernel on every device against its reference in f64, devices against the
//! CPU, gradients against theirs.

use burn::tensor::Device;

use crate::device::available;
use crate::{KERNELS, agreement, numeric_class, parse};

/// All devices of this machine and build. The families that are missing are said aloud, and are a failure where
/// `VW2_REQUIRE` (a list with commas) names them.
fn devices() -> Vec<(String, Device)> {
    let names = available();
    let required = std::env::var("VW2_REQUIRE").unwrap_or_default();
    for (family, built) in [("wgpu", cfg!(feature = "wgpu")), ("cuda", cfg!(feature = "cuda"))] {
        if !names.iter().any(|name| name.starts_with(family)) {
            let why = if built { "device" } else { "in this build" };
            eprintln!("skipped: no {family} {why}");
            assert!(!required.split(',').any(|name| name == family), "VW2_REQUIRE asks for {family}");
        }
    }
    let open = |name: String| parse(&name).map(|device| (name, device));
    names.into_iter().map(open).collect::<Result<_, _>>().expect("every listed device opens")
}

#[test]
fn every_kernel_agrees_with_its_reference_on_every_device() {
    let devices = devices();
    for kernel in KERNELS {
        for (name, device) in &devices {
            agreement::of_results(kernel, name, device).unwrap_or_else(|reason| panic!("{reason}"));
        }
    }
}

#[test]
fn every_gradient_agrees_with_its_reference_on_every_device() {
    let devices = devices();
    for kernel in KERNELS {
        for (name, device) in &devices {
            agreement::of_gradients(kernel, name, device).unwrap_or_else(|reason| panic!("{reason}"));
        }
    }
}

/// WebGPU has no bf16.
#[test]
fn every_kernel_agrees_with_its_reference_in_bf16() {
    let devices = devices();
    for kernel in KERNELS {
        for (name, device) in devices.iter().filter(|(name, _)| !name.starts_with("wgpu")) {
            agreement::of_bf16(kernel, name, device).unwrap_or_else(|reason| panic!("{reason}"));
        }
    }
}

#[test]
fn numeric_classes_tell_devices_apart() {
    for (name, device) in devices() {
        let family = name.split(':').next().expect("split yields a first part");
        let wanted = if family == "cpu" { "flex" } else { family };
        assert!(numeric_class(&device).starts_with(wanted), "{name}");
    }
}
