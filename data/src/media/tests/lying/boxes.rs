//! Surgery on small MP4 files: boxes, samples and units are found and written over.

use std::ops::Range;

/// A file's bytes with one video track.
pub(crate) struct Mp4(pub(crate) Vec<u8>);

impl Mp4 {
    /// The content of the first box of this name.
    pub(crate) fn content(&self, name: &str) -> Range<usize> {
        self.find(name)
            .unwrap_or_else(|| panic!("the file has no box `{name}`"))
            .pop()
            .expect("a box is found in itself")
    }

    /// The contents of the boxes down to the first one of this name; boxes that hold others are searched in order.
    fn find(&self, name: &str) -> Option<Vec<Range<usize>>> {
        self.find_in(0..self.0.len(), name)
    }

    fn find_in(&self, range: Range<usize>, name: &str) -> Option<Vec<Range<usize>>> {
        let mut at = range.start;
        while at + 8 <= range.end {
            let (size, own) = (self.u32_at(at) as usize, &self.0[at + 4..at + 8]);
            let end = if size == 0 { range.end } else { at + size };
            let content = at + 8..end;
            if own == name.as_bytes() {
                return Some(vec![content]);
            }
            let skip = match own {
                b"moov" | b"trak" | b"mdia" | b"minf" | b"dinf" | b"stbl" | b"edts" => Some(0),
                b"stsd" => Some(8),
                b"avc1" => Some(78),
                _ => None,
            };
            let inside = skip.and_then(|skip| self.find_in(content.start + skip..content.end, name));
            if let Some(mut inside) = inside {
                inside.insert(0, content);
                return Some(inside);
            }
            at = end;
        }
        None
    }

    fn u32_at(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    /// Writes over a value in a box's content.
    pub(crate) fn set(mut self, name: &str, at: usize, value: u32) -> Mp4 {
        let at = self.content(name).start + at;
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
        self
    }

    /// Gives a box another name.
    pub(crate) fn rename(mut self, name: &str, to: &str) -> Mp4 {
        let at = self.content(name).start;
        self.0[at - 4..at].copy_from_slice(to.as_bytes());
        self
    }

    /// Writes over a box's size, and nothing else.
    pub(crate) fn resize(mut self, name: &str, size: u32) -> Mp4 {
        let at = self.content(name).start - 8;
        self.0[at..at + 4].copy_from_slice(&size.to_be_bytes());
        self
    }

    /// Exchanges a box's content; all sizes around it and all offsets behind it stay right.
    pub(crate) fn replace(mut self, name: &str, content: &[u8]) -> Mp4 {
        let path = self.find(name).unwrap_or_else(|| panic!("the file has no box `{name}`"));
        let old = path.last().expect("a box is found in itself").clone();
        let grown = content.len() as i64 - old.len() as i64;
        let is_before = self.content("mdat").start > old.start;
        let add = |value: u32| (i64::from(value) + grown) as u32;
        for around in &path {
            let size = add(self.u32_at(around.start - 8));
            self.0[around.start - 8..around.start - 4].copy_from_slice(&size.to_be_bytes());
        }
        self.0.splice(old, content.iter().copied());
        if let Some(stco) = self.find("stco").and_then(|mut path| path.pop()).filter(|_| is_before) {
            for at in (stco.start + 8..stco.end).step_by(4) {
                let offset = add(self.u32_at(at));
                self.0[at..at + 4].copy_from_slice(&offset.to_be_bytes());
            }
        }
        self
    }

    /// Where a sample lies; the video's samples stand in one chunk.
    pub(crate) fn sample(&self, index: usize) -> Range<usize> {
        let (stco, stsz) = (self.content("stco").start, self.content("stsz").start);
        assert_eq!(self.u32_at(stco + 4), 1, "the samples stand in one chunk");
        let size = |index: usize| self.u32_at(stsz + 12 + 4 * index) as usize;
        let start = self.u32_at(stco + 8) as usize + (0..index).map(size).sum::<usize>();
        start..start + size(index)
    }

    /// Where the slices of a sample lie, each with its header byte and without its length.
    pub(crate) fn slices(&self, sample: usize) -> Vec<Range<usize>> {
        let mut rest = self.sample(sample);
        let mut found = Vec::new();
        while rest.start < rest.end {
            let unit = rest.start + 4..rest.start + 4 + self.u32_at(rest.start) as usize;
            rest.start = unit.end;
            if matches!(self.0[unit.start] & 31, 1 | 5) {
                found.push(unit);
            }
        }
        found
    }

    /// Changes bytes of one slice.
    pub(crate) fn slice(mut self, sample: usize, slice: usize, change: impl FnOnce(&mut [u8])) -> Mp4 {
        let range = self.slices(sample).swap_remove(slice);
        change(&mut self.0[range]);
        self
    }

    /// The first bytes only.
    pub(crate) fn cut(mut self, length: usize) -> Mp4 {
        self.0.truncate(length);
        self
    }

    /// All but the last bytes.
    pub(crate) fn shorter_by(self, bytes: usize) -> Mp4 {
        let length = self.0.len() - bytes;
        self.cut(length)
    }

    /// Writes one value over a range of the file.
    pub(crate) fn fill(mut self, range: Range<usize>, value: u8) -> Mp4 {
        self.0[range].fill(value);
        self
    }

    /// Flips bits of one byte in a box's content.
    pub(crate) fn flip(mut self, name: &str, at: usize, bits: u8) -> Mp4 {
        let at = self.content(name).start + at;
        self.0[at] ^= bits;
        self
    }
}
