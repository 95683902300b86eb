//! The harness that walks [`KERNELS`]: every kernel on every device against its reference in f64, devices against the
//! CPU, gradients against theirs.

use burn::tensor::{Device, Tensor, TensorData};

use crate::device::available;
use crate::ops::Draws;
use crate::{KERNELS, Kernel, Value, numeric_class, parse};

const SEED: u64 = 20_261_122;

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

fn run(kernel: &Kernel, case: &[usize], inputs: &[TensorData], device: &Device) -> Vec<f32> {
    let values: Vec<Value> = inputs.iter().map(|data| Value::new(data, device)).collect();
    (kernel.run)(case, &values).into_data().as_slice::<f32>().expect("kernels yield f32").to_vec()
}

/// The largest difference, and where; NaN counts as infinite.
fn worst(found: &[f32], wanted: impl ExactSizeIterator<Item = f64>) -> (f64, usize) {
    assert_eq!(found.len(), wanted.len(), "count of results");
    let differences = found.iter().zip(wanted).map(|(&found, wanted)| (f64::from(found) - wanted).abs());
    let differences = differences.map(|d| if d.is_nan() { f64::INFINITY } else { d });
    differences.enumerate().fold((0.0, 0), |worst, (i, d)| if d > worst.0 { (d, i) } else { worst })
}

#[test]
fn every_kernel_agrees_with_its_reference_on_every_device() {
    let devices = devices();
    for kernel in KERNELS {
        for case in kernel.cases {
            let inputs = (kernel.inputs)(case, SEED);
            let reference = (kernel.reference)(case, &inputs);
            let cpu = run(kernel, case, &inputs, &Device::flex());
            for (name, device) in &devices {
                let found = run(kernel, case, &inputs, device);
                let place = |at: usize| format!("{} {case:?} on {name}, seed {SEED}, element {at}", kernel.name);
                let (difference, at) = worst(&found, reference.iter().copied());
                assert!(
                    difference <= kernel.tolerance.reference,
                    "{}: {} instead of {} ({})",
                    place(at),
                    found[at],
                    reference[at],
                    kernel.tolerance.reason
                );
                let (difference, at) = worst(&found, cpu.iter().map(|&value| f64::from(value)));
                assert!(
                    difference <= kernel.tolerance.devices,
                    "{}: {} instead of the CPU's {} ({})",
                    place(at),
                    found[at],
                    cpu[at],
                    kernel.tolerance.reason
                );
            }
        }
    }
}

#[test]
fn every_gradient_agrees_with_its_reference_on_every_device() {
    let devices = devices();
    for kernel in KERNELS {
        let Some(gradient) = kernel.gradient else { continue };
        for case in kernel.cases {
            let inputs = (kernel.inputs)(case, SEED);
            for (name, device) in &devices {
                let device = device.clone().autodiff();
                let mut values: Vec<Value> = inputs.iter().map(|data| Value::new(data, &device)).collect();
                let input = values[0].float().require_grad();
                values[0] = Value::Float(input.clone());
                let result = (kernel.run)(case, &values);
                let mut draws = Draws::new(SEED);
                let weights: Vec<f32> = (0..result.dims()[0]).map(|_| (draws.unit() * 2.0 - 1.0) as f32).collect();
                let loss = (result * Tensor::<1>::from_floats(weights.as_slice(), &device)).sum();
                let found = input.grad(&loss.backward()).expect("the op passes a gradient to its input").into_data();
                let found = found.as_slice::<f32>().expect("gradients are f32");
                let reference = gradient(case, &inputs, &weights);
                let (difference, at) = worst(found, reference.iter().copied());
                assert!(
                    difference <= kernel.tolerance.gradient,
                    "gradient of {} {case:?} on {name}, seed {SEED}, element {at}: {} instead of {}",
                    kernel.name,
                    found[at],
                    reference[at]
                );
            }
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
