use super::*;

#[test]
fn an_id_splits_into_video_and_clip() {
    assert_eq!(split_id("a/b.mp4#12"), ("a/b.mp4", 12));
    assert_eq!(split_id("odd#name.mp4#0"), ("odd#name.mp4", 0));
    assert_eq!(split_id("alone"), ("alone", 0));
}

#[test]
fn a_video_goes_by_its_path_without_extension() {
    for (path, name) in [
        ("a/boat_3.mp4", "a/boat_3"),
        ("bridge/x.data.pickle", "bridge/x.data"),
        ("boat_v1.2", "boat_v1.2"),
        ("a.b/c", "a.b/c"),
        (".mp4", ".mp4"),
        ("a/.mp4", "a/.mp4"),
        ("a.", "a."),
    ] {
        assert_eq!(video_name(path), name);
    }
}

#[test]
fn clips_of_a_video_stand_together_in_their_order() {
    let row = |video: &str, clip: u32| CodeRow {
        id: format!("{video}#{clip}"),
        video: video.into(),
        clip,
        codes: vec![clip as u16],
        levels: vec![8],
        queries: 1,
        model: String::new(),
        fps: 1.0,
        task: None,
    };
    let videos = by_video(&[row("b.mp4", 10), row("a.mp4", 0), row("b.mp4", 9)]);
    let wanted = [("a", vec![vec![0]]), ("b", vec![vec![9], vec![10]])];
    assert_eq!(videos, wanted.map(|(name, clips)| VideoCodes { name: name.into(), clips }));
}

#[test]
fn only_parquet_is_sharded() {
    let stage = |text: &str| toml::from_str::<Export>(text).expect("a valid stage");
    assert_eq!(Stage::shards(&stage("path = \"out\"")), Some(16));
    for format in ["latent-code-infos", "videocraft-codes"] {
        let text = format!("path = \"out\"\nformat = \"{format}\"");
        assert_eq!(Stage::shards(&stage(&text)), None);
    }
    assert!(Stage::check(&stage("path = \"out\"\nshards = 0")).is_err());
}
