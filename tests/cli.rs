//! What a person reads and a script relies on: help, messages, exit codes, the one JSON object.

use super::project::{PIPELINE, Project, finished};

/// What the program says on stderr, without what differs from place to place.
fn told(project: &Project, arguments: &[&str]) -> String {
    let finished = project.vw2(arguments);
    assert_eq!(finished.stdout, "", "errors are talk: {finished:#?}");
    format!("exit {}\n{}", finished.code, finished.stderr)
}

#[test]
fn every_command_helps_with_examples() {
    let project = Project::new();
    let commands = ["", "run", "plan", "stages", "devices", "status", "quarantine", "gc", "verify", "convert"];
    let commands = commands.into_iter().chain(["show", "show clip", "show code", "show weights"]);
    for command in commands {
        let arguments: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let help = project.vw2(&arguments);
        assert_eq!((help.code, help.stderr.as_str()), (0, ""), "{arguments:?}");
        for wanted in ["Examples:\n  vw2-pipe ", "Usage: vw2-pipe"] {
            assert!(help.stdout.contains(wanted), "{arguments:?} lacks `{wanted}`: {}", help.stdout);
        }
    }
    let version = project.vw2(&["--version"]);
    assert_eq!(version.stdout, format!("vw2-pipe {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_options_of_run() {
    insta::assert_snapshot!(Project::new().vw2(&["run", "--help"]).stdout);
}

#[test]
fn all_faults_of_a_pipeline_are_told_at_once_each_with_its_place() {
    let project = Project::with_clips(0);
    project.edit("frames = 17", "frames = 18\nlenght = 3");
    project.edit("kind = \"extract\"", "kind = \"extrakt\"");
    project.edit("size = [64, 64]\nstore", "size = \"64\"\nstore");
    project.edit("input = \"codes\"\npreset", "input = \"clips\"\npreset");
    insta::assert_snapshot!(told(&project, &["plan", PIPELINE]));
}

#[test]
fn wrong_words_on_the_command_line() {
    let project = Project::with_clips(0);
    let cases: &[(&[&str], &str)] = &[
        (&["run"], "<FILE>"),
        (&["run", "none.toml"], "none.toml"),
        (&["run", PIPELINE, "--set", "params.stepz=3"], "did you mean `steps`"),
        (&["run", PIPELINE, "--set", "runtime.memory=lots"], "lots"),
        (&["run", PIPELINE, "--only", "code"], "did you mean `codes`"),
        (&["run", PIPELINE, "--limit", "0"], "wants a whole number from 1 on"),
        (&["run", PIPELINE, "--device", "abacus"], "abacus"),
        (&["run", PIPELINE, "--device", "cpu,abacus"], "abacus"),
        (&["stages", "slize"], "slice"),
        (&["status"], "no store at `.vw2`"),
        (&["gc"], "no store at `.vw2`"),
        (&["gc", "--dry-run"], "no store at `.vw2`"),
        (&["verify", "--repair"], "no store at `.vw2`"),
        (&["quarantine", "--retry"], "no store at `.vw2`"),
        (&["show", "code", "a"], "no store at `.vw2`"),
        (&["frobnicate"], "unrecognized subcommand"),
    ];
    for (arguments, wanted) in cases {
        let told = told(&project, arguments);
        assert!(told.starts_with("exit 2\n") && told.contains(wanted), "{arguments:?} lacks `{wanted}`: {told}");
    }
}

#[test]
fn missing_weights_are_all_named_before_anything_runs() {
    let project = Project::with_clips(1);
    let shipped = |name: &str| format!("weights = \"{}\"", super::project::weights(name).display());
    project.edit(&shipped("vae-tiny"), "weights = \"weights/vae.pth\"");
    project.edit(&shipped("dldm-tiny"), "weights = \"weights/dldm.pt\"");
    insta::assert_snapshot!(told(&project, &["run", PIPELINE]));
    assert!(!project.path(".vw2").exists(), "a run that cannot start makes no store");
    // A plan needs no weights, and says which are not there.
    let plan = project.vw2(&["plan", PIPELINE]);
    assert_eq!(plan.code, 0, "{plan:#?}");
    assert!(plan.stderr.contains("`weights/vae.pth`, for stage `latents`; put it there"), "{plan:#?}");
}

#[test]
fn stdout_holds_one_json_object_and_nothing_else() {
    let project = Project::with_clips(1);
    let arguments = ["run", PIPELINE, "--only", "clips", "--json"];
    for executed in [1, 0] {
        let finished = project.vw2(&arguments);
        assert_eq!(finished.code, 0, "{finished:#?}");
        assert_eq!(finished.stdout.trim_end().lines().count(), 1, "{finished:#?}");
        let report = finished.json();
        assert_eq!((&report["pipeline"], &report["outcome"]), (&"toy".into(), &"done".into()));
        let stages: Vec<&String> = report["stages"].as_object().unwrap().keys().collect();
        assert_eq!(stages, ["videos", "clips"], "{report:#}");
        for key in ["executed", "reused", "added", "retracted", "quarantined", "seconds"] {
            assert!(report["stages"]["clips"][key].is_number(), "no `{key}` in {report:#}");
        }
        assert_eq!(report["stages"]["clips"]["executed"], executed);
        assert!(report["outputs"].is_object() && report["seconds"].is_number(), "{report:#}");
    }
    // Without the option, the same is a table for people.
    let told = project.vw2(&["run", PIPELINE, "--only", "clips"]);
    assert!(told.stdout.contains("clips") && told.stdout.contains("executed"), "{told:#?}");
}

#[test]
fn a_weights_file_is_shown_with_the_model_that_it_fits() {
    let project = Project::new();
    for (name, model, parameters) in [("vae-tiny", "VAE", 668_043), ("dldm-tiny", "dLDM", 2_693_664)] {
        let path = super::project::weights(name);
        let path = path.to_str().unwrap();
        let shown = project.vw2(&["show", "weights", path]);
        let fits = format!("fit the {model} in the configuration of its metadata\n");
        assert!(shown.code == 0 && shown.stdout.ends_with(&fits), "{shown:#?}");
        let json = project.vw2(&["show", "weights", path, "--json"]).json();
        assert_eq!(json["totals"]["parameters"], parameters, "{name}");
        assert_eq!((&json["models"][0]["model"], &json["models"][0]["fits"]), (&model.into(), &true.into()));
        let all = project.vw2(&["show", "weights", path, "--all"]).stdout;
        let tensors = json["tensors"].as_array().unwrap();
        assert!(
            tensors.iter().all(|tensor| all.contains(&format!("\n{} ", tensor["name"].as_str().unwrap()))),
            "{all}"
        );
    }
    let vae = project.vw2(&["show", "weights", super::project::weights("vae-tiny").to_str().unwrap()]).stdout;
    let (table, _) = vae.split_once("\nmetadata").unwrap();
    insta::assert_snapshot!(table.split_once('\n').unwrap().1);
}

#[test]
fn weights_convert_to_another_type_and_back() {
    let project = Project::new();
    let shipped = super::project::weights("vae-tiny");
    let shipped = shipped.to_str().unwrap();
    // Stored as f16, so nothing is lost on the way.
    let steps = [(shipped, "wide", "f32"), ("wide", "back", "f16"), ("back", "kept", "keep")];
    for (from, to, dtype) in steps {
        let converted = project.vw2(&["convert", from, to, "--dtype", dtype]);
        assert_eq!((converted.code, converted.stderr.as_str()), (0, ""), "{converted:#?}");
        assert!(converted.stdout.ends_with(", with its configuration\n"), "{converted:#?}");
    }
    let bytes = |name: &str| std::fs::read(project.path(name)).unwrap();
    let original = std::fs::read(shipped).unwrap();
    assert!(bytes("back") == original && bytes("kept") == original && bytes("wide").len() > original.len());

    project.write("bad", "no weights");
    let cases: &[(&[&str], &str)] = &[
        (&["convert", shipped, "kept"], "`kept` exists; `--force` replaces it"),
        (&["convert", shipped, "x", "--prefix", "net"], "no name begins with `net.`; names begin with `conv1.`"),
        (&["convert", "bad", "x"], "neither a safetensors file nor a PyTorch checkpoint"),
        (&["convert", "none", "x"], "none"),
        (&["convert", shipped, "no/folder/x"], "cannot write `no/folder/x`"),
        (&["convert", shipped, "x", "--dtype", "f8"], "possible values: keep, f32, f16, bf16"),
        (&["show", "weights", "bad"], "neither a safetensors file nor a PyTorch checkpoint"),
    ];
    for (arguments, wanted) in cases {
        let told = told(&project, arguments).replace("\n  │ ", " ");
        assert!(told.starts_with("exit 2\n") && told.contains(wanted), "{arguments:?} lacks `{wanted}`: {told}");
    }
    let part = project.vw2(&["convert", shipped, "kept", "--prefix", "decoder", "--force"]);
    assert!(part.code == 0 && bytes("kept").len() < original.len(), "{part:#?}");
    let left: Vec<_> = project.tree("").into_keys().collect();
    assert_eq!(left, ["back", "bad", "kept", "wide"].map(std::path::PathBuf::from), "nothing is left halfway");
}

/// Why few `clips` units run on many samples.
const SAME: &str = "all samples have equal length and rate, and so equal lists of clips, which are computed once";

#[test]
fn the_limit_takes_the_first_files_only() {
    let project = Project::with_clips(4);
    let report = project.run(&["--only", "clips", "--limit", "2"]);
    assert_eq!(report.executed(), "videos=2 clips=1", "{SAME}");
    assert_eq!(project.run(&["--only", "clips"]).executed(), "videos=2", "{SAME}");
}

#[test]
fn stage_kinds_are_listed_and_portrayed() {
    let project = Project::new();
    let all = project.vw2(&["stages"]);
    for kind in vw2_stages::STAGES {
        assert!(
            all.stdout.lines().any(|line| line.starts_with(kind.kind) && line.ends_with(kind.about)),
            "{}",
            all.stdout
        );
        let one = project.vw2(&["stages", kind.kind]);
        assert_eq!((one.code, one.stderr.as_str()), (0, ""));
        assert!(one.stdout.contains(&format!("kind = \"{}\"", kind.kind)), "{}", one.stdout);
    }
    insta::assert_snapshot!(project.vw2(&["stages", "slice"]).stdout);
}

#[test]
fn devices_are_listed_with_what_they_do_and_those_that_are_missing_with_why() {
    let project = Project::new();
    let json = project.vw2(&["devices", "--json"]).json();
    let (devices, absent) = (json["devices"].as_array().unwrap(), json["absent"].as_array().unwrap());
    assert_eq!(devices[0]["device"], "cpu");
    for device in devices {
        for rate in ["f32_gflops", "gbytes_per_second"] {
            assert!(device[rate].as_f64().is_some_and(|rate| rate > 0.0), "{rate} of {json:#}");
        }
    }
    for family in ["cuda", "wgpu"] {
        let listed = devices.iter().any(|device| device["device"].as_str().unwrap().starts_with(family));
        let reason = absent.iter().find(|entry| entry["family"] == family);
        assert!(listed != reason.is_some_and(|entry| entry["reason"] != ""), "{family}: {json:#}");
    }
    let told = project.vw2(&["devices"]).stdout;
    assert!(told.starts_with("device ") && told.contains("\ncpu "), "{told}");
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let project = Project::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let finished = finished(project.command(&["stages"]).stdout(writer).spawn().unwrap());
    assert_eq!((finished.code, finished.stderr.as_str()), (0, ""), "{finished:#?}");
}
