//! Normal numbers as numpy's legacy generator gives them, bit for bit: upstream's start noise (spec 5.6).
//!
//! Source: the Mersenne twister MT19937 of Matsumoto and Nishimura 1998, seeded by its classic integer initialisation;
//! Marsaglia's polar method, whose second value is kept for the next call.

/// Words of the twister's state.
const WORDS: usize = 624;

/// `numpy.random.RandomState(seed).standard_normal()`.
#[derive(Clone, Debug)]
pub struct NumpyNormal {
    state: [u32; WORDS],
    next: usize,
    kept: Option<f64>,
}

impl NumpyNormal {
    pub fn new(seed: u32) -> NumpyNormal {
        let mut state = [seed; WORDS];
        for i in 1..WORDS {
            let last = state[i - 1];
            state[i] = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        NumpyNormal { state, next: WORDS, kept: None }
    }

    /// The next `count` values, as f32.
    pub fn take(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.draw() as f32).collect()
    }

    pub fn draw(&mut self) -> f64 {
        if let Some(kept) = self.kept.take() {
            return kept;
        }
        loop {
            let (x, y) = (2.0 * self.uniform() - 1.0, 2.0 * self.uniform() - 1.0);
            let square = x * x + y * y;
            if square > 0.0 && square < 1.0 {
                let factor = (-2.0 * square.ln() / square).sqrt();
                self.kept = Some(factor * x);
                return factor * y;
            }
        }
    }

    /// In 0..1, with 53 random bits.
    fn uniform(&mut self) -> f64 {
        let (high, low) = (self.word() >> 5, self.word() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    fn word(&mut self) -> u32 {
        if self.next == WORDS {
            self.twist();
            self.next = 0;
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn twist(&mut self) {
        for i in 0..WORDS {
            let joined = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % WORDS] & 0x7fff_ffff);
            let mixed = if joined & 1 == 0 { joined >> 1 } else { (joined >> 1) ^ 0x9908_b0df };
            self.state[i] = self.state[(i + 397) % WORDS] ^ mixed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_twister_gives_its_published_ten_thousandth_word() {
        // The C++ standard, section on `mt19937`: default seed 5489, 10000th value 4123659995.
        let mut generator = NumpyNormal::new(5489);
        assert_eq!((0..10_000).map(|_| generator.word()).last(), Some(4_123_659_995));
    }
}
