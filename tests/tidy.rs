//! What a reviewer would have to remember: a thing is one folder and one row; documents and examples stay true.

use std::collections::BTreeSet;
use std::path::Path;

use vw2_engine::plan::plan;
use vw2_engine::spec::PipelineSpec;
use vw2_stages::STAGES;

use super::repository;

/// Folders of stages/src that are no stage but what several share.
const SHARED: &[&str] = &["training"];

#[test]
fn each_stage_folder_has_its_row_and_each_row_its_folder() {
    let rows: BTreeSet<String> = STAGES.iter().map(|kind| kind.kind.to_owned()).collect();
    assert_eq!(rows.len(), STAGES.len(), "two rows of STAGES have one kind");
    let mut folders = BTreeSet::new();
    for entry in std::fs::read_dir(repository::root().join("stages/src")).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() && !SHARED.contains(&name.as_str()) {
            for file in ["mod.rs", "example.toml"] {
                assert!(entry.path().join(file).is_file(), "stages/src/{name} wants a {file}");
            }
            folders.insert(name.replace('_', "-"));
        }
    }
    assert_eq!(folders, rows, "folders of stages/src on the left, rows of STAGES on the right");
}

#[test]
fn the_examples_of_all_kinds_make_one_pipeline_that_plans() {
    let mut text = String::from("name = \"examples\"\n");
    for kind in STAGES {
        assert!(kind.example.contains(&format!("kind = \"{}\"", kind.kind)), "{}: its example is another's", kind.kind);
        assert!(!kind.about.is_empty(), "{}: says nothing of itself", kind.kind);
        text += &format!("\n{}", kind.example);
    }
    let spec = PipelineSpec::parse("examples.toml", &text, &[]).unwrap_or_else(|errors| panic!("{errors:?}"));
    let plan = plan(&spec, STAGES).unwrap_or_else(|errors| panic!("{errors:?}"));
    let kinds: BTreeSet<&str> = plan.stages.iter().map(|stage| stage.kind.kind).collect();
    assert_eq!(kinds.len(), STAGES.len(), "an example of each kind is planned");
}

#[test]
fn each_kernel_file_has_its_row() {
    let mut names: Vec<&str> = vw2_kernels::KERNELS.iter().map(|kernel| kernel.name).collect();
    names.sort_unstable();
    let rows = names.len();
    names.dedup();
    assert_eq!(names.len(), rows, "two rows of KERNELS have one name");
    for entry in std::fs::read_dir(repository::root().join("kernels/src/ops")).unwrap().map(Result::unwrap) {
        let name = entry.path().file_stem().unwrap().to_str().unwrap().to_owned();
        // A file may hold several kernels of one subject, `picture_rgb` and `picture_resize`.
        let has_row = names.iter().any(|row| *row == name || row.starts_with(&format!("{name}_")));
        assert!(name == "mod" || has_row, "kernels/src/ops/{name} has no row in KERNELS: {names:?}");
    }
}

/// Operations that a model takes from `vw2_kernels`, by the words that would name another way, and which they are. What
/// the models launch is looked at by `stages/models/tests/hot_ops.rs`; a softmax made of elementwise kernels shows here only.
const HOT_WORDS: &[(&str, &str)] = &[
    ("softmax(", "attention, cross_entropy"),
    ("module::conv", "conv3d"),
    ("module::attention", "attention"),
    ("square().mean_dim(", "norm, frame_norm"),
    ("square().sum_dim(", "channel_norm"),
];

#[test]
fn models_leave_hot_operations_to_the_kernels() {
    let sources = repository::with_extension("rs").into_iter().filter(|file| {
        (file.starts_with("stages/src") || file.starts_with("stages/models/src")) && !file.ends_with("tests.rs")
    });
    for file in sources {
        let name = file.to_str().unwrap();
        let text = repository::read(&file);
        // Tests stand last, and may compute the slow way what they compare with.
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for (number, line) in code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            let hot = HOT_WORDS.iter().find(|(word, _)| line.contains(word));
            assert!(
                hot.is_none(),
                "{name}:{}: `{line}`: take it from vw2_kernels ({})",
                number + 1,
                hot.map_or("", |(_, kernels)| kernels)
            );
        }
    }
}

#[test]
fn each_rust_file_says_in_its_first_line_what_it_is() {
    // A `tests.rs` tells it by the module that it stands beside.
    for file in repository::with_extension("rs").into_iter().filter(|file| !file.ends_with("tests.rs")) {
        let text = repository::read(&file);
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//! ") && first.len() > 12, "{}: first line is `{first}`", file.display());
    }
}

#[test]
fn relative_links_in_documents_resolve() {
    for file in repository::with_extension("md") {
        let text = repository::read(&file);
        for target in link_targets(&text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let there = repository::root().join(file.parent().unwrap_or(Path::new(""))).join(path);
            assert!(path.is_empty() || there.exists(), "{}: link to `{target}`, which is not there", file.display());
            let own_anchor = path.is_empty() && !anchor.is_empty();
            assert!(!own_anchor || headings(&text).contains(anchor), "{}: no heading `#{anchor}`", file.display());
        }
    }
}

/// The targets of `[text](target)` outside code blocks.
fn link_targets(markdown: &str) -> Vec<&str> {
    let prose = markdown.split("```").step_by(2);
    prose.flat_map(|part| part.split("](").skip(1)).filter_map(|rest| rest.split([')', ' ']).next()).collect()
}

/// Headings as anchors: lower case, blanks to hyphens, other signs dropped.
fn headings(markdown: &str) -> BTreeSet<String> {
    let titles = markdown.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    titles
        .map(|title| {
            let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.collect::<String>().to_lowercase().replace(' ', "-")
        })
        .collect()
}

#[test]
fn link_targets_and_headings_are_read_as_a_reader_of_markdown_would() {
    let text = "# Two Words, `x`\n[a](b.md) and [c](#two-words-x) but not\n```\n[d](e)\n```\n![p](q.png \"title\")";
    assert_eq!(link_targets(text), ["b.md", "#two-words-x", "q.png"]);
    assert!(headings(text).contains("two-words-x"));
}

#[test]
fn no_file_names_a_path_of_the_machine_where_it_was_written() {
    let folders = ["home", "root", "work", "tmp", "Users"].map(|folder| format!("/{folder}/"));
    for extension in ["rs", "toml", "md", "yml", "sh", "py"] {
        for file in repository::with_extension(extension) {
            for (number, line) in repository::read(&file).lines().enumerate() {
                let path = folders.iter().find(|folder| {
                    // `../work/x` and `a/tmp/b` are no absolute paths.
                    line.match_indices(folder.as_str()).any(|(at, _)| {
                        let before = line[..at].chars().next_back();
                        before.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '.' | '_' | '-' | '}' | '>'))
                    })
                });
                assert!(path.is_none(), "{}:{}: {line}", file.display(), number + 1);
            }
        }
    }
}
