//! Recipes: words that stand for the settings of a training, `recipe = "released"`.
//!
//! They are written out before the parameters are parsed, so the fingerprint has the values: a run with a recipe and one
//! with the same values written by hand are one.

use toml::{Table, Value};

const RECIPES: &str = include_str!("../../recipes.toml");

/// The params with the recipe's values where they have none of their own.
pub(crate) fn expand(kind: &str, mut params: Table) -> Result<Table, String> {
    let Some(word) = params.remove("recipe") else { return Ok(params) };
    let mut recipes: Table = toml::from_str(RECIPES).expect("recipes.toml is part of this crate");
    let Some(Value::Table(mut recipes)) = recipes.remove(kind) else {
        return Err(format!("`recipe` is given, but `{kind}` has none"));
    };
    let recipe = word.as_str().and_then(|word| recipes.remove(word));
    let Some(Value::Table(mut recipe)) = recipe else {
        let known: Vec<String> = recipes.keys().map(|name| format!("`{name}`")).collect();
        return Err(format!("`recipe` is {word}; `{kind}` has {}", known.join(", ")));
    };
    // One run has steps of its own or phases; a recipe's steps give way to the user's phases.
    if params.contains_key("phases") {
        recipe.remove("steps");
    }
    write_over(&mut recipe, params);
    Ok(recipe)
}

/// Values of `over` replace those of `base`; tables are merged, key by key.
fn write_over(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => write_over(base, over),
            (_, value) => drop(base.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use vw2_engine::stage::StageKind;

    use super::*;
    use crate::STAGES;

    fn kind(name: &str) -> &'static StageKind {
        STAGES.iter().find(|kind| kind.kind == name).unwrap()
    }

    #[test]
    fn every_recipe_is_params_that_make_sense() {
        let recipes: Table = toml::from_str(RECIPES).unwrap();
        for (name, recipes) in recipes {
            for recipe in recipes.as_table().unwrap().keys() {
                let params = toml::from_str(&format!("recipe = \"{recipe}\"\npath = \"out\"")).unwrap();
                let stage = (kind(&name).parse)(params).unwrap_or_else(|error| panic!("{name} {recipe}: {error}"));
                assert_eq!(stage.check(), Ok(()), "{name} {recipe}");
            }
        }
    }

    #[test]
    fn the_users_values_come_before_the_recipes() {
        let text = "recipe = \"paper\"\nsteps = 7\noptimizer = { warmup = 3 }\npath = \"out\"";
        let stage = (kind("train-ar").parse)(toml::from_str(text).unwrap()).unwrap();
        let params = stage.canonical();
        let number = |at: &str| params.pointer(at).unwrap().as_f64().unwrap();
        assert_eq!((number("/steps"), number("/minibatch")), (7.0, 256.0));
        assert_eq!((number("/optimizer/warmup"), number("/optimizer/learning_rate")), (3.0, 3e-4));
        assert!(params.get("recipe").is_none(), "a recipe is no value of its own: {params}");
    }

    #[test]
    fn an_unknown_recipe_is_told_with_those_that_there_are() {
        let parse = |name: &str, recipe: &str| {
            let params = toml::from_str(&format!("recipe = {recipe}\npath = \"out\"")).unwrap();
            (kind(name).parse)(params).err().unwrap().to_string()
        };
        let error = parse("train-dldm", "\"latest\"");
        assert!(error.contains("\"latest\"") && error.contains("`paper`, `released`, `tiny`"), "{error}");
        assert!(parse("train-dldm", "3").contains("`recipe` is 3"));
    }
}
