//! Training clips as they could have been taken, too: run backwards, mirrored, turned, shifted.

/// The ways in which training clips may stand otherwise than they were taken.
#[derive(Clone, Copy)]
pub(crate) struct Ways {
    pub(crate) backwards: bool,
    pub(crate) mirrored: bool,
    pub(crate) turned: bool,
    /// Pixels at most, along each axis and to either side.
    pub(crate) shifted: usize,
}

impl Ways {
    /// Whether clips of `[h, w]` pixels can stand so.
    ///
    /// # Errors
    /// Turned ones are not square, or shifted ones could lose all that they show.
    pub(crate) fn check(self, [h, w]: [usize; 2]) -> Result<(), String> {
        if self.turned && h != w {
            return Err(format!("`turned` wants square clips; these have {w} x {h} pixels"));
        }
        if self.shifted >= h.min(w) {
            let shifted = self.shifted;
            return Err(format!("`shifted` is {shifted}; clips have {w} x {h} pixels, and something has to stay"));
        }
        Ok(())
    }

    /// What [`Ways::vary`] makes of bits of chance: where it is equal, so is what becomes of a clip.
    pub(crate) fn choice(self, chance: u64) -> u64 {
        let used = |does: bool, bits: u64| if does { bits } else { 0 };
        let turns = used(self.backwards, 0b1) | used(self.mirrored, 0b110) | used(self.turned, 0b1000);
        chance & (turns | used(self.shifted > 0, !0xFF))
    }

    /// Lays a clip u8 [T, H, W, 3] down as bits of chance say: in time, left and right, top and bottom, a quarter round,
    /// and beside its place.
    pub(crate) fn vary(self, clip: &mut [u8], [h, w]: [usize; 2], chance: u64) {
        let says = |bit: u32| chance >> bit & 1 == 1;
        if self.backwards && says(0) {
            reverse(clip, h * w * 3);
        }
        if self.mirrored && says(1) {
            clip.chunks_mut(w * 3).for_each(|row| reverse(row, 3));
        }
        if self.mirrored && says(2) {
            clip.chunks_mut(h * w * 3).for_each(|frame| reverse(frame, w * 3));
        }
        if self.turned && says(3) {
            clip.chunks_mut(h * w * 3).for_each(|frame| quarter(frame, w));
        }
        if self.shifted > 0 {
            let choices = 2 * self.shifted as u64 + 1;
            let by =
                [chance >> 8 & 0xFF_FFFF, chance >> 32].map(|part| (part % choices) as isize - self.shifted as isize);
            clip.chunks_mut(h * w * 3).for_each(|frame| shift(frame, w, by));
        }
    }
}

/// A square picture [side, side, 3] a quarter round, against the clock.
fn quarter(frame: &mut [u8], side: usize) {
    let before = frame.to_vec();
    for (place, pixel) in frame.chunks_mut(3).enumerate() {
        let (row, column) = (place / side, place % side);
        pixel.copy_from_slice(&before[(column * side + side - 1 - row) * 3..][..3]);
    }
}

/// Each pixel from `by` rows below and columns to the right; beyond the border, the border's.
fn shift(frame: &mut [u8], width: usize, by: [isize; 2]) {
    let before = frame.to_vec();
    let height = before.len() / 3 / width;
    let from = |place: usize, by: isize, count: usize| place.saturating_add_signed(by).min(count - 1);
    for (place, pixel) in frame.chunks_mut(3).enumerate() {
        let (row, column) = (from(place / width, by[0], height), from(place % width, by[1], width));
        pixel.copy_from_slice(&before[(row * width + column) * 3..][..3]);
    }
}

/// The last piece first: of a clip's frames, of a frame's rows, of a row's pixels.
fn reverse(pieces: &mut [u8], size: usize) {
    let count = pieces.len() / size;
    for early in 0..count / 2 {
        let (front, back) = pieces.split_at_mut((count - 1 - early) * size);
        front[early * size..][..size].swap_with_slice(&mut back[..size]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clips_are_turned_in_time_and_along_each_axis() {
        // Two frames of 2 x 3 pixels, named by frame, row and column.
        let name = |frame: u8, row: u8, column: u8| [100 * frame + 10 * row + column; 3];
        let all = |of: &dyn Fn(u8, u8, u8) -> [u8; 3]| -> Vec<u8> {
            let places =
                (0..2).flat_map(|frame| (0..2).flat_map(move |row| (0..3).map(move |column| (frame, row, column))));
            places.flat_map(|(frame, row, column)| of(frame, row, column)).collect()
        };
        let check = |chance, backwards, mirrored, wanted: &dyn Fn(u8, u8, u8) -> [u8; 3]| {
            let mut clip = all(&name);
            Ways { backwards, mirrored, turned: false, shifted: 0 }.vary(&mut clip, [2, 3], chance);
            assert_eq!(clip, all(wanted), "chance {chance}");
        };
        check(0, true, true, &name);
        check(1, true, true, &|frame, row, column| name(1 - frame, row, column));
        check(2, true, true, &|frame, row, column| name(frame, row, 2 - column));
        check(4, true, true, &|frame, row, column| name(frame, 1 - row, column));
        check(7, true, true, &|frame, row, column| name(1 - frame, 1 - row, 2 - column));
        check(7, false, true, &|frame, row, column| name(frame, 1 - row, 2 - column));
        check(7, false, false, &name);
    }

    #[test]
    fn clips_that_cannot_stand_so_are_refused() {
        let as_taken = Ways { backwards: true, mirrored: true, turned: false, shifted: 0 };
        let refusal = |ways: Ways, size| ways.check(size).err().unwrap_or_default();
        assert_eq!(refusal(as_taken, [2, 3]), "");
        assert_eq!(refusal(Ways { turned: true, ..as_taken }, [3, 3]), "");
        assert_eq!(refusal(Ways { shifted: 2, ..as_taken }, [3, 9]), "");
        assert!(refusal(Ways { turned: true, ..as_taken }, [2, 3]).contains("these have 3 x 2 pixels"));
        assert!(refusal(Ways { shifted: 3, ..as_taken }, [3, 9]).contains("`shifted` is 3; clips have 9 x 3 pixels"));
    }

    #[test]
    fn equal_choices_leave_equal_clips() {
        let clip: Vec<u8> = (0..2 * 3 * 3 * 3).collect();
        let becomes = |ways: Ways, chance| {
            let mut clip = clip.clone();
            ways.vary(&mut clip, [3, 3], chance);
            clip
        };
        for bits in 0..16u32 {
            let has = |bit: u32| bits >> bit & 1 == 1;
            let ways = Ways { backwards: has(0), mirrored: has(1), turned: has(2), shifted: usize::from(has(3)) };
            let mut choices = std::collections::HashMap::new();
            for number in 0..60 {
                let chance = vw2_models::train::order::mix(5, number);
                let first = choices.entry(ways.choice(chance)).or_insert_with(|| becomes(ways, chance));
                assert_eq!(*first, becomes(ways, chance), "{bits:b}");
            }
            let kinds = 1 << (bits & 1) << (bits & 2) << (bits >> 2 & 1);
            assert!(has(3) || choices.len() == kinds, "{bits:b}: {} of {kinds}", choices.len());
        }
    }

    #[test]
    fn a_quarter_takes_the_right_side_up() {
        let pixel = |value: u8| [value; 3];
        let mut clip = [1, 2, 3, 4].map(pixel).concat();
        Ways { backwards: false, mirrored: false, turned: true, shifted: 0 }.vary(&mut clip, [2, 2], 8);
        assert_eq!(clip, [2, 4, 1, 3].map(pixel).concat());
    }

    #[test]
    fn the_last_piece_comes_first() {
        for (mut clip, wanted) in [
            (vec![1, 2, 3, 4, 5, 6], vec![5, 6, 3, 4, 1, 2]),
            (vec![1, 2, 3, 4], vec![3, 4, 1, 2]),
            (vec![1, 2], vec![1, 2]),
        ] {
            reverse(&mut clip, 2);
            assert_eq!(clip, wanted);
        }
    }

    #[test]
    fn a_shifted_picture_keeps_its_border() {
        let picture = |values: [u8; 6]| values.map(|value| [value; 3]).concat();
        let before = picture([1, 2, 3, 4, 5, 6]);
        let check = |by, wanted| {
            let mut frame = before.clone();
            shift(&mut frame, 3, by);
            assert_eq!(frame, picture(wanted), "{by:?}");
        };
        check([0, 0], [1, 2, 3, 4, 5, 6]);
        check([1, 0], [4, 5, 6, 4, 5, 6]);
        check([0, -1], [1, 1, 2, 4, 4, 5]);
        check([-7, 9], [3, 3, 3, 3, 3, 3]);
    }

    #[test]
    fn every_shift_happens_and_none_beyond() {
        let mut seen = std::collections::HashSet::new();
        for number in 0..200 {
            let mut clip: Vec<u8> = (0..25).flat_map(|value| [value; 3]).collect();
            let ways = Ways { backwards: false, mirrored: false, turned: false, shifted: 1 };
            ways.vary(&mut clip, [5, 5], vw2_models::train::order::mix(7, number));
            seen.insert(clip[(2 * 5 + 2) * 3]);
        }
        assert_eq!(seen, [6, 7, 8, 11, 12, 13, 16, 17, 18].into());
    }
}
