//! The parts of an H.264 sequence parameter set that say what the pictures look like; of a picture parameter set, how they
//! are coded.
//!
//! Source: ITU-T H.264, 7.3.2.1.1, 7.3.2.2 and E.1.1. The decoder reads the set again for itself; this gives what it does not
//! tell, before anything is decoded: colour, bit depth, and the size.

use super::{Matrix, PixelFormat, Range};

/// What a sequence parameter set says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sps {
    pub(super) profile: u8,
    /// `None` for monochrome.
    pub(super) chroma: Option<PixelFormat>,
    pub(super) bits: u32,
    /// Luma and chroma have equally many bits, and the transform is never bypassed.
    pub(super) plain: bool,
    /// Shown size.
    pub(super) width: u32,
    pub(super) height: u32,
    /// Coded size, before cropping.
    pub(super) coded: [u64; 2],
    pub(super) matrix: Option<Matrix>,
    pub(super) range: Option<Range>,
}

/// From a NAL unit with its header byte.
pub(super) fn parse(nal: &[u8]) -> Result<Sps, &'static str> {
    let payload = without_escapes(nal.get(1..).unwrap_or_default());
    read(&mut Bits { bytes: &payload, at: 0 })
        .ok_or("the sequence parameter set ends early or has a value out of range")
}

/// Of a picture parameter set's payload without escapes: its number, and whether slices that name it are coded
/// arithmetically (CABAC).
pub(super) fn coding(payload: &[u8]) -> Option<(u32, bool)> {
    let mut bits = Bits { bytes: payload, at: 0 };
    let id = bits.unsigned()?;
    bits.unsigned()?; // the sequence parameter set
    Some((id, bits.read(1)? == 1))
}

/// The picture parameter set that a slice names, from its payload without escapes.
pub(super) fn named_by_slice(payload: &[u8]) -> Option<u32> {
    let mut bits = Bits { bytes: payload, at: 0 };
    bits.unsigned()?; // first macroblock
    bits.unsigned()?; // kind of slice
    bits.unsigned()
}

/// Profiles whose parameter set tells about chroma and bit depth.
const HIGH: [u32; 12] = [100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134];

fn read(bits: &mut Bits) -> Option<Sps> {
    let profile = bits.read(8)?;
    bits.read(16)?; // constraint flags, level
    bits.unsigned()?; // id
    let (mut chroma_code, mut luma_bits, mut plain) = (1, 8, true);
    if HIGH.contains(&profile) {
        chroma_code = bits.unsigned()?;
        if chroma_code == 3 {
            plain &= bits.read(1)? == 0; // separate colour planes
        }
        luma_bits = bits.unsigned()?.checked_add(8)?;
        let chroma_bits = bits.unsigned()?.checked_add(8)?;
        plain &= bits.read(1)? == 0 && (luma_bits == chroma_bits || chroma_code == 0);
        if bits.read(1)? == 1 {
            for list in 0..if chroma_code == 3 { 12 } else { 8 } {
                if bits.read(1)? == 1 {
                    skip_scaling_list(bits, if list < 6 { 16 } else { 64 })?;
                }
            }
        }
    }
    bits.unsigned()?; // log2 of the largest frame number
    match bits.unsigned()? {
        0 => {
            bits.unsigned()?;
        }
        1 => {
            bits.read(1)?;
            bits.unsigned()?;
            bits.unsigned()?;
            let cycle = bits.unsigned()?;
            for _ in 0..cycle.min(256) {
                bits.unsigned()?;
            }
        }
        _ => {}
    }
    bits.unsigned()?; // reference frames
    bits.read(1)?;
    let width_blocks = u64::from(bits.unsigned()?) + 1;
    let height_units = u64::from(bits.unsigned()?) + 1;
    let frames_only = bits.read(1)? == 1;
    if !frames_only {
        bits.read(1)?;
    }
    bits.read(1)?;
    let coded = [width_blocks * 16, height_units * if frames_only { 16 } else { 32 }];

    let chroma = match chroma_code {
        0 => None,
        1 => Some(PixelFormat::I420),
        2 => Some(PixelFormat::I422),
        3 => Some(PixelFormat::I444),
        _ => return None,
    };
    let mut crop = [0u64; 4];
    if bits.read(1)? == 1 {
        for side in &mut crop {
            *side = u64::from(bits.unsigned()?);
        }
    }
    let unit_x = if matches!(chroma, Some(PixelFormat::I420 | PixelFormat::I422)) { 2 } else { 1 };
    let unit_y = if chroma == Some(PixelFormat::I420) { 2 } else { 1 } * if frames_only { 1 } else { 2 };
    let width = coded[0].checked_sub((crop[0] + crop[1]) * unit_x)?;
    let height = coded[1].checked_sub((crop[2] + crop[3]) * unit_y)?;

    let (matrix, range) = if bits.read(1)? == 1 { read_colour(bits)? } else { (None, None) };
    let (width, height) = (u32::try_from(width).ok()?, u32::try_from(height).ok()?);
    Some(Sps { profile: profile as u8, chroma, bits: luma_bits, plain, width, height, coded, matrix, range })
}

/// The start of the usability information, up to the colour description.
fn read_colour(bits: &mut Bits) -> Option<(Option<Matrix>, Option<Range>)> {
    if bits.read(1)? == 1 && bits.read(8)? == 255 {
        bits.read(32)?; // an aspect ratio of its own
    }
    if bits.read(1)? == 1 {
        bits.read(1)?; // overscan
    }
    if bits.read(1)? == 0 {
        return Some((None, None));
    }
    bits.read(3)?; // video format
    let range = if bits.read(1)? == 1 { Range::Full } else { Range::Limited };
    if bits.read(1)? == 0 {
        return Some((None, Some(range)));
    }
    bits.read(16)?; // primaries, transfer
    Some((Some(Matrix::from_code(bits.read(8)? as u8)), Some(range)))
}

fn skip_scaling_list(bits: &mut Bits, length: usize) -> Option<()> {
    let (mut last, mut next) = (8i64, 8i64);
    for _ in 0..length {
        if next != 0 {
            let code = i64::from(bits.unsigned()?);
            let delta = if code % 2 == 1 { (code + 1) / 2 } else { -code / 2 };
            next = (last + delta).rem_euclid(256);
        }
        if next != 0 {
            last = next;
        }
    }
    Some(())
}

/// A NAL unit's payload: each 3 that follows two zero bytes is an escape.
fn without_escapes(bytes: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(bytes.len());
    let mut zeros = 0;
    for &byte in bytes {
        if zeros >= 2 && byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        payload.push(byte);
    }
    payload
}

/// Reads bits from the highest down; `None` at the end.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn read(&mut self, count: u32) -> Option<u32> {
        let mut value = 0u64;
        for _ in 0..count {
            let byte = *self.bytes.get(self.at / 8)?;
            value = value << 1 | u64::from(byte >> (7 - self.at % 8) & 1);
            self.at += 1;
        }
        Some(value as u32)
    }

    /// An unsigned Exp-Golomb code.
    fn unsigned(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while self.read(1)? == 0 {
            zeros += 1;
            if zeros > 31 {
                return None;
            }
        }
        let rest = u64::from(self.read(zeros)?);
        u32::try_from((1u64 << zeros) - 1 + rest).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Appends values of a parameter set as bits.
    #[derive(Default)]
    struct Writer(Vec<bool>);

    impl Writer {
        fn bits(&mut self, value: u32, count: u32) -> &mut Self {
            self.0.extend((0..count).rev().map(|bit| value >> bit & 1 == 1));
            self
        }

        fn golomb(&mut self, value: u32) -> &mut Self {
            let length = 31 - (value + 1).leading_zeros();
            self.bits(0, length).bits(value + 1, length + 1)
        }

        fn nal(&self) -> Vec<u8> {
            let byte = |bits: &[bool]| bits.iter().enumerate().fold(0, |sum, (i, &bit)| sum | u8::from(bit) << (7 - i));
            std::iter::once(0x67).chain(self.0.chunks(8).map(byte)).collect()
        }
    }

    fn main_profile(blocks: [u32; 2], crop: Option<[u32; 4]>) -> Writer {
        let mut w = Writer::default();
        w.bits(77, 8).bits(0, 16).golomb(0).golomb(0).golomb(0).golomb(0).golomb(2).bits(0, 1);
        w.golomb(blocks[0] - 1).golomb(blocks[1] - 1).bits(1, 1).bits(1, 1);
        match crop {
            None => w.bits(0, 1),
            Some(sides) => sides.iter().fold(w.bits(1, 1), |w, &side| w.golomb(side)),
        };
        w
    }

    #[test]
    fn size_and_cropping() {
        let sps = parse(main_profile([120, 68], Some([0, 0, 0, 4])).bits(0, 1).bits(1, 1).nal().as_slice()).unwrap();
        assert_eq!((sps.width, sps.height, sps.coded), (1920, 1080, [1920, 1088]));
        assert_eq!((sps.chroma, sps.bits, sps.matrix, sps.range), (Some(PixelFormat::I420), 8, None, None));
        let more = parse(main_profile([1, 1], Some([4, 5, 0, 0])).bits(0, 1).nal().as_slice());
        assert!(more.is_err(), "more is cropped than there is");
    }

    #[test]
    fn colour_is_read_where_it_stands() {
        for (code, matrix) in [(1, Matrix::Bt709), (6, Matrix::Bt601), (9, Matrix::Bt2020), (2, Matrix::Bt601)] {
            let mut w = main_profile([4, 4], None);
            w.bits(1, 1).bits(1, 1).bits(255, 8).bits(7, 32).bits(0, 1);
            w.bits(1, 1).bits(5, 3).bits(1, 1).bits(1, 1).bits(1, 8).bits(1, 8).bits(code, 8);
            let sps = parse(&w.nal()).unwrap();
            assert_eq!((sps.matrix, sps.range), (Some(matrix), Some(Range::Full)), "code {code}");
        }
    }

    #[test]
    fn a_slice_names_how_it_is_coded() {
        let payload = |w: &Writer| w.nal()[1..].to_vec();
        for (id, is_cabac) in [(0, true), (3, false)] {
            let set = payload(Writer::default().golomb(id).golomb(0).bits(u32::from(is_cabac), 1).bits(1, 1));
            assert_eq!(coding(&set), Some((id, is_cabac)));
            assert_eq!(named_by_slice(&payload(Writer::default().golomb(99).golomb(7).golomb(id))), Some(id));
        }
        assert_eq!((coding(&[]), named_by_slice(&[0x80])), (None, None));
    }

    #[test]
    fn escapes_are_taken_out_and_every_cut_is_an_error() {
        assert_eq!(without_escapes(&[0, 0, 3, 1, 0, 0, 3, 0, 3]), [0, 0, 1, 0, 0, 0, 3]);
        let mut w = main_profile([120, 68], None);
        let whole = w.bits(0, 1).nal();
        for length in 0..whole.len() - 1 {
            assert!(parse(&whole[..length]).is_err(), "{length} of {} bytes", whole.len());
        }
    }
}
