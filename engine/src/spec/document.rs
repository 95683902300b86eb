//! TOML text as a table, with the place of every key; `--set` and `${params.x}` applied.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::fault::{Faults, did_you_mean, listed};
use super::{RUN_KEYS, RUNTIME_KEYS, STAGE_KEYS};

/// Where keys stand, by their path from the root (list items by their index). What `--set` gave has no place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spans(BTreeMap<Vec<String>, Span>);

#[derive(Clone, Debug)]
struct Span {
    key: Range<usize>,
    value: Range<usize>,
}

impl Spans {
    pub(crate) fn key(&self, path: &[String]) -> Option<Range<usize>> {
        self.0.get(path).map(|span| span.key.clone())
    }

    pub(crate) fn value(&self, path: &[String]) -> Option<Range<usize>> {
        self.0.get(path).map(|span| span.value.clone())
    }

    /// The place of the longest part of the path that has one.
    pub(crate) fn nearest_value(&self, path: &[String]) -> Option<Range<usize>> {
        (1..=path.len()).rev().find_map(|length| self.value(&path[..length]))
    }

    /// The places below a path, as seen from there.
    pub(super) fn below(&self, path: &[String]) -> Spans {
        let below = self.0.iter().filter(|(key, _)| key.starts_with(path));
        Spans(below.map(|(key, span)| (key[path.len()..].to_vec(), span.clone())).collect())
    }

    fn forget(&mut self, path: &[String]) {
        self.0.retain(|key, _| !key.starts_with(path));
    }
}

pub(super) fn path(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

/// Parses the text. Faults of syntax leave nothing to go on with: then `None`.
pub(super) fn parse(text: &str, faults: &mut Faults) -> Option<(Table, Spans)> {
    let (tree, mut errors) = DeTable::parse_recoverable(text);
    // One slip makes the parser stumble several times; the first time on a line tells all.
    let start = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
    errors.sort_by_key(start);
    let mut lines = BTreeSet::new();
    for error in errors.iter().filter(|error| lines.insert(text[..start(error)].matches('\n').count())) {
        faults.add(error.span(), "here", format!("this is no TOML: {}", error.message()), None);
    }
    if !errors.is_empty() {
        return None;
    }
    let mut spans = Spans::default();
    note_table(tree.get_ref(), &mut Vec::new(), &mut spans);
    match toml::from_str(text) {
        Ok(table) => Some((table, spans)),
        Err(error) => {
            faults.add(error.span(), "here", error.message(), None);
            None
        }
    }
}

fn note_table(table: &DeTable<'_>, path: &mut Vec<String>, spans: &mut Spans) {
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        spans.0.insert(path.clone(), Span { key: key.span(), value: value.span() });
        note_value(value.get_ref(), path, spans);
        path.pop();
    }
}

fn note_value(value: &DeValue<'_>, path: &mut Vec<String>, spans: &mut Spans) {
    match value {
        DeValue::Table(table) => note_table(table, path, spans),
        DeValue::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                path.push(index.to_string());
                spans.0.insert(path.clone(), Span { key: item.span(), value: item.span() });
                note_value(item.get_ref(), path, spans);
                path.pop();
            }
        }
        _ => {}
    }
}

/// Applies one `--set key=value`.
pub(super) fn set(table: &mut Table, spans: &mut Spans, text: &str, faults: &mut Faults) {
    if let Err((message, help)) = try_set(table, spans, text) {
        faults.add(None, "", format!("`--set {text}`: {message}"), help);
    }
}

fn try_set(table: &mut Table, spans: &mut Spans, text: &str) -> Result<(), (String, Option<String>)> {
    let (key, value) = text.split_once('=').ok_or_else(|| {
        ("it has no `=`".to_owned(), Some("write it as `--set params.steps=50` or `--set stage.codes.batch=4`".into()))
    })?;
    let mut key: Vec<&str> = key.trim().split('.').collect();
    // What the engine knows may be set where the file does not name it; everything else has to be there.
    let known = match key.as_slice() {
        ["runtime", name] => RUNTIME_KEYS.contains(name),
        ["stage", _, "run", name] => RUN_KEYS.contains(name),
        ["stage", _, "store" | "on_change"] => true,
        ["stage", id, name] if RUN_KEYS.contains(name) => {
            let stage = table.get("stage").and_then(|stages| stages.get(id));
            let own = stage.is_some_and(|stage| stage.get(name).is_some());
            if !own {
                key = vec!["stage", id, "run", name];
            }
            !own
        }
        _ => false,
    };
    let value = parse_value(value.trim())?;
    let (last, parents) = key.split_last().expect("splitting gives at least one part");
    let mut at: &mut Table = table;
    for (depth, name) in parents.iter().enumerate() {
        let may_make = known && matches!(*name, "runtime" | "run");
        if may_make && !at.contains_key(*name) {
            at.insert(name.to_string(), Value::Table(Table::new()));
        }
        let names: Vec<String> = at.keys().cloned().collect();
        at = match at.get_mut(*name) {
            Some(Value::Table(table)) => table,
            Some(_) => return Err((format!("`{}` has no keys below it", key[..=depth].join(".")), None)),
            None => return Err(missing(&key[..depth], name, &names)),
        };
    }
    if !known && !at.contains_key(*last) {
        let mut names: Vec<String> = at.keys().cloned().collect();
        match parents {
            ["runtime"] => names.extend(path(RUNTIME_KEYS)),
            ["stage", _] => names.extend(path(RUN_KEYS)),
            ["stage", _, "run"] => names.extend(path(RUN_KEYS)),
            _ => {}
        }
        names.retain(|name| !(matches!(parents, ["stage", _]) && STAGE_KEYS.contains(&name.as_str())));
        return Err(missing(parents, last, &names));
    }
    at.insert(last.to_string(), value);
    spans.forget(&path(&key));
    Ok(())
}

fn missing(parents: &[&str], name: &str, names: &[String]) -> (String, Option<String>) {
    let place = if parents.is_empty() { "the file".to_owned() } else { format!("`[{}]`", parents.join(".")) };
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let all = || {
        if names.is_empty() { "it has no keys".to_owned() } else { format!("it has {}", listed(names.iter().copied())) }
    };
    let help = did_you_mean(name, names.iter().copied()).unwrap_or_else(all);
    (format!("{place} has no `{name}`, and only keys that the file has can be set"), Some(help))
}

/// A TOML value; bare words are strings.
fn parse_value(text: &str) -> Result<Value, (String, Option<String>)> {
    let parsed = toml::from_str::<Table>(&format!("value = {text}"));
    match parsed.map(|mut table| (table.remove("value"), table.is_empty())) {
        Ok((Some(value), true)) => Ok(value),
        Err(error) if text.starts_with(['[', '{', '"', '\'']) => {
            Err((format!("the value is no TOML: {}", error.message()), Some("quote it for your shell: '…'".into())))
        }
        _ => Ok(Value::String(text.to_owned())),
    }
}

/// Replaces `${params.x}` in all strings under `at`. A string that is nothing else takes the parameter's type.
pub(super) fn interpolate(value: &mut Value, at: &mut Vec<String>, params: &Table, spans: &Spans, faults: &mut Faults) {
    match value {
        Value::String(text) if text.contains("${") => match expand(text, params) {
            Ok(expanded) => *value = expanded,
            Err((message, help)) => {
                faults.add(spans.nearest_value(at), "used here", format!("{}: {message}", place(at)), help);
            }
        },
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                at.push(index.to_string());
                interpolate(item, at, params, spans, faults);
                at.pop();
            }
        }
        Value::Table(table) => {
            for (name, inner) in table.iter_mut() {
                at.push(name.clone());
                interpolate(inner, at, params, spans, faults);
                at.pop();
            }
        }
        _ => {}
    }
}

/// How messages name a key: "stage `clips`: `root`", or "`runtime.memory`".
pub(super) fn place(path: &[String]) -> String {
    match path {
        [table, id] if table == "stage" => format!("stage `{id}`"),
        [table, id, key @ ..] if table == "stage" => format!("stage `{id}`: `{}`", key.join(".")),
        _ => format!("`{}`", path.join(".")),
    }
}

fn expand(text: &str, params: &Table) -> Result<Value, (String, Option<String>)> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        if rest[..start].ends_with('$') {
            // `$${` stands for `${` itself.
            out.push_str(&rest[..start - 1]);
            out.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        let after = &rest[start + 2..];
        let end = after.find('}').ok_or_else(|| ("`${` is not closed by `}`".to_owned(), None))?;
        let value = look_up(&after[..end], params)?;
        if start == 0 && end + 1 == after.len() && out.is_empty() {
            return Ok(value.clone());
        }
        out.push_str(&rest[..start]);
        match value {
            Value::String(text) => out.push_str(text),
            Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {
                out.push_str(&value.to_string());
            }
            Value::Array(_) | Value::Table(_) => {
                let message =
                    format!("`{}` is a whole {}, which cannot stand inside a string", &after[..end], value.type_str());
                return Err((message, None));
            }
        }
        rest = &after[end + 1..];
    }
    out.push_str(rest);
    Ok(Value::String(out))
}

fn look_up<'a>(name: &str, params: &'a Table) -> Result<&'a Value, (String, Option<String>)> {
    let Some(key) = name.trim().strip_prefix("params.") else {
        return Err((format!("`${{{name}}}` cannot be used"), Some("only `${params.…}` can".to_owned())));
    };
    let mut parts = key.split('.');
    let first = parts.next().unwrap_or_default();
    let found = parts.try_fold(params.get(first), |value, part| Some(value?.get(part)));
    found.flatten().ok_or_else(|| {
        let help = did_you_mean(first, params.keys().map(String::as_str))
            .unwrap_or_else(|| format!("add `{first} = …` to `[params]`"));
        (format!("`[params]` has no `{key}`"), Some(help))
    })
}
