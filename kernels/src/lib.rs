//! vw2-kernels: our CubeCL kernels as Burn ops. Tensors in, tensors out.
//!
//! Every kernel is one row of [`KERNELS`]: its cases, its inputs, a slow reference, its cost. From the row come the tests
//! on every device that is present, the gradient check and the benches. A kernel's numbers on the CPU (`Flex`) are the
//! truth; another device has to give the same within the row's tolerance.
//!
//! Not here: models, files, columns, threads of our own. The default build knows the CPU only and contains no CubeCL; the
//! feature `wgpu` adds GPUs through WGSL, `cuda` those of NVIDIA through CUDA C++.

pub mod agreement;
pub mod device;
mod heads;
mod matrix;
pub mod ops;
mod simd;

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "cube")]
pub mod launches;

#[cfg(test)]
mod check;
mod lanes;

use burn::tensor::{Device, Int, Tensor, TensorData};

pub use device::{DeviceError, available, numeric_class, parse};
pub use ops::Activation;
pub use ops::adamw::{AdamWStep, Stepped, adamw, squares};
pub use ops::attention::{Order, Sight, attention};
pub use ops::channel_norm::channel_norm;
pub use ops::conv3d::{Front, Steps, conv3d};
pub use ops::cross_entropy::cross_entropy;
pub use ops::frame_norm::frame_norm;
pub use ops::fsq::{fsq, fsq_bound, fsq_codes_to_indices, fsq_dequantise, fsq_indices};
pub use ops::gate::gated;
pub use ops::gelu::gelu;
pub use ops::haar::{HaarFront, haar_cells, haar_frames};
pub use ops::norm::{layer_norm, modulate, rms_norm};
pub use ops::picture::{
    Filter, Layout, Matrix, Picture, PictureError, Range, Resize, Rounding, denormalise, normalise, picture_to_levels,
    picture_to_rgb, rgb_resize,
};
pub use ops::rotary::rotary;
pub use ops::sample::{Choice, sample};
pub use ops::swiglu::swiglu;

/// All kernels, in the order of the data's way.
pub static KERNELS: &[Kernel] = &[
    ops::picture::KERNEL,
    ops::conv3d::KERNEL,
    ops::channel_norm::KERNEL,
    ops::haar::KERNEL,
    ops::frame_norm::KERNEL,
    ops::fsq::KERNEL,
    ops::attention::KERNEL,
    ops::adamw::KERNEL,
    ops::cross_entropy::KERNEL,
    ops::norm::KERNEL,
    ops::gate::KERNEL,
    ops::rotary::KERNEL,
    ops::swiglu::KERNEL,
    ops::gelu::KERNEL,
    ops::sample::KERNEL,
];

/// One kernel, with all that its tests and benches need.
pub struct Kernel {
    pub name: &'static str,
    /// Sizes that the other fields understand; odd ones first, because tails are where kernels fail.
    pub cases: &'static [&'static [usize]],
    /// Cases of real size, for benches only.
    pub sizes: &'static [&'static [usize]],
    /// Seeded inputs on the host. A float input becomes a float tensor, any other an int tensor of the same type.
    pub inputs: fn(case: &[usize], seed: u64) -> Vec<TensorData>,
    /// The result by plain loops in f64, from the same inputs.
    pub reference: fn(case: &[usize], inputs: &[TensorData]) -> Vec<f64>,
    /// The op, on the device on which the inputs are.
    pub run: fn(case: &[usize], inputs: &[Value]) -> Tensor<1>,
    /// For an op with a backward.
    pub gradient: Option<Gradient>,
    pub tolerance: Tolerance,
    pub cost: fn(case: &[usize]) -> Cost,
}

/// d(sum of weights x result) / d(first input), by differences or by hand in f64.
pub type Gradient = fn(case: &[usize], inputs: &[TensorData], weights: &[f32]) -> Vec<f64>;

/// An input of a kernel, flat, on a device.
#[derive(Clone)]
pub enum Value {
    Float(Tensor<1>),
    Int(Tensor<1, Int>),
}

impl Value {
    /// Puts the data on a device, in its own type.
    pub fn new(data: &TensorData, device: &Device) -> Value {
        let dtype = data.dtype();
        let data = data.clone();
        if dtype.is_float() {
            Value::Float(Tensor::from_data(data, (device, dtype)))
        } else {
            Value::Int(Tensor::from_data(data, (device, dtype)))
        }
    }

    /// The float tensor; a row whose `run` asks for another type than its `inputs` gave is a bug in that row.
    pub fn float(&self) -> Tensor<1> {
        match self {
            Value::Float(tensor) => tensor.clone(),
            Value::Int(_) => panic!("the row's `run` wants a float input where its `inputs` gave ints"),
        }
    }

    /// The int tensor; see [`Value::float`].
    pub fn int(&self) -> Tensor<1, Int> {
        match self {
            Value::Int(tensor) => tensor.clone(),
            Value::Float(_) => panic!("the row's `run` wants an int input where its `inputs` gave floats"),
        }
    }
}

/// How far a result may be from the reference, and why that is right.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Largest absolute difference from the f64 reference.
    pub reference: f64,
    /// Largest absolute difference between two devices.
    pub devices: f64,
    /// Largest absolute difference of a gradient from its reference.
    pub gradient: f64,
    pub reason: &'static str,
}

/// What one run of a case moves and computes.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub bytes: u64,
    pub flops: u64,
}
