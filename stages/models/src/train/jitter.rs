//! Colour jitter: brightness, contrast, saturation and hue of a clip, by the same draw for all frames, in a random order.
//!
//! Pixels are u8 RGB; arithmetic is f32 in [0, 1], clamped after each change; the end is truncated to u8.
//! Source: torchvision's definitions with the released ranges (spec 1.8).

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// Ranges of the four changes; the released ones are the default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Jitter {
    /// Factor on all channels.
    pub brightness: [f32; 2],
    /// Factor on the distance from a frame's mean gray.
    pub contrast: [f32; 2],
    /// Factor on the distance from a pixel's gray.
    pub saturation: [f32; 2],
    /// Shift along the circle of hues, in full turns.
    pub hue: [f32; 2],
}

impl Default for Jitter {
    fn default() -> Jitter {
        Jitter { brightness: [0.7, 1.3], contrast: [0.7, 1.3], saturation: [0.8, 1.2], hue: [-0.055, 0.055] }
    }
}

/// One change of all pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    Brightness(f32),
    Contrast(f32),
    Saturation(f32),
    Hue(f32),
}

impl Jitter {
    /// # Errors
    /// A range that does not rise, or a factor below 0: the text names it.
    pub fn check(&self) -> Result<(), String> {
        let factors = [("brightness", self.brightness), ("contrast", self.contrast), ("saturation", self.saturation)];
        for (name, [low, high]) in factors.into_iter().chain([("hue", self.hue)]) {
            let least = if name == "hue" { -0.5 } else { 0.0 };
            if !(low >= least && high >= low && high.is_finite()) {
                return Err(format!("`{name}` is [{low}, {high}]; it wants a range from {least} or more upwards"));
            }
        }
        Ok(())
    }

    /// The changes of a clip, in their order.
    pub fn draw(&self, seed: u64) -> [Change; 4] {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut between = |[low, high]: [f32; 2]| low + (high - low) * rng.random::<f32>();
        let mut changes = [
            Change::Brightness(between(self.brightness)),
            Change::Contrast(between(self.contrast)),
            Change::Saturation(between(self.saturation)),
            Change::Hue(between(self.hue)),
        ];
        changes.shuffle(&mut rng);
        changes
    }
}

/// Changes frames of `frame_bytes` each, u8 RGB.
pub fn apply(changes: &[Change], pixels: &[u8], frame_bytes: usize) -> Vec<u8> {
    let mut result = Vec::with_capacity(pixels.len());
    for frame in pixels.chunks(frame_bytes) {
        let mut colours: Vec<[f32; 3]> =
            frame.as_chunks::<3>().0.iter().map(|rgb| rgb.map(|value| f32::from(value) / 255.0)).collect();
        changes.iter().for_each(|change| change.apply(&mut colours));
        result.extend(colours.iter().flatten().map(|value| (value * 255.0) as u8));
    }
    result
}

impl Change {
    /// Of all pixels of one frame.
    fn apply(self, colours: &mut [[f32; 3]]) {
        match self {
            Change::Brightness(factor) => mix(colours, factor, |_| 0.0),
            Change::Contrast(factor) => {
                let sum: f64 = colours.iter().map(|rgb| f64::from(gray(*rgb))).sum();
                let mean = (sum / colours.len().max(1) as f64) as f32;
                mix(colours, factor, |_| mean);
            }
            Change::Saturation(factor) => mix(colours, factor, gray),
            Change::Hue(shift) => colours.iter_mut().for_each(|rgb| *rgb = turned(*rgb, shift)),
        }
    }
}

/// `factor` of a pixel and the rest of what `other` makes of it; a factor above 1 leads away from that.
fn mix(colours: &mut [[f32; 3]], factor: f32, other: impl Fn([f32; 3]) -> f32) {
    for rgb in colours {
        let rest = (1.0 - factor) * other(*rgb);
        *rgb = rgb.map(|value| (factor * value + rest).clamp(0.0, 1.0));
    }
}

fn gray([r, g, b]: [f32; 3]) -> f32 {
    0.2989 * r + 0.587 * g + 0.114 * b
}

/// The pixel with its hue turned, value and saturation kept.
fn turned([r, g, b]: [f32; 3], shift: f32) -> [f32; 3] {
    let (high, low) = (r.max(g).max(b), r.min(g).min(b));
    let range = high - low;
    if range == 0.0 {
        return [r, g, b]; // gray has no hue
    }
    // The hue in sixths of a turn from red.
    let hue = if high == r {
        (g - b) / range
    } else if high == g {
        2.0 + (b - r) / range
    } else {
        4.0 + (r - g) / range
    };
    let hue = (hue + 6.0 * shift).rem_euclid(6.0);
    // How much of the range a channel has, by its distance from where it is strongest.
    let channel = |at: f32| {
        let distance = (hue - at).rem_euclid(6.0);
        let distance = distance.min(6.0 - distance);
        low + range * (2.0 - distance).clamp(0.0, 1.0)
    };
    [channel(0.0), channel(2.0), channel(4.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(change: Change, pixels: &[u8]) -> Vec<u8> {
        apply(&[change], pixels, pixels.len())
    }

    #[test]
    fn changes_are_those_worked_out_by_hand() {
        let pixels = [200, 100, 0, 40, 40, 40];
        assert_eq!(changed(Change::Brightness(0.5), &pixels), [100, 50, 0, 20, 20, 20]);
        assert_eq!(changed(Change::Brightness(2.0), &pixels), [255, 200, 0, 80, 80, 80]);
        // Gray of the first pixel: 0.2989 * 200 + 0.587 * 100 = 118.48; mean with 40 times 0.9999: 79.2.
        assert_eq!(changed(Change::Contrast(0.0), &pixels), [79; 6]);
        assert_eq!(changed(Change::Saturation(0.0), &pixels)[..3], [118; 3]);
        // A third of a turn leads from red to green, from green to blue, from blue to red.
        assert_eq!(changed(Change::Hue(1.0 / 3.0), &[255, 0, 0, 0, 255, 0]), [0, 255, 0, 0, 0, 255]);
        assert_eq!(changed(Change::Hue(0.4), &[40, 40, 40]), [40, 40, 40]);
    }

    #[test]
    fn changes_of_nothing_change_nothing() {
        let pixels: Vec<u8> = (0..=255).cycle().step_by(37).take(300).collect();
        for change in [Change::Brightness(1.0), Change::Contrast(1.0), Change::Saturation(1.0), Change::Hue(0.0)] {
            let result = changed(change, &pixels);
            // Truncation may take one level.
            assert!(result.iter().zip(&pixels).all(|(a, b)| b.abs_diff(*a) <= 1), "{change:?}");
        }
    }

    #[test]
    fn draws_follow_from_the_seed_and_stay_in_their_ranges() {
        let jitter = Jitter::default();
        assert_eq!(jitter.check(), Ok(()));
        assert_eq!(jitter.draw(3), jitter.draw(3));
        let mut orders = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let changes = jitter.draw(seed);
            for change in changes {
                let (value, [low, high]) = match change {
                    Change::Brightness(value) => (value, jitter.brightness),
                    Change::Contrast(value) => (value, jitter.contrast),
                    Change::Saturation(value) => (value, jitter.saturation),
                    Change::Hue(value) => (value, jitter.hue),
                };
                assert!((low..=high).contains(&value), "seed {seed}: {change:?}");
            }
            orders.insert(changes.map(|change| std::mem::discriminant(&change)).map(|kind| format!("{kind:?}")));
        }
        assert_eq!(orders.len(), 24, "all orders of four occur");
        let wrong = Jitter { hue: [0.1, -0.1], ..Jitter::default() };
        assert!(wrong.check().unwrap_err().contains("`hue` is [0.1, -0.1]"));
    }
}
