//! `vw2-pipe verify`: holds a store against itself.

use std::fmt::Write;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use vw2_engine::store::{Damage, DamageKind, Store, Verified};

use crate::cli::{self, VerifyArgs};
use crate::text;

pub(crate) fn verify(args: &VerifyArgs) -> miette::Result<ExitCode> {
    let store = match args.repair {
        true => Store::open_existing(&args.store.dir)?,
        false => Store::open_still(&args.store.dir)?,
    };
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
    let repaired = if args.repair { Some(store.set_aside(&verified)?) } else { None };
    match args.store.json {
        true => {
            let mut all = json!(verified);
            all["seed"] = json!(args.sample.map(|_| seed));
            all["set_aside"] = json!(repaired);
            text::print(all)?;
        }
        false => text::print(as_text(&verified, args.sample.map(|_| seed), repaired))?,
    }
    Ok(if verified.damages.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(cli::DAMAGED) })
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
