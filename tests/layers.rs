//! Who may depend on whom, held against the Cargo.toml files. A new arrow is a decision for the README first.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::repository;

/// The arrows between our crates. The root package, with the program and these tests, may use every crate.
const ARROWS: &[(&str, &[&str])] = &[
    ("vw2-engine", &[]),
    ("vw2-pickle", &[]),
    ("vw2-data", &["vw2-pickle"]),
    ("vw2-hollow-cuda", &[]),
    ("vw2-kernels", &["vw2-hollow-cuda"]),
    ("vw2-models", &["vw2-kernels", "vw2-pickle"]),
    ("vw2-stages", &["vw2-engine", "vw2-data", "vw2-kernels", "vw2-models"]),
    ("vw2-pipe", &["vw2-engine", "vw2-pickle", "vw2-data", "vw2-kernels", "vw2-models", "vw2-stages"]),
];

/// Crates of others that only some of ours may name, and why.
const KEPT_APART: &[(&[&str], &[&str], &str)] = &[
    (
        &["timely", "differential-dataflow"],
        &["vw2-engine"],
        "their API changes with each release; only the engine follows",
    ),
    (&["rusqlite"], &["vw2-engine", "vw2-pipe"], "the store is the engine's; the tests look into it"),
    (&["cubecl", "burn-cubecl", "cudarc"], &["vw2-kernels"], "only kernels know that several backends exist"),
    (
        &["libloading"],
        &["vw2-kernels", "vw2-hollow-cuda"],
        "tests alone open what may not be there, and what they built",
    ),
    (&["burn"], &["vw2-kernels", "vw2-models", "vw2-stages"], "engine and data know no tensor"),
    (&["re_mp4", "rust_h264", "openh264", "muxide"], &["vw2-data"], "only data knows a video format"),
];

/// The sections of a manifest that name dependencies.
const SECTIONS: &[&str] = &["dependencies", "dev-dependencies", "build-dependencies"];

/// Package name to its manifest, of every Cargo.toml in the repository but those of other workspaces. `fuzz` is built by
/// another toolchain, so it can take nothing from the root, and the product nothing from it; `cubecl-llvm` stands in for a
/// crate of others.
fn manifests() -> BTreeMap<String, Table> {
    let apart = ["fuzz", "kernels/cubecl-llvm"];
    let files = repository::files().into_iter().filter(|file| !apart.iter().any(|folder| file.starts_with(folder)));
    let manifests = files.filter(|file| file.ends_with("Cargo.toml"));
    manifests
        .map(|file| {
            let manifest: Table = repository::read(&file).parse().unwrap();
            let name = manifest["package"]["name"].as_str().unwrap().to_owned();
            (name, manifest)
        })
        .collect()
}

/// (section, name, how it is given) of every dependency.
fn dependencies(manifest: &Table) -> Vec<(&'static str, &str, &Value)> {
    let entries = |section: &'static str| {
        let table = manifest.get(section).and_then(Value::as_table);
        table.into_iter().flatten().map(move |(name, how)| (section, name.as_str(), how))
    };
    SECTIONS.iter().copied().flat_map(entries).collect()
}

/// Faults of one manifest, as sentences.
fn faults(package: &str, manifest: &Table) -> Vec<String> {
    let mut faults = Vec::new();
    let Some((_, arrows)) = ARROWS.iter().find(|(name, _)| *name == package) else {
        return vec![format!("package `{package}` is new: say in layers.rs and the README whom it may depend on")];
    };
    for (section, name, how) in dependencies(manifest) {
        if name.starts_with("vw2-") && !arrows.contains(&name) {
            faults.push(format!("{package}: [{section}] has a new arrow to `{name}`"));
        }
        for (crates, users, reason) in KEPT_APART {
            if crates.contains(&name) && !users.contains(&package) {
                faults.push(format!("{package}: [{section}] names `{name}`, but {reason}"));
            }
        }
        if how.get("workspace").and_then(Value::as_bool) != Some(true) {
            faults.push(format!("{package}: [{section}] `{name}` states its own version; versions stand in the root"));
        }
    }
    let inherits = manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(Value::as_bool);
    if inherits != Some(true) {
        faults.push(format!("{package}: wants `[lints] workspace = true`"));
    }
    faults
}

#[test]
fn no_crate_depends_on_one_that_it_may_not() {
    let manifests = manifests();
    for (package, _) in ARROWS {
        assert!(manifests.contains_key(*package), "layers.rs lists `{package}`, which is not there");
    }
    let faults: Vec<String> = manifests.iter().flat_map(|(package, manifest)| faults(package, manifest)).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn a_forbidden_arrow_is_seen() {
    let cases = [
        ("vw2-engine", "dependencies", "vw2-data = { workspace = true }", "new arrow to `vw2-data`"),
        ("vw2-pickle", "dependencies", "vw2-data = { workspace = true }", "new arrow to `vw2-data`"),
        ("vw2-data", "dev-dependencies", "vw2-kernels = { workspace = true }", "new arrow to `vw2-kernels`"),
        ("vw2-stages", "dependencies", "timely = { workspace = true }", "names `timely`"),
        ("vw2-models", "build-dependencies", "cubecl = { workspace = true }", "names `cubecl`"),
        ("vw2-data", "dependencies", "serde = \"1\"", "states its own version"),
        ("vw2-new", "dependencies", "", "`vw2-new` is new"),
    ];
    for (package, section, line, wanted) in cases {
        let manifest = format!("[{section}]\n{line}\n[lints]\nworkspace = true\n").parse().unwrap();
        let faults = faults(package, &manifest);
        assert!(faults.len() == 1 && faults[0].contains(wanted), "{package} with {line}: {faults:?}");
    }
}

#[test]
fn unsafe_stands_only_where_it_is_allowed() {
    // Kernel launches, the decoder shim, and the engine's bytes of an Arrow batch on a timely edge.
    let allowed = ["kernels/", "data/src/media", "engine/src/batch"];
    let word = ["un", "safe"].concat();
    for file in repository::with_extension("rs") {
        let name = file.to_str().unwrap();
        let code = repository::read(&file);
        let mut lines = code.lines().map(|line| line.split("//").next().unwrap());
        let uses = lines.any(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == word));
        assert!(!uses || allowed.iter().any(|folder| name.starts_with(folder)), "{name} has {word} code");
    }
    for root in ["pipelines/src/main.rs", "stages/src/lib.rs", "stages/models/src/lib.rs", "tests/main.rs"] {
        assert!(
            repository::read(root).contains("#![forbid(unsafe_code)]"),
            "{root} wants the attribute that forbids {word}"
        );
    }
}
