//! How a network's input and output are scaled at a noise level.

/// A family of scalings: `x0 = c_skip x + c_out F(c_in x, c_noise)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// The network yields a velocity at time t = sigma / (1 + sigma); it is told t times a factor (spec 5.1).
    RectifiedFlow { time_factor: f64 },
    /// Karras et al. 2022, arXiv 2206.00364, table 1.
    Edm { sigma_data: f64 },
}

impl Scaling {
    /// VideoWorld 2's.
    pub const RECTIFIED_FLOW: Scaling = Scaling::RectifiedFlow { time_factor: 1.0 };

    /// The one whose [`Scaling::loss_weight`], (1 + sigma^2) / sigma^2, VideoWorld 2 trains with (spec 7.3).
    pub const TRAINING: Scaling = Scaling::Edm { sigma_data: 1.0 };

    pub fn c_in(self, sigma: f64) -> f64 {
        match self {
            Scaling::RectifiedFlow { .. } => 1.0 / (1.0 + sigma),
            Scaling::Edm { sigma_data } => sigma.hypot(sigma_data).recip(),
        }
    }

    pub fn c_skip(self, sigma: f64) -> f64 {
        match self {
            Scaling::RectifiedFlow { .. } => 1.0 / (1.0 + sigma),
            Scaling::Edm { sigma_data } => (sigma_data / sigma.hypot(sigma_data)).powi(2),
        }
    }

    pub fn c_out(self, sigma: f64) -> f64 {
        match self {
            Scaling::RectifiedFlow { .. } => -sigma / (1.0 + sigma),
            Scaling::Edm { sigma_data } => sigma * sigma_data / sigma.hypot(sigma_data),
        }
    }

    /// What the network is told of the noise level.
    pub fn c_noise(self, sigma: f64) -> f64 {
        match self {
            Scaling::RectifiedFlow { time_factor } => time_factor * sigma / (1.0 + sigma),
            Scaling::Edm { .. } => sigma.ln() / 4.0,
        }
    }

    /// The scaling's own weight of a squared error of x0. VideoWorld 2 trains with that of [`Scaling::TRAINING`].
    pub fn loss_weight(self, sigma: f64) -> f64 {
        match self {
            Scaling::RectifiedFlow { .. } => sigma.powi(-2),
            Scaling::Edm { sigma_data } => (sigma.hypot(sigma_data) / (sigma * sigma_data)).powi(2),
        }
    }
}
