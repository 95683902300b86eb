use super::*;

fn slicer(frames: u32, sampling: Sampling, tail: Tail) -> Slicer {
    let stage =
        Slice { frames, sampling, stride: None, tail, layout: Layout::Videos, annotations: None, of: BTreeMap::new() };
    Slicer { stage, annotations: Vec::new() }
}

fn stage(toml: &str) -> Result<Slice, String> {
    let stage: Slice = toml::from_str(toml).map_err(|error| error.to_string())?;
    Stage::check(&stage).map(|()| stage)
}

#[test]
fn consecutive_clips_share_their_boundary_frame() {
    let clips = slicer(17, Sampling::Every(1), Tail::Drop).clips("v", 33, 10.0).unwrap();
    assert_eq!(clips.len(), 2);
    assert_eq!(clips[0].frames, (0..17).collect::<Vec<_>>());
    assert_eq!(clips[1].frames, (16..33).collect::<Vec<_>>());
    assert_eq!(clips[1].origin, Origin { index: 1, fps: 10.0, task: None });
}

#[test]
fn clip_counts_by_length() {
    for (length, tail, want) in [
        (16, Tail::Drop, 0),
        (17, Tail::Drop, 1),
        (32, Tail::Drop, 1),
        (33, Tail::Drop, 2),
        (1, Tail::Pad, 1),
        (17, Tail::Pad, 1), // upstream would add a clip of repeated frames here (spec 10.1, Q21)
        (18, Tail::Pad, 2),
        (33, Tail::Pad, 2),
    ] {
        let clips = slicer(17, Sampling::Every(1), tail).clips("v", length, 10.0).unwrap_or_default();
        assert_eq!(clips.len(), want, "{length} frames");
        assert!(clips.iter().all(|clip| clip.frames.len() == 17 && clip.frames.iter().all(|&f| f < length)));
    }
}

#[test]
fn sampling_takes_every_nth_frame_or_a_clock_or_the_whole_video() {
    let every = slicer(5, Sampling::Every(3), Tail::Drop).clips("v", 13, 30.0).unwrap();
    assert_eq!((every[0].frames.as_slice(), every[0].origin.fps), ([0, 3, 6, 9, 12].as_slice(), 10.0));
    let clock = slicer(5, Sampling::Fps(8.0), Tail::Drop).clips("v", 20, 16.0).unwrap();
    assert_eq!((clock[0].frames.as_slice(), clock[0].origin.fps), ([0, 2, 4, 6, 8].as_slice(), 8.0));
    let whole = slicer(5, Sampling::Uniform(true), Tail::Drop).clips("v", 10, 10.0).unwrap();
    assert_eq!(whole.len(), 1);
    assert_eq!(whole[0].frames, [0, 2, 4, 6, 9]); // trunc(linspace(0, 9, 5)) = 0, 2.25, 4.5, 6.75, 9
}

#[test]
fn pre_cut_clips_are_named_by_video_and_number() {
    let stage = stage("frames = 17\nlayout = \"clips\"").unwrap();
    let id = |unit| Stage::row_id(&stage, unit, "0");
    assert_eq!(id("blocks/horse_0_12.mp4"), "blocks/horse_0#12");
    assert_eq!(id("blocks/horse.mp4"), "blocks/horse.mp4#0");
}

#[test]
fn params_that_make_no_sense_are_named() {
    for (toml, want) in [
        ("frames = 16", "1 + 4k"),
        ("frames = 17\nstride = 0", "stride"),
        ("frames = 17\nsampling = { every = 0 }", "sampling.every"),
        ("frames = 17\nsampling = { fps = -1.0 }", "sampling.fps"),
        ("frames = 17\nsampling = { uniform = false }", "uniform"),
        ("frames = 17\nlenght = 3", "lenght"),
        ("frames = 17\nof.craft = { stride = 0 }", "`of.craft`: `stride` is 0"),
        ("frames = 17\nof.craft = { frames = 5 }", "frames"),
    ] {
        let error = stage(toml).err().unwrap_or_default();
        assert!(error.contains(want), "{toml}: {error:?}");
    }
}

#[test]
fn a_sub_dataset_is_cut_by_its_own_rule() {
    let stage = stage(
        "frames = 5\nstride = 1\n[of.craft]\nsampling = { uniform = true }\nlayout = \"clips\"\n\
         [of.slow]\nsampling = { every = 2 }\nstride = 100\ntail = \"pad\"",
    );
    let stage = stage.unwrap();
    assert!(Stage::named(&stage), "two sub-datasets may have equal videos");
    assert_eq!(Stage::row_id(&stage, "craft/boat_0_7.mp4", "0"), "craft/boat_0#7");
    assert_eq!(Stage::row_id(&stage, "bridge/a_0_7.pickle", "2"), "bridge/a_0_7.pickle#2");
    let slicer = Slicer { stage, annotations: Vec::new() };
    let frames = |video: &str, count: u32| -> Vec<Vec<u32>> {
        slicer.clips(video, count, 10.0).unwrap().into_iter().map(|clip| clip.frames).collect()
    };
    assert_eq!(frames("bridge/1.pickle", 7), [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [2, 3, 4, 5, 6]]);
    assert_eq!(frames("craft/boat_0_7.mp4", 17), [[0, 4, 8, 12, 16]]);
    // As upstream's mixed data set reads videos: every second frame from the start, the last one repeated.
    assert_eq!(frames("slow/a.mp4", 6), [[0, 2, 4, 4, 4]]);
}

#[test]
fn annotated_parts_are_cut_each_by_itself_and_carry_their_task() {
    let line = br#"{"video": "v", "task": "fold", "key_frames": [0, 8, 20]}"#;
    let annotations = annotations::parse(line, "a.jsonl").unwrap();
    let slicer = Slicer { annotations, ..slicer(5, Sampling::Every(1), Tail::Drop) };
    let clips = slicer.clips("v", 40, 10.0).unwrap();
    let starts: Vec<u32> = clips.iter().map(|clip| clip.frames[0]).collect();
    assert_eq!(starts, [0, 4, 8, 12, 16]);
    assert!(clips.iter().zip(0..).all(|(clip, index)| clip.origin.index == index));
    assert!(clips.iter().all(|clip| clip.origin.task.as_deref() == Some("fold")));
    assert_eq!(slicer.clips("other", 9, 10.0).unwrap()[0].origin.task, None);
    let beyond = slicer.clips("v", 10, 10.0).unwrap_err();
    assert!(beyond.contains("frame 20") && beyond.contains("10 frames"), "{beyond}");
}
