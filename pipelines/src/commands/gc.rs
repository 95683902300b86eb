//! `vw2-pipe gc`: clears away what nothing needs.

use std::fmt::Write;
use std::process::ExitCode;

use serde_json::json;
use vw2_engine::store::{Garbage, LeftFolder, Store};

use crate::cli::GcArgs;
use crate::text;

pub(crate) fn gc(args: &GcArgs) -> miette::Result<ExitCode> {
    let garbage = match args.dry_run {
        true => Store::open_still(&args.store.dir)?.garbage(args.keep_runs, &args.forget)?,
        false => Store::open_existing(&args.store.dir)?.gc(args.keep_runs, &args.forget)?,
    };
    match args.store.json {
        true => text::print(json!({
            "dry_run": args.dry_run, "keep_runs": args.keep_runs, "forget": args.forget,
            "size_bytes": garbage.size_bytes(), "freed": garbage,
        }))?,
        false => text::print(as_text(&garbage, args.dry_run))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn as_text(garbage: &Garbage, dry_run: bool) -> String {
    if garbage.is_empty() {
        return "all that the store holds is needed".to_owned();
    }
    let Garbage { results, rows, blobs, scratch, stale, seen_files, runs, published, left } = garbage;
    let lines = [
        ("published rows", *published, None),
        ("results", *results, None),
        ("their rows", rows.count, Some(rows.size_bytes)),
        ("blobs", blobs.count, Some(blobs.size_bytes)),
        ("unfinished work", scratch.count, Some(scratch.size_bytes)),
        ("stale files", stale.count, Some(stale.size_bytes)),
        ("files that are gone", *seen_files, None),
        ("records of runs", *runs, None),
    ];
    let head = ["what", "count", "size"].map(str::to_owned);
    let lines = lines.into_iter().filter(|(_, count, _)| *count > 0);
    let lines = lines.map(|(what, count, size)| {
        [what.to_owned(), text::grouped(count as usize), size.map_or(String::new(), text::size)]
    });
    let table = text::table(&std::iter::once(head).chain(lines).collect::<Vec<_>>());
    let size = text::size(garbage.size_bytes());
    let mut told = format!("{table}\n{} {size}", if dry_run { "would free" } else { "freed" });
    for LeftFolder { path, files } in left {
        let plural = text::plural("file", *files);
        let _ = write!(told, "\n{}: {files} {plural} left as they are; no run knows them any more", path.display());
    }
    told
}
