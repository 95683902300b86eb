//! Whether a dLDM's decoder listens to its codes: the figures in which a collapse shows itself.
//!
//! A decoder that ignores its codes draws the still scene, and does so as well with the codes of any other clip: the
//! *shuffled-codes gap*, PSNR with a clip's own codes minus PSNR with those of a clip of another video, is then about 0 dB,
//! however many codes are in use. Judged are the frames after the first, which is given.

use std::collections::BTreeSet;

use vw2_engine::stage::StageError;
use vw2_kernels::denormalise;
use vw2_models::dldm::Dldm;
use vw2_models::train::metrics::perplexity;

use super::held_out::HeldOut;
use super::pixel_errors::PixelErrors;

/// A gap below this, in dB, is called none.
const GAP_DB: f64 = 0.3;
/// Less than one code in use of so many, or of as many as there were to choose, is called few.
const USED_ONE_IN: usize = 50;

/// What was heard on some clips.
pub(crate) struct Listening {
    /// With the clip's own codes.
    pub(crate) own: PixelErrors,
    /// With the codes of a clip of another video.
    pub(crate) shuffled: PixelErrors,
    /// The first frame repeated.
    pub(crate) repeated: PixelErrors,
    /// All codes, in order.
    pub(crate) codes: Vec<u32>,
    /// How many there are to choose from.
    codebook: usize,
}

impl Listening {
    /// Encodes and decodes these clips.
    pub(crate) fn to(dldm: &Dldm, held: &HeldOut) -> Result<Listening, StageError> {
        let encoded = (0..held.clips.len())
            .map(|index| Ok(dldm.encode(held.tensor(index)?)?))
            .collect::<Result<Vec<_>, StageError>>()?;
        let mut heard = Listening {
            own: PixelErrors::default(),
            shuffled: PixelErrors::default(),
            repeated: PixelErrors::default(),
            codes: Vec::new(),
            codebook: dldm.config().levels.iter().map(|&level| level as usize).product(),
        };
        let first = held.frame_bytes();
        for (index, own) in encoded.iter().enumerate() {
            let truth = &held.clips[index];
            let stranger = &encoded[held.stranger(index)];
            for (codes, errors) in [(&own.codes, &mut heard.own), (&stranger.codes, &mut heard.shuffled)] {
                let drawn = denormalise(dldm.decode(codes.clone(), own.first())?);
                errors.add(&truth[first..], &drawn[first..]);
            }
            heard.repeated.add(&truth[first..], &truth[..first].repeat(held.size[0] - 1));
            let indices: Vec<i64> = own.indices.clone().into_data().convert::<i64>().try_into_vec()?;
            heard.codes.extend(indices.into_iter().map(|code| code as u32));
        }
        Ok(heard)
    }

    pub(crate) fn gap_db(&self) -> f64 {
        self.own.psnr() - self.shuffled.psnr()
    }

    pub(crate) fn used(&self) -> usize {
        self.codes.iter().collect::<BTreeSet<_>>().len()
    }

    /// By name, for metrics.
    pub(crate) fn figures(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("own_codes_psnr_db", self.own.psnr()),
            ("shuffled_codes_psnr_db", self.shuffled.psnr()),
            ("shuffled_codes_gap_db", self.gap_db()),
            ("no_codes_psnr_db", self.repeated.psnr()),
            ("codes_used", self.used() as f64),
            ("code_perplexity", perplexity(&self.codes)),
        ]
    }

    /// What a user should know before going on with these codes.
    pub(crate) fn warning(&self) -> Option<String> {
        let few = self.used() * USED_ONE_IN < self.codebook.min(self.codes.len());
        let deaf = self.gap_db() < GAP_DB;
        let (used, codebook, gap) = (self.used(), self.codebook, self.gap_db());
        let told = match (few, deaf) {
            (false, false) => return None,
            (true, false) => format!("{used} of {codebook} codes are in use"),
            (false, true) => format!("the decoder draws as well with the codes of another clip (gap {gap:.2} dB)"),
            (true, true) => format!(
                "{used} of {codebook} codes are in use, and the decoder draws as well with those of another clip (gap \
                 {gap:.2} dB)"
            ),
        };
        Some(format!("the dLDM has collapsed, or has not begun to use its codes: {told}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collapse_is_told_by_what_shows_it() {
        let errors = |difference: u8| {
            let mut errors = PixelErrors::default();
            errors.add(&[100], &[100 + difference]);
            errors
        };
        let heard = |codes: u32, own, shuffled| Listening {
            own: errors(own),
            shuffled: errors(shuffled),
            repeated: errors(9),
            codes: (0..640).map(|index| index % codes).collect(),
            codebook: 1000,
        };
        assert_eq!(heard(100, 4, 9).warning(), None);
        for (heard, words) in [
            (heard(3, 4, 9), "3 of 1000 codes are in use"),
            (heard(100, 9, 9), "gap 0.00 dB"),
            (heard(3, 9, 9), "3 of 1000 codes are in use, and the decoder draws"),
        ] {
            let warning = heard.warning().unwrap();
            assert!(warning.contains(words), "{warning}");
        }
        let figures = heard(100, 4, 9).figures();
        let figure = |name: &str| figures.iter().find(|figure| figure.0 == name).unwrap().1;
        assert!((figure("shuffled_codes_gap_db") - 20.0 * 2.25f64.log10()).abs() < 1e-9);
        assert_eq!(figure("codes_used"), 100.0);
    }
}
