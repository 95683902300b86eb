//! Configurations as data: presets in TOML, and JSON in a weights file's metadata.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use super::Weights;
use crate::error::{Error, Result};

/// The table `name` of a file of presets.
///
/// # Errors
/// There is no such table; the message names those that exist.
pub fn preset<C: DeserializeOwned>(presets: &str, name: &str) -> Result<C> {
    let mut tables = tables(presets)?;
    let Some(table) = tables.remove(name) else {
        let known: Vec<String> = tables.into_keys().collect();
        return Err(Error::Config(format!("there is no preset `{name}`; take one of {}", known.join(", "))));
    };
    parse(name, table)
}

/// All tables of a file of presets, by name.
///
/// # Errors
/// One of them cannot be parsed.
pub fn presets<C: DeserializeOwned>(presets: &str) -> Result<Vec<(String, C)>> {
    let tables = tables(presets)?;
    tables.into_iter().map(|(name, table)| parse(&name, table).map(|config| (name, config))).collect()
}

fn tables(presets: &str) -> Result<BTreeMap<String, toml::Value>> {
    toml::from_str(presets).map_err(|error| Error::Config(format!("presets: {error}")))
}

fn parse<C: DeserializeOwned>(name: &str, table: toml::Value) -> Result<C> {
    table.try_into().map_err(|error| Error::Config(format!("preset `{name}`: {error}")))
}

/// The configuration that a file of ours carries in its metadata under `config`; or, where it holds several models, under
/// `config.` and the model's name.
///
/// # Errors
/// It is there, but cannot be parsed.
pub fn config_of<C: DeserializeOwned>(weights: &Weights, model: &str) -> Result<Option<C>> {
    let metadata = weights.metadata();
    let own = metadata.get(&format!("config.{model}"));
    let Some(json) = own.or_else(|| metadata.get("config")) else { return Ok(None) };
    serde_json::from_str(json).map(Some).map_err(|error| Error::Format {
        path: weights.path().to_owned(),
        reason: format!("its metadata `config` is of another kind of model or version: {error}"),
    })
}
