//! The ZIP archive around a pickle that `torch.save` makes and `torch.load` opens, written from front to back.
//!
//! Entries are stored as they are. Those of tensors begin at multiples of 64 bytes, as torch's own do, so that they can
//! be mapped. Equal content gives equal bytes: every entry is of 1 January 1980.
//! Source: PKWARE's APPNOTE 6.3 (with ZIP64 beyond 4 GiB), and torch's `inline_container.cc` for names and alignment.

use std::io::{self, Write};

/// Where a tensor's bytes begin.
const ALIGNMENT: u64 = 64;

/// From this value on, a field of 32 bits refers to one of 64.
const BEYOND_32: u64 = 0xFFFF_FFFF;

/// An archive that is being written. Its parts, in this order: [`Archive::pickle`], each [`Archive::storage`],
/// [`Archive::finish`].
pub struct Archive<W> {
    out: W,
    /// What stands before the entries' names.
    root: String,
    at: u64,
    /// The entries' part of the directory.
    directory: Vec<u8>,
    entries: u64,
}

/// The bytes that an archive will have, from the sizes of its parts.
///
/// `storages` are the sizes of all storages, under the keys 0, 1, 2, …
pub fn size_bytes(root: &str, pickle_bytes: u64, storages: impl IntoIterator<Item = u64>) -> u64 {
    let mut archive = Archive::new(io::sink(), root);
    let measure = || {
        archive.skip("data.pkl", pickle_bytes, 1)?;
        for (key, size) in storages.into_iter().enumerate() {
            archive.skip(&format!("data/{key}"), size, ALIGNMENT)?;
        }
        archive.tail()
    };
    measure().expect("a sink takes everything");
    archive.at
}

impl<W: Write> Archive<W> {
    /// `root` is the name of the folder in which torch puts all entries.
    pub fn new(out: W, root: &str) -> Archive<W> {
        Archive { out, root: root.to_owned(), at: 0, directory: Vec::new(), entries: 0 }
    }

    /// The pickle of what was saved.
    ///
    /// # Errors
    /// `out` cannot be written.
    pub fn pickle(&mut self, pickle: &[u8]) -> io::Result<()> {
        self.entry("data.pkl", pickle, 1)
    }

    /// The bytes of the storage that the pickle names by `key`.
    ///
    /// # Errors
    /// `out` cannot be written.
    pub fn storage(&mut self, key: &str, bytes: &[u8]) -> io::Result<()> {
        self.entry(&format!("data/{key}"), bytes, ALIGNMENT)
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.at
    }

    /// Writes what stands at the end, and gives `out` back.
    ///
    /// # Errors
    /// `out` cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.tail()?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, content: &[u8], alignment: u64) -> io::Result<()> {
        self.head(name, content.len() as u64, crc32fast::hash(content), alignment)?;
        self.put(content)
    }

    /// An entry without its content, for counting.
    fn skip(&mut self, name: &str, size: u64, alignment: u64) -> io::Result<()> {
        self.head(name, size, 0, alignment)?;
        self.at += size;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// What stands before an entry's content; its line in the directory is kept for later.
    fn head(&mut self, name: &str, size: u64, check: u32, alignment: u64) -> io::Result<()> {
        let name = format!("{}/{name}", self.root);
        let offset = self.at;
        let large = size >= BEYOND_32;
        // What a local header and a directory entry have in common: versions to names' lengths.
        let mut common = vec![if large { 45 } else { 20 }, 0, 0, 0, 0, 0, 0, 0, 0x21, 0]; // stored, 00:00, 1980-01-01
        common.extend(check.to_le_bytes());
        common.extend([narrow(size), narrow(size)].as_flattened());
        common.extend((name.len() as u16).to_le_bytes());

        let mut extra = wide(&[size, size].map(|size| (large, size)));
        if alignment > 1 {
            let unpadded = offset + 30 + (name.len() + extra.len() + 4) as u64;
            let padding = (unpadded.next_multiple_of(alignment) - unpadded) as u16;
            extra.extend(b"FB"); // the field that torch pads with
            extra.extend(padding.to_le_bytes());
            extra.resize(extra.len() + usize::from(padding), b'Z');
        }
        self.put(b"PK\x03\x04")?;
        self.put(&common)?;
        self.put(&(extra.len() as u16).to_le_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&extra)?;

        let far = offset >= BEYOND_32;
        let extra = wide(&[(large, size), (large, size), (far, offset)]);
        let version = if large || far { 45 } else { 20 };
        self.directory.extend(b"PK\x01\x02");
        self.directory.extend([version, 0]);
        self.directory.extend(&common);
        self.directory.extend((extra.len() as u16).to_le_bytes());
        self.directory.extend([0; 10]); // no comment, first disk, no attributes
        self.directory.extend(narrow(offset));
        self.directory.extend(name.as_bytes());
        self.directory.extend(&extra);
        self.entries += 1;
        Ok(())
    }

    fn tail(&mut self) -> io::Result<()> {
        self.entry("byteorder", b"little", 1)?;
        self.entry("version", b"3\n", 1)?;
        let (offset, directory) = (self.at, std::mem::take(&mut self.directory));
        self.put(&directory)?;
        let size = directory.len() as u64;
        if offset >= BEYOND_32 || size >= BEYOND_32 || self.entries >= 0xFFFF {
            let end = self.at;
            self.put(b"PK\x06\x06")?;
            self.put(&44u64.to_le_bytes())?; // bytes of the record from here on
            self.put(&[45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0])?; // version 4.5, first disk
            for value in [self.entries, self.entries, size, offset] {
                self.put(&value.to_le_bytes())?;
            }
            self.put(b"PK\x06\x07\0\0\0\0")?;
            self.put(&end.to_le_bytes())?;
            self.put(&1u32.to_le_bytes())?; // one disk
        }
        let entries = u16::try_from(self.entries).unwrap_or(u16::MAX).to_le_bytes();
        self.put(b"PK\x05\x06\0\0\0\0")?;
        self.put(&[entries, entries].concat())?;
        self.put(&narrow(size))?;
        self.put(&narrow(offset))?;
        self.put(&[0, 0]) // no comment
    }
}

/// A field of 32 bits.
fn narrow(value: u64) -> [u8; 4] {
    (value.min(BEYOND_32) as u32).to_le_bytes()
}

/// The extra field with the values that are too large for fields of 32 bits.
fn wide(fields: &[(bool, u64)]) -> Vec<u8> {
    let values: Vec<u8> = fields.iter().filter(|(wide, _)| *wide).flat_map(|(_, value)| value.to_le_bytes()).collect();
    if values.is_empty() {
        return values;
    }
    [&[1, 0][..], &(values.len() as u16).to_le_bytes(), &values].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(storages: &[&[u8]]) -> Vec<u8> {
        let mut archive = Archive::new(Vec::new(), "root");
        archive.pickle(b"\x80\x02N.").unwrap();
        for (key, bytes) in storages.iter().enumerate() {
            archive.storage(&key.to_string(), bytes).unwrap();
        }
        archive.finish().unwrap()
    }

    #[test]
    fn the_size_is_known_before() {
        let cases: [&[&[u8]]; 3] = [&[], &[b""], &[b"abc", &[7; 1000], b"x"]];
        for storages in cases {
            let sizes = storages.iter().map(|bytes| bytes.len() as u64);
            assert_eq!(size_bytes("root", 4, sizes), written(storages).len() as u64);
        }
    }

    #[test]
    fn contents_of_tensors_begin_at_multiples_of_64_bytes() {
        let bytes = written(&[b"first one", &[1; 77], b"the third"]);
        for content in [&b"first one"[..], &[1; 77], b"the third"] {
            let at = bytes.windows(content.len()).position(|window| window == content).unwrap();
            assert_eq!(at % 64, 0);
        }
    }

    /// Beyond 4 GiB, without writing as much: the fields of 64 bits say what those of 32 cannot.
    #[test]
    fn large_entries_and_far_ones_use_fields_of_64_bits() {
        let mut archive = Archive::new(Vec::new(), "r");
        let (large, small) = (5 << 30, 9);
        archive.skip("data/0", large, 64).unwrap();
        let far = archive.written();
        archive.skip("data/1", small, 64).unwrap();
        archive.tail().unwrap();
        let bytes = &archive.out;
        let contains = |parts: &[&[u8]]| bytes.windows(parts.concat().len()).any(|window| window == parts.concat());
        let eight = |value: u64| value.to_le_bytes();
        assert!(contains(&[b"r/data/0\x01\0\x10\0", &eight(large), &eight(large), b"FB"]), "its local header");
        assert!(
            contains(&[b"r/data/0\x01\0\x10\0", &eight(large), &eight(large), b"PK\x01\x02"]),
            "its directory entry"
        );
        assert!(contains(&[b"\xFF\xFF\xFF\xFFr/data/1\x01\0\x08\0", &eight(far)]), "the directory entry after it");
        assert!(contains(&[b"PK\x06\x06", &eight(44)]) && contains(&[b"PK\x06\x07"]), "the directory's end");
        assert_eq!(bytes[bytes.len() - 22 + 16..][..4], [0xFF; 4], "its place in the old record");
    }
}
