//! Sampling of diffusion models: scalings, noise levels, solvers, and the noise that a clip starts from.
//!
//! Everything here is host arithmetic on plain numbers, in f64, with states stored in f32 between steps; a model is a
//! function from a noisy state and its noise level to a clean one. Source: spec 5.1 to 5.6.

mod noise;
mod scaling;
mod sigmas;
mod solver;

pub use noise::NumpyNormal;
pub use scaling::Scaling;
pub use sigmas::{HIGH_SIGMAS, TrainingSigmas, schedule};
pub use solver::{Solver, Trajectory, phi1, phi2};
