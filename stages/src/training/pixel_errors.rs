//! Sums of differences of pixels, in levels of 0..=255.

#[derive(Clone, Default)]
pub(crate) struct PixelErrors {
    absolute: f64,
    squared: f64,
    count: f64,
}

impl PixelErrors {
    pub(crate) fn add(&mut self, truth: &[u8], guess: &[u8]) {
        for (a, b) in truth.iter().zip(guess) {
            let difference = f64::from(*a) - f64::from(*b);
            self.absolute += difference.abs();
            self.squared += difference * difference;
        }
        self.count += truth.len() as f64;
    }

    /// In the range [-1, 1], as the training loss.
    pub(crate) fn l1(&self) -> f64 {
        self.absolute / self.count / 127.5
    }

    /// dB against a peak of 255; 138 where nothing differs.
    pub(crate) fn psnr(&self) -> f64 {
        10.0 * (255.0 * 255.0 / (self.squared / self.count).max(1e-9)).log10()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_means_over_all_that_was_added() {
        let mut errors = PixelErrors::default();
        errors.add(&[10, 20], &[10, 23]);
        errors.add(&[5, 5], &[4, 5]);
        assert!((errors.l1() - 1.0 / 127.5).abs() < 1e-12);
        assert!((errors.psnr() - 10.0 * (255.0f64.powi(2) / 2.5).log10()).abs() < 1e-9);
    }
}
