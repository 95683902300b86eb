//! `latent_code_infos.pt`: the codes of whole videos in the form that VideoWorld 2's rollout reads.
//!
//! Content: a list of tuples (list of one list of codes per clip, name of the video), sorted by name, as `torch.save`
//! writes it: a ZIP file without compression that holds a pickle (protocol 2). Lists, tuples, strings and integers alone,
//! so that `torch.load(weights_only=True)` opens it.
//! Differs from upstream's writer, which pairs each clip with one letter of the name; this is what its reader expects.

use crate::{Error, Result};

/// The codes of one video.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VideoCodes {
    /// The video's name without extension and clip index.
    pub name: String,
    /// Of each clip, in order.
    pub clips: Vec<Vec<u16>>,
}

/// The file's bytes; equal for equal videos in any order. An error if two videos have the same name.
pub fn to_bytes(videos: &[VideoCodes]) -> Result<Vec<u8>> {
    let mut sorted: Vec<&VideoCodes> = videos.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0].name == pair[1].name) {
        let (file, place) = ("latent_code_infos.pt".to_owned(), format!("video `{}`", pair[0].name));
        return Err(Error::Format { file, place, reason: "occurs twice; rename one of the videos".into() });
    }
    let mut zip = Zip::default();
    zip.add("latent_code_infos/data.pkl", &pickle(&sorted));
    zip.add("latent_code_infos/byteorder", b"little");
    zip.add("latent_code_infos/version", b"3\n");
    Ok(zip.finish())
}

fn pickle(videos: &[&VideoCodes]) -> Vec<u8> {
    let mut out = vec![0x80, 2]; // protocol 2
    list(&mut out, videos, |out, video| {
        list(out, &video.clips, |out, clip| list(out, clip, |out, &code| int(out, code)));
        out.push(b'X');
        out.extend((video.name.len() as u32).to_le_bytes());
        out.extend(video.name.as_bytes());
        out.push(0x86); // a tuple of the two values before
    });
    out.push(b'.');
    out
}

fn list<T>(out: &mut Vec<u8>, items: &[T], mut write: impl FnMut(&mut Vec<u8>, &T)) {
    out.extend(b"](");
    for item in items {
        write(out, item);
    }
    out.push(b'e');
}

fn int(out: &mut Vec<u8>, value: u16) {
    match u8::try_from(value) {
        Ok(value) => out.extend([b'K', value]),
        Err(_) => {
            out.push(b'M');
            out.extend(value.to_le_bytes());
        }
    }
}

/// A ZIP file without compression and without clock: every entry is of 1 January 1980.
#[derive(Default)]
struct Zip {
    bytes: Vec<u8>,
    directory: Vec<u8>,
    entries: u16,
}

impl Zip {
    fn add(&mut self, name: &str, content: &[u8]) {
        let offset = self.bytes.len() as u32;
        let (size, check) = (content.len() as u32, crc32(content));
        // What a local header and a directory entry have in common: versions to names' lengths.
        let mut common = Vec::new();
        common.extend([20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0]); // version 2.0, no flags, stored, 00:00, 1980-01-01
        for value in [check, size, size] {
            common.extend(value.to_le_bytes());
        }
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]); // no extra field

        self.bytes.extend(b"PK\x03\x04");
        self.bytes.extend(&common);
        self.bytes.extend(name.as_bytes());
        self.bytes.extend(content);

        self.directory.extend(b"PK\x01\x02\x14\x00");
        self.directory.extend(&common);
        self.directory.extend([0; 10]); // no comment, first disk, no attributes
        self.directory.extend(offset.to_le_bytes());
        self.directory.extend(name.as_bytes());
        self.entries += 1;
    }

    fn finish(mut self) -> Vec<u8> {
        let (offset, size) = (self.bytes.len() as u32, self.directory.len() as u32);
        self.bytes.extend(&self.directory);
        self.bytes.extend(b"PK\x05\x06\0\0\0\0");
        self.bytes.extend(self.entries.to_le_bytes());
        self.bytes.extend(self.entries.to_le_bytes());
        self.bytes.extend(size.to_le_bytes());
        self.bytes.extend(offset.to_le_bytes());
        self.bytes.extend([0, 0]);
        self.bytes
    }
}

/// The checksum of ZIP, bit by bit; the files here have at most some megabytes.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32| if sum & 1 == 1 { sum >> 1 ^ 0xEDB8_8320 } else { sum >> 1 };
    !bytes.iter().fold(!0u32, |sum, &byte| (0..8).fold(sum ^ u32::from(byte), |sum, _| step(sum)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::python;

    fn videos() -> Vec<VideoCodes> {
        let video = |name: &str, clips: &[&[u16]]| VideoCodes {
            name: name.into(),
            clips: clips.iter().map(|clip| clip.to_vec()).collect(),
        };
        vec![video("b_1", &[&[0, 255, 256, 63999]]), video("a_ü", &[&[1, 2], &[3, 4]]), video("c", &[])]
    }

    const WANT: &str = "[([[1, 2], [3, 4]], 'a_ü'), ([[0, 255, 256, 63999]], 'b_1'), ([], 'c')]";

    #[test]
    fn the_checksum_is_that_of_zip() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn bytes_do_not_depend_on_the_order_and_names_are_unique() {
        let mut list = videos();
        let bytes = to_bytes(&list).unwrap();
        list.reverse();
        assert_eq!(to_bytes(&list).unwrap(), bytes);
        list.push(list[0].clone());
        assert!(to_bytes(&list).unwrap_err().to_string().contains("video `c`: occurs twice"));
    }

    /// Opens the file as python's own modules do, and checks every entry's checksum.
    #[test]
    fn python_opens_it() {
        check(
            &["zipfile", "pickle"],
            "import sys, zipfile, pickle\n\
             z = zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None\n\
             assert z.read('latent_code_infos/version') == b'3\\n', z.namelist()\n\
             print(pickle.loads(z.read('latent_code_infos/data.pkl')))\n",
        );
    }

    #[test]
    fn torch_opens_it_without_running_code() {
        check(&["torch"], "import sys, torch; print(torch.load(sys.argv[1], weights_only=True))");
    }

    fn check(modules: &[&str], program: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latent_code_infos.pt");
        std::fs::write(&path, to_bytes(&videos()).unwrap()).unwrap();
        if let Some(said) = python(modules, program, &path) {
            assert_eq!(said, WANT);
        }
    }
}
