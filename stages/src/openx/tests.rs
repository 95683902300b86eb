use super::*;

fn stage(text: &str) -> OpenX {
    toml::from_str(text).unwrap()
}

#[test]
fn params_that_make_no_sense_are_told() {
    for (text, told) in [
        ("", "none of `root`, `with` and `cache`"),
        ("root = \"a\"\ncache = \"b\"", "`root` and `cache` both"),
        ("with = { \"a/b\" = \"c\" }", "the sub-dataset `a/b`"),
        ("root = \"a\"\nfps = 0", "`fps` is 0"),
    ] {
        let error = Stage::check(&stage(text)).unwrap_err();
        assert!(error.contains(told), "wanted `{told}`: {error}");
    }
    assert_eq!(Stage::check(&stage("with = { craft = \"c\" }")), Ok(()));
}
