use super::*;

#[test]
fn an_id_splits_into_video_and_clip() {
    assert_eq!(split_id("a/b.mp4#12"), ("a/b.mp4", 12));
    assert_eq!(split_id("odd#name.mp4#0"), ("odd#name.mp4", 0));
    assert_eq!(split_id("alone"), ("alone", 0));
}

#[test]
fn only_parquet_is_sharded() {
    let stage = |text| toml::from_str::<Export>(text).expect("a valid stage");
    assert_eq!(Stage::shards(&stage("path = \"out\"")), Some(16));
    assert_eq!(Stage::shards(&stage("path = \"out\"\nformat = \"latent-code-infos\"")), None);
    assert!(Stage::check(&stage("path = \"out\"\nshards = 0")).is_err());
}
