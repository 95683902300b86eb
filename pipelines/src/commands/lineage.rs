//! `vw2-pipe show clip ID` and `show code ID`: where a published row comes from. All of it is read from the store.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::UNIX_EPOCH;

use miette::{IntoDiagnostic, miette};
use serde_json::{Value, json};
use vw2_data::{Clip, Clips, Code, Codes};
use vw2_engine::Hash;
use vw2_engine::report::RecordedStage;
use vw2_engine::store::{MadeBy, PublishedRow, RunRecord, Seen, Store};
use vw2_stages::STAGES;

use crate::cli::ShowRowArgs;
use crate::text;

pub(crate) fn show_clip(args: &ShowRowArgs) -> miette::Result<ExitCode> {
    show(args, "clip", Clips::NAME)
}

pub(crate) fn show_code(args: &ShowRowArgs) -> miette::Result<ExitCode> {
    show(args, "code", Codes::NAME)
}

fn show(args: &ShowRowArgs, noun: &str, table: &str) -> miette::Result<ExitCode> {
    let store = Store::open_read(&args.store.dir)?;
    let kinds: Vec<&str> = STAGES.iter().filter(|kind| kind.output.name == table).map(|kind| kind.kind).collect();
    let mut found = Vec::new();
    for published in store.rows_named(&args.id)? {
        let made = store.made_by(&published.row.content, &published.row.stage)?;
        if let Some(made) = made.filter(|made| kinds.contains(&made.kind.as_str())) {
            found.push(lineage(&store, published, made)?);
        }
    }
    if found.is_empty() {
        return Err(unknown(&store, noun, &args.id, &kinds)?);
    }
    match args.store.json {
        true => {
            let rows: Vec<Value> = found.iter().map(Lineage::as_json).collect();
            text::print(json!({ "id": args.id, "table": table, "rows": rows }))?;
        }
        false => {
            let rows: Vec<String> = found.iter().map(Lineage::as_text).collect();
            text::print(format!("{noun} `{}`\n{}", args.id, rows.join("\n").trim_end()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The error for an id that no row has, with those that look like it.
fn unknown(store: &Store, noun: &str, id: &str, kinds: &[&str]) -> miette::Result<miette::Report> {
    let like = store.ids_like(id, kinds, 3)?;
    let help = match like.is_empty() {
        true => format!("no pipeline publishes a {noun} in this store"),
        false => format!("the nearest are {}", like.iter().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ")),
    };
    Ok(miette!("no {noun} `{id}` is published; {help}"))
}

/// All that is known of how a published row came about.
struct Lineage {
    published: PublishedRow,
    made: MadeBy,
    /// The blob that holds the row; `None`: it stands in the manifest.
    blob: Option<Hash>,
    /// Who published it; `None` where an older program kept no such record.
    run: Option<RunRecord>,
    origin: Option<(String, Seen)>,
    /// The clip that the row is, or goes back to.
    clip: Option<Clip>,
    code: Option<Code>,
    /// The stages that lead to it, itself last, in the plan's order; each with the row that goes into this one.
    steps: Vec<Step>,
}

struct Step {
    stage: RecordedStage,
    row: Option<(PublishedRow, MadeBy)>,
}

fn lineage(store: &Store, published: PublishedRow, made: MadeBy) -> miette::Result<Lineage> {
    let run = store.run(published.run)?;
    let stages = run.as_ref().map(RunRecord::stages).unwrap_or_default();
    let mut steps = Vec::new();
    for stage in leading_to(&stages, &published.row.stage) {
        let row = row_before(store, &published, &stage.id)?;
        steps.push(Step { stage: stage.clone(), row });
    }
    let origin = match published.row.origin.clone() {
        Some(path) => Some((path.clone(), seen(store, &path, run.as_ref())?)),
        None => None,
    };
    let own = (published.clone(), made.clone());
    let rows: Vec<_> = steps.iter().filter_map(|step| step.row.as_ref()).chain([&own]).collect();
    let of_table = |name: &str| rows.iter().find(|(_, made)| table_of(&made.kind) == Some(name)).map(|(row, _)| row);
    let clip = match of_table(Clips::NAME) {
        Some(row) => {
            let batch = store.row(&row.row.content, &Clips::schema())?;
            Some(Clips::view(&batch).into_diagnostic()?.clip(0))
        }
        None => None,
    };
    let code = match table_of(&made.kind) == Some(Codes::NAME) {
        true => {
            let batch = store.row(&published.row.content, &Codes::schema())?;
            Some(Codes::view(&batch).into_diagnostic()?.code(0))
        }
        false => None,
    };
    let blob = store.blob_of(&published.row.content)?;
    Ok(Lineage { published, made, blob, run, origin, clip, code, steps })
}

/// The table that a kind of stage yields.
fn table_of(kind: &str) -> Option<&'static str> {
    STAGES.iter().find(|known| known.kind == kind).map(|kind| kind.output.name)
}

/// The stage and all that it takes from, in the plan's order.
fn leading_to<'a>(stages: &'a [RecordedStage], id: &str) -> Vec<&'a RecordedStage> {
    let mut wanted = vec![id];
    // Each stage stands after those that feed it.
    let mut found: Vec<&RecordedStage> = Vec::new();
    for stage in stages.iter().rev() {
        if wanted.contains(&stage.id.as_str()) {
            wanted.extend(stage.inputs.iter().map(|(_, from)| from.as_str()));
            found.insert(0, stage);
        }
    }
    found
}

/// The row of a stage before that this one goes back to: of the same file, and of this id or one that it begins with.
fn row_before(store: &Store, published: &PublishedRow, stage: &str) -> miette::Result<Option<(PublishedRow, MadeBy)>> {
    let Some(origin) = &published.row.origin else { return Ok(None) };
    let id = &published.row.id;
    let leads = |row: &PublishedRow| {
        let rest = id.strip_prefix(row.row.id.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('#'))
    };
    let rows = store.rows_from(&published.pipeline, stage, origin)?;
    let Some(row) = rows.into_iter().filter(leads).max_by_key(|row| row.row.id.len()) else { return Ok(None) };
    let made = store.made_by(&row.row.content, stage)?;
    Ok(made.map(|made| (row, made)))
}

/// Whether the file is as the run found it. A file too fresh to be remembered is told by its time of change.
fn seen(store: &Store, path: &str, run: Option<&RunRecord>) -> miette::Result<Seen> {
    let seen = store.seen(Path::new(path))?;
    let (Seen::Unknown, Some(run)) = (seen, run) else { return Ok(seen) };
    let changed = std::fs::metadata(path).and_then(|metadata| metadata.modified()).into_diagnostic()?;
    let changed_ms = changed.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as i64);
    Ok(if changed_ms < run.started_ms { Seen::Unchanged } else { Seen::Unknown })
}

impl Lineage {
    fn as_text(&self) -> String {
        let Lineage { published, made, blob, run, origin, clip, code, steps } = self;
        let place = blob.map_or("in the manifest".to_owned(), |blob| format!("in blob {}", blob.short()));
        let ago = run.as_ref().map_or(String::new(), |run| {
            format!(", {} ago", text::span(text::now_ms() - run.finished_ms.unwrap_or(run.started_ms)))
        });
        let mut lines = vec![
            ["pipeline", published.pipeline.as_str()].map(str::to_owned),
            ["stage".to_owned(), format!("{} ({})", published.row.stage, made.kind)],
            ["content".to_owned(), published.row.content.to_string()],
            ["size".to_owned(), format!("{} {place}", text::size(made.size_bytes))],
            ["computed".to_owned(), format!("by run {} in {:.3} s", made.run, made.seconds)],
            ["published".to_owned(), format!("by run {}{ago}", published.run)],
        ];
        if let Some((path, seen)) = origin {
            lines.push(["from".to_owned(), format!("{path}, {}", told(*seen))]);
        }
        if let Some(clip) = clip {
            lines.push(["frames".to_owned(), frames(&clip.frames)]);
            lines.push(["rate".to_owned(), format!("{} frames/s", clip.origin.fps)]);
            lines.extend(clip.origin.task.clone().map(|task| ["task".to_owned(), task]));
        }
        for (path, file) in &published.row.files {
            lines.push(["file".to_owned(), format!("{path}, blob {}", file.short())]);
        }
        if let Some(code) = code {
            lines.push(["levels".to_owned(), numbers(&code.levels)]);
            for (pair, codes) in code.codes.chunks(usize::from(code.queries).max(1)).enumerate() {
                lines.push([if pair == 0 { "codes" } else { "" }.to_owned(), numbers(codes)]);
            }
        }
        lines.iter_mut().for_each(|[name, _]| name.insert_str(0, "  "));
        let mut all = format!("{}\n\n", text::table(&lines));
        if steps.is_empty() {
            all += "how its stages were set is not known: the run that published it left no such record\n";
        }
        steps.iter().for_each(|step| all += &step.as_text());
        all
    }

    fn as_json(&self) -> Value {
        let Lineage { published, made, blob, run, origin, clip, code, steps } = self;
        let row = &published.row;
        let codes = code.as_ref().map(|code| {
            let pairs: Vec<&[u16]> = code.codes.chunks(usize::from(code.queries).max(1)).collect();
            json!({ "levels": code.levels, "queries": code.queries, "codes": pairs, "model": code.model })
        });
        let clip = clip.as_ref().map(|clip| {
            let origin = &clip.origin;
            json!({ "frames": clip.frames, "index": origin.index, "fps": origin.fps, "task": origin.task })
        });
        json!({
            "pipeline": published.pipeline, "stage": row.stage, "kind": made.kind, "content": row.content,
            "size_bytes": made.size_bytes, "blob": blob, "files": row.files,
            "computed": { "run": made.run, "seconds": made.seconds },
            "published": { "run": published.run, "started_ms": run.as_ref().map(|run| run.started_ms) },
            "origin": origin.as_ref().map(|(path, state)| json!({ "path": path, "state": state })),
            "clip": clip, "code": codes,
            "stages": steps.iter().map(Step::as_json).collect::<Vec<_>>(),
        })
    }
}

impl Step {
    /// The stage, the row, and a line for each parameter.
    fn as_text(&self) -> String {
        let Step { stage, row } = self;
        let mut all = format!("stage {} ({} version {})", stage.id, stage.kind, stage.version);
        if !stage.inputs.is_empty() {
            let inputs: Vec<&str> = stage.inputs.iter().map(|(_, from)| from.as_str()).collect();
            let _ = write!(all, " from {}", inputs.join(", "));
        }
        all += &match row {
            Some((row, made)) => {
                format!(": row `{}`, {}, content {}", row.row.id, text::size(made.size_bytes), row.row.content.short())
            }
            None if stage.transient => ": computed on the way, not stored".to_owned(),
            None => String::new(),
        };
        all += "\n";
        for (key, value) in stage.params.as_object().into_iter().flatten() {
            // Files follow with their content.
            if value.get("$file").is_none() {
                let bare = value.get("$path").or_else(|| value.get("$how")).unwrap_or(value);
                let _ = writeln!(all, "  {key} = {bare}");
            }
        }
        for file in &stage.files {
            let _ = writeln!(all, "  {} = {:?}, content {}", file.key, file.path, file.content.short());
        }
        all
    }

    fn as_json(&self) -> Value {
        let row = self.row.as_ref().map(|(row, made)| {
            json!({ "id": row.row.id, "content": row.row.content, "size_bytes": made.size_bytes, "run": row.run })
        });
        let mut all = json!(self.stage);
        all["row"] = json!(row);
        all
    }
}

fn told(seen: Seen) -> &'static str {
    match seen {
        Seen::Unchanged => "unchanged since",
        Seen::Changed => "changed since; a run computes it again",
        Seen::Gone => "which is not there now",
        Seen::Unknown => "touched since",
    }
}

/// `0 to 32 by 2 (17)`, or all of them.
fn frames(frames: &[u32]) -> String {
    let step = |pair: &[u32]| i64::from(pair[1]) - i64::from(pair[0]);
    let steps: Vec<i64> = frames.windows(2).map(step).collect();
    match (frames, steps.first()) {
        ([first, .., last], Some(step)) if steps.iter().all(|other| other == step) => {
            let by = if *step == 1 { String::new() } else { format!(" by {step}") };
            format!("{first} to {last}{by} ({})", frames.len())
        }
        _ => format!("{} ({})", numbers(frames), frames.len()),
    }
}

fn numbers<T: ToString>(numbers: &[T]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_told_shortly() {
        let cases: &[(&[u32], &str)] = &[
            (&[0, 1, 2], "0 to 2 (3)"),
            (&[4, 6, 8], "4 to 8 by 2 (3)"),
            (&[0, 1, 1], "0 1 1 (3)"),
            (&[7], "7 (1)"),
            (&[], " (0)"),
        ];
        for (list, wanted) in cases {
            assert_eq!(frames(list), *wanted);
        }
    }

    #[test]
    fn the_stages_that_lead_to_one_are_found_through_all_ports() {
        let stage = |id: &str, inputs: &[&str]| RecordedStage {
            id: id.to_owned(),
            kind: id.to_owned(),
            version: 1,
            inputs: inputs.iter().map(|from| ("in".to_owned(), (*from).to_owned())).collect(),
            transient: false,
            params: Value::Null,
            files: Vec::new(),
            fingerprint: Hash::default(),
        };
        let stages = [
            stage("videos", &[]),
            stage("scenes", &[]),
            stage("clips", &["videos"]),
            stage("model", &["clips"]),
            stage("codes", &["clips", "model"]),
            stage("export", &["codes"]),
        ];
        let found: Vec<&str> = leading_to(&stages, "codes").iter().map(|stage| stage.id.as_str()).collect();
        assert_eq!(found, ["videos", "clips", "model", "codes"]);
    }
}
