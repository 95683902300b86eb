//! Runs every kernel of the table on the first CUDA device, and says what was compiled for it.
//!
//! Made for the hollow driver (`kernels/hollow-cuda`), whose compiler numbers the sources that it gets: a line on standard
//! output holds, with tabs between, a row of the table, the float type of its inputs, our functions that it launched, and
//! the numbers of the first source and of the one after the last that came meanwhile. A float type that a row does not
//! take, which it says by a panic, has no line; nor has a row without a cube kernel.
//!
//! `cuda-sources agree [KERNEL]` looks at the results instead, and those of the gradients: on the hollow driver, these mean something
//! where it is told a C++ compiler.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use burn::tensor::{DType, Device, Tensor, TensorData};
use vw2_kernels::{KERNELS, Kernel, Value, agreement, launches, parse};

const TYPES: [(&str, DType); 3] = [("f32", DType::F32), ("bf16", DType::BF16), ("f16", DType::F16)];

fn main() -> ExitCode {
    let Some(folder) = std::env::var_os("VW2_HOLLOW_OUT") else {
        eprintln!("VW2_HOLLOW_OUT is not set; this program is run by the test `cuda`, beside the hollow driver");
        return ExitCode::FAILURE;
    };
    let device = match parse("cuda:0") {
        Ok(device) => device,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    if std::env::args().nth(1).is_some_and(|word| word == "agree") {
        return agree(std::env::args().nth(2).as_deref(), &device);
    }
    let count = || std::fs::read_dir(&folder).map_or(0, Iterator::count);
    for kernel in KERNELS {
        for (name, dtype) in TYPES {
            let from = count();
            let (ran, launched) = launches::watch(|| catch_unwind(AssertUnwindSafe(|| run(kernel, dtype, &device))));
            device.sync().ok();
            if ran.is_ok() {
                print(kernel.name, name, &launched, from, count());
            }
        }
    }
    ExitCode::SUCCESS
}

/// Each kernel, or the one of that name, in f32 and in bf16 against its reference.
fn agree(name: Option<&str>, device: &Device) -> ExitCode {
    for kernel in KERNELS.iter().filter(|kernel| name.is_none_or(|name| name == kernel.name)) {
        let agrees = agreement::of_results(kernel, "cuda:0", device)
            .and_then(|()| agreement::of_gradients(kernel, "cuda:0", device))
            .and_then(|()| agreement::of_bf16(kernel, "cuda:0", device));
        if let Err(reason) = agrees {
            eprintln!("{reason}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

#[expect(clippy::print_stdout, reason = "the lines are what the program is for")]
fn print(kernel: &str, dtype: &str, launched: &BTreeSet<&'static str>, from: usize, to: usize) {
    let own: BTreeSet<&str> = launched.iter().copied().filter_map(launches::own_function).collect();
    let own: Vec<&str> = own.into_iter().collect();
    println!("{kernel}\t{dtype}\t{}\t{from}\t{to}", own.join(","));
}

/// Every case, forward and backward. What comes out means nothing, but reading it tells what could not be compiled.
fn run(kernel: &Kernel, dtype: DType, device: &Device) {
    for case in kernel.cases {
        let inputs: Vec<TensorData> = (kernel.inputs)(case, 1).into_iter().map(|data| typed(data, dtype)).collect();
        let device = if kernel.gradient.is_some() { device.clone().autodiff() } else { device.clone() };
        let mut values: Vec<Value> = inputs.iter().map(|data| Value::new(data, &device)).collect();
        if kernel.gradient.is_none() {
            (kernel.run)(case, &values).into_data();
            continue;
        }
        let input: Tensor<1> = values[0].float().require_grad();
        values[0] = Value::Float(input.clone());
        let result = (kernel.run)(case, &values);
        result.clone().into_data();
        let gradients = result.sum().backward();
        input.grad(&gradients).expect("the op passes a gradient to its input").into_data();
    }
}

fn typed(data: TensorData, dtype: DType) -> TensorData {
    if data.dtype().is_float() { data.convert_dtype(dtype) } else { data }
}
