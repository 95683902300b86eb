//! Training's view of a frame table: clips by index, kept in memory as long as they fit, decoded again where not.

use std::collections::HashMap;
use std::sync::Arc;

use vw2_data::Frames;
use vw2_engine::fingerprint::Hash;
use vw2_engine::stage::{Rows, StageError};

/// Reads clips of one size from a table of frames.
pub(crate) struct ClipReader<'a> {
    table: &'a dyn Rows,
    kept: HashMap<usize, Arc<[u8]>>,
    kept_bytes: u64,
    limit_bytes: u64,
    /// T, H, W of every clip.
    pub(crate) size: [usize; 3],
}

impl<'a> ClipReader<'a> {
    /// `limit_bytes`: how much decoded video may stay in memory.
    pub(crate) fn new(table: &'a dyn Rows, limit_bytes: u64) -> Result<ClipReader<'a>, StageError> {
        let mut reader = ClipReader { table, kept: HashMap::new(), kept_bytes: 0, limit_bytes, size: [0; 3] };
        let row = table.row(0)?;
        let [t, h, w, _] = Frames::view(&row)?.shape(0);
        reader.size = [t, h, w];
        Ok(reader)
    }

    /// What a row is called.
    pub(crate) fn id(&self, index: usize) -> &str {
        self.table.id(index)
    }

    /// One clip, u8 RGB [T, H, W, 3].
    pub(crate) fn clip(&mut self, index: usize) -> Result<Arc<[u8]>, StageError> {
        if let Some(pixels) = self.kept.get(&index) {
            return Ok(pixels.clone());
        }
        let row = self.table.row(index).map_err(|error| format!("{}: {error}", self.table.id(index)))?;
        let frames = Frames::view(&row)?;
        let [t, h, w, _] = frames.shape(0);
        if [t, h, w] != self.size {
            let id = self.table.id(index);
            return Err(format!("{id}: clip of {t} x {h} x {w}, but the first clip is {:?}", self.size).into());
        }
        let pixels: Arc<[u8]> = frames.pixels(0).into();
        if self.kept_bytes + pixels.len() as u64 <= self.limit_bytes {
            self.kept_bytes += pixels.len() as u64;
            self.kept.insert(index, pixels.clone());
        }
        Ok(pixels)
    }

    /// The frames `start..start + count` of several clips, one after the other: u8 RGB [B, count, H, W, 3].
    pub(crate) fn minibatch(&mut self, picks: &[(usize, usize)], count: usize) -> Result<Vec<u8>, StageError> {
        let frame_bytes = self.size[1] * self.size[2] * 3;
        let mut pixels = Vec::with_capacity(picks.len() * count * frame_bytes);
        for &(index, start) in picks {
            let clip = self.clip(index)?;
            pixels.extend_from_slice(&clip[start * frame_bytes..][..count * frame_bytes]);
        }
        Ok(pixels)
    }
}

/// Whether a video is the one of `one_in` that is held out.
pub(crate) fn is_held_out(video: &str, one_in: u64) -> bool {
    fold(video, one_in) == 0
}

/// The part of a split into `count` parts that a video falls into, by a hash of its name.
pub(crate) fn fold(video: &str, count: u64) -> u64 {
    let hash = Hash::of_bytes(video.as_bytes());
    u64::from_le_bytes(hash.0[..8].try_into().expect("a hash has 32 bytes")) % count
}

/// Splits row indices into training and held-out ones: of every `one_in` videos, chosen by a hash of the video's name,
/// one is held out with all its clips. Small tables that would lose everything hold out their last video.
pub(crate) fn held_out(table: &dyn Rows, one_in: u64) -> (Vec<usize>, Vec<usize>) {
    let video = |index: usize| crate::export::split_id(table.id(index)).0.to_owned();
    let (mut held, mut train): (Vec<usize>, Vec<usize>) =
        (0..table.len()).partition(|&i| is_held_out(&video(i), one_in));
    if held.is_empty() || train.is_empty() {
        let last = video(table.len() - 1);
        (held, train) = (0..table.len()).partition(|&i| video(i) == last);
    }
    if train.is_empty() {
        train = held.clone(); // a single video: evaluated on what it was trained on
    }
    (train, held)
}
