//! The op on the CPU: which frames, taps and pixels meet in a convolution and in its gradients. The sums are `product`'s.

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::columns::{Axis, Columns};
use super::product::{Target, convolve, weight_gradient};
use super::{Call, Conv3dOps};

impl Conv3dOps for Flex {
    fn causal_conv3d(
        x: FloatTensor<Self>,
        past: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        onto: FloatTensor<Self>,
        call: Call,
    ) -> FloatTensor<Self> {
        let [x, past, weight, bias, onto] = [x, past, weight, bias, onto].map(|tensor| tensor.to_contiguous());
        let taps = Taps::of(&call);
        let columns = taps.columns(&call, slice(&x), slice(&past));
        let weight = taps.live(slice(&weight), &call);
        let [b, t, o, h, w] = call.result();
        let size = o * h * w;
        let mut y: Vec<f32> = Vec::with_capacity(b * t * size);
        let to = y.as_mut_ptr();
        let target = Target {
            // SAFETY: the places lie in the capacity of `y`.
            frames: (0..b * t).map(|frame| unsafe { to.add(frame * size) }).collect(),
            plane: h * w,
            row_step: w,
            column_step: 1,
            bias: Some(slice(&bias)),
            onto: call.adds.then(|| slice(&onto).chunks_exact(size).collect()),
        };
        // SAFETY: frames do not overlap, and the product writes every value of `y`.
        unsafe {
            convolve(&weight, o, &columns, &target);
            y.set_len(b * t * size);
        }
        tensor(y, call.result())
    }

    fn conv3d_input_gradient(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        of_past: bool,
        call: Call,
    ) -> FloatTensor<Self> {
        let (weight, grad) = (weight.to_contiguous(), grad.to_contiguous());
        let (weight, grad) = (slice(&weight), slice(&grad));
        if of_past {
            return tensor(frames_gradient(weight, grad, 0..call.front, &call), call.past());
        }
        let mut frames = frames_gradient(weight, grad, call.front..call.front + call.x[1], &call);
        if call.repeats && call.front > 0 {
            let [b, t, c, h, w] = call.x;
            let copies = frames_gradient(weight, grad, 0..call.front, &call);
            let size = c * h * w;
            for (frames, copies) in
                frames.chunks_exact_mut(t * size).zip(copies.chunks_exact(call.front * size)).take(b)
            {
                for copy in copies.chunks_exact(size) {
                    frames[..size].iter_mut().zip(copy).for_each(|(first, copy)| *first += copy);
                }
            }
        }
        tensor(frames, call.x)
    }

    fn conv3d_weight_gradient(
        x: FloatTensor<Self>,
        past: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        call: Call,
    ) -> FloatTensor<Self> {
        let [x, past, grad] = [x, past, grad].map(|tensor| tensor.to_contiguous());
        let taps = Taps::of(&call);
        let columns = taps.columns(&call, slice(&x), slice(&past));
        let (sums, stride) = weight_gradient(slice(&grad), call.outputs(), &columns);
        let [o, c, kt, kh, kw] = call.weight;
        let mut weight = vec![0.0; call.weight.iter().product()];
        let mut lines = sums.chunks_exact(stride);
        for plane in 0..c * kt {
            for row in &taps.rows.live {
                for (column, line) in taps.columns.live.iter().zip(&mut lines) {
                    let tap = (plane * kh + row) * kw + column;
                    let to = weight[tap..].iter_mut().step_by(c * kt * kh * kw);
                    to.zip(&line[..o]).for_each(|(to, sum)| *to = *sum);
                }
            }
        }
        tensor(weight, call.weight)
    }

    fn conv3d_bias_gradient(grad: FloatTensor<Self>, call: Call) -> FloatTensor<Self> {
        let grad = grad.to_contiguous();
        let grad = slice(&grad);
        let [_, _, o, h, w] = call.result();
        let sum = |channel: usize| {
            let planes = grad.chunks_exact(h * w).skip(channel).step_by(o);
            planes.map(|plane| f64::from(in_lanes(plane))).sum::<f64>() as f32
        };
        let sums: Vec<f32> =
            if grad.len() < 1 << 18 { (0..o).map(sum).collect() } else { (0..o).into_par_iter().map(sum).collect() };
        tensor(sums, [o])
    }
}

/// The taps along height and along width that meet the picture at all: on a small map most of a kernel sees padding.
struct Taps {
    rows: Live,
    columns: Live,
}

struct Live {
    axis: Axis,
    /// The taps, as their numbers in the kernel.
    live: Vec<usize>,
}

impl Live {
    fn of(size: usize, count: usize, kernel: usize, call: &Call) -> Live {
        let shift = |tap: usize| tap as isize - call.steps.pad[0] as isize;
        let step = call.steps.space;
        let meets = |tap: &usize| shift(*tap) + ((count - 1) * step) as isize >= 0 && shift(*tap) < size as isize;
        let live: Vec<usize> = (0..kernel).filter(meets).collect();
        Live { axis: Axis { count, size, step, shifts: live.iter().map(|tap| shift(*tap)).collect() }, live }
    }
}

impl Taps {
    fn of(call: &Call) -> Taps {
        let ([.., height, width], [.., to_height, to_width]) = (call.x, call.result());
        let [.., kh, kw] = call.weight;
        Taps { rows: Live::of(height, to_height, kh, call), columns: Live::of(width, to_width, kw, call) }
    }

    /// The matrix of the inputs of each output pixel.
    fn columns<'a>(&self, call: &Call, x: &'a [f32], past: &'a [f32]) -> Columns<'a> {
        let [b, t, c, h, w] = call.x;
        let (size, kt) = (c * h * w, call.weight[2]);
        let frame = |batch: usize, index: usize| match index.checked_sub(call.front) {
            Some(index) => Some(&x[(batch * t + index) * size..][..size]),
            None if call.repeats => Some(&x[batch * t * size..][..size]),
            None if call.given => Some(&past[(batch * call.front + index) * size..][..size]),
            None => None,
        };
        let count = call.result()[1];
        let starts = (0..b).flat_map(|batch| (0..count).map(move |index| (batch, index * call.steps.time)));
        let frames = starts.flat_map(|(batch, start)| (0..kt).map(move |tap| (batch, start + tap)));
        let frames = frames.map(|(batch, index)| frame(batch, index)).collect();
        Columns::new(frames, kt, c, self.rows.axis.clone(), self.columns.axis.clone()).in_one_row()
    }

    /// The weights of these taps, `[O, depth]`.
    fn live<'a>(&self, weight: &'a [f32], call: &Call) -> std::borrow::Cow<'a, [f32]> {
        let [.., kh, kw] = call.weight;
        if self.rows.live.len() == kh && self.columns.live.len() == kw {
            return weight.into();
        }
        let taps = weight.chunks_exact(kh * kw).flat_map(|taps| {
            self.rows
                .live
                .iter()
                .flat_map(move |row| self.columns.live.iter().map(move |column| taps[row * kw + column]))
        });
        taps.collect::<Vec<_>>().into()
    }
}

/// Gradient of some frames, counted from the first in front: `[B, frames, C, H, W]`.
///
/// Input pixels whose places leave the same rest by the step meet the same taps: they make a phase, and each phase is a
/// convolution of the output's gradient with step 1.
fn frames_gradient(weight: &[f32], grad: &[f32], frames: std::ops::Range<usize>, call: &Call) -> Vec<f32> {
    let [b, _, c, h, w] = call.x;
    let [_, to_frames, o, to_height, to_width] = call.result();
    let [.., kt, kh, kw] = call.weight;
    let steps = call.steps;
    let (size, grad_size) = (c * h * w, o * to_height * to_width);
    let count = frames.len();
    // Where no tap leads, the gradient is 0.
    let mut result = vec![0.0f32; b * count * size];
    let to = result.as_mut_ptr();
    for time in 0..steps.time {
        let of_phase: Vec<usize> = frames.clone().filter(|frame| frame % steps.time == time).collect();
        let time_taps: Vec<usize> = (0..kt).filter(|tap| tap % steps.time == time).collect();
        for row in 0..steps.space {
            let rows = Phase::of(row, h, to_height, kh, call);
            for column in 0..steps.space {
                let columns = Phase::of(column, w, to_width, kw, call);
                if of_phase.is_empty() || [time_taps.len(), rows.taps.len(), columns.taps.len()].contains(&0) {
                    continue;
                }
                let at = |batch: usize, frame: usize| batch * count + frame - frames.start;
                let targets = (0..b).flat_map(|batch| of_phase.iter().map(move |frame| at(batch, *frame)));
                let target = Target {
                    // SAFETY: frame, row and column lie in `result`.
                    frames: targets.map(|frame| unsafe { to.add(frame * size + row * w + column) }).collect(),
                    plane: h * w,
                    row_step: steps.space * w,
                    column_step: steps.space,
                    bias: None,
                    onto: None,
                };
                let meet = |batch: usize, frame: usize, tap: usize| {
                    let index = frame.checked_sub(tap)? / steps.time;
                    (index < to_frames).then(|| &grad[(batch * to_frames + index) * grad_size..][..grad_size])
                };
                let sources = (0..b).flat_map(|batch| of_phase.iter().map(move |frame| (batch, *frame)));
                let sources = sources.flat_map(|(batch, frame)| time_taps.iter().map(move |tap| (batch, frame, *tap)));
                let sources = sources.map(|(batch, frame, tap)| meet(batch, frame, tap)).collect();
                let turned = turned_weight(weight, [&time_taps, &rows.taps, &columns.taps], call);
                let matrix = Columns::new(sources, time_taps.len(), o, rows.axis.clone(), columns.axis);
                let matrix = if steps.space == 1 { matrix.in_one_row() } else { matrix };
                // SAFETY: phases have pixels of their own, and these are the ones that lie in a frame.
                unsafe { convolve(&turned, c, &matrix, &target) };
            }
        }
    }
    result
}

/// The pixels `first`, `first + step`, .. along height or width, and the taps that lead from them to output pixels.
struct Phase {
    axis: Axis,
    taps: Vec<usize>,
}

impl Phase {
    fn of(first: usize, size: usize, to_size: usize, kernel: usize, call: &Call) -> Phase {
        let (step, before) = (call.steps.space, call.steps.pad[0]);
        // Input i meets output (i + before - tap) / step, if that is whole.
        let leads = |tap: &usize| (first + before) % step == tap % step;
        let shift = |tap: usize| ((first + before) as isize - tap as isize).div_euclid(step as isize);
        let count = size.saturating_sub(first).div_ceil(step);
        let meets = |tap: &usize| shift(*tap) < to_size as isize && shift(*tap) + count as isize > 0;
        let taps: Vec<usize> = (0..kernel).filter(leads).filter(meets).collect();
        let shifts = taps.iter().map(|tap| shift(*tap)).collect();
        Phase { axis: Axis { count, size: to_size, step: 1, shifts }, taps }
    }
}

/// `[C, O x taps]` from `[O, C, kt, kh, kw]`, with some of the taps.
fn turned_weight(weight: &[f32], [time, rows, columns]: [&[usize]; 3], call: &Call) -> Vec<f32> {
    let [o, c, kt, kh, kw] = call.weight;
    let mut turned = Vec::with_capacity(c * o * time.len() * rows.len() * columns.len());
    for input in 0..c {
        for output in 0..o {
            for tap in time {
                for row in rows {
                    let start = (((output * c + input) * kt + tap) * kh + row) * kw;
                    turned.extend(columns.iter().map(|column| weight[start + column]));
                }
            }
        }
    }
    turned
}

/// The sum, over eight lanes at a time.
fn in_lanes(values: &[f32]) -> f32 {
    let (whole, rest) = values.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for values in whole {
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
    sums.iter().chain(rest).sum()
}

fn slice(tensor: &FloatTensor<Flex>) -> &[f32] {
    tensor.as_slice::<f32>().expect("a contiguous f32 tensor is a slice")
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FloatTensor<Flex> {
    FloatTensor::<Flex>::from_data(TensorData::new(values, shape))
}
