//! `vw2-pipe quarantine`: units without result, and why; `--retry` has them tried again.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::ExitCode;

use miette::miette;
use serde_json::{Value, json};
use vw2_engine::Hash;
use vw2_engine::store::{Quarantined, Store};

use crate::cli::QuarantineArgs;
use crate::text;

/// The entries of one pipeline.
type Entries = (String, Vec<Quarantined>);

pub(crate) fn quarantine(args: &QuarantineArgs) -> miette::Result<ExitCode> {
    let store = match args.retry {
        true => Store::open_existing(&args.store.dir)?,
        false => Store::open_read(&args.store.dir)?,
    };
    let all: Vec<Entries> = store
        .pipelines()?
        .into_iter()
        .map(|name| Ok((name.clone(), store.quarantine(&name)?)))
        .collect::<vw2_engine::Result<_>>()?;
    let chosen = choose(&all, args)?;
    let forgotten = match args.retry {
        true => Some(store.forget_verdicts(&chosen.iter().flat_map(|(_, list)| list.clone()).collect::<Vec<_>>())?),
        false => None,
    };
    match args.store.json {
        true => text::print(as_json(&chosen, forgotten))?,
        false => text::print(as_text(&all, &chosen, forgotten.is_some()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Those that the arguments name. `Err`: a word names nothing.
fn choose(all: &[Entries], args: &QuarantineArgs) -> miette::Result<Vec<Entries>> {
    if let Some(name) = args.pipeline.as_ref().filter(|name| all.iter().all(|(known, _)| known != *name)) {
        let known: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
        return Err(miette!("the store knows no pipeline `{name}`; it has {}", known.join(", ")));
    }
    let named = |entry: &Quarantined, word: &String| {
        entry.stage == *word || entry.unit == *word || entry.path.as_ref() == Some(word)
    };
    let own = all.iter().filter(|(name, _)| args.pipeline.as_ref().is_none_or(|wanted| wanted == name));
    for word in &args.which {
        if own.clone().all(|(_, list)| list.iter().all(|entry| !named(entry, word))) {
            return Err(miette!(
                "no stage `{word}` has units in quarantine, and no unit `{word}` is there; `vw2-pipe quarantine` lists all"
            ));
        }
    }
    let chosen = |list: &[Quarantined]| {
        let chosen = |entry: &&Quarantined| args.which.is_empty() || args.which.iter().any(|word| named(entry, word));
        list.iter().filter(chosen).cloned().collect::<Vec<_>>()
    };
    let chosen = own.map(|(name, list)| (name.clone(), chosen(list)));
    Ok(chosen.filter(|(_, list)| !list.is_empty()).collect())
}

/// One line a unit: class, stage, path (or the unit's id where no file is to blame), reason.
pub(super) fn lines(list: &[Quarantined], indent: &str) -> String {
    list.iter().fold(String::new(), |mut lines, Quarantined { unit, path, stage, class, reason, run, .. }| {
        let place = path.as_ref().unwrap_or(unit);
        let _ = writeln!(lines, "{indent}{class} in `{stage}` since run {run}: {place}: {reason}");
        lines
    })
}

fn as_text(all: &[Entries], chosen: &[Entries], retry: bool) -> String {
    if chosen.is_empty() {
        return "nothing is in quarantine".to_owned();
    }
    let mut told = String::new();
    for (name, list) in chosen {
        let _ = writeln!(told, "pipeline {name}: {}\n{}", list.len(), lines(list, "  "));
    }
    if retry {
        let count = chosen.iter().map(|(_, list)| list.len()).sum::<usize>() as u64;
        let _ = writeln!(told, "the next run tries {count} {} again", text::plural("unit", count));
        let others = alike(all, chosen);
        if !others.is_empty() {
            let _ = writeln!(told, "and these, which share their verdict:\n{}", lines(&others, "  "));
        }
    }
    told.trim_end().to_owned()
}

/// Entries that were not chosen, and whose verdict is the same: copies of a file, in this pipeline or in another.
fn alike(all: &[Entries], chosen: &[Entries]) -> Vec<Quarantined> {
    let chosen: BTreeSet<(&str, &Quarantined)> = flat(chosen).collect();
    let keys: BTreeSet<&Hash> = chosen.iter().flat_map(|(_, entry)| &entry.keys).collect();
    let shares = |(_, entry): &(&str, &Quarantined)| entry.keys.iter().any(|key| keys.contains(key));
    flat(all).filter(|entry| shares(entry) && !chosen.contains(entry)).map(|(_, entry)| entry.clone()).collect()
}

fn flat(entries: &[Entries]) -> impl Iterator<Item = (&str, &Quarantined)> {
    entries.iter().flat_map(|(name, list)| list.iter().map(move |entry| (name.as_str(), entry)))
}

fn as_json(chosen: &[Entries], forgotten: Option<usize>) -> Value {
    let pipeline = |(name, list): &Entries| json!({ "pipeline": name, "quarantined": list });
    let mut all = json!({ "pipelines": chosen.iter().map(pipeline).collect::<Vec<_>>() });
    if let Some(count) = forgotten {
        all["verdicts_forgotten"] = json!(count);
    }
    all
}
