//! `latent_code_infos.pt`: the codes of whole videos in the form that VideoWorld 2's rollout reads.
//!
//! Content: a list of tuples (list of one list of codes per clip, name of the video), sorted by name, as `torch.save`
//! writes it: a ZIP file without compression that holds a pickle (protocol 2). Lists, tuples, strings and integers alone,
//! so that `torch.load(weights_only=True)` opens it.
//! Differs from upstream's writer, which pairs each clip with one letter of the name; this is what its reader expects.

use vw2_pickle::write::Pickle;

use super::torch;
use crate::{Error, Result};

/// The file's name.
pub const FILE: &str = "latent_code_infos.pt";

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
    let sorted = sorted(videos, FILE)?;
    let mut pickle = Pickle::new();
    pickle.list(&sorted, |pickle, video| {
        pickle.pair(|pickle| {
            pickle.list(&video.clips, |pickle, clip| pickle.list(clip, |pickle, &code| pickle.int(code.into())));
            pickle.text(&video.name);
        });
    });
    torch::saved("latent_code_infos", &pickle.stop(), &[])
}

/// Videos by name, which has to be unique; `file` stands in the error.
pub(super) fn sorted<'a>(videos: &'a [VideoCodes], file: &str) -> Result<Vec<&'a VideoCodes>> {
    let mut sorted: Vec<&VideoCodes> = videos.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    match sorted.windows(2).find(|pair| pair[0].name == pair[1].name) {
        None => Ok(sorted),
        Some(pair) => {
            let place = format!("video `{}`", pair[0].name.escape_debug());
            let reason = "occurs twice; rename one of the videos".into();
            Err(Error::Format { file: file.to_owned(), place, reason })
        }
    }
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
        check(
            &["torch"],
            "import sys, torch\n\
             loaded = [torch.load(sys.argv[1], weights_only=only) for only in (True, False)]\n\
             assert loaded[0] == loaded[1]; print(loaded[0])",
        );
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
