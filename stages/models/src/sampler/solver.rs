//! Solvers: from noise to data along a list of noise levels.
//!
//! A model gives, for a noisy state and its level sigma, the clean data x0 that it expects. The slope of the path is then
//! `(x - x0) / sigma`. Coefficients and sums are f64; the state is kept in f32 between steps.
//! Source: spec 5.4 for [`Solver::AdamsBashforth2`]; the others are those of the Cosmos sampler. Rows of coefficients: the
//! second-order exponential integrators of Zhang et al. 2023, arXiv 2308.02157.

use serde::{Deserialize, Serialize};

/// How a step is made. Each comes with the number of times that it asks the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Solver {
    /// Two-step exponential Adams-Bashforth, released with VideoWorld 2: 1.
    #[serde(rename = "2ab")]
    AdamsBashforth2,
    /// 1.
    #[serde(rename = "1euler")]
    Euler,
    /// Heun's idea applied to x0: the mean of its values at both ends: 2.
    #[serde(rename = "2heun_edm")]
    Heun,
    /// Heun's on slopes as upstream has it, whose first slope is taken from the advanced state: 2.
    #[serde(rename = "2heun_naive")]
    HeunNaive,
    /// Exponential midpoint: 2.
    #[serde(rename = "2mid")]
    Midpoint,
    /// A step with the midpoint's data alone: 2.
    #[serde(rename = "2mid_stable")]
    MidpointStable,
    /// Kutta's third-order method: 3.
    #[serde(rename = "3kutta_naive")]
    Kutta,
}

impl Solver {
    pub const ALL: [Solver; 7] = [
        Solver::AdamsBashforth2,
        Solver::Euler,
        Solver::Heun,
        Solver::HeunNaive,
        Solver::Midpoint,
        Solver::MidpointStable,
        Solver::Kutta,
    ];

    /// Times that a step asks the model.
    pub fn evaluations(self) -> usize {
        match self {
            Solver::AdamsBashforth2 | Solver::Euler => 1,
            Solver::Heun | Solver::HeunNaive | Solver::Midpoint | Solver::MidpointStable => 2,
            Solver::Kutta => 3,
        }
    }
}

/// A path from noise to data, step by step.
#[derive(Clone, Debug)]
pub struct Trajectory {
    solver: Solver,
    sigmas: Vec<f64>,
    /// Steps made.
    done: usize,
    x: Vec<f32>,
    /// The last step's prediction and the level it was made at.
    last: Option<(f64, Vec<f32>)>,
}

impl Trajectory {
    /// Starts at state `x`, whose noise level is the first of `sigmas`; levels fall.
    pub fn new(solver: Solver, sigmas: Vec<f64>, x: Vec<f32>) -> Trajectory {
        Trajectory { solver, sigmas, done: 0, x, last: None }
    }

    pub fn state(&self) -> &[f32] {
        &self.x
    }

    /// Steps made, and steps in all.
    pub fn progress(&self) -> (usize, usize) {
        (self.done, self.sigmas.len().saturating_sub(1))
    }

    /// One step; false if the last level has been reached.
    ///
    /// # Errors
    /// What `model` returns; the state is then that of before the step.
    pub fn step<E>(&mut self, mut model: impl FnMut(&[f32], f64) -> Result<Vec<f32>, E>) -> Result<bool, E> {
        let Some(&[s, t]) = self.sigmas.get(self.done..self.done + 2) else { return Ok(false) };
        let clean = model(&self.x, s)?;
        let next = match self.solver {
            Solver::Euler => euler(&self.x, &clean, s, t),
            Solver::AdamsBashforth2 => match &self.last {
                Some((earlier, old)) => exponential(&self.x, &clean, old, [s, t, *earlier]),
                None => euler(&self.x, &clean, s, t),
            },
            Solver::Midpoint => {
                let middle = (s * t).sqrt();
                let there = model(&round(&euler(&self.x, &clean, s, middle)), middle)?;
                exponential(&self.x, &clean, &there, [s, t, middle])
            }
            Solver::MidpointStable => {
                let middle = (s * t).sqrt();
                let there = model(&round(&euler(&self.x, &clean, s, middle)), middle)?;
                euler(&self.x, &there, s, t)
            }
            Solver::Heun => {
                let there = model(&round(&euler(&self.x, &clean, s, t)), t)?;
                let mean: Vec<f32> = clean.iter().zip(&there).map(|(a, b)| 0.5 * (a + b)).collect();
                euler(&self.x, &mean, s, t)
            }
            Solver::HeunNaive => {
                let ahead = euler(&self.x, &clean, s, t);
                let first = slope(&ahead, &clean, s);
                let second = slope(&ahead, &model(&round(&ahead), t)?, t);
                along(&self.x, t - s, &[(0.5, &first), (0.5, &second)])
            }
            Solver::Kutta => {
                let middle = 0.5 * (s + t);
                let first = slope(&wide(&self.x), &clean, s);
                let x = euler(&self.x, &clean, s, middle);
                let second = slope(&x, &model(&round(&x), middle)?, middle);
                let x = along(&self.x, t - s, &[(-1.0, &first), (2.0, &second)]);
                let third = slope(&x, &model(&round(&x), t)?, t);
                along(&self.x, t - s, &[(1.0 / 6.0, &first), (4.0 / 6.0, &second), (1.0 / 6.0, &third)])
            }
        };
        self.x = round(&next);
        self.last = Some((s, clean));
        self.done += 1;
        Ok(true)
    }

    /// The clean data that the model expects at the last level, which ends a path.
    ///
    /// # Errors
    /// What `model` returns.
    pub fn finish<E>(self, mut model: impl FnMut(&[f32], f64) -> Result<Vec<f32>, E>) -> Result<Vec<f32>, E> {
        match self.sigmas.last() {
            Some(&sigma) => model(&self.x, sigma),
            None => Ok(self.x),
        }
    }
}

/// A straight line towards x0, from level s to level t.
fn euler(x: &[f32], clean: &[f32], s: f64, t: f64) -> Vec<f64> {
    let kept = t / s;
    x.iter().zip(clean).map(|(x, clean)| (1.0 - kept) * f64::from(*clean) + kept * f64::from(*x)).collect()
}

/// From level s to t, where x0 is taken as a line in `-ln sigma` through its values at s and at a third level.
fn exponential(x: &[f32], at_s: &[f32], at_other: &[f32], [s, t, other]: [f64; 3]) -> Vec<f64> {
    let step = (s / t).ln();
    let place = (s / other).ln() / step; // of the other level, where s is 0 and t is 1
    let (first, second) = (phi1(-step), phi2(-step));
    let of_other = second / place;
    let of_s = first - of_other;
    let kept = t / s;
    let values = x.iter().zip(at_s.iter().zip(at_other));
    let clean = |a: f32, b: f32| step * (of_s * f64::from(a) + of_other * f64::from(b));
    values.map(|(x, (a, b))| kept * f64::from(*x) + clean(*a, *b)).collect()
}

fn slope(x: &[f64], clean: &[f32], sigma: f64) -> Vec<f64> {
    x.iter().zip(clean).map(|(x, clean)| (x - f64::from(*clean)) / sigma).collect()
}

/// x plus `step` times a weighted sum of slopes.
fn along(x: &[f32], step: f64, slopes: &[(f64, &Vec<f64>)]) -> Vec<f64> {
    let sum = |i: usize| slopes.iter().map(|(weight, slope)| weight * slope[i]).sum::<f64>();
    x.iter().enumerate().map(|(i, x)| f64::from(*x) + step * sum(i)).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

fn round(x: &[f64]) -> Vec<f32> {
    x.iter().map(|x| *x as f32).collect()
}

/// `(exp(z) - 1) / z`, and 1 at 0.
pub fn phi1(z: f64) -> f64 {
    if z == 0.0 { 1.0 } else { z.exp_m1() / z }
}

/// `(phi1(z) - 1) / z`, and 1/2 at 0.
pub fn phi2(z: f64) -> f64 {
    if z == 0.0 { 0.5 } else { (phi1(z) - 1.0) / z }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::sampler::{NumpyNormal, schedule};

    fn run(solver: Solver, steps: usize, model: impl Fn(&[f32], f64) -> Vec<f32>) -> Vec<f32> {
        let start = NumpyNormal::new(3).take(32).into_iter().map(|value| 80.0 * value).collect();
        let mut path = Trajectory::new(solver, schedule(steps, 0.002, 80.0, 7.0), start);
        let model = |x: &[f32], sigma: f64| Ok::<_, Infallible>(model(x, sigma));
        while path.step(model).unwrap() {}
        assert_eq!(path.progress(), (steps, steps));
        path.finish(model).unwrap()
    }

    #[test]
    fn a_model_that_knows_the_answer_leads_there() {
        let answer: Vec<f32> = (0..32).map(|i| (i as f32 * 0.7).sin()).collect();
        for solver in Solver::ALL {
            assert_eq!(run(solver, 5, |_, _| answer.clone()), answer, "{solver:?}");
            // And so does the path itself: it ends within the last level's noise.
            let mut path = Trajectory::new(solver, schedule(5, 0.002, 80.0, 7.0), vec![80.0; 32]);
            while path.step(|_, _| Ok::<_, Infallible>(answer.clone())).unwrap() {}
            if solver != Solver::HeunNaive {
                let worst = path.state().iter().zip(&answer).fold(0f32, |max, (a, b)| max.max((a - b).abs()));
                assert!(worst < 0.01, "{solver:?}: {worst}");
            }
        }
    }

    #[test]
    fn the_first_released_step_is_eulers() {
        let model = |x: &[f32], _: f64| Ok::<_, Infallible>(x.iter().map(|x| (0.1 * x).tanh()).collect::<Vec<f32>>());
        let path = |solver| {
            let mut path = Trajectory::new(solver, schedule(35, 0.002, 80.0, 7.0), vec![3.0, -70.0]);
            path.step(model).unwrap();
            path.state().to_vec()
        };
        assert_eq!(path(Solver::AdamsBashforth2), path(Solver::Euler));
    }

    #[test]
    fn data_of_one_gaussian_is_met_with_the_order_of_the_solver() {
        // x0 of data N(0, 1): x / (1 + sigma^2); the exact path keeps x / sqrt(1 + sigma^2).
        let start = 80.0f64;
        let exact = start / start.hypot(1.0) * 1.0f64.hypot(0.002);
        let miss = |solver, steps| {
            let model = |x: &[f32], s: f64| {
                Ok::<_, Infallible>(x.iter().map(|x| (f64::from(*x) / (1.0 + s * s)) as f32).collect::<Vec<f32>>())
            };
            let mut path = Trajectory::new(solver, schedule(steps, 0.002, 80.0, 7.0), vec![start as f32]);
            while path.step(model).unwrap() {}
            (f64::from(path.state()[0]) - exact).abs()
        };
        for (solver, order) in
            [(Solver::Euler, 1), (Solver::AdamsBashforth2, 2), (Solver::Midpoint, 2), (Solver::Heun, 2)]
        {
            let gain = miss(solver, 40) / miss(solver, 80);
            let wanted = f64::from(1 << order);
            assert!(gain > 0.75 * wanted && gain < 1.5 * wanted, "{solver:?}: twice the steps, {gain:.2} times closer");
        }
    }
}
