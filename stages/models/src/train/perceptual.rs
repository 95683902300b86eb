//! Perceptual distance: how far apart the features are that an ImageNet VGG-16 sees in two clips.
//!
//! Shapes: clips f32 [B, C = 3, T, H, W] in [-1, 1] -> one value.
//! P = mean over frames of sum_l w_l mean |phi_l(x) - phi_l(x_hat)|, phi after relu1_2, relu2_2, relu3_3, relu4_3, relu5_3.
//! Source: spec section 3.7. Names: torchvision's (`features.0.weight`); its classifier has no use and is ignored. Widths
//! follow from the file. The weights are published apart from VideoWorld 2, and are no part of this program.

use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor, TensorData};
use vw2_kernels::{Front, Steps, conv3d};

use crate::weights::Weights;
use crate::{Error, Result};

/// The convolutions of each level, by their number in torchvision's list; levels are parted by a pooling of 2 x 2.
const LEVELS: [&[usize]; 5] = [&[0, 2], &[5, 7], &[10, 12, 14], &[17, 19, 21], &[24, 26, 28]];
/// Weights of the levels' distances.
const SHARES: [f64; 5] = [1.0 / 2.6, 1.0 / 4.8, 1.0 / 3.7, 1.0 / 5.6, 10.0 / 1.5];
/// How pixels in [-1, 1] are mapped to what the network was trained on, per RGB channel.
const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f32; 3] = [0.458, 0.448, 0.450];

/// The network up to its last convolution. It is not trained.
#[derive(Clone, Debug)]
pub struct Vgg {
    levels: Vec<Vec<(Tensor<4>, Tensor<1>)>>,
}

impl Vgg {
    /// # Errors
    /// The file cannot be read, or is not of torchvision's names and shapes.
    pub fn load(weights: &Weights, device: &Device) -> Result<Vgg> {
        let prefix = weights.prefix_of("features.0.weight");
        let mut inputs = 3;
        let mut conv = |number: usize| -> Result<(Tensor<4>, Tensor<1>)> {
            let name = |part: &str| format!("{prefix}features.{number}.{part}");
            let (weight, bias) =
                (weights.tensor::<4>(&name("weight"), device)?, weights.tensor::<1>(&name("bias"), device)?);
            let [outputs, found, kh, kw] = weight.dims();
            if [found, kh, kw] != [inputs, 3, 3] || bias.dims() != [outputs] {
                let reason = format!(
                    "`{}` has shape {:?}; a VGG-16 has [outputs, {inputs}, 3, 3] there, and as many biases",
                    name("weight"),
                    weight.dims()
                );
                return Err(Error::Format { path: weights.path().to_owned(), reason });
            }
            inputs = outputs;
            Ok((weight, bias))
        };
        let levels = LEVELS.iter().map(|level| level.iter().map(|&number| conv(number)).collect::<Result<_>>());
        Ok(Vgg { levels: levels.collect::<Result<_>>()? })
    }

    /// The distance of two clips of one shape.
    ///
    /// # Errors
    /// Frames that are too small for five levels.
    pub fn distance(&self, x: Tensor<5>, y: Tensor<5>) -> Result<Tensor<1>> {
        let [.., h, w] = x.dims();
        if h < 16 || w < 16 {
            return Err(Error::Input(format!("perceptual loss: frames of {h} x {w}; it wants at least 16 x 16")));
        }
        let (mut x, mut y) = (images(x), images(y));
        let mut sum: Option<Tensor<1>> = None;
        for (index, (level, share)) in self.levels.iter().zip(SHARES).enumerate() {
            if index > 0 {
                [x, y] = [x, y].map(halved);
            }
            for (weight, bias) in level {
                [x, y] = [x, y].map(|x| relu(convolved(x, weight, bias)));
            }
            let term = (x.clone() - y.clone()).abs().mean().mul_scalar(share);
            sum = Some(match sum {
                Some(sum) => sum + term,
                None => term,
            });
        }
        Ok(sum.expect("there are five levels"))
    }
}

/// Frames as images, mapped: [B, 3, T, H, W] to [B T, 3, H, W].
fn images(x: Tensor<5>) -> Tensor<4> {
    let [b, c, t, h, w] = x.dims();
    let device = x.device();
    let colours = |values: [f32; 3]| Tensor::<4>::from_data(TensorData::new(values.to_vec(), [1, 3, 1, 1]), &device);
    let x = x.swap_dims(1, 2).reshape([b * t, c, h, w]);
    (x - colours(SHIFT)) / colours(SCALE)
}

/// The largest of each 2 x 2 values; an odd row or column at the end is left out.
fn halved(x: Tensor<4>) -> Tensor<4> {
    let [n, c, h, w] = x.dims();
    let x = x.narrow(2, 0, h / 2 * 2).narrow(3, 0, w / 2 * 2).reshape([n, c, h / 2, 2, w / 2, 2]);
    x.max_dim(3).max_dim(5).reshape([n, c, h / 2, w / 2])
}

fn convolved(x: Tensor<4>, weight: &Tensor<4>, bias: &Tensor<1>) -> Tensor<4> {
    let [outputs, inputs, kh, kw] = weight.dims();
    let weight = weight.clone().reshape([outputs, inputs, 1, kh, kw]);
    conv3d(x.unsqueeze_dim(1), Front::Zeros(0), weight, bias.clone(), Steps::same(kh), None).squeeze_dim(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::train::floats;
    use crate::weights::{SaveType, to_safetensors};

    /// A network of width 1 whose every convolution takes the centre of the sum of its inputs.
    fn narrow(kernel: usize) -> Result<Vgg> {
        let mut tensors = Vec::new();
        for (index, number) in LEVELS.iter().flat_map(|level| level.iter()).enumerate() {
            let inputs = if index == 0 { 3 } else { 1 };
            let mut weight = vec![0.0f32; inputs * kernel * kernel];
            weight.chunks_mut(kernel * kernel).for_each(|cell| cell[kernel * kernel / 2] = 1.0);
            tensors
                .push((format!("vgg.features.{number}.weight"), TensorData::new(weight, [1, inputs, kernel, kernel])));
            tensors.push((format!("vgg.features.{number}.bias"), TensorData::new(vec![0.0f32], [1])));
        }
        let bytes = to_safetensors(&tensors, &BTreeMap::new(), SaveType::F32)?;
        Vgg::load(&Weights::from_bytes("vgg", bytes)?, &Device::flex())
    }

    fn clip(value: f32) -> Tensor<5> {
        Tensor::full([1, 3, 2, 16, 16], value, &Device::flex())
    }

    #[test]
    fn flat_clips_are_as_far_apart_as_their_mapped_pixels() {
        let vgg = narrow(3).unwrap();
        let distance = |a: f32, b: f32| floats(vgg.distance(clip(a), clip(b)).unwrap())[0];
        assert_eq!(distance(0.5, 0.5), 0.0);
        // Every level sees the sum of the three mapped channels, which here is above 0.
        let wanted = SCALE.iter().map(|scale| 0.25 / scale).sum::<f32>() * SHARES.iter().sum::<f64>() as f32;
        assert!((distance(0.75, 0.5) - wanted).abs() < 1e-3, "{}, not {wanted}", distance(0.75, 0.5));
        assert_eq!(distance(0.75, 0.5), distance(0.5, 0.75));
    }

    #[test]
    fn what_is_no_vgg_or_too_small_is_told() {
        let error = narrow(5).unwrap_err().to_string();
        assert!(error.contains("`vgg.features.0.weight` has shape [1, 3, 5, 5]"), "{error}");
        let small = Tensor::<5>::zeros([1, 3, 1, 8, 16], &Device::flex());
        let error = narrow(3).unwrap().distance(small.clone(), small).unwrap_err().to_string();
        assert!(error.contains("frames of 8 x 16"), "{error}");
    }
}
