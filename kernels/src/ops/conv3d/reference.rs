//! The definition in f64 and plain loops, and its gradients, for tests on every device.
//!
//! A case is [B, T, C, H, W, O, kt, kh, kw, front, kind of front (0 zeros, 1 copies, 2 given), time step, space step,
//! zeros before, zeros after, 1 where something is added]. All tensors of a case are one input, one after the other, so
//! that its gradient is that of all of them.

use burn::tensor::{Tensor, TensorData};

use super::{Call, Front, Steps, conv3d};
use crate::ops::Draws;

pub(super) fn call(case: &[usize]) -> Call {
    let steps = Steps { time: case[11], space: case[12], pad: [case[13], case[14]] };
    let weight = [case[5], case[2], case[6], case[7], case[8]];
    let front = if case[10] == 1 { Front::First(case[9]) } else { Front::Zeros(case[9]) };
    Call::new([case[0], case[1], case[2], case[3], case[4]], &front, weight, steps, case[15] == 1)
}

/// Values of x, weight, bias, the given frames in front and what is added.
fn sizes(case: &[usize]) -> [usize; 5] {
    let call = call(case);
    let given = if case[10] == 2 { call.past().iter().product() } else { 0 };
    let onto = if case[15] == 1 { call.result().iter().product() } else { 0 };
    [call.x.iter().product(), call.weight.iter().product(), call.outputs(), given, onto]
}

pub(super) fn inputs(case: &[usize], seed: u64) -> Vec<TensorData> {
    let mut draws = Draws::new(seed);
    let sizes = sizes(case);
    // As large as a model's: the deviation of the result is that of x.
    let fan_in = (sizes[1] / case[5]) as f64;
    let scales = [1.0, (3.0 / fan_in).sqrt(), 1.0, 1.0, 1.0];
    let values: Vec<f32> = (sizes.iter().zip(scales))
        .flat_map(|(size, scale)| std::iter::repeat_n(scale, *size))
        .map(|scale| ((draws.unit() * 2.0 - 1.0) * scale) as f32)
        .collect();
    let count = values.len();
    vec![TensorData::new(values, [count])]
}

/// The op on tensors that are cut from the one input.
pub(super) fn run(case: &[usize], input: Tensor<1>) -> Tensor<1> {
    let call = call(case);
    let sizes = sizes(case);
    let part = |index: usize| input.clone().narrow(0, sizes[..index].iter().sum(), sizes[index]);
    let front = match case[10] {
        0 => Front::Zeros(call.front),
        1 => Front::First(call.front),
        _ => Front::Frames(part(3).reshape(call.past())),
    };
    let onto = (case[15] == 1).then(|| part(4).reshape(call.result()));
    conv3d(part(0).reshape(call.x), front, part(1).reshape(call.weight), part(2), call.steps, onto).reshape([-1])
}

/// Where a value of the padded clip comes from.
enum Place {
    /// Of x.
    Frame(usize),
    /// Of the frames in front.
    Past(usize),
    Nowhere,
}

/// Calls `visit` with each output, weight and input that meet.
fn each(case: &[usize], mut visit: impl FnMut(usize, usize, Place)) {
    let call = call(case);
    let [b, ot, o, oh, ow] = call.result();
    let ([_, t, c, h, w], [_, _, kt, kh, kw]) = (call.x, call.weight);
    let steps = call.steps;
    let inside = |at: usize, size: usize| at.checked_sub(steps.pad[0]).filter(|at| *at < size);
    for (result, place) in indices([b, ot, o, oh, ow]).enumerate() {
        let [batch, frame, output, row, column] = place;
        for [input, dt, dh, dw, _] in indices([c, kt, kh, kw, 1]) {
            let weight = (((output * c + input) * kt + dt) * kh + dh) * kw + dw;
            let (row, column) = (inside(row * steps.space + dh, h), inside(column * steps.space + dw, w));
            let Some((row, column)) = row.zip(column) else { continue };
            let frame = frame * steps.time + dt;
            let pixel = |frames: usize, frame: usize| (((batch * frames + frame) * c + input) * h + row) * w + column;
            let place = match frame.checked_sub(call.front) {
                Some(frame) => Place::Frame(pixel(t, frame)),
                None if case[10] == 1 => Place::Frame(pixel(t, 0)),
                None if case[10] == 2 => Place::Past(pixel(call.front, frame)),
                None => Place::Nowhere,
            };
            visit(result, weight, place);
        }
    }
}

fn indices(n: [usize; 5]) -> impl Iterator<Item = [usize; 5]> {
    (0..n.iter().product()).map(move |index: usize| {
        let (rest, e) = (index / n[4], index % n[4]);
        let (rest, d) = (rest / n[3], rest % n[3]);
        let (rest, c) = (rest / n[2], rest % n[2]);
        [rest / n[1], rest % n[1], c, d, e]
    })
}

/// The parts of the input, each in f64.
fn parts(case: &[usize], inputs: &[TensorData]) -> [Vec<f64>; 5] {
    let mut rest = inputs[0].as_slice::<f32>().expect("`inputs` makes f32");
    sizes(case).map(|size| {
        let (part, after) = rest.split_at(size);
        rest = after;
        part.iter().map(|value| f64::from(*value)).collect()
    })
}

pub(super) fn result(case: &[usize], inputs: &[TensorData]) -> Vec<f64> {
    let [x, weight, bias, past, onto] = parts(case, inputs);
    let [.., outputs, height, width] = call(case).result();
    let count = call(case).result().iter().product();
    let start = |i: usize| bias[i / (height * width) % outputs] + onto.get(i).copied().unwrap_or(0.0);
    let mut y: Vec<f64> = (0..count).map(start).collect();
    each(case, |result, tap, place| {
        y[result] += weight[tap]
            * match place {
                Place::Frame(at) => x[at],
                Place::Past(at) => past[at],
                Place::Nowhere => 0.0,
            };
    });
    y
}

pub(super) fn gradient(case: &[usize], inputs: &[TensorData], weights: &[f32]) -> Vec<f64> {
    let [x, weight, _, past, _] = parts(case, inputs);
    let mut of = sizes(case).map(|size| vec![0.0; size]);
    let [.., outputs, height, width] = call(case).result();
    for (i, grad) in weights.iter().enumerate() {
        of[2][i / (height * width) % outputs] += f64::from(*grad);
        if case[15] == 1 {
            of[4][i] = f64::from(*grad);
        }
    }
    each(case, |result, tap, place| {
        let grad = f64::from(weights[result]);
        match place {
            Place::Frame(at) => {
                of[0][at] += grad * weight[tap];
                of[1][tap] += grad * x[at];
            }
            Place::Past(at) => {
                of[3][at] += grad * weight[tap];
                of[1][tap] += grad * past[at];
            }
            Place::Nowhere => {}
        }
    });
    of.concat()
}
