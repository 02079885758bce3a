//! Defaults ← file ← environment ← flags, merged with an eye on unknown keys and wrong types.

use std::fmt;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

/// The commented file of all options, compiled in.
pub const DEFAULTS: &str = include_str!("../../../tonearm.toml");

/// Everything wrong with the configuration, one sentence each.
#[derive(Debug, thiserror::Error)]
pub struct ConfigError {
    pub problems: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [problem] => f.write_str(problem),
            problems => {
                write!(f, "the configuration has {} problems:", problems.len())?;
                problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

/// One option set by a flag of the command line.
#[derive(Clone, Debug)]
pub struct Override {
    /// `model.name`
    pub key: &'static str,
    /// The flag it came from, for messages: `--model`.
    pub flag: &'static str,
    pub value: String,
}

/// The options of all sources, each from the highest that sets it.
#[derive(Clone)]
pub struct Layers {
    merged: Table,
    /// Where an option was written, by its path: `from --model`. Options that are not in it have their default.
    origins: BTreeMap<Vec<String>, String>,
}

const VARIABLES: &str = "TONEARM__";
/// The table whose keys are not checked here.
const OPEN_TABLE: [&str; 2] = ["kafka", "properties"];
/// The option whose value may have several types; it is checked with its meaning.
const OPEN_TYPE: [&str; 2] = ["output", "labels"];

impl Layers {
    /// Collects the layers. `file` is the one named by the user; without it `./tonearm.toml` is read if it exists.
    ///
    /// # Errors
    /// The named file cannot be read, or is not TOML.
    pub fn collect(file: Option<&Path>, overrides: &[Override]) -> Result<Self, ConfigError> {
        let mut layers = Self { merged: defaults()?, origins: BTreeMap::new() };
        let default_file = PathBuf::from("tonearm.toml");
        let file = file.map(Path::to_owned).or_else(|| default_file.is_file().then_some(default_file));
        if let Some(file) = file {
            let origin = file.display().to_string();
            let problem = |e: String| ConfigError { problems: vec![format!("{origin}: {e}")] };
            let text = std::fs::read_to_string(&file).map_err(|e| problem(format!("cannot be read: {e}")))?;
            let table = text.parse::<Table>().map_err(|e| problem(not_toml(&text, &e)))?;
            layers.merge(&mut Vec::new(), table, &origin);
        }
        for (name, value) in std::env::vars_os() {
            let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
            if let Some(path) = name.strip_prefix(VARIABLES) {
                let path: Vec<String> = path.to_lowercase().split("__").map(str::to_owned).collect();
                layers.set(path, Value::String(value.into_owned()), format!("from {name}"));
            }
        }
        for Override { key, flag, value } in overrides {
            let path = key.split('.').map(str::to_owned).collect();
            layers.set(path, Value::String(value.clone()), format!("from {flag}"));
        }
        Ok(layers)
    }

    fn merge(&mut self, path: &mut Vec<String>, table: Table, origin: &str) {
        for (key, value) in table {
            path.push(key);
            match value {
                // An empty table sets nothing, and whether it may be there at all is for `checked` to say.
                Value::Table(table) if !table.is_empty() => self.merge(path, table, origin),
                value => self.set(path.clone(), value, origin.to_owned()),
            }
            path.pop();
        }
    }

    fn set(&mut self, path: Vec<String>, value: Value, origin: String) {
        let Some((last, parents)) = path.split_last() else { return };
        let mut table = &mut self.merged;
        for parent in parents {
            let entry = table.entry(parent.clone()).or_insert_with(|| Table::new().into());
            if !entry.is_table() {
                *entry = Table::new().into();
            }
            let Value::Table(below) = entry else { return };
            table = below;
        }
        if !(value.as_table().is_some_and(Table::is_empty) && table.get(last).is_some_and(Value::is_table)) {
            table.insert(last.clone(), value);
        }
        self.origins.insert(path, origin);
    }

    /// The merged options as one table, and what is wrong with their form: unknown keys, which are left out, and values
    /// of another type than the default's, which takes their place so that the rest can be checked.
    ///
    /// # Errors
    /// The compiled-in defaults are not TOML, which a test rules out.
    pub fn checked(&self) -> Result<(Table, Vec<String>), ConfigError> {
        let mut problems = Vec::new();
        let table = self.check(&mut Vec::new(), &self.merged, &defaults()?, &mut problems);
        Ok((table, problems))
    }

    fn check(&self, path: &mut Vec<String>, merged: &Table, defaults: &Table, problems: &mut Vec<String>) -> Table {
        let mut table = Table::new();
        for (key, value) in merged {
            path.push(key.clone());
            match (value, defaults.get(key)) {
                (_, None) => {
                    let nearest = defaults.keys().min_by_key(|known| strsim::levenshtein(known, key));
                    let near = |known: &&String| strsim::levenshtein(known, key) <= key.len().div_ceil(3);
                    let hint = nearest.filter(near).map(|known| format!(", did you mean {known}?")).unwrap_or_default();
                    problems.push(format!("{} is not an option{hint} ({})", path.join("."), self.written_in(path)));
                }
                (Value::Table(value), Some(Value::Table(default))) if *path != OPEN_TABLE => {
                    table.insert(key.clone(), self.check(path, value, default, problems).into());
                }
                (value, Some(default)) => {
                    let checked = if *path == OPEN_TYPE { any_type(value) } else { same_type(value, default) };
                    let value = checked.unwrap_or_else(|| {
                        let (key, should) = (path.join("."), type_name(default));
                        let origin = self.written_in(path);
                        problems.push(format!("{key} = {value} should be {should}, such as {default} ({origin})"));
                        default.clone()
                    });
                    table.insert(key.clone(), value);
                }
            }
            path.pop();
        }
        table
    }

    /// Where the value at `path`, or a part of it, was written, for messages.
    pub fn written_in(&self, path: &[impl AsRef<str>]) -> String {
        let path: Vec<String> = path.iter().map(|part| part.as_ref().to_owned()).collect();
        let below = self.origins.range(path.clone()..).next().filter(|(found, _)| found.starts_with(&path));
        below.map_or_else(|| "by default".to_owned(), |(_, origin)| origin.clone())
    }
}

fn defaults() -> Result<Table, ConfigError> {
    DEFAULTS.parse().map_err(|e: toml::de::Error| ConfigError { problems: vec![e.message().to_owned()] })
}

/// Without the line itself, which toml's own message shows: it may hold a password.
fn not_toml(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!("is not TOML in line {}, column {column}: {}", before.matches('\n').count() + 1, error.message())
}

/// `value` in the type of `default`. What comes from the environment and from flags is text.
fn same_type(value: &Value, default: &Value) -> Option<Value> {
    match (value, default) {
        (Value::String(text), Value::Integer(_)) => text.trim().parse().ok().map(Value::Integer),
        (Value::String(text), Value::Boolean(_)) => text.trim().parse().ok().map(Value::Boolean),
        (Value::String(text), Value::Array(_)) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Some(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
        }
        (Value::Array(items), Value::Array(_)) => items.iter().all(Value::is_str).then(|| value.clone()),
        (Value::Integer(_) | Value::Float(_) | Value::Boolean(_), Value::String(_)) => {
            Some(Value::String(value.to_string()))
        }
        _ => value.same_type(default).then(|| value.clone()),
    }
}

/// A number that is written as text is one.
fn any_type(value: &Value) -> Option<Value> {
    Some(value.as_str().and_then(|text| text.trim().parse().ok()).map_or_else(|| value.clone(), Value::Integer))
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Boolean(_) => "true or false",
        Value::Integer(_) => "a whole number",
        Value::Array(_) => "a list of texts",
        Value::Table(_) => "a table",
        _ => "another type",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_toml() {
        defaults().expect("a table");
    }

    #[test]
    fn what_is_written_of_a_line_with_a_secret_is_where_it_is() {
        let text = "[kafka.properties]\n\"sasl.password\" = opensesame\n";
        let error = text.parse::<Table>().expect_err("a text without quotes");
        let message = not_toml(text, &error);
        assert!(message.contains("line 2, column 19") && !message.contains("opensesame"), "{message}");
    }
}
