use std::collections::BTreeMap;

use image::{DynamicImage, ImageFormat, RgbaImage};
use vw2_pickle::Dtype;
use vw2_pickle::write::Pickle;

use super::*;
use crate::media::{VideoReader, probe};
use crate::test_support::{python, shared_data};

/// What stands in the place of a step's picture.
enum Step {
    Picture(Vec<u8>),
    Array(&'static [usize], Vec<u8>),
    Nothing,
    Number,
}

/// An episode in the step layout, with the list under `steps` and the pictures under `picture`.
fn episode(steps: &str, picture: &str, all: &[Step]) -> Vec<u8> {
    let mut pickle = Pickle::new();
    pickle.dict(&[()], |pickle, ()| {
        pickle.text(steps);
        pickle.list(all, |pickle, step| {
            pickle.dict(&[()], |pickle, ()| {
                pickle.text("observation");
                let entries = if matches!(step, Step::Nothing) { 0 } else { 1 };
                pickle.dict(&vec![(); entries], |pickle, ()| {
                    pickle.text(picture);
                    match step {
                        Step::Picture(bytes) => pickle.bytes(bytes),
                        Step::Array(shape, bytes) => pickle.array(Dtype::U8, shape, bytes),
                        Step::Number => pickle.int(3),
                        Step::Nothing => unreachable!("it has no entry"),
                    }
                });
            });
        });
    });
    pickle.stop()
}

/// A picture of one colour, red more than green more than blue.
fn encoded(format: ImageFormat, red: u8) -> Vec<u8> {
    let pixels = RgbaImage::from_pixel(16, 8, image::Rgba([red, red / 2, 5, 200]));
    let picture = DynamicImage::ImageRgba8(pixels);
    let picture = if format == ImageFormat::Png { picture } else { picture.to_rgb8().into() };
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn open(bytes: &[u8]) -> Result<VideoReader, MediaError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("episode.pickle");
    std::fs::write(&path, bytes).unwrap();
    let info = probe(&path)?;
    let reader = VideoReader::open(&path)?;
    assert_eq!(reader.info(), &info);
    std::mem::forget(folder); // the reader looks whether its file is still there
    Ok(reader)
}

/// The first pixel of each wanted frame.
fn colours(reader: &mut VideoReader, wanted: &[u32]) -> BTreeMap<u32, [u8; 3]> {
    let mut colours = BTreeMap::new();
    let mut sink = |frame, picture: &Picture| {
        assert_eq!(picture.format, PixelFormat::Rgb);
        colours.insert(frame, *picture.planes[0].data.first_chunk().unwrap());
        Ok(())
    };
    reader.read(wanted, &mut sink).unwrap();
    colours
}

#[test]
fn steps_are_frames_in_their_order_whatever_their_pictures_are() {
    for (steps, picture) in [("steps", "image"), ("step", "agentview_rgb"), ("steps", "rgb_static")] {
        let all = [
            Step::Picture(encoded(ImageFormat::Png, 40)),
            Step::Picture(encoded(ImageFormat::Jpeg, 80)),
            Step::Picture(encoded(ImageFormat::WebP, 120)),
            Step::Array(&[1, 2, 3], vec![160, 80, 5, 0, 0, 0]),
            Step::Array(&[1, 1], vec![200]),
        ];
        let mut reader = open(&episode(steps, picture, &all)).unwrap();
        let info = reader.info().clone();
        assert_eq!((info.container.as_str(), info.codec.as_str(), info.decoder.as_str()), ("pickle", "png", "image"));
        assert_eq!((info.frames, info.width, info.height, info.fps(), info.bad_frames), (5, 16, 8, 24.0, 0));
        let seen = colours(&mut reader, &[4, 0, 1, 2, 3, 1]);
        for (frame, wanted) in [[40, 20, 5], [80, 40, 5], [120, 60, 5], [160, 80, 5], [200; 3]].into_iter().enumerate()
        {
            let found = seen[&(frame as u32)];
            // JPEG is not exact.
            assert!(found.iter().zip(wanted).all(|(a, b): (&u8, u8)| a.abs_diff(b) < 4), "{frame}: {found:?}");
        }
    }
}

#[test]
fn a_bad_frame_is_left_out_and_counted_and_one_in_ten_is_too_many() {
    let broken = || {
        let whole = encoded(ImageFormat::Jpeg, 90);
        Step::Picture(whole[..whole.len() - 20].to_vec())
    };
    type Made = fn() -> Step;
    let kinds: [(Made, &str); 4] = [
        (|| Step::Nothing, "its observation has none of image, rgb,"),
        (|| Step::Number, "`image` is an integer"),
        (|| Step::Picture(b"no picture".to_vec()), "no PNG, JPEG or WebP"),
        (|| Step::Array(&[3, 8, 8], vec![0; 192]), "8 channels of 3 x 8"),
    ];
    let red = |index: usize| Step::Picture(encoded(ImageFormat::Png, 10 * index as u8));
    for (bad, told) in kinds
        .iter()
        .map(|(bad, told)| (bad as &dyn Fn() -> Step, *told))
        .chain([(&broken as &dyn Fn() -> Step, "the JPEG picture ends too early")])
    {
        // One of twenty.
        let all: Vec<Step> = (0..20).map(|index| if index == 3 { bad() } else { red(index) }).collect();
        let mut reader = open(&episode("steps", "image", &all)).unwrap();
        assert_eq!((reader.info().frames, reader.info().bad_frames), (19, 1), "{told}");
        let seen = colours(&mut reader, &[2, 3, 18]);
        assert_eq!([2, 3, 18].map(|frame| seen[&frame][0]), [20, 40, 190], "frames behind it move up");
        // Three of twenty; two would be as many as may be.
        let all: Vec<Step> = (0..20).map(|index| if index % 9 == 1 { bad() } else { red(index) }).collect();
        let error = open(&episode("steps", "image", &all)).err().unwrap();
        let text = error.reason();
        assert!(text.starts_with("3 of 20 frames are bad, the first in step 1: ") && text.contains(told), "{text}");
        assert!(text.ends_with("at most one in 10 may be left out") && !error.is_transient(), "{text}");
    }
}

#[test]
fn what_is_no_episode_is_told() {
    let pickled = |write: &dyn Fn(&mut Pickle)| {
        let mut pickle = Pickle::new();
        write(&mut pickle);
        pickle.stop()
    };
    let entry = |key: &'static str, value: &'static dyn Fn(&mut Pickle)| {
        pickled(&|pickle: &mut Pickle| {
            pickle.dict(&[()], |pickle, ()| {
                pickle.text(key);
                value(pickle);
            });
        })
    };
    for (bytes, told) in [
        (pickled(&|pickle| pickle.int(3)), "an episode is a dictionary, but this is an integer"),
        (episode("steps", "image", &[]), "the episode has no steps"),
        (entry("frames", &|pickle| pickle.int(1)), "neither `steps` nor `obs_images` is in this pickle, but `frames`"),
        (entry("steps", &|pickle| pickle.int(1)), "`steps` is an integer, but a list is wanted"),
        (entry("obs_images", &|pickle| pickle.int(1)), "`obs_images` is an integer, but a tensor or an array"),
        (entry("obs_images", &|pickle| pickle.array(Dtype::U8, &[2, 2], &[0; 4])), "shape [2, 2], but [T, C, H, W]"),
        (entry("obs_images", &|pickle| pickle.tensor("0", Dtype::U8, &[1, 3, 2, 2])), "has no bytes in the file"),
        (b"\x80\x02cos\nsystem\n(X\x04\0\0\0truetR.".to_vec(), "no pickle of an episode: byte 2: `os.system`"),
        (b"\x80\x04\x95".to_vec(), "no pickle of an episode: byte "),
    ] {
        let error = open(&bytes).err().unwrap();
        assert!(error.reason().contains(told) && !error.is_transient(), "wanted `{told}`: {error}");
    }
}

#[test]
fn a_stack_of_pictures_is_read_by_the_index() {
    // Three frames of [3, 1, 2]: frame t has red 10 t, green 10 t + 1, blue 10 t + 2.
    let bytes: Vec<u8> = (0..3u8).flat_map(|t| (0..3).flat_map(move |channel| [10 * t + channel; 2])).collect();
    let mut pickle = Pickle::new();
    pickle.dict(&[()], |pickle, ()| {
        pickle.text("obs_images");
        pickle.array(Dtype::U8, &[3, 3, 1, 2], &bytes);
    });
    let mut reader = open(&pickle.stop()).unwrap();
    assert_eq!((reader.info().frames, reader.info().codec.as_str()), (3, "raw"));
    let seen = colours(&mut reader, &[2, 0]);
    assert_eq!(seen, BTreeMap::from([(0, [0, 1, 2]), (2, [20, 21, 22])]));
}

/// Tensors as torch pickles them, also turned and as shares of 1.
#[test]
fn a_stack_in_a_tensor_of_torch_is_read() {
    let program = "import sys, torch, pickle\n\
                   t = torch.arange(2 * 4 * 5 * 3).reshape(2, 4, 5, 3).permute(0, 3, 1, 2)\n\
                   for name, images in [('u8', t.to(torch.uint8)), ('f32', t / 255.), ('f64', t.double())]:\n\
                   \x20   with open(f'{sys.argv[1]}/{name}.pickle', 'wb') as file:\n\
                   \x20       pickle.dump({'obs_images': images, 'action': [1.0]}, file)\n";
    let folder = tempfile::tempdir().unwrap();
    if python(&["torch"], program, folder.path()).is_none() {
        return;
    }
    for name in ["u8", "f32", "f64"] {
        let mut reader = VideoReader::open(&folder.path().join(format!("{name}.pickle"))).unwrap();
        assert_eq!((reader.info().frames, reader.info().width, reader.info().height), (2, 5, 4));
        let mut sink = |frame: u32, picture: &Picture| {
            let wanted: Vec<u8> = (0..60).map(|place| 60 * frame as u8 + place).collect();
            // A share of 255 in f32 may fall below its level.
            let near = picture.planes[0].data.iter().zip(&wanted).all(|(a, b)| b - a <= u8::from(name == "f32"));
            assert!(near, "{name}, frame {frame}: {:?}", picture.planes[0].data);
            Ok(())
        };
        reader.read(&[0, 1], &mut sink).unwrap();
    }
}

/// Episodes of several protocols, with JPEG bytes and raw arrays.
#[test]
fn published_layouts_are_read() {
    let Some(folder) = shared_data() else { return };
    let mut count = 0;
    for entry in std::fs::read_dir(folder.join("openx_style_pickles")).unwrap() {
        let path = entry.unwrap().path();
        let mut reader = VideoReader::open(&path).unwrap_or_else(|error| panic!("{error}"));
        let info = reader.info().clone();
        let codec = if path.to_string_lossy().contains("raw") { "raw" } else { "jpeg" };
        assert_eq!((info.frames, info.width, info.height, info.bad_frames), (33, 96, 96, 0), "{path:?}");
        assert_eq!(info.codec, codec, "{path:?}");
        // PushT's goal is green, its block gray: no picture is blue.
        let mut sink = |_, picture: &Picture| {
            let sum = |channel: usize| picture.planes[0].data[channel..].iter().step_by(3).map(|&v| u64::from(v)).sum();
            let [red, green, blue]: [u64; 3] = [0, 1, 2].map(sum);
            assert!(green > red && green > blue, "{red} {green} {blue}");
            Ok(())
        };
        reader.read(&(0..33).collect::<Vec<_>>(), &mut sink).unwrap();
        count += 1;
    }
    assert!(count >= 6, "{count} episodes");
}
