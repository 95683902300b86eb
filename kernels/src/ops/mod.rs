//! One file or folder per kernel.

pub mod adamw;
pub mod attention;
pub mod channel_norm;
pub mod conv3d;
pub mod cross_entropy;
pub mod frame_norm;
pub mod fsq;
pub mod gate;
pub mod gelu;
pub mod haar;
pub mod norm;
pub mod picture;
pub mod rotary;
pub mod sample;
pub mod swiglu;

/// What follows a norm, value by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    None,
    /// x / (1 + exp(-x)).
    Silu,
}

impl Activation {
    /// As the cases of kernels say it.
    pub(crate) fn silu_if(silu: bool) -> Activation {
        if silu { Activation::Silu } else { Activation::None }
    }
}

/// Seeded draws for inputs of tests and benches: a 64-bit SplitMix generator, small and the same everywhere.
pub(crate) struct Draws(u64);

impl Draws {
    pub(crate) fn new(seed: u64) -> Draws {
        Draws(seed)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}
