//! Known pictures, properties, and agreement with ffmpeg's conversion where the program is found.

use super::taps::{Axis, COLUMN_BITS, ROW_BITS};
use super::*;
use crate::ops::Draws;

fn bytes(count: usize, seed: u64) -> Vec<u8> {
    let mut draws = Draws::new(seed);
    (0..count).map(|_| draws.bits() as u8).collect()
}

fn picture(layout: Layout, width: usize, height: usize) -> Picture {
    Picture { layout, matrix: Matrix::Bt709, range: Range::Limited, width, height }
}

const LAYOUTS: [Layout; 7] =
    [Layout::I420, Layout::I422, Layout::I444, Layout::Nv12, Layout::Rgb, Layout::I010, Layout::P010];

#[test]
fn known_colours() {
    let check = |matrix, range, yuv: [u8; 3], rgb: [u8; 3]| {
        let picture = Picture { layout: Layout::I444, matrix, range, width: 1, height: 1 };
        let found = picture_to_levels(&yuv, &picture, &Resize::to(1, 1)).unwrap();
        assert_eq!(found, rgb, "{yuv:?} in {matrix:?} {range:?}");
    };
    use {Matrix::*, Range::*};
    for matrix in [Bt601, Bt709, Bt2020] {
        check(matrix, Limited, [16, 128, 128], [0, 0, 0]);
        check(matrix, Limited, [235, 128, 128], [255, 255, 255]);
        check(matrix, Limited, [0, 128, 128], [0, 0, 0]);
        check(matrix, Limited, [255, 128, 128], [255, 255, 255]);
        check(matrix, Full, [77, 128, 128], [77, 77, 77]);
    }
    check(Bt601, Full, [76, 85, 255], [254, 0, 0]);
    check(Bt601, Limited, [81, 90, 240], [254, 0, 0]);
    check(Bt709, Limited, [63, 102, 240], [255, 1, 0]);
    check(Bt709, Limited, [32, 240, 118], [1, 0, 255]);
}

#[test]
fn weights_are_whole_and_sum_to_one() {
    for (from, to) in [(1, 1), (1, 9), (2, 3), (7, 3), (720, 64), (1280, 832), (64, 240), (97, 96), (5, 1)] {
        for filter in [Filter::Antialias, Filter::Bilinear] {
            for bits in [ROW_BITS, COLUMN_BITS] {
                let axis = Axis::new(from, to, filter, bits);
                for (o, weights) in axis.weights.chunks(axis.count).enumerate() {
                    assert_eq!(weights.iter().sum::<u32>(), 1 << bits, "{from} to {to}, {filter:?}, output {o}");
                    let start = axis.starts[o] as usize;
                    assert!(start + axis.count <= from, "{from} to {to}, {filter:?}, output {o}");
                    let wanted: Vec<f64> = (0..from).map(|i| reference::weight(i, o, from, to, filter)).collect();
                    let sum: f64 = wanted.iter().sum();
                    for (i, wanted) in wanted.iter().enumerate() {
                        let found = i.checked_sub(start).and_then(|k| weights.get(k)).copied().unwrap_or(0);
                        let difference = f64::from(found) - wanted / sum * f64::from(1 << bits);
                        assert!(difference.abs() <= 1.0, "{from} to {to}, {filter:?}, {i} -> {o}: {difference}");
                    }
                }
            }
        }
    }
}

#[test]
fn levels_are_within_a_tenth_of_the_exact_value_before_truncation() {
    let sizes = [(131, 97, 64, 64), (40, 720, 9, 64), (17, 9, 33, 40)];
    for (seed, (w, h, to_w, to_h)) in sizes.into_iter().enumerate() {
        let picture = picture(Layout::I420, w, h);
        let frame = bytes(picture.frame_bytes(), seed as u64);
        let resize = Resize::to(to_h, to_w);
        let job = Job::new(frame.len(), &picture, &resize).unwrap();
        let exact = reference::values(&frame, &job);
        let levels = picture_to_levels(&frame, &picture, &resize).unwrap();
        for (i, level) in levels.iter().enumerate() {
            let value = exact[i % 3 * to_w * to_h + i / 3];
            let level = f64::from(*level);
            assert!(
                value > level - 0.1 && value < level + 1.1,
                "{w}x{h} to {to_w}x{to_h}, seed {seed}, {i}: {level} from {value}"
            );
        }
    }
}

#[test]
fn an_equal_size_leaves_rgb_alone() {
    let image = bytes(3 * 13 * 7, 3);
    for resize in [Resize::to(7, 13), Resize::scene(7, 13), Resize { filter: Filter::Bilinear, ..Resize::to(7, 13) }] {
        assert_eq!(picture_to_levels(&image, &Picture::rgb(13, 7), &resize).unwrap(), image);
    }
}

#[test]
fn an_even_picture_keeps_its_level_at_every_size() {
    for level in [0, 1, 99, 254, 255] {
        for (w, h) in [(1, 1), (3, 50), (640, 11)] {
            for to in [[5, 7], [64, 64], [1, 1]] {
                let image = vec![level; 3 * w * h];
                for resize in [Resize::to(to[0], to[1]), Resize::scene(to[0], to[1])] {
                    let found = picture_to_levels(&image, &Picture::rgb(w, h), &resize).unwrap();
                    assert_eq!(found, vec![level; 3 * to[0] * to[1]], "{w}x{h} to {to:?}");
                }
            }
        }
    }
}

#[test]
fn truncation_drops_what_rounding_counts() {
    let halves = [0, 0, 0, 1, 1, 1]; // two pixels whose mean is 0.5
    let picture = Picture::rgb(2, 1);
    assert_eq!(picture_to_levels(&halves, &picture, &Resize::to(1, 1)).unwrap(), [0, 0, 0]);
    assert_eq!(rgb_resize(&halves, [1, 2], [1, 1]).unwrap(), [1, 1, 1]);
}

#[test]
fn subsampled_layouts_of_one_picture_give_one_result() {
    let (w, h) = (11, 6);
    let i420 = picture(Layout::I420, w, h);
    let (cw, ch) = (6, 3);
    let frame = bytes(i420.frame_bytes(), 5);
    let (y, chroma) = frame.split_at(w * h);
    let (u, v) = chroma.split_at(cw * ch);
    let nv12 = [y, &u.iter().zip(v).flat_map(|(u, v)| [*u, *v]).collect::<Vec<_>>()].concat();
    let rows = |plane: &[u8]| (0..h).flat_map(|r| plane[r / 2 * cw..][..cw].to_vec()).collect::<Vec<_>>();
    let i422 = [y, &rows(u), &rows(v)].concat();
    let resize = Resize::to(4, 5);
    let wanted = picture_to_levels(&frame, &i420, &resize).unwrap();
    for (layout, frame) in [(Layout::Nv12, nv12), (Layout::I422, i422)] {
        assert_eq!(picture_to_levels(&frame, &picture(layout, w, h), &resize).unwrap(), wanted, "{layout:?}");
    }
}

#[test]
fn ten_bits_of_one_picture_give_one_result_and_say_more_than_eight() {
    let (w, h) = (4, 2);
    let luma: Vec<u16> = (0..8).map(|i| 400 + i).collect();
    let ([u, v], mut found) = ([[300u16, 700], [900, 512]], Vec::new());
    let bytes = |samples: &[u16]| -> Vec<u8> { samples.iter().flat_map(|sample| sample.to_le_bytes()).collect() };
    let i010 = bytes(&[&luma[..], &u, &v].concat());
    // The six bits below the value do not count.
    let p010: Vec<u16> =
        [&luma[..], &[u[0], v[0], u[1], v[1]]].concat().iter().map(|value| value << 6 | 0b10_1010).collect();
    for (layout, frame) in [(Layout::I010, i010), (Layout::P010, bytes(&p010))] {
        found.push(picture_to_levels(&frame, &picture(layout, w, h), &Resize::to(h, w)).unwrap());
    }
    assert_eq!(found[0], found[1]);
    let black = bytes(&[[64; 8], [512; 8]].concat()[..12]);
    assert_eq!(picture_to_levels(&black, &picture(Layout::I010, w, h), &Resize::to(h, w)).unwrap(), [0; 24]);
    let green = |pixel: usize| f64::from(found[0][3 * pixel + 1]);
    let exact = |pixel: usize| {
        reference::pixel(&bytes(&[&luma[..], &u, &v].concat()), &picture(Layout::I010, w, h), pixel, 0)[1]
    };
    assert!(green(1) == exact(1) && green(3) == exact(3), "{found:?}");
}

#[test]
fn a_frame_does_not_depend_on_its_companions() {
    let picture = picture(Layout::Nv12, 19, 10);
    let frames = bytes(5 * picture.frame_bytes(), 6);
    let resize = Resize::to(7, 9);
    let together = picture_to_levels(&frames, &picture, &resize).unwrap();
    let alone = frames.chunks(picture.frame_bytes()).map(|frame| picture_to_levels(frame, &picture, &resize).unwrap());
    assert_eq!(together, alone.collect::<Vec<_>>().concat());
    assert_eq!(picture_to_levels(&[], &picture, &resize).unwrap(), Vec::<u8>::new());
}

#[test]
fn levels_and_tensors_hold_the_same_frames() {
    let device = Device::flex();
    for layout in LAYOUTS {
        let picture = picture(layout, 12, 9);
        let frames = bytes(3 * picture.frame_bytes(), 7);
        let resize = Resize::to(6, 8);
        let levels = picture_to_levels(&frames, &picture, &resize).unwrap();
        let clip = picture_to_rgb(&frames, &picture, &resize, &device).unwrap().swap_dims(0, 1).unsqueeze::<5>();
        assert_eq!(normalise(&levels, [3, 6, 8], &device).unwrap().into_data(), clip.clone().into_data(), "{layout:?}");
        assert_eq!(denormalise(clip), levels, "{layout:?}");
    }
}

#[test]
fn frames_are_constants_to_a_model_in_training() {
    let device = Device::flex().autodiff();
    let picture = Picture::rgb(2, 1);
    let frame = picture_to_rgb(&[255, 0, 255, 0, 255, 0], &picture, &Resize::to(1, 2), &device).unwrap();
    let scale = Tensor::<4>::ones([1, 3, 1, 2], &device).require_grad();
    let loss = (scale.clone() * frame).sum();
    let gradient = scale.grad(&loss.backward()).unwrap().into_data();
    assert_eq!(gradient.as_slice::<f32>().unwrap(), [1.0, -1.0, -1.0, 1.0, 1.0, -1.0]);
}

#[test]
fn values_outside_the_range_become_black_and_white() {
    let clip = Tensor::<1>::from_floats([-7.0, 7.0, f32::NAN], &Device::flex()).reshape([1, 3, 1, 1, 1]);
    assert_eq!(denormalise(clip), [0, 255, 0]);
}

#[test]
fn frames_that_do_not_fit_are_errors() {
    let check = |bytes: usize, width, height, to: [usize; 2], message: &str| {
        let picture = picture(Layout::I420, width, height);
        let found = picture_to_levels(&vec![0; bytes], &picture, &Resize::to(to[0], to[1])).expect_err(message);
        assert_eq!(found.to_string(), message);
    };
    check(5, 2, 2, [1, 1], "5 bytes are not a whole number of I420 frames of 2x2, which have 6 bytes");
    check(0, 0, 2, [1, 1], "pictures of 0x2 cannot become frames of 1x1; every side is 1 to 32768");
    check(6, 2, 2, [40000, 1], "pictures of 2x2 cannot become frames of 1x40000; every side is 1 to 32768");
    assert!(normalise(&[0; 12], [2, 2, 2], &Device::flex()).is_err());
}

/// What `ffmpeg` makes of raw frames; `None` where there is no such program.
fn ffmpeg(frame: &[u8], pixels: &str, picture: &Picture) -> Option<Vec<u8>> {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let matrix = match picture.matrix {
        Matrix::Bt601 => "bt601",
        Matrix::Bt709 => "bt709",
        Matrix::Bt2020 => "bt2020",
    };
    let range = if picture.range == Range::Full { "full" } else { "limited" };
    let size = format!("{}x{}", picture.width, picture.height);
    let scale = format!("scale=in_color_matrix={matrix}:in_range={range}");
    let mut child = Command::new("ffmpeg")
        .args(["-v", "error", "-f", "rawvideo", "-pix_fmt", pixels, "-s", &size, "-i", "-", "-vf", &scale])
        .args(["-f", "rawvideo", "-pix_fmt", "rgb24", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    child.stdin.take().expect("stdin is piped").write_all(frame).expect("ffmpeg reads its input");
    Some(child.wait_with_output().expect("ffmpeg ends").stdout)
}

/// Fails where ffmpeg is found and differs by more than two levels, or three of 10 bits, which it brings to 8 before it
/// converts. `false`: it is not found.
fn agrees_with_ffmpeg(frame: &[u8], pixels: &str, picture: &Picture) -> bool {
    let Some(wanted) = ffmpeg(frame, pixels, picture) else {
        eprintln!("skipped: no ffmpeg program");
        let required = std::env::var("VW2_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == "ffmpeg"), "VW2_REQUIRE asks for ffmpeg");
        return false;
    };
    let found = picture_to_levels(frame, picture, &Resize::to(picture.height, picture.width)).unwrap();
    assert_eq!(found.len(), wanted.len(), "{picture:?}");
    let worst = found.iter().zip(&wanted).map(|(a, b)| a.abs_diff(*b)).max();
    let most = if picture.layout.sample_bits() == 8 { 2 } else { 3 };
    assert!(worst <= Some(most), "{picture:?}: {worst:?} levels");
    true
}

#[test]
fn conversion_is_within_a_few_levels_of_ffmpeg() {
    let (width, height) = (64, 48);
    // Where chroma is subsampled, ffmpeg interpolates it but for I420 and I422: so for the others it is even.
    let layouts = [
        (Layout::I420, "yuv420p"),
        (Layout::I422, "yuv422p"),
        (Layout::I444, "yuv444p"),
        (Layout::Nv12, "nv12"),
        (Layout::I010, "yuv420p10le"),
        (Layout::P010, "p010le"),
    ];
    for (layout, pixels) in layouts {
        for matrix in [Matrix::Bt601, Matrix::Bt709, Matrix::Bt2020] {
            for range in [Range::Limited, Range::Full] {
                let picture = Picture { layout, matrix, range, width, height };
                let mut frame = bytes(picture.frame_bytes(), 11);
                if layout == Layout::I444 {
                    // Far outside of the colours that exist, ffmpeg's own sums overflow on this way.
                    frame.iter_mut().for_each(|byte| *byte = 16 + *byte % 220);
                }
                let luma = width * height * layout.sample_bytes();
                match layout {
                    Layout::Nv12 => frame[luma..].as_chunks_mut().0.fill([90, 150]),
                    Layout::I010 | Layout::P010 => {
                        let bits = layout.unused_bits().unwrap();
                        let deep = |level: u16| (level << bits).to_le_bytes();
                        frame.as_chunks_mut().0.iter_mut().for_each(|two| *two = deep(u16::from_le_bytes(*two) % 1024));
                        let (chroma, _) = frame[luma..].as_chunks_mut();
                        let half = chroma.len() / 2;
                        for (i, sample) in chroma.iter_mut().enumerate() {
                            let is_red = if layout.is_paired() { i % 2 == 1 } else { i >= half };
                            *sample = deep(if is_red { 603 } else { 361 });
                        }
                    }
                    Layout::I420 | Layout::I422 | Layout::I444 | Layout::Rgb => {}
                }
                if !agrees_with_ffmpeg(&frame, pixels, &picture) {
                    return;
                }
            }
        }
    }
}
