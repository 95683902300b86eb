//! Codes in the files that VideoWorld 2 publishes and writes.
//!
//! `VideoCraft-dLDM-codes.pt`: a dictionary from a start picture's name to its codes [clips, codes per clip].
//! `latent_code_infos.pt`: a list of pairs (codes of a video, its name); also ours, which
//! [`latent_code_infos`](super::latent_code_infos) writes. Codes are tensors, numpy arrays or lists of lists.
//! Differs: a video that stands twice with the same codes (upstream's sampler repeats some) is given once. A file with
//! one pair per clip and a letter of the name in place of the name, which upstream's released extraction writes, is an
//! error.

use std::collections::HashMap;
use std::path::Path;

use vw2_pickle::{Limits, Value};

use super::latent_code_infos::VideoCodes;
use super::torch::TorchFile;
use crate::{Error, Result};

/// Codes of one file: at 92 a clip, 43,000 clips as tensors; a quarter of it as lists, which take more memory.
const MOST_CODES: usize = 4 << 20;

/// Reads either file; videos in its order.
///
/// # Errors
/// It cannot be read, is damaged, holds something else, or a name stands twice with different codes.
pub fn read(path: &Path) -> Result<Vec<VideoCodes>> {
    let limits = Limits { items: MOST_CODES / 4, ..Limits::default() };
    let mut file = TorchFile::open(path, &limits)?;
    let bad = |place: String, reason: String| Error::Format { file: path.display().to_string(), place, reason };
    let mut videos = Vec::new();
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut count = 0;
    let value = std::mem::replace(&mut file.value, Value::None);
    for (index, (name, codes)) in entries(&value).map_err(|reason| bad("data.pkl".into(), reason))?.iter().enumerate() {
        let place = |name: &str| format!("video {index} (`{}`)", name.escape_debug());
        let name = name.as_str().ok_or_else(|| bad(place(""), format!("its name is {}", name.kind())))?;
        let clips = match clips(&mut file, codes)? {
            Codes::Clips(clips) => clips,
            Codes::Flat if name.chars().count() == 1 => {
                let reason = "each entry is one clip with one letter of its video's name, as a known mistake of the \
                              original's extraction leaves it; which clips belong together is lost, so extract again";
                return Err(bad(place(name), reason.into()));
            }
            Codes::Flat => return Err(bad(place(name), "one row of codes; a row for each clip is wanted".into())),
            Codes::Bad(reason) => return Err(bad(place(name), reason)),
        };
        count += clips.iter().map(Vec::len).sum::<usize>();
        if count > MOST_CODES {
            return Err(bad(place(name), format!("more than {MOST_CODES} codes in one file; split it")));
        }
        let video = VideoCodes { name: name.to_owned(), clips };
        match seen.get(name) {
            Some(&before) if videos[before] == video => {}
            Some(_) => return Err(bad(place(name), "it stands twice, with different codes; rename one".into())),
            None => {
                seen.insert(name.to_owned(), videos.len());
                videos.push(video);
            }
        }
    }
    Ok(videos)
}

/// Names with their codes, from either structure; the error is a reason.
fn entries(value: &Value) -> Result<Vec<(&Value, &Value)>, String> {
    if let Value::Dict(pairs) = value {
        return Ok(pairs.iter().map(|(name, codes)| (name, codes)).collect());
    }
    let entry = |entry| match Value::as_items(entry) {
        Some([codes, name]) => Ok((name, codes)),
        _ => Err(format!("wanted pairs of codes and a name, found {}", entry.kind())),
    };
    match value {
        Value::List(list) | Value::Tuple(list) => list.iter().map(entry).collect(),
        other => Err(format!("wanted a dictionary or a list of pairs, found {}", other.kind())),
    }
}

/// What stands in place of a video's codes.
enum Codes {
    Clips(Vec<Vec<u16>>),
    /// One row of integers.
    Flat,
    Bad(String),
}

fn clips(file: &mut TorchFile, value: &Value) -> Result<Codes> {
    let (shape, values) = match value {
        Value::List(items) | Value::Tuple(items) => return list_of_clips(file, items),
        other => match integers(file, other)? {
            Some(integers) => integers,
            None => return Ok(Codes::Bad(format!("wanted integers, found {}", other.kind()))),
        },
    };
    Ok(match shape[..] {
        [_] => Codes::Flat,
        [_, length @ (1..)] => checked(values.chunks(length)),
        [0, 0] => Codes::Clips(Vec::new()),
        _ => Codes::Bad(format!("wanted codes of shape [clips, codes], found {shape:?}")),
    })
}

fn list_of_clips(file: &mut TorchFile, items: &[Value]) -> Result<Codes> {
    if !items.is_empty() && items.iter().all(|item| matches!(item, Value::Int(_))) {
        return Ok(Codes::Flat);
    }
    let mut rows = Vec::new();
    for item in items {
        let row = match item {
            Value::List(codes) | Value::Tuple(codes) => codes
                .iter()
                .map(|code| if let Value::Int(code) = code { Some(*code) } else { None })
                .collect::<Option<Vec<i64>>>(),
            other => integers(file, other)?.filter(|(shape, _)| shape.len() == 1).map(|(_, values)| values),
        };
        match row {
            Some(row) => rows.push(row),
            None => return Ok(Codes::Bad(format!("wanted a row of integers for each clip, found {}", item.kind()))),
        }
    }
    if rows.windows(2).any(|pair| pair[0].len() != pair[1].len()) {
        return Ok(Codes::Bad("its clips have different numbers of codes".into()));
    }
    Ok(checked(rows.iter().map(Vec::as_slice)))
}

/// Shape and row-major values of a tensor or array; none for other things, and for floats in an array.
fn integers(file: &mut TorchFile, value: &Value) -> Result<Option<(Vec<usize>, Vec<i64>)>> {
    Ok(match value {
        Value::Tensor(tensor) => Some((tensor.shape.clone(), file.i64s(tensor)?)),
        Value::Array(array) => array.i64s().map(|values| (array.shape.clone(), values)),
        _ => None,
    })
}

fn checked<'a>(rows: impl Iterator<Item = &'a [i64]>) -> Codes {
    let mut clips = Vec::new();
    for row in rows {
        match row.iter().map(|&code| u16::try_from(code).map_err(|_| code)).collect() {
            Ok(clip) => clips.push(clip),
            Err(code) => return Codes::Bad(format!("clip {} has code {code}; codes are 0 to 65535", clips.len())),
        }
    }
    Codes::Clips(clips)
}

#[cfg(test)]
mod tests {
    use super::super::latent_code_infos;
    use super::super::torch::tests::{Part, write};
    use super::*;

    /// A pickle of one or several `(storage key, elements, offset, shape, strides)` in a structure of text pieces.
    fn tensor(key: &str, elements: u8, offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
        let tuple =
            |values: &[u8]| [b"(", &values.iter().flat_map(|v| [b'K', *v]).collect::<Vec<_>>()[..], b"t"].concat();
        let head = format!("ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nLongStorage\nV{key}\nVcpu\nK");
        [head.as_bytes(), &[elements], b"tQK", &[offset], &tuple(shape), &tuple(strides), b"\x89NtR"].concat()
    }

    fn longs(values: &[i64]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn video(name: &str, clips: &[&[u16]]) -> VideoCodes {
        VideoCodes { name: name.into(), clips: clips.iter().map(|clip| clip.to_vec()).collect() }
    }

    fn file(pickle: &[u8], storages: &[(&str, &[u8])]) -> Result<Vec<VideoCodes>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("codes.pt");
        let storages = storages.iter().map(|(key, bytes)| Part::stored(&format!("codes/data/{key}"), bytes));
        let parts: Vec<Part> = [Part::stored("codes/data.pkl", pickle)].into_iter().chain(storages).collect();
        write(&path, &parts);
        read(&path)
    }

    #[test]
    fn a_dictionary_of_tensors_is_read() {
        let a = tensor("0", 4, 0, &[2, 2], &[2, 1]);
        let b = tensor("1", 6, 1, &[2, 2], &[1, 2]); // a transposed part of a storage
        let pickle = [b"\x80\x02}(Vpaper_boat_21\n", &a[..], b"Vhorse\n", &b, b"u."].concat();
        let videos = file(&pickle, &[("0", &longs(&[1, 2, 3, 63_999])), ("1", &longs(&[0, 1, 2, 3, 4, 5]))]).unwrap();
        assert_eq!(videos, [video("paper_boat_21", &[&[1, 2], &[3, 63_999]]), video("horse", &[&[1, 3], &[2, 4]])]);
    }

    #[test]
    fn a_list_of_pairs_is_read_whatever_the_rows_are_and_repeated_videos_once() {
        let row = tensor("0", 4, 2, &[2], &[1]);
        let all = tensor("0", 4, 0, &[2, 2], &[2, 1]);
        let pickle =
            [b"\x80\x02](]](K\x05K\x06eaVa_1\n\x86](", &row[..], &row, b"eVb\n\x86", &all, b"Vc\n\x86", &all].concat();
        let pickle = [&pickle[..], b"Vc\n\x86]Vnone\n\x86e."].concat();
        let videos = file(&pickle, &[("0", &longs(&[1, 2, 3, 4]))]).unwrap();
        let wanted = [
            video("a_1", &[&[5, 6]]),
            video("b", &[&[3, 4], &[3, 4]]),
            video("c", &[&[1, 2], &[3, 4]]),
            video("none", &[]),
        ];
        assert_eq!(videos, wanted);
    }

    #[test]
    fn our_own_file_comes_back() {
        let videos = vec![video("a_ü", &[&[1, 2], &[3, 4]]), video("b_1", &[&[0, 255, 256, 63_999]]), video("c", &[])];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latent_code_infos.pt");
        std::fs::write(&path, latent_code_infos::to_bytes(&videos).unwrap()).unwrap();
        assert_eq!(read(&path).unwrap(), videos);
    }

    #[test]
    fn another_content_is_told() {
        let flat = tensor("0", 4, 0, &[4], &[1]);
        let dict = |value: &[u8]| [b"\x80\x02}Vv\n", value, b"s."].concat();
        for (pickle, reason) in [
            ([b"\x80\x02](", &flat[..], b"Vp\n\x86", &flat, b"Va\n\x86e."].concat(), "one letter of its video's name"),
            (b"\x80\x02]](K\x01K\x02eVp\n\x86a.".to_vec(), "one letter of its video's name"),
            ([b"\x80\x02]", &flat[..], b"Vpaper\n\x86a."].concat(), "a row for each clip is wanted"),
            (dict(b"](](K\x01e](K\x01K\x02ee"), "different numbers of codes"),
            (dict(b"]G\x00\x00\x00\x00\x00\x00\x00\x00a"), "found a float"),
            (dict(b"](](J\x00\x00\x01\x00ee"), "has code 65536"),
            (dict(&tensor("0", 4, 0, &[1, 1], &[1, 1])), "clip 0 has code -1"),
            (dict(&tensor("0", 4, 0, &[2, 2, 1], &[1, 1, 1])), "found [2, 2, 1]"),
            (dict(&tensor("0", 4, 0, &[2, 0], &[1, 1])), "found [2, 0]"),
            (dict(&tensor("0", 5, 0, &[2, 2], &[1, 1])), "it has 32 bytes, but should have 40"),
            (dict(&tensor("0", 4, 0, &[3, 2], &[2, 1])), "does not lie in storage"),
            (dict(&tensor("7", 4, 0, &[2, 2], &[2, 1])), "storage `7`: "),
            (dict(b"K\x01"), "wanted integers, found an integer"),
            (b"\x80\x02}(Vv\n](](K\x01eeVv\n]u.".to_vec(), "it stands twice"),
            (b"\x80\x02}N]s.".to_vec(), "its name is None"),
            (b"\x80\x02]Na.".to_vec(), "wanted pairs of codes and a name, found None"),
            (b"\x80\x02N.".to_vec(), "wanted a dictionary or a list of pairs, found None"),
            (b"\x80\x02cos\nsystem\n.".to_vec(), "`os.system` is asked for"),
        ] {
            let error = file(&pickle, &[("0", &longs(&[-1, 2, 3, 4]))]).unwrap_err().to_string();
            assert!(error.contains(reason), "wanted `{reason}`: {error}");
        }
    }
}
