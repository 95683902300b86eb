//! `vw2-pipe verify`: holds a store against itself, and a sample of it against what its inputs give.

use std::fmt::Write;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use vw2_engine::plan::Plan;
use vw2_engine::recompute::{Difference, Recomputed, recompute};
use vw2_engine::run::Options;
use vw2_engine::store::{Damage, DamageKind, Store, Verified};

use crate::cli::{self, PipelineArgs, VerifyArgs};
use crate::commands::run::{devices, drain_on_ctrl_c, require_files};
use crate::progress::{self, Screen};
use crate::{loading, text};

pub(crate) fn verify(args: &VerifyArgs) -> miette::Result<ExitCode> {
    let pipeline = |file| PipelineArgs { file, set: args.set.clone(), only: args.only.clone() };
    let plan = args.file.clone().map(|file| loading::plan(&pipeline(file))).transpose()?;
    let own = plan.as_ref().map_or(".vw2".into(), |plan| plan.runtime.store.clone());
    let dir = args.store.clone().unwrap_or(own);
    let store = if args.repair { Store::open_existing(&dir)? } else { Store::open_still(&dir)? };
    let seed = args.seed.unwrap_or_else(|| text::now_ms() as u64);
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {eta:>4}");
    let style = style.expect("the template is a constant whose keys indicatif knows");
    // Draws on a terminal only.
    let bar = ProgressBar::new(0).with_style(style);
    let verified = store.verify(args.sample, seed, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let verified = verified?;
    let recomputed = plan.as_ref().map(|plan| once_more(plan, &store, args.sample.unwrap_or(1), seed)).transpose()?;
    let repaired = if args.repair { Some(store.set_aside(&verified)?) } else { None };
    match args.json {
        true => {
            let mut all = json!(verified);
            all["seed"] = json!(args.sample.map(|_| seed));
            all["set_aside"] = json!(repaired);
            all["recomputed"] = json!(recomputed);
            text::print(all)?;
        }
        false => {
            let told = recomputed.as_ref().map(recomputed_as_text).unwrap_or_default();
            text::print(told + &as_text(&verified, args.sample.map(|_| seed), repaired))?;
        }
    }
    let interrupted = recomputed.as_ref().is_some_and(|recomputed| recomputed.interrupted);
    let sound = verified.damages.is_empty() && recomputed.is_none_or(|recomputed| recomputed.differences.is_empty());
    Ok(match (sound, interrupted) {
        (false, _) => ExitCode::from(cli::DAMAGED),
        (true, true) => ExitCode::from(cli::INTERRUPTED),
        (true, false) => ExitCode::SUCCESS,
    })
}

fn once_more(plan: &Plan, store: &Store, sample: usize, seed: u64) -> miette::Result<Recomputed> {
    require_files(plan)?;
    let (devices, numeric) = devices(plan)?;
    let options = Options { devices, numeric, ..Options::of(&plan.runtime) };
    let screen = Screen::new();
    drain_on_ctrl_c(options.cancel.clone(), screen.clone())?;
    let _watch = progress::watch(options.progress.clone(), &screen);
    Ok(recompute(plan, store, &options, sample, seed)?)
}

fn recomputed_as_text(recomputed: &Recomputed) -> String {
    let Recomputed { units, all_units, rows, size_bytes, differences, interrupted } = recomputed;
    let mut told = format!("computed {units} of {all_units} units once more, {rows} rows, {}", text::size(*size_bytes));
    told += if *interrupted { "; interrupted before the others\n" } else { "\n" };
    for Difference { stage, unit, reason } in differences {
        let _ = writeln!(told, "unit `{unit}` of stage `{stage}`: {reason}");
    }
    match differences.len() {
        0 => told += "all came out as the store has them\n",
        count => {
            told += &format!(
                "{count} differ: the store was made by another program, decoder or device, or a stage's VERSION was not raised; \
                 run with a new store (--store) to be sure\n"
            );
        }
    }
    told
}

fn as_text(verified: &Verified, seed: Option<u64>, repaired: Option<usize>) -> String {
    let Verified { blobs, all_blobs, size_bytes, rows, published, placed, damages } = verified;
    let blobs = match seed {
        Some(seed) => format!("{blobs} of {all_blobs} blobs (seed {seed})"),
        None => format!("{all_blobs} {}", text::plural("blob", *all_blobs)),
    };
    let mut told = format!(
        "read {blobs}, {}; {rows} rows of results, {published} published rows, {placed} files outside the store\n",
        text::size(*size_bytes)
    );
    for damage in damages {
        told += &line(damage);
    }
    match (damages.is_empty(), repaired) {
        (true, _) => told += "nothing is wrong",
        (false, Some(count)) => {
            let _ = write!(told, "{} wrong; set aside: {count}; the next run computes it again", damages.len());
        }
        (false, None) => _ = write!(told, "{} wrong", damages.len()),
    }
    told
}

/// What is wrong, what goes back to it, and what helps.
fn line(damage: &Damage) -> String {
    const LISTED: usize = 5;
    let Damage { kind, what, reason, used_by } = damage;
    let (noun, remedy) = match kind {
        DamageKind::Manifest => ("manifest", "no repair is known; run with another store, or without this one"),
        DamageKind::Blob => ("blob", "`vw2-pipe verify --repair` sets it aside, and the next run computes it again"),
        DamageKind::MissingBlob => ("blob", "the next run computes it again"),
        DamageKind::Row => ("row", "`vw2-pipe verify --repair` forgets it, and the next run computes it again"),
        DamageKind::MissingRow => ("row", "the next run computes it again"),
        DamageKind::Placed => ("file", "the next run restores it"),
    };
    let users = match used_by.len() {
        0 => "nothing uses it".to_owned(),
        count => {
            let more = if count > LISTED { format!(" and {} more", count - LISTED) } else { String::new() };
            format!("used by {}{more}", used_by[..count.min(LISTED)].join(", "))
        }
    };
    let users = if *kind == DamageKind::Manifest { String::new() } else { format!("  {users}\n") };
    format!("{noun} {what}: {reason}\n{users}  {remedy}\n")
}
