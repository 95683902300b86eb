//! `VideoCraft-dLDM-codes.pt`: codes by the name of a scene, as VideoWorld 2's inference looks them up.
//!
//! Content: a dictionary from a name (`paper_boat_21`) to an integer tensor [clips, codes per clip], as `torch.save`
//! writes it; tensors and texts alone, so that `torch.load(weights_only=True)` opens it.
//! [`upstream_codes`](super::upstream_codes) reads it.
//! Source: spec sections 1.7 and 9.1. Upstream converts whatever it finds to int64, so int64 is written.

use vw2_pickle::Dtype;
use vw2_pickle::write::Pickle;

use super::latent_code_infos::{VideoCodes, sorted};
use super::torch;
use crate::{Error, Result};

/// The file's name.
pub const FILE: &str = "VideoCraft-dLDM-codes.pt";

/// The file's bytes; equal for equal videos in any order.
///
/// # Errors
/// Two videos have the same name, or a video's clips have different numbers of codes, which no tensor can hold.
pub fn to_bytes(videos: &[VideoCodes]) -> Result<Vec<u8>> {
    let videos = sorted(videos, FILE)?;
    let mut entries = Vec::with_capacity(videos.len());
    let mut storages = Vec::with_capacity(videos.len());
    for (index, video) in videos.iter().enumerate() {
        let length = video.clips.first().map_or(0, Vec::len);
        if let Some(odd) = video.clips.iter().find(|clip| clip.len() != length) {
            let place = format!("video `{}`", video.name.escape_debug());
            let reason = format!(
                "its clips have {length} and {} codes, but a tensor wants equally many; cut all clips to one length",
                odd.len()
            );
            return Err(Error::Format { file: FILE.to_owned(), place, reason });
        }
        entries.push((index.to_string(), &video.name, [video.clips.len(), length]));
        storages.push(video.clips.iter().flatten().flat_map(|&code| i64::from(code).to_le_bytes()).collect());
    }
    let mut pickle = Pickle::new();
    pickle.dict(&entries, |pickle, (key, name, shape)| {
        pickle.text(name);
        pickle.tensor(key, Dtype::I64, shape);
    });
    torch::saved("VideoCraft-dLDM-codes", &pickle.stop(), &storages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::upstream_codes;
    use crate::test_support::python;

    fn videos() -> Vec<VideoCodes> {
        let video = |name: &str, clips: &[&[u16]]| VideoCodes {
            name: name.into(),
            clips: clips.iter().map(|clip| clip.to_vec()).collect(),
        };
        vec![
            video("paper_boat_21", &[&[0, 255, 256, 63999], &[1, 2, 3, 4]]),
            video("a_ü", &[&[1, 2]]),
            video("none", &[]),
        ]
    }

    #[test]
    fn what_is_written_is_read_and_does_not_depend_on_the_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let mut wanted = videos();
        let bytes = to_bytes(&wanted).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        wanted.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(upstream_codes::read(&path).unwrap(), wanted);
        assert_eq!(to_bytes(&wanted).unwrap(), bytes);
    }

    #[test]
    fn what_no_dictionary_of_tensors_can_hold_is_told() {
        let twice = to_bytes(&[videos(), videos()].concat()).unwrap_err().to_string();
        assert!(twice.contains("VideoCraft-dLDM-codes.pt: video `a_ü`: occurs twice"), "{twice}");
        let mut odd = videos();
        odd[0].clips[1].pop();
        let odd = to_bytes(&odd).unwrap_err().to_string();
        assert!(odd.contains("video `paper_boat_21`: its clips have 4 and 3 codes"), "{odd}");
    }

    #[test]
    fn torch_opens_it_without_running_code() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        std::fs::write(&path, to_bytes(&videos()).unwrap()).unwrap();
        let program = "import sys, torch\n\
                       for only in (True, False):\n\
                       \x20   codes = torch.load(sys.argv[1], weights_only=only)\n\
                       \x20   print([(name, str(t.dtype), list(t.shape), t.tolist()) for name, t in codes.items()])";
        let Some(said) = python(&["torch"], program, &path) else { return };
        let wanted = "[('a_ü', 'torch.int64', [1, 2], [[1, 2]]), ('none', 'torch.int64', [0, 0], []), \
                      ('paper_boat_21', 'torch.int64', [2, 4], [[0, 255, 256, 63999], [1, 2, 3, 4]])]";
        assert_eq!(said, [wanted, wanted].join("\n"));
    }
}
