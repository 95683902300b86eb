use super::*;

#[test]
fn a_scene_is_its_path_without_extension() {
    for (path, name) in [("a.png", "a"), ("in/b.c.jpg", "in/b.c"), ("plain", "plain"), ("in.d/plain", "in.d/plain")] {
        assert_eq!(scene_name(path), name);
    }
}

#[test]
fn params_that_make_no_sense_say_so() {
    let error = |text: &str| {
        let toml = format!("size = [64, 64]\npath = \"out\"\n{text}");
        toml::from_str::<Rollout>(&toml).unwrap().check().unwrap_err()
    };
    assert!(error("").contains("`clips` is missing"));
    assert!(error("clips = 0").contains("at least 1"));
    assert!(error("clips = 1\nrollouts = 0").contains("`rollouts` is at least 1"));
    assert!(error("rollouts = 2\ncodes = \"a.parquet\"").contains("`rollouts`"));
    assert!(error("clips = 1\ndldm_size = [64, 20]").contains("`dldm_size` has 20"));
    assert!(error("clips = 1\ndiffusion = { steps = 0 }").contains("`diffusion.steps` is 0"));
    assert!(error("clips = 1\ndiffusion = { sigma_max = 0.001 }").contains("wants to fall"));
}
