//! Which tensors of a checkpoint a copy takes, and their names in it.

use std::collections::{BTreeMap, BTreeSet};

use super::Weights;
use crate::error::{Error, Result};

/// From names in a file to names in its copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renaming {
    /// Only names below it are taken, and lose it; `""` takes all.
    pub prefix: String,
    /// Stands before every name of the copy.
    pub under: String,
    /// Averaged weights, which some trainers keep beside the others as `ema.network-conv_in-weight`, take the places of
    /// those that they are averages of (`network.conv_in.weight`). Without it, names of that form are names like others.
    pub averages: bool,
}

impl Renaming {
    /// Everything below `prefix`, without it.
    pub fn below(prefix: &str) -> Renaming {
        Renaming { prefix: prefix.to_owned(), ..Renaming::default() }
    }

    /// Each new name with the one in the file, sorted.
    ///
    /// # Errors
    /// The file has no such name; the message says what there is.
    pub(super) fn of(&self, weights: &Weights) -> Result<BTreeMap<String, String>> {
        let mut sources: BTreeMap<String, &str> = weights.names().map(|name| (name.to_owned(), name)).collect();
        if self.averages {
            let averages: Vec<(String, &str)> =
                weights.names().filter_map(|name| Some((averaged(name)?, name))).collect();
            if averages.is_empty() {
                let path = weights.path().display();
                let told = format!("weights {path}: no name has the form `ema.network-…`; copy without averages");
                return Err(Error::Input(told));
            }
            sources.retain(|_, name| averaged(name).is_none());
            sources.extend(averages);
        }
        let renamed = sources.into_iter().filter_map(|(name, source)| {
            let rest = name.strip_prefix(&self.prefix)?;
            Some((format!("{}{rest}", self.under), source.to_owned()))
        });
        let renamed: BTreeMap<String, String> = renamed.collect();
        if renamed.is_empty() { Err(nothing_below(&self.prefix, weights)) } else { Ok(renamed) }
    }
}

/// The name of the weight that `name` is an average of: what follows `ema.` has `-` in place of `.`.
fn averaged(name: &str) -> Option<String> {
    let (before, rest) = match name.strip_prefix("ema.") {
        Some(rest) => ("", rest),
        None => name.split_once(".ema.")?,
    };
    if rest.contains('.') || !rest.contains('-') {
        return None;
    }
    let dot = if before.is_empty() { "" } else { "." };
    Some(format!("{before}{dot}{}", rest.replace('-', ".")))
}

fn nothing_below(prefix: &str, weights: &Weights) -> Error {
    let first = |name: &str| name.split_once('.').map_or(name, |(first, _)| first).to_owned();
    let starts: BTreeSet<String> = weights.names().map(first).collect();
    let listed: Vec<String> = starts.iter().take(8).map(|start| format!("`{start}.`")).collect();
    let more = if starts.len() > listed.len() { ", …" } else { "" };
    Error::Input(format!(
        "weights {}: no name begins with `{prefix}`; names begin with {}{more}",
        weights.path().display(),
        listed.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::weights::{SaveType, save_safetensors};

    fn file(folder: &tempfile::TempDir, names: &[&str]) -> Weights {
        let path = folder.path().join("file");
        let tensors = names.iter().map(|name| ((*name).to_owned(), TensorData::new(vec![1f32], [1])));
        save_safetensors(&path, &tensors.collect::<Vec<_>>(), &BTreeMap::new(), SaveType::F32).unwrap();
        Weights::open(path).unwrap()
    }

    #[test]
    fn names_lose_one_prefix_and_get_another() {
        let folder = tempfile::tempdir().unwrap();
        let weights = file(&folder, &["net.a.b", "net.c", "net_ctrl.d"]);
        let renaming = Renaming { under: "x.".into(), ..Renaming::below("net.") };
        let wanted = [("x.a.b", "net.a.b"), ("x.c", "net.c")].map(|(new, old)| (new.to_owned(), old.to_owned()));
        assert_eq!(renaming.of(&weights).unwrap(), BTreeMap::from(wanted));
        let error = Renaming::below("nett.").of(&weights).unwrap_err().to_string();
        assert!(error.contains("no name begins with `nett.`; names begin with `net.`, `net_ctrl.`"), "{error}");
    }

    #[test]
    fn averages_take_the_places_of_their_weights_where_they_are_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["model.ema.network-lin-weight", "model.network.lin.weight", "model.network.count", "ema.odd"];
        let weights = file(&folder, &names);
        let averages = Renaming { averages: true, ..Renaming::below("model.") };
        let wanted = [("network.lin.weight", "model.ema.network-lin-weight"), ("network.count", "model.network.count")];
        let wanted = wanted.map(|(new, old)| (new.to_owned(), old.to_owned()));
        assert_eq!(averages.of(&weights).unwrap(), BTreeMap::from(wanted));
        let all = Renaming::default().of(&weights).unwrap();
        assert!(all.len() == 4 && all.iter().all(|(new, old)| new == old), "{all:?}");
        let none = averages.of(&file(&folder, &["network.a"])).unwrap_err().to_string();
        assert!(none.contains("no name has the form `ema.network-…`"), "{none}");
    }
}
