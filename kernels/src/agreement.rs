//! Whether a kernel's numbers are right: against its reference in f64, and against the CPU.

use burn::tensor::{Device, Tensor, TensorData};

use crate::ops::Draws;
use crate::{Kernel, Value};

/// Of all inputs, so that a failure can be repeated.
const SEED: u64 = 20_261_122;

/// Runs each case on the device.
///
/// # Errors
/// The first element that is further from the reference, or from the CPU's result, than the kernel's tolerance, with its
/// place and both values.
pub fn of_results(kernel: &Kernel, name: &str, device: &Device) -> Result<(), String> {
    for case in kernel.cases {
        let inputs = (kernel.inputs)(case, SEED);
        let found = run(kernel, case, &inputs, device);
        let place = |at: usize| format!("{} {case:?} on {name}, seed {SEED}, element {at}", kernel.name);
        let reference = (kernel.reference)(case, &inputs);
        let cpu: Vec<f64> = run(kernel, case, &inputs, &Device::flex()).into_iter().map(f64::from).collect();
        let limits = [
            (&reference, kernel.tolerance.reference, "the reference's"),
            (&cpu, kernel.tolerance.devices, "the CPU's"),
        ];
        for (wanted, limit, whose) in limits {
            let (difference, at) = worst(&found, wanted);
            if difference > limit {
                let (found, wanted) = (found[at], wanted[at]);
                return Err(format!(
                    "{}: {found} instead of {whose} {wanted} ({})",
                    place(at),
                    kernel.tolerance.reason
                ));
            }
        }
    }
    Ok(())
}

/// Goes back through each case on the device; nothing to do for a kernel without a backward.
///
/// # Errors
/// As [`of_results`], for the gradient of the first input.
pub fn of_gradients(kernel: &Kernel, name: &str, device: &Device) -> Result<(), String> {
    let Some(gradient) = kernel.gradient else { return Ok(()) };
    let device = device.clone().autodiff();
    for case in kernel.cases {
        let inputs = (kernel.inputs)(case, SEED);
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
        let (difference, at) = worst(found, &reference);
        if difference > kernel.tolerance.gradient {
            return Err(format!(
                "gradient of {} {case:?} on {name}, seed {SEED}, element {at}: {} instead of {}",
                kernel.name, found[at], reference[at]
            ));
        }
    }
    Ok(())
}

fn run(kernel: &Kernel, case: &[usize], inputs: &[TensorData], device: &Device) -> Vec<f32> {
    let values: Vec<Value> = inputs.iter().map(|data| Value::new(data, device)).collect();
    (kernel.run)(case, &values).into_data().as_slice::<f32>().expect("kernels yield f32").to_vec()
}

/// The largest difference, and where; NaN counts as infinite.
fn worst(found: &[f32], wanted: &[f64]) -> (f64, usize) {
    assert_eq!(found.len(), wanted.len(), "count of results");
    let differences = found.iter().zip(wanted).map(|(&found, &wanted)| (f64::from(found) - wanted).abs());
    let differences = differences.map(|d| if d.is_nan() { f64::INFINITY } else { d });
    differences.enumerate().fold((0.0, 0), |worst, (i, d)| if d > worst.0 { (d, i) } else { worst })
}
