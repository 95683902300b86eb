//! A stage's params: serde's errors told with place, names and remedy.

use std::sync::Arc;

use toml::{Table, Value};

use crate::spec::{Faults, StageSpec, did_you_mean, listed};
use crate::stage::{AnyStage, StageKind};

/// Parses and checks the params. Serde stops at its first error; so the key at fault is taken out and the rest is tried
/// again, until all faults are known.
pub(super) fn parse(spec: &StageSpec, kind: &StageKind, faults: &mut Faults) -> Option<Arc<dyn AnyStage>> {
    let mut params = spec.params.clone();
    let mut removed: Vec<Vec<String>> = Vec::new();
    loop {
        let error = match (kind.parse)(params.clone()) {
            Ok(stage) if removed.is_empty() => return checked(spec, stage, faults),
            Ok(_) => return None,
            Err(error) => error,
        };
        let path = path_of(&error);
        let bad = tell(spec, kind, &path, error.message(), &removed, faults)?;
        if !remove(&mut params, &bad) {
            return None;
        }
        removed.push(bad);
    }
}

fn checked(spec: &StageSpec, stage: Arc<dyn AnyStage>, faults: &mut Faults) -> Option<Arc<dyn AnyStage>> {
    let Err(reason) = stage.check() else { return Some(stage) };
    // The check knows no places, but it names the key.
    let named = quoted(&reason).into_iter().find(|name| spec.params.contains_key(*name)).map(str::to_owned);
    let at = named.map_or_else(|| spec.key_span(&[]), |key| spec.value_span(&[key]));
    faults.add(at, "here", format!("stage `{}`: {reason}", spec.id), None);
    None
}

/// The keys that lead to the value at fault; toml tells them in its text only.
fn path_of(error: &toml::de::Error) -> Vec<String> {
    let text = error.to_string();
    let keys = text.lines().rev().find_map(|line| line.strip_prefix("in `")?.strip_suffix('`'));
    keys.map_or(Vec::new(), |keys| keys.split('.').map(str::to_owned).collect())
}

/// Adds the fault. Gives the key without which parsing may go on; `None` where that would tell nothing new.
fn tell(
    spec: &StageSpec,
    kind: &StageKind,
    path: &[String],
    message: &str,
    removed: &[Vec<String>],
    faults: &mut Faults,
) -> Option<Vec<String>> {
    let id = &spec.id;
    let below = |key: &str| path.iter().cloned().chain([key.to_owned()]).collect::<Vec<_>>();
    let whose = if path.is_empty() { kind.kind.to_owned() } else { path.join(".") };
    let names = quoted(message);
    if message.starts_with("unknown field `")
        && let [key, known @ ..] = names.as_slice()
    {
        let full = below(key);
        let takes = if known.is_empty() { "no keys".to_owned() } else { listed(known.iter().copied()) };
        let message = format!("stage `{id}`: unknown key `{}`; `{whose}` takes {takes}", full.join("."));
        let full_names: Vec<&str> = full.iter().map(String::as_str).collect();
        let at = spec.key_span(&full_names).or_else(|| spec.value_span(&full));
        faults.add(at, "unknown", message, did_you_mean(key, known.iter().copied()));
        return Some(full);
    }
    if message.starts_with("missing field `")
        && let [key, ..] = names.as_slice()
    {
        let full = below(key);
        if !removed.contains(&full) {
            let message = format!("stage `{id}`: `{whose}` wants a key `{key}`, which has no default");
            let at = if path.is_empty() { spec.key_span(&[]) } else { spec.value_span(path) };
            faults.add(at, "missing here", message, Some(format!("add `{key} = …`")));
        }
        return None;
    }
    let at = spec.value_span(path);
    let key = path.join(".");
    let key = if key.is_empty() { String::new() } else { format!("`{key}` ") };
    if message.starts_with("unknown variant `")
        && let [word, known @ ..] = names.as_slice()
    {
        let text = format!("stage `{id}`: {key}cannot be `{word}`; it is one of {}", listed(known.iter().copied()));
        faults.add(at, "unknown", text, did_you_mean(word, known.iter().copied()));
    } else if let Some((found, wanted)) = mismatch(message) {
        faults.add(at, "here", format!("stage `{id}`: {key}wants {}, found {found}", plain(wanted)), None);
    } else {
        let key = if key.is_empty() { String::new() } else { format!("{}: ", key.trim_end()) };
        faults.add(at, "here", format!("stage `{id}`: {key}{message}"), None);
    }
    (!path.is_empty()).then(|| path[..1].to_vec())
}

/// `invalid type: string "a", expected u32` to (`string "a"`, `u32`).
fn mismatch(message: &str) -> Option<(String, &str)> {
    if let Some(rest) = message.strip_prefix("invalid length ") {
        let (count, wanted) = rest.rsplit_once(", expected ")?;
        return Some((format!("{count} elements"), wanted));
    }
    let rest = ["invalid type: ", "invalid value: "].iter().find_map(|prefix| message.strip_prefix(prefix))?;
    let (found, wanted) = rest.rsplit_once(", expected ")?;
    Some((found.to_owned(), wanted))
}

/// Rust's types in a user's words.
fn plain(wanted: &str) -> &str {
    match wanted {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number that is not negative",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "path string" => "a path",
        "a sequence" => "a list",
        "a map" => "a table",
        "fewer elements in array" => "fewer elements",
        other => other.strip_prefix("struct ").map_or(other, |_| "a table"),
    }
}

/// What stands between backticks.
fn quoted(message: &str) -> Vec<&str> {
    message.split('`').skip(1).step_by(2).collect()
}

fn remove(params: &mut Table, path: &[String]) -> bool {
    let Some((last, parents)) = path.split_last() else { return false };
    let table = parents.iter().try_fold(params, |table, key| table.get_mut(key).and_then(Value::as_table_mut));
    table.is_some_and(|table| table.remove(last).is_some())
}
