//! Whether a kernel's numbers are right: against its reference in f64, and against the CPU.

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};

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

/// Rows that take f32 alone: an optimizer's masters and moments are f32, whatever a model computes in.
const F32_ALONE: &[&str] = &["adamw"];

/// Runs each case on the device with inputs of bf16, and goes back through it where there is a backward.
///
/// # Errors
/// The first element that is further from the reference of those inputs than 1/64 of the largest there: bf16 has 8 bits.
pub fn of_bf16(kernel: &Kernel, name: &str, device: &Device) -> Result<(), String> {
    let short = |data: TensorData| if data.dtype().is_float() { data.convert_dtype(DType::BF16) } else { data };
    let long = |data: &TensorData| if data.dtype().is_float() { data.clone().convert::<f32>() } else { data.clone() };
    if F32_ALONE.contains(&kernel.name) {
        return Ok(());
    }
    let device = if kernel.gradient.is_some() { device.clone().autodiff() } else { device.clone() };
    for case in kernel.cases {
        let inputs: Vec<TensorData> = (kernel.inputs)(case, SEED).into_iter().map(short).collect();
        let rounded: Vec<TensorData> = inputs.iter().map(long).collect();
        let mut values: Vec<Value> = inputs.iter().map(|data| Value::new(data, &device)).collect();
        let input = kernel.gradient.map(|_| values[0].float().require_grad());
        if let Some(input) = &input {
            values[0] = Value::Float(input.clone());
        }
        let result = (kernel.run)(case, &values);
        let near = |what: &str, found: Tensor<1>, wanted: Vec<f64>| {
            let found = found.into_data().convert::<f32>();
            let found = found.as_slice::<f32>().expect("they were just converted");
            let (difference, at) = worst(found, &wanted);
            let largest = wanted.iter().fold(1e-3f64, |largest, value| largest.max(value.abs()));
            if difference > largest / 64.0 {
                let (found, wanted, kernel) = (found[at], wanted[at], kernel.name);
                return Err(format!(
                    "{what} of {kernel} {case:?} in bf16 on {name}, seed {SEED}, element {at}: {found}, not {wanted}"
                ));
            }
            Ok(())
        };
        let plain = if input.is_some() { result.clone().inner() } else { result.clone() };
        near("result", plain, (kernel.reference)(case, &rounded))?;
        if let (Some(input), Some(gradient)) = (input, kernel.gradient) {
            let mut draws = Draws::new(SEED);
            let weights: Vec<f32> = (0..result.dims()[0]).map(|_| (draws.unit() * 2.0 - 1.0) as f32).collect();
            let weighted = result.cast(FloatDType::F32) * Tensor::<1>::from_floats(weights.as_slice(), &device);
            let found = input.grad(&weighted.sum().backward()).expect("the op passes a gradient to its input");
            near("gradient", found, gradient(case, &rounded, &weights))?;
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
