//! Groups of parameters by their published names: each has its own factor on the learning rate, decay and clipping.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What is different for some parameters. The first group whose pattern fits a name has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Which names: `*` stands for any characters, as in `encoder.qformer_ldm.*` or `*.bias`.
    pub names: String,
    /// Factor on the learning rate; 0 leaves these parameters as they are.
    #[serde(default = "one")]
    pub rate: f64,
    /// Default: the optimizer's.
    #[serde(default)]
    pub weight_decay: Option<f64>,
    /// Largest norm of the group's gradients together; 0 for no limit. Default: the optimizer's.
    #[serde(default)]
    pub clip: Option<f64>,
}

fn one() -> f64 {
    1.0
}

impl Group {
    /// # Errors
    /// A number that makes no sense.
    pub fn check(&self) -> Result<()> {
        let numbers = [("rate", Some(self.rate)), ("weight_decay", self.weight_decay), ("clip", self.clip)];
        for (what, value) in numbers {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value >= 0.0)) {
                return Err(Error::Config(format!("group `{}`: `{what}` is {value}; it wants 0 or more", self.names)));
            }
        }
        Ok(())
    }

    pub fn fits(&self, name: &str) -> bool {
        fits(&self.names, name)
    }
}

/// The group of a name, if it has one.
pub fn group_of(groups: &[Group], name: &str) -> Option<usize> {
    groups.iter().position(|group| group.fits(name))
}

/// Whether `pattern` with its `*` describes all of `name`.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().expect("a split has at least one part");
    for part in parts {
        // The earliest place leaves most for what follows.
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, wanted) in [
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
            ("a.*", "a.b.c", true),
            ("a.*", "b.a.", false),
            ("*.bias", "x.y.bias", true),
            ("*.bias", "x.bias.y", false),
            ("*norm*", "x.norm2.weight", true),
            ("a*b*c", "a.b.b.c", true),
            ("a*b*b", "a.b", false),
            ("*", "", true),
        ] {
            assert_eq!(fits(pattern, name), wanted, "`{pattern}` and `{name}`");
        }
    }

    #[test]
    fn the_first_group_that_fits_has_a_name() {
        let group = |names: &str| Group { names: names.into(), rate: 1.0, weight_decay: None, clip: None };
        let groups = [group("*.bias"), group("net.*")];
        let of = |name| group_of(&groups, name);
        assert_eq!([of("net.a.bias"), of("net.a.weight"), of("ldm.a.weight")], [Some(0), Some(1), None]);
    }

    #[test]
    fn numbers_below_0_are_told_with_their_group() {
        let text = "names = \"act.*\"\nrate = -1.0";
        let error = toml::from_str::<Group>(text).unwrap().check().unwrap_err().to_string();
        assert!(error.contains("group `act.*`: `rate` is -1"), "{error}");
    }
}
