//! MP4 files: from boxes to one list of samples in the order in which they are shown.
//!
//! Only the index (`moov`) is held in memory; samples are read by their place in the file. The frames counted are those
//! that ffmpeg shows: outside the edit list they are left out. Whatever a reader here does not know (fragments, several
//! edits, another codec) is not refused but answered with [`Found::Elsewhere`].
//! Source: ISO/IEC 14496-12 and 14496-15.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::{Matrix, MediaError, Range};

/// More than this in an index is taken for damage: 16 million samples are 77 hours of video at 60 frames per second.
const MAX_SAMPLES: u64 = 1 << 24;
const MAX_INDEX_BYTES: u64 = 512 << 20;
/// More boxes than this at a file's top level are taken for damage; at two a second these are 36 hours.
const MAX_BOXES: usize = 1 << 18;

/// One coded picture.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) offset: u64,
    pub(super) size: u32,
    /// The index calls it a place to start from.
    pub(super) is_sync: bool,
    /// Its place among the frames shown; `None` where the edit list leaves it out.
    pub(super) frame: Option<u32>,
}

/// An H.264 track.
#[derive(Debug)]
pub(super) struct Track {
    /// The decoder's configuration record.
    pub(super) avcc: Vec<u8>,
    pub(super) matrix: Option<Matrix>,
    pub(super) range: Option<Range>,
    /// In decoding order.
    pub(super) samples: Vec<Sample>,
    /// Frame number to place in `samples`.
    pub(super) shown: Vec<u32>,
    /// How long the frames are shown, in units of `1 / timescale` seconds.
    pub(super) ticks: u64,
    pub(super) timescale: u32,
}

/// What a file turned out to be.
#[derive(Debug)]
pub(super) enum Found {
    Track(Track),
    /// Some other video, to be read by other means: what it is, for a message.
    Elsewhere(String),
}

/// Reads the index of an open file and checks that every sample lies inside the file.
pub(super) fn read_index(path: &Path, file: &mut File) -> Result<Found, MediaError> {
    let length = file.metadata().map_err(|e| MediaError::io(path, e))?.len();
    let broken = |reason: String| MediaError::broken(path, reason);
    if length == 0 {
        return Err(broken("the file is empty".into()));
    }
    let start = read_at(file, 0, length.min(512) as usize).map_err(|e| MediaError::io(path, e))?;
    if let Some(kind) = other_kind(&start) {
        return kind.map(Found::Elsewhere).map_err(broken);
    }
    let moov = match find_moov(file, length).map_err(|e| MediaError::io(path, e))? {
        Ok(Moov::Whole(moov)) => moov,
        Ok(Moov::Fragmented) => return Ok(Found::Elsewhere("a fragmented MP4".into())),
        Err(reason) => return Err(broken(reason)),
    };
    match read_moov(&moov, length) {
        Ok(found) => Ok(found),
        Err(reason) => Err(broken(reason)),
    }
}

/// The bytes at a place in the file.
pub(super) fn read_at(file: &mut File, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// `None`: an MP4 by its first box. Else what other container it is, or why it is none.
fn other_kind(start: &[u8]) -> Option<Result<String, String>> {
    const FIRST_BOXES: [&[u8]; 8] = [b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"];
    if start.get(4..8).is_some_and(|name| FIRST_BOXES.contains(&name)) {
        return None;
    }
    const OTHERS: [(&[u8], &str); 9] = [
        (b"\x89PNG", "a PNG picture"),
        (b"\xff\xd8\xff\xe0", "a JPEG picture"),
        (b"\xff\xd8\xff\xe1", "a JPEG picture"),
        (b"BM", "a BMP picture"),
        (b"%PDF", "a PDF document"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"\x1f\x8b", "a gzip archive"),
        (b"\x7fELF", "a program"),
        (b"ID3", "an audio file"),
    ];
    if let Some((_, name)) = OTHERS.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Some(Err(format!("this is {name} and no video")));
    }
    if let (Some(b"RIFF"), Some(form @ (b"WEBP" | b"WAVE"))) = (start.get(..4), start.get(8..12)) {
        let name = if form == b"WEBP" { "a WebP picture" } else { "an audio file" };
        return Some(Err(format!("this is {name} and no video")));
    }
    const KINDS: [(&[u8], &str); 9] = [
        (b"\x1a\x45\xdf\xa3", "container matroska"),
        (b"RIFF", "container avi"),
        (b"OggS", "container ogg"),
        (b"FLV", "container flv"),
        (b"GIF8", "container gif"),
        (b"\x30\x26\xb2\x75", "container asf"),
        (b"\x00\x00\x01", "an MPEG stream"),
        (b"\x00\x00\x00\x01", "a stream without a container"),
        (b"YUV4MPEG2", "container yuv4mpegpipe"),
    ];
    if let Some((_, name)) = KINDS.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Some(Ok((*name).into()));
    }
    let is_transport = [0, 188, 376].iter().all(|&at| start.get(at) == Some(&0x47));
    if is_transport {
        return Some(Ok("container mpegts".into()));
    }
    // The last letter may be cut.
    let text = std::str::from_utf8(start).or_else(|e| match e.error_len() {
        None => std::str::from_utf8(&start[..e.valid_up_to()]),
        Some(_) => Err(e),
    });
    let is_text = text.is_ok_and(|text| text.chars().all(|c| matches!(c, '\t' | '\n' | '\r') || !c.is_control()));
    let begin = start[..start.len().min(24)].escape_ascii();
    if is_text {
        return Some(Err(format!("this is text and no video: it begins with `{begin}`")));
    }
    if start.len() < 16 {
        return Some(Err(format!("the file has {} bytes, too few for a video", start.len())));
    }
    Some(Ok(format!("an unknown container (it begins with `{begin}`)")))
}

enum Moov {
    Whole(Vec<u8>),
    Fragmented,
}

/// Walks the boxes of the file's top level, reading headers only, to its index.
fn find_moov(file: &mut File, length: u64) -> std::io::Result<Result<Moov, String>> {
    let mut at = 0;
    let mut boxes = 0;
    let mut cut = None;
    let mut moov = None;
    let mut fragments = false;
    while at + 8 <= length {
        let head = read_at(file, at, (length - at).min(16) as usize)?;
        let name = name_of(&head[4..8]);
        let (size, header) = match u32::from_be_bytes([head[0], head[1], head[2], head[3]]) {
            0 => (length - at, 8),
            1 if head.len() == 16 => (u64::from_be_bytes(head[8..16].try_into().expect("8 of 16 bytes")), 16),
            size => (u64::from(size), 8),
        };
        if size < header {
            return Ok(Err(format!("the box at byte {at} says that it has {size} bytes; the file is damaged")));
        }
        let Some(end) = at.checked_add(size).filter(|&end| end <= length) else {
            cut = Some((name, at.saturating_add(size)));
            break;
        };
        match name.as_str() {
            "moov" if size > MAX_INDEX_BYTES => {
                return Ok(Err(format!("the index has {size} bytes, more than the {MAX_INDEX_BYTES} that are read")));
            }
            "moov" if moov.is_none() => moov = Some(read_at(file, at + header, (size - header) as usize)?),
            "moof" => fragments = true,
            _ => {}
        }
        at = end;
        boxes += 1;
        if boxes > MAX_BOXES {
            return Ok(Err(format!("the file has more than {MAX_BOXES} boxes; it is damaged")));
        }
    }
    Ok(match (moov, cut) {
        (Some(_), _) if fragments => Ok(Moov::Fragmented),
        (Some(moov), _) => Ok(Moov::Whole(moov)),
        (None, Some((name, end))) => Err(format!(
            "file ends at byte {length}, but its box `{name}` reaches to byte {end}, and the index (`moov`) is missing: \
             the file was cut off; copy it again"
        )),
        (None, None) => Err("the index (`moov`) is missing: the recording was never finished".into()),
    })
}

fn name_of(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// A box's name and content.
type Child<'a> = (&'a [u8], &'a [u8]);

/// A box's content, with reads that cannot run past its end.
#[derive(Clone, Copy)]
struct Content<'a> {
    name: &'static str,
    bytes: &'a [u8],
}

impl<'a> Content<'a> {
    fn u32(&self, at: usize) -> Result<u32, String> {
        let bytes = self.bytes.get(at..at + 4).ok_or_else(|| self.short())?;
        Ok(u32::from_be_bytes(bytes.try_into().expect("4 bytes")))
    }

    fn u64(&self, at: usize) -> Result<u64, String> {
        Ok(u64::from(self.u32(at)?) << 32 | u64::from(self.u32(at + 4)?))
    }

    /// Checks that a table of `count` entries of `width` bytes stands at `at`, and gives it.
    fn table(&self, at: usize, count: u32, width: usize) -> Result<std::slice::ChunksExact<'a, u8>, String> {
        let length = (count as usize).checked_mul(width).ok_or_else(|| self.short())?;
        let bytes = self.bytes.get(at..).and_then(|rest| rest.get(..length)).ok_or_else(|| self.short())?;
        Ok(bytes.chunks_exact(width))
    }

    fn short(&self) -> String {
        format!("the box `{}` is shorter than its content; the file is damaged", self.name)
    }

    /// The first child with a name, if there is one.
    fn child(&self, skip: usize, name: &'static str) -> Result<Option<Content<'a>>, String> {
        Ok(self
            .children(skip)?
            .into_iter()
            .find(|(n, _)| *n == name.as_bytes())
            .map(|(_, bytes)| Content { name, bytes }))
    }

    fn need(&self, name: &'static str) -> Result<Content<'a>, String> {
        self.child(0, name)?.ok_or_else(|| format!("the index has no box `{name}`; the file is damaged"))
    }

    /// Names and contents of the boxes inside, after `skip` bytes.
    fn children(&self, skip: usize) -> Result<Vec<Child<'a>>, String> {
        let mut rest = self.bytes.get(skip..).ok_or_else(|| self.short())?;
        let mut found = Vec::new();
        while rest.len() >= 8 {
            let size = u32::from_be_bytes(rest[..4].try_into().expect("4 of at least 8 bytes")) as usize;
            // A size of 0 inside another box is the terminator that QuickTime writes.
            if size == 0 {
                break;
            }
            let content = rest.get(8..size).ok_or_else(|| self.short())?;
            found.push((&rest[4..8], content));
            rest = &rest[size..];
        }
        Ok(found)
    }
}

fn be(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("table entries are cut to 4 bytes"))
}

/// From the index to the first video track.
fn read_moov(moov: &[u8], length: u64) -> Result<Found, String> {
    let moov = Content { name: "moov", bytes: moov };
    if moov.child(0, "mvex")?.is_some() {
        return Ok(Found::Elsewhere("a fragmented MP4".into()));
    }
    let mut trak = None;
    for (_, bytes) in moov.children(0)?.into_iter().filter(|(name, _)| *name == b"trak") {
        let candidate = Content { name: "trak", bytes };
        if candidate.need("mdia")?.need("hdlr")?.bytes.get(8..12) == Some(b"vide") {
            trak = Some(candidate);
            break;
        }
    }
    let trak = trak.ok_or("the file has no video track")?;
    let mdia = trak.need("mdia")?;
    let stbl = mdia.need("minf")?.need("stbl")?;

    let entry = match read_description(stbl.need("stsd")?)? {
        Ok(entry) => entry,
        Err(what) => return Ok(Found::Elsewhere(what)),
    };
    let mdhd = mdia.need("mdhd")?;
    let timescale = mdhd.u32(if mdhd.bytes.first() == Some(&1) { 20 } else { 12 })?;
    if timescale == 0 {
        return Err("the video track's time unit is 0; the file is damaged".into());
    }
    let mvhd = moov.need("mvhd")?;
    let movie_scale = mvhd.u32(if mvhd.bytes.first() == Some(&1) { 20 } else { 12 })?;
    let edit = match trak.child(0, "edts")?.map(|edts| edts.child(0, "elst")).transpose()?.flatten() {
        None => Edit::all(),
        Some(elst) => match read_edit(elst, timescale, movie_scale)? {
            Some(edit) => edit,
            None => return Ok(Found::Elsewhere("an edit list of several pieces".into())),
        },
    };

    let sizes = read_sizes(stbl.need("stsz")?, length)?;
    let offsets = read_offsets(stbl, &sizes)?;
    check_inside(&offsets, &sizes, length)?;
    let times = read_times(stbl, sizes.len())?;
    let syncs = read_syncs(stbl, sizes.len())?;

    // Shown order is the order of presentation times; a stable sort keeps equal times in decoding order.
    let mut shown: Vec<u32> = (0..sizes.len() as u32).filter(|&i| edit.shows(times[i as usize].shown)).collect();
    shown.sort_by_key(|&i| times[i as usize].shown);
    let ticks = shown.iter().map(|&i| u64::from(times[i as usize].ticks)).sum();
    let mut samples: Vec<Sample> = (0..sizes.len())
        .map(|i| Sample { offset: offsets[i], size: sizes[i], is_sync: syncs[i], frame: None })
        .collect();
    for (frame, &sample) in shown.iter().enumerate() {
        samples[sample as usize].frame = Some(frame as u32);
    }
    if shown.is_empty() {
        return Err("the video track has no frames".into());
    }
    let (matrix, range) = (entry.matrix, entry.range);
    Ok(Found::Track(Track { avcc: entry.avcc, matrix, range, samples, shown, ticks, timescale }))
}

struct Entry {
    avcc: Vec<u8>,
    matrix: Option<Matrix>,
    range: Option<Range>,
}

/// The sample description; the inner `Err` names a codec that is read elsewhere.
fn read_description(stsd: Content) -> Result<Result<Entry, String>, String> {
    let entries = stsd.children(8)?;
    let Some((name, bytes)) = entries.first() else {
        return Err("the video track does not say how it is coded; the file is damaged".into());
    };
    if entries.len() > 1 {
        return Ok(Err("a track that changes its coding midway".into()));
    }
    let codec = match *name {
        b"avc1" | b"avc3" => "",
        b"hvc1" | b"hev1" => "codec hevc",
        b"av01" => "codec av1",
        b"vp08" => "codec vp8",
        b"vp09" => "codec vp9",
        b"mp4v" => "codec mpeg4",
        b"jpeg" | b"mjpa" | b"mjpb" => "codec mjpeg",
        b"encv" => return Err("the video is encrypted; decrypt it first".into()),
        _ => return Ok(Err(format!("codec `{}`", name_of(name)))),
    };
    if !codec.is_empty() {
        return Ok(Err(codec.into()));
    }
    // A visual sample entry has 78 bytes before its boxes.
    let entry = Content { name: "avc1", bytes };
    let avcc = entry.child(78, "avcC")?.ok_or("the index has no box `avcC`; the file is damaged")?.bytes.to_vec();
    let (mut matrix, mut range) = (None, None);
    if let Some(colr) = entry.child(78, "colr")? {
        let code = colr.bytes.get(9).copied();
        if matches!(colr.bytes.get(..4), Some(b"nclx" | b"nclc")) {
            matrix = code.map(Matrix::from_code);
        }
        if let (Some(b"nclx"), Some(flag)) = (colr.bytes.get(..4), colr.bytes.get(10)) {
            range = Some(if flag & 0x80 != 0 { Range::Full } else { Range::Limited });
        }
    }
    Ok(Ok(Entry { avcc, matrix, range }))
}

/// The part of the track's time that is shown.
struct Edit {
    start: i64,
    end: i64,
}

impl Edit {
    fn all() -> Edit {
        Edit { start: i64::MIN, end: i64::MAX }
    }

    fn shows(&self, time: i64) -> bool {
        (self.start..self.end).contains(&time)
    }
}

/// `None` where the list has more than one piece of media or plays it at another speed.
fn read_edit(elst: Content, timescale: u32, movie_scale: u32) -> Result<Option<Edit>, String> {
    let wide = elst.bytes.first() == Some(&1);
    let width = if wide { 20 } else { 12 };
    let mut edit = None;
    let count = elst.u32(4)?;
    for i in 0..count as usize {
        let at = 8 + i * width;
        let (duration, start) = match wide {
            true => (elst.u64(at)?, elst.u64(at + 8)? as i64),
            false => (u64::from(elst.u32(at)?), i64::from(elst.u32(at + 4)? as i32)),
        };
        if start == -1 {
            continue; // A pause before the video starts.
        }
        if edit.is_some() || elst.u32(at + width - 4)? != 0x1_0000 {
            return Ok(None);
        }
        // Durations are in the movie's time unit, rounded to the nearest of the track's.
        let scaled = u128::from(duration) * u128::from(timescale) * 2 + u128::from(movie_scale);
        let ticks = scaled.checked_div(u128::from(movie_scale) * 2).filter(|_| duration > 0);
        let end = ticks.map_or(i64::MAX, |ticks| start.saturating_add(i64::try_from(ticks).unwrap_or(i64::MAX)));
        edit = Some(Edit { start, end });
    }
    Ok(Some(edit.unwrap_or(Edit::all())))
}

fn read_sizes(stsz: Content, length: u64) -> Result<Vec<u32>, String> {
    let (fixed, count) = (stsz.u32(4)?, stsz.u32(8)?);
    if u64::from(count) > MAX_SAMPLES {
        return Err(format!("the index lists {count} samples, more than the {MAX_SAMPLES} that are read"));
    }
    if fixed == 0 {
        return Ok(stsz.table(12, count, 4)?.map(be).collect());
    }
    if u64::from(fixed) * u64::from(count) > length {
        return Err(format!("the index lists {count} samples of {fixed} bytes, but the file has {length} bytes"));
    }
    Ok(vec![fixed; count as usize])
}

/// Where each sample lies: chunks stand in the file, samples follow each other in a chunk.
fn read_offsets(stbl: Content, sizes: &[u32]) -> Result<Vec<u64>, String> {
    let chunks: Vec<u64> = match stbl.child(0, "stco")? {
        Some(stco) => stco.table(8, stco.u32(4)?, 4)?.map(|entry| u64::from(be(entry))).collect(),
        None => {
            let co64 = stbl.need("co64")?;
            let pair = |entry: &[u8]| u64::from(be(&entry[..4])) << 32 | u64::from(be(&entry[4..]));
            co64.table(8, co64.u32(4)?, 8)?.map(pair).collect()
        }
    };
    let stsc = stbl.need("stsc")?;
    let runs: Vec<(u32, u32)> =
        stsc.table(8, stsc.u32(4)?, 12)?.map(|entry| (be(&entry[..4]), be(&entry[4..8]))).collect();
    let mut offsets = Vec::with_capacity(sizes.len());
    let mut run = 0;
    for (i, &chunk) in chunks.iter().enumerate() {
        while run + 1 < runs.len() && runs[run + 1].0 as usize <= i + 1 {
            run += 1;
        }
        let Some(&(first, count)) = runs.get(run) else { break };
        if (first as usize) > i + 1 {
            continue;
        }
        let mut at = chunk;
        let left = sizes.len() - offsets.len();
        for _ in 0..(count as usize).min(left) {
            let size = sizes[offsets.len()];
            offsets.push(at);
            at = at.checked_add(u64::from(size)).ok_or("a chunk's place is out of range; the file is damaged")?;
        }
    }
    if offsets.len() < sizes.len() {
        let (listed, placed) = (sizes.len(), offsets.len());
        return Err(format!("the index lists {listed} samples, but says only for {placed} where they lie"));
    }
    Ok(offsets)
}

fn check_inside(offsets: &[u64], sizes: &[u32], length: u64) -> Result<(), String> {
    for (i, (&offset, &size)) in offsets.iter().zip(sizes).enumerate() {
        let end = offset.saturating_add(u64::from(size));
        if end > length {
            let of = sizes.len();
            return Err(format!(
                "file ends at byte {length}, but sample {i} of {of} lies at bytes {offset} to {end}: the file was cut \
                 off; copy it again"
            ));
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Time {
    /// When the sample is shown.
    shown: i64,
    /// How long until the next one in decoding order.
    ticks: u32,
}

fn read_times(stbl: Content, count: usize) -> Result<Vec<Time>, String> {
    let stts = stbl.need("stts")?;
    let mut times = Vec::with_capacity(count);
    let mut decoded = 0i64;
    for entry in stts.table(8, stts.u32(4)?, 8)? {
        let (run, ticks) = (be(&entry[..4]) as usize, be(&entry[4..]));
        for _ in 0..run.min(count - times.len()) {
            times.push(Time { shown: decoded, ticks });
            decoded += i64::from(ticks);
        }
    }
    if times.len() < count {
        return Err(format!("the index lists {count} samples, but times for only {}", times.len()));
    }
    if let Some(ctts) = stbl.child(0, "ctts")? {
        let mut at = 0;
        for entry in ctts.table(8, ctts.u32(4)?, 8)? {
            // Offsets are signed in practice, whatever the box's version says.
            let (run, offset) = (be(&entry[..4]) as usize, i64::from(be(&entry[4..]) as i32));
            let end = at + run.min(count - at);
            for time in &mut times[at..end] {
                time.shown += offset;
            }
            at = end;
        }
    }
    Ok(times)
}

/// Without the table every sample is a place to start from.
fn read_syncs(stbl: Content, count: usize) -> Result<Vec<bool>, String> {
    let Some(stss) = stbl.child(0, "stss")? else {
        return Ok(vec![true; count]);
    };
    let mut syncs = vec![false; count];
    for entry in stss.table(8, stss.u32(4)?, 4)? {
        if let Some(sync) = (be(entry) as usize).checked_sub(1).and_then(|i| syncs.get_mut(i)) {
            *sync = true;
        }
    }
    Ok(syncs)
}
