//! Which frames make a clip: from a video's length to lists of frame numbers. Pure.
//!
//! First a video is sampled to a list of frames ([`every`], [`at_fps`], [`uniform`]), then the list is cut into clips
//! ([`spans`]). Neighbouring clips share their boundary frame where `stride` is `frames - 1`, as in Video-CraftBench.
//! Source: VideoWorld 2's data sets; `uniform` repeats the f32 arithmetic of its sampler, so that truncation agrees.

/// Frames 0, n, 2n, … of a video with `frames` frames. `n` of 0 counts as 1.
pub fn every(frames: u32, n: u32) -> Vec<u32> {
    (0..frames).step_by(n.max(1) as usize).collect()
}

/// Frames that show the video at `fps` frames per second: the i-th is the one on screen at time i / fps. Frames repeat
/// where `fps` is above `source_fps`. Empty where either rate is not a positive number.
pub fn at_fps(frames: u32, source_fps: f64, fps: f64) -> Vec<u32> {
    let step = source_fps / fps;
    if !(step.is_finite() && step > 0.0) {
        return Vec::new();
    }
    // A frame is on screen from its own instant on; the small addition keeps exact multiples on the right side of
    // floating-point error (it is far below the distance of two frames in any video of less than 10^6 frames).
    let at = |i: u64| (i as f64 * step + 1e-6).floor();
    (0..).map(at).take_while(|&frame| frame < f64::from(frames)).map(|frame| frame as u32).collect()
}

/// `count` frames spread evenly over a video with `frames` frames, first and last included, numbers truncated. Frames
/// repeat where the video has fewer than `count`. Empty where either is 0.
pub fn uniform(frames: u32, count: u32) -> Vec<u32> {
    if frames == 0 || count == 0 {
        return Vec::new();
    }
    if count == 1 {
        return vec![0];
    }
    let last = (frames - 1) as f32;
    let step = last / (count - 1) as f32;
    let at = |i: u32| if i < count / 2 { i as f32 * step } else { last - (count - 1 - i) as f32 * step };
    (0..count).map(|i| (at(i) as u32).min(frames - 1)).collect()
}

/// The frames per second of a list of `count` frames spread evenly over `frames` frames.
pub fn uniform_fps(frames: u32, source_fps: f64, count: u32) -> f64 {
    if frames < 2 || count < 2 { source_fps } else { source_fps * f64::from(count - 1) / f64::from(frames - 1) }
}

/// What becomes of frames after the last whole clip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tail {
    /// They are left out; a video shorter than one clip gives none.
    #[default]
    Drop,
    /// They make one more clip, which repeats the video's last frame until it is full.
    Pad,
}

/// Is `frames` a length that the models take, 1 + 4k with k > 0?
pub fn check_frames(frames: u32) -> Result<(), String> {
    if frames >= 5 && frames % 4 == 1 {
        return Ok(());
    }
    let near = [frames.saturating_sub(1) / 4 * 4 + 1, frames.saturating_sub(1) / 4 * 4 + 5].map(|n| n.max(5));
    let near = if near[0] == near[1] { near[0].to_string() } else { format!("{} or {}", near[0], near[1]) };
    Err(format!(
        "frames = {frames}: a clip has 1 + 4k frames, because the models take 4 frames to a latent; take {near}"
    ))
}

/// Cuts a list of `length` frames into clips of `frames` frames, `stride` apart: for each clip its positions in the list.
///
/// With [`Tail::Pad`] there are clips as long as one would hold a frame that the clip before it does not: for
/// `stride = frames - 1` that is `max(1, ceil((length - 1) / (frames - 1)))` clips. `stride` or `frames` of 0 count as 1.
pub fn spans(length: u32, frames: u32, stride: u32, tail: Tail) -> Vec<Vec<u32>> {
    let (frames, stride) = (frames.max(1), stride.max(1));
    let overlap = frames.saturating_sub(stride);
    let is_clip = |start: u32| match tail {
        Tail::Drop => length - start >= frames,
        Tail::Pad => start == 0 || length - start > overlap,
    };
    (0..length)
        .step_by(stride as usize)
        .take_while(|&start| is_clip(start))
        .map(|start| (0..frames).map(|i| start.saturating_add(i).min(length - 1)).collect())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_nth_frame() {
        assert_eq!(every(7, 1), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(every(7, 3), [0, 3, 6]);
        assert_eq!(every(0, 3), [0; 0]);
    }

    #[test]
    fn a_rate_takes_the_frame_on_screen() {
        assert_eq!(at_fps(10, 30.0, 15.0), [0, 2, 4, 6, 8]);
        assert_eq!(at_fps(7, 30.0, 8.0), [0, 3]);
        assert_eq!(at_fps(9, 30.0, 8.0), [0, 3, 7]);
        assert_eq!(at_fps(3, 10.0, 20.0), [0, 0, 1, 1, 2, 2]);
        assert_eq!(at_fps(61, 30000.0 / 1001.0, 30000.0 / 1001.0), every(61, 1));
        assert_eq!(at_fps(100_000, 60.0, 6.0), every(100_000, 10));
        for (source_fps, fps) in [(0.0, 8.0), (30.0, 0.0), (30.0, -1.0), (f64::NAN, 8.0), (30.0, f64::INFINITY)] {
            assert_eq!(at_fps(9, source_fps, fps), [0; 0], "{source_fps} -> {fps}");
        }
    }

    #[test]
    fn uniform_truncates_as_the_publication_does() {
        assert_eq!(uniform(17, 5), [0, 4, 8, 12, 16]);
        assert_eq!(uniform(10, 4), [0, 3, 6, 9]);
        assert_eq!(uniform(3, 5), [0, 0, 1, 1, 2]);
        assert_eq!(uniform(1, 5), [0; 5]);
        assert_eq!(uniform(6, 1), [0]);
        assert_eq!(uniform(0, 5), [0; 0]);
        // 79/92 = 0.8587 in f32: 46 * step counts from the end, 79 - 46 * 0.8587 = 39.5.
        let frames = uniform(80, 93);
        assert_eq!(
            (frames.len(), &frames[..5], frames[46], &frames[90..]),
            (93, &[0, 0, 1, 2, 3][..], 39, &[77, 78, 79][..])
        );
    }

    #[test]
    fn uniform_of_more_frames_than_there_are_needs_every_frame_in_order() {
        for frames in 1..300 {
            let list = uniform(frames, 93);
            assert!(list.is_sorted() && list[0] == 0 && list[92] == frames - 1, "{frames} frames: {list:?}");
        }
    }

    #[test]
    fn clips_share_their_boundary_frame() {
        assert_eq!(spans(11, 5, 4, Tail::Drop), [vec![0, 1, 2, 3, 4], vec![4, 5, 6, 7, 8]]);
        assert_eq!(spans(11, 5, 4, Tail::Pad)[2], [8, 9, 10, 10, 10]);
        assert_eq!(spans(11, 5, 6, Tail::Drop), [vec![0, 1, 2, 3, 4], vec![6, 7, 8, 9, 10]]);
    }

    #[test]
    fn padding_makes_no_clip_of_nothing_but_the_boundary_frame() {
        for (length, clips) in [(1, 1), (2, 1), (92, 1), (93, 1), (94, 2), (185, 2), (186, 3)] {
            assert_eq!(spans(length, 93, 92, Tail::Pad).len(), clips, "{length} frames");
            assert_eq!(spans(length, 93, 92, Tail::Drop).len(), ((length.max(1) - 1) / 92) as usize, "{length} frames");
        }
        assert_eq!(spans(0, 5, 4, Tail::Pad), [[0; 0]; 0]);
        assert_eq!(spans(7, 5, 2, Tail::Pad), [[0, 1, 2, 3, 4], [2, 3, 4, 5, 6]]);
        assert_eq!(spans(8, 5, 2, Tail::Pad)[2], [4, 5, 6, 7, 7]);
    }

    #[test]
    fn a_length_that_the_models_do_not_take_is_refused_with_its_neighbours() {
        assert_eq!(check_frames(93), Ok(()));
        assert!(check_frames(16).unwrap_err().ends_with("take 13 or 17"));
        assert!(check_frames(1).unwrap_err().ends_with("take 5"));
    }
}
