//! File names of pre-cut clips: `<video>_<index>.mp4`, as in Video-CraftBench.
//!
//! The index is the last field after an underscore: a number without leading zeros. Clips of one video go in the order of
//! the number (9 before 10), not of the name.

/// The video and the clip's index, from a file name without its extension; `None` where the name has no such form.
///
/// ```
/// use vw2_data::formats::clip_name::split;
/// assert_eq!(split("buildingblock_horse_0_3"), Some(("buildingblock_horse_0", 3)));
/// assert_eq!(split("holiday"), None);
/// ```
pub fn split(stem: &str) -> Option<(&str, u32)> {
    let (video, index) = stem.rsplit_once('_')?;
    let plain = index.bytes().all(|byte| byte.is_ascii_digit()) && (index == "0" || !index.starts_with('0'));
    if video.is_empty() || !plain {
        return None;
    }
    Some((video, index.parse().ok()?))
}

/// The name of a video's clip, without an extension: the inverse of [`split`].
pub fn join(video: &str, index: u32) -> String {
    format!("{video}_{index}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_number_after_the_last_underscore_is_an_index() {
        for (stem, parts) in [
            ("paper_airplane_supp_complex_8_12", Some(("paper_airplane_supp_complex_8", 12))),
            ("a_0", Some(("a", 0))),
            ("a__7", Some(("a_", 7))),
            ("ep_0007", None),
            ("a_", None),
            ("_3", None),
            ("a_-3", None),
            ("a_+3", None),
            ("a_3b", None),
            ("3", None),
            ("", None),
            ("a_99999999999", None),
        ] {
            assert_eq!(split(stem), parts, "{stem}");
            if let Some((video, index)) = parts {
                assert_eq!(join(video, index), stem);
            }
        }
    }
}
