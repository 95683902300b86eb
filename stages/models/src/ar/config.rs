//! The shape of a decoder: `config.json` of a published Llama in our fields, or a preset of `presets/ar.toml`.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Widths and depths of a decoder. The keys are those of published configurations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// Absent: each query head has its own keys and values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_key_value_heads: Option<usize>,
    pub intermediate_size: usize,
    #[serde(default = "default_eps")]
    pub rms_norm_eps: f64,
    #[serde(default = "default_theta")]
    pub rope_theta: f64,
    #[serde(default = "default_positions")]
    pub max_position_embeddings: usize,
    /// Biases on q, k, v and o. The feed-forward has none.
    #[serde(default)]
    pub bias: bool,
    /// The head is the embedding table.
    #[serde(default)]
    pub tie_word_embeddings: bool,
}

fn default_eps() -> f64 {
    1e-6
}

fn default_theta() -> f64 {
    10_000.0
}

fn default_positions() -> usize {
    4096
}

pub(crate) const PRESETS: &str = include_str!("../../presets/ar.toml");

/// Names by which presets were known before.
const ALIASES: [(&str, &str); 2] = [("vw1-300m", "300m"), ("cosmos-4b", "4b")];

impl ArConfig {
    /// The preset of that name, over `vocab_size` ids: `tiny`, `small`, `300m` (also `vw1-300m`), `4b` (also `cosmos-4b`).
    ///
    /// # Errors
    /// The name is no preset; the message lists those that are.
    pub fn preset(name: &str, vocab_size: usize) -> Result<ArConfig> {
        let mut presets: toml::Table = toml::from_str(PRESETS).expect("presets/ar.toml is part of this crate");
        let own = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, own)| own);
        let Some(toml::Value::Table(mut preset)) = presets.remove(own) else {
            let names: Vec<_> = presets.keys().map(String::as_str).collect();
            return Err(Error::Config(format!(
                "unknown preset `{name}` of the decoder; there are {}",
                names.join(", ")
            )));
        };
        let vocab_size = i64::try_from(vocab_size).map_err(|_| Error::Config("vocab_size is too large".to_owned()))?;
        preset.insert("vocab_size".to_owned(), vocab_size.into());
        let config: ArConfig = preset.try_into().map_err(|e| Error::Config(format!("preset `{name}`: {e}")))?;
        config.check()?;
        Ok(config)
    }

    pub fn key_value_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Numbers that parse but cannot be a decoder.
    ///
    /// # Errors
    /// Names the numbers that do not fit together.
    pub fn check(&self) -> Result<()> {
        let ArConfig { vocab_size, hidden_size, num_attention_heads: heads, .. } = *self;
        let key_value_heads = self.key_value_heads();
        let sizes = [
            ("vocab_size", vocab_size),
            ("hidden_size", hidden_size),
            ("num_attention_heads", heads),
            ("num_key_value_heads", key_value_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        if let Some((name, _)) = sizes.into_iter().find(|&(_, size)| size == 0) {
            return Err(Error::Config(format!("{name} must be at least 1")));
        }
        if !hidden_size.is_multiple_of(2 * heads) {
            return Err(Error::Config(format!(
                "hidden_size {hidden_size} over {heads} heads does not give heads of an even width"
            )));
        }
        if !heads.is_multiple_of(key_value_heads) {
            return Err(Error::Config(format!(
                "num_attention_heads {heads} must be a multiple of num_key_value_heads {key_value_heads}"
            )));
        }
        if !(self.rms_norm_eps > 0.0 && self.rope_theta > 0.0) {
            return Err(Error::Config("rms_norm_eps and rope_theta must be above 0".to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_a_sensible_decoder() {
        for (name, layers) in
            [("tiny", 4), ("small", 12), ("300m", 24), ("vw1-300m", 24), ("4b", 16), ("cosmos-4b", 16)]
        {
            let config = ArConfig::preset(name, 1020).unwrap();
            assert_eq!((config.num_hidden_layers, config.vocab_size), (layers, 1020), "{name}");
        }
        let error = ArConfig::preset("tny", 10).unwrap_err().to_string();
        assert!(error.contains("`tny`") && error.contains("tiny"), "{error}");
    }

    #[test]
    fn numbers_that_do_not_fit_are_named() {
        let good = ArConfig::preset("tiny", 10).unwrap();
        for (wrong, word) in [
            (ArConfig { hidden_size: 130, ..good.clone() }, "hidden_size 130"),
            (ArConfig { num_key_value_heads: Some(3), ..good.clone() }, "num_key_value_heads 3"),
            (ArConfig { vocab_size: 0, ..good.clone() }, "vocab_size"),
            (ArConfig { rms_norm_eps: 0.0, ..good }, "rms_norm_eps"),
        ] {
            let error = wrong.check().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
