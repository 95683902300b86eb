//! Clips that training does not see, ready for looks at them.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use vw2_data::media::{Sheet, contact_sheet};
use vw2_engine::stage::StageError;
use vw2_kernels::normalise;

/// Clips of one size, in the order of their ids.
pub(crate) struct HeldOut {
    /// u8 RGB `[T, H, W, 3]` each.
    pub(crate) clips: Vec<Arc<[u8]>>,
    /// The video of each.
    pub(crate) videos: Vec<String>,
    /// T, H, W.
    pub(crate) size: [usize; 3],
    pub(crate) device: Device,
}

impl HeldOut {
    pub(crate) fn frame_bytes(&self) -> usize {
        self.size[1] * self.size[2] * 3
    }

    /// f32 `[1, 3, T, H, W]` in [-1, 1].
    pub(crate) fn tensor(&self, index: usize) -> Result<Tensor<5>, StageError> {
        Ok(normalise(&self.clips[index], self.size, &self.device)?)
    }

    /// The next clip of another video, from which codes are taken that have nothing to do with this one's; of the same
    /// video where there is no other, and the clip itself where it is alone.
    pub(crate) fn stranger(&self, index: usize) -> usize {
        let count = self.clips.len();
        let mut others = (1..count).map(|distance| (index + distance) % count);
        others.clone().find(|&other| self.videos[other] != self.videos[index]).or(others.next()).unwrap_or(index)
    }

    /// PNG: rows of frames, every fourth of a clip.
    pub(crate) fn sheet(&self, rows: &[&[u8]]) -> Result<Vec<u8>, StageError> {
        let [t, h, w] = self.size;
        let frames: Vec<u8> =
            rows.iter().flat_map(|row| row.chunks(self.frame_bytes()).step_by(4).flatten().copied()).collect();
        let columns = t.div_ceil(4);
        let sheet = Sheet { columns: columns as u32, ..Sheet::default() };
        Ok(contact_sheet(&frames, [rows.len() * columns, h, w, 3], sheet)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_is_of_another_video_where_there_is_one() {
        let of = |videos: &[&str]| {
            let held = HeldOut {
                clips: videos.iter().map(|_| Arc::from(&[0u8][..])).collect(),
                videos: videos.iter().map(|video| (*video).to_owned()).collect(),
                size: [1, 1, 1],
                device: Device::flex(),
            };
            (0..videos.len()).map(|index| held.stranger(index)).collect::<Vec<_>>()
        };
        assert_eq!(of(&["a", "a", "b"]), [2, 2, 0]);
        assert_eq!(of(&["a", "a"]), [1, 0]);
        assert_eq!(of(&["a"]), [0]);
    }
}
