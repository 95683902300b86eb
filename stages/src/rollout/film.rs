//! A rollout's files, as its clips arrive: one MP4 per clip, the joined video, coarse beside final, a contact sheet.

use vw2_data::media::{Mp4Options, Mp4Writer, Sheet, contact_sheet};
use vw2_engine::fingerprint::Hash;
use vw2_engine::stage::StageError;
use vw2_engine::store::Blobs;
use vw2_kernels::rgb_resize;

use super::Rollout;

/// A clip as it is shown: u8 RGB `[T, H, W, 3]`.
pub(super) struct Clip {
    /// In the video's size.
    pub(super) last: Vec<u8>,
    /// What the DiT started from, in the dLDM's size, where it drew the clip.
    pub(super) coarse: Option<Vec<u8>>,
}

/// Columns of the contact sheet.
const COLUMNS: usize = 8;

pub(super) struct Film<'a> {
    params: &'a Rollout,
    blobs: &'a Blobs,
    /// Height and width of the video.
    size: [usize; 2],
    files: Vec<(String, Hash)>,
    joined: Mp4Writer,
    beside: Option<Mp4Writer>,
    sheet: Vec<u8>,
    sheet_columns: usize,
    frames: usize,
    /// The last clip's last frame, and what stands beside it.
    end: Option<(Vec<u8>, Option<Vec<u8>>)>,
}

/// What a film is in the end.
pub(super) struct Finished {
    pub(super) files: Vec<(String, Hash)>,
    pub(super) video: Hash,
    pub(super) frames: usize,
}

impl<'a> Film<'a> {
    /// `size`: height and width of the video.
    pub(super) fn new(params: &'a Rollout, blobs: &'a Blobs, size: [usize; 2]) -> Result<Film<'a>, StageError> {
        let [h, w] = size.map(|side| side as u32);
        let beside = params.side_by_side && params.render == super::Render::Diffusion;
        Ok(Film {
            params,
            blobs,
            size,
            files: Vec::new(),
            joined: Mp4Writer::new(Mp4Options::new(w, h, params.fps))?,
            beside: beside.then(|| Mp4Writer::new(Mp4Options::new(2 * w, h, params.fps))).transpose()?,
            sheet: Vec::new(),
            sheet_columns: 0,
            frames: 0,
            end: None,
        })
    }

    /// The next clip.
    pub(super) fn push(&mut self, clip: &Clip) -> Result<(), StageError> {
        let [h, w] = self.size;
        let bytes = h * w * 3;
        let count = clip.last.len() / bytes;
        let coarse = match &clip.coarse {
            Some(coarse) => Some(self.enlarge(coarse, count)?),
            None => None,
        };
        let mut own = Mp4Writer::new(Mp4Options::new(w as u32, h as u32, self.params.fps))?;
        for index in 0..count {
            let frame = &clip.last[index * bytes..][..bytes];
            let beside = coarse.as_ref().map(|coarse| &coarse[index * bytes..][..bytes]);
            own.push(frame)?;
            if index + 1 == count {
                self.end = Some((frame.to_vec(), beside.map(<[u8]>::to_vec)));
            } else {
                self.show(frame, beside)?;
            }
        }
        let name = format!("{{id}}/clip_{}.mp4", self.files.len());
        self.files.push((name, self.blobs.put(&own.finish()?)?));

        // A row per clip; where the DiT drew it, one above it for what it started from.
        self.sheet_columns = COLUMNS.min(count);
        for frames in coarse.iter().chain([&clip.last]) {
            for column in 0..self.sheet_columns {
                let index = column * (count - 1) / (self.sheet_columns - 1).max(1);
                self.sheet.extend_from_slice(&frames[index * bytes..][..bytes]);
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Finished, StageError> {
        if let Some((frame, beside)) = self.end.take().filter(|_| self.params.keep_last) {
            self.show(&frame, beside.as_deref())?;
        }
        let [h, w] = self.size;
        let video = self.blobs.put(&self.joined.finish()?)?;
        self.files.push(("{id}/rollout.mp4".to_owned(), video));
        if let Some(beside) = self.beside {
            self.files.push(("{id}/side_by_side.mp4".to_owned(), self.blobs.put(&beside.finish()?)?));
        }
        let sheet = Sheet { columns: self.sheet_columns as u32, ..Sheet::default() };
        let sheet = contact_sheet(&self.sheet, [self.sheet.len() / (h * w * 3), h, w, 3], sheet)?;
        self.files.push(("{id}/sheet.png".to_owned(), self.blobs.put(&sheet)?));
        Ok(Finished { files: self.files, video, frames: self.frames })
    }

    /// A frame of the joined video.
    fn show(&mut self, frame: &[u8], beside: Option<&[u8]>) -> Result<(), StageError> {
        self.joined.push(frame)?;
        self.frames += 1;
        if let (Some(writer), Some(coarse)) = (&mut self.beside, beside) {
            let row = self.size[1] * 3;
            let rows = coarse.chunks(row).zip(frame.chunks(row));
            writer.push(&rows.flat_map(|(left, right)| left.iter().chain(right)).copied().collect::<Vec<u8>>())?;
        }
        Ok(())
    }

    /// Frames in the dLDM's size to the video's.
    fn enlarge(&self, frames: &[u8], count: usize) -> Result<Vec<u8>, StageError> {
        let from = self.params.dldm_size().map(|side| side as usize);
        if from == self.size {
            return Ok(frames.to_vec());
        }
        let resized = frames.chunks(frames.len() / count).map(|frame| rgb_resize(frame, from, self.size));
        Ok(resized.collect::<Result<Vec<_>, _>>()?.concat())
    }
}
