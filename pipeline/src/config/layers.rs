//! Defaults ← file ← environment ← flags, merged with an eye on unknown keys and wrong types.

use std::path::{Path, PathBuf};

use figment::{
    Figment, Metadata, Profile, Provider, Source,
    providers::{Env, Format, Toml},
    value::{Dict, Map, Tag, Value},
};

use super::{ConfigError, DEFAULTS};

/// One option set by a flag of the command line.
#[derive(Clone, Debug)]
pub struct Override {
    /// `model.name`
    pub key: &'static str,
    /// The flag it came from, for messages: `--model`.
    pub flag: &'static str,
    pub value: String,
}

/// The sources of the configuration, lowest first.
#[derive(Clone)]
pub struct Layers {
    figment: Figment,
}

/// Free-form tables: their keys are not checked.
const OPEN_TABLES: [&str; 1] = ["kafka.properties"];
/// Keys whose values may have several types; they are checked with their meaning.
const OPEN_TYPES: [&str; 1] = ["output.labels"];

impl Layers {
    /// Collects the layers. `file` is the one named by the user; without it `./tonearm.toml` is read if it exists.
    ///
    /// # Errors
    /// The named file cannot be read, or a file is not TOML.
    pub fn collect(file: Option<&Path>, overrides: &[Override]) -> Result<Self, ConfigError> {
        let mut figment = Figment::from(Toml::string(DEFAULTS));
        let default_file = PathBuf::from("tonearm.toml");
        let file = match file {
            Some(file) => Some(file.to_owned()),
            None => default_file.is_file().then_some(default_file),
        };
        if let Some(file) = file {
            let problem =
                |e: &dyn std::fmt::Display| ConfigError { problems: vec![format!("{}: {e}", file.display())] };
            let text = std::fs::read_to_string(&file).map_err(|e| problem(&format!("cannot be read: {e}")))?;
            text.parse::<toml::Table>().map_err(|e| problem(&e.to_string().trim_end()))?;
            figment = figment.merge(Toml::file_exact(&file));
        }
        figment = figment.merge(Env::prefixed("TONEARM__").split("__").lowercase(true));
        for one in overrides {
            figment = figment.merge(Flag(one.clone()));
        }
        Ok(Self { figment })
    }

    /// The merged options as one table, and what is wrong with their form: unknown keys, which are left out, and values
    /// of another type than the default's, which takes their place so that the rest can be checked.
    ///
    /// # Errors
    /// The layers cannot be merged at all.
    pub fn merge(&self) -> Result<(toml::Table, Vec<String>), ConfigError> {
        let fail = |e: figment::Error| ConfigError { problems: e.into_iter().map(|e| e.to_string()).collect() };
        let merged: Dict = self.figment.extract().map_err(fail)?;
        let defaults: Dict = Figment::from(Toml::string(DEFAULTS)).extract().map_err(fail)?;
        let mut problems = Vec::new();
        let table = self.checked("", &merged, &defaults, &mut problems);
        Ok((table, problems))
    }

    fn checked(&self, path: &str, merged: &Dict, defaults: &Dict, problems: &mut Vec<String>) -> toml::Table {
        let mut table = toml::Table::new();
        for (key, value) in merged {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let Some(default) = defaults.get(key) else {
                let nearest = defaults.keys().min_by_key(|known| distance(known, key));
                let hint = nearest.filter(|known| distance(known, key) <= key.len().div_ceil(3));
                let hint = hint.map(|known| format!(", did you mean {known}?")).unwrap_or_default();
                problems.push(format!("{path} is not an option{hint} ({})", self.written_in(&path)));
                continue;
            };
            let converted = match (value, default) {
                (Value::Dict(_, value), Value::Dict(..)) if OPEN_TABLES.contains(&path.as_str()) => {
                    Some(toml::Value::Table(value.iter().map(|(k, v)| (k.clone(), plain(v))).collect()))
                }
                (Value::Dict(_, value), Value::Dict(_, default)) => {
                    Some(toml::Value::Table(self.checked(&path, value, default, problems)))
                }
                _ if OPEN_TYPES.contains(&path.as_str()) => Some(plain(value)),
                (value, default) => same_type(value, default),
            };
            let value = converted.unwrap_or_else(|| {
                problems.push(format!(
                    "{path} = {} should be {}, such as {} ({})",
                    plain(value),
                    type_name(default),
                    plain(default),
                    self.written_in(&path)
                ));
                plain(default)
            });
            table.insert(key.clone(), value);
        }
        table
    }

    /// Where the value of `key` was written, for messages.
    pub fn written_in(&self, key: &str) -> String {
        let Some(metadata) = self.figment.find_metadata(key) else {
            return "by default".to_owned();
        };
        match &metadata.source {
            Some(Source::File(path)) => path.display().to_string(),
            Some(Source::Custom(flag)) => format!("from {flag}"),
            _ if metadata.name.contains("environment") => {
                format!("from TONEARM__{}", key.to_uppercase().replace('.', "__"))
            }
            _ => "by default".to_owned(),
        }
    }
}

/// `value` in the type of `default`. What the environment holds may look like a number and be meant as text.
fn same_type(value: &Value, default: &Value) -> Option<toml::Value> {
    match (value, default) {
        (Value::String(..), Value::String(..))
        | (Value::Bool(..), Value::Bool(..))
        | (Value::Num(..), Value::Num(..)) => Some(plain(value)),
        (Value::Num(..) | Value::Bool(..), Value::String(..)) => Some(toml::Value::String(plain(value).to_string())),
        _ => None,
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::String(..) => "text",
        Value::Bool(..) => "true or false",
        Value::Num(..) => "a whole number",
        Value::Dict(..) => "a table",
        _ => "another type",
    }
}

fn plain(value: &Value) -> toml::Value {
    match value {
        Value::String(_, text) => toml::Value::String(text.clone()),
        Value::Char(_, c) => toml::Value::String(c.to_string()),
        Value::Bool(_, b) => toml::Value::Boolean(*b),
        Value::Num(_, number) => {
            // figment keeps signed, unsigned and floating numbers apart.
            let unsigned = number.to_u128().and_then(|n| i64::try_from(n).ok());
            match number.to_i128().and_then(|n| i64::try_from(n).ok()).or(unsigned) {
                Some(whole) => toml::Value::Integer(whole),
                None => toml::Value::Float(number.to_f64().unwrap_or(f64::MAX)),
            }
        }
        Value::Empty(..) => toml::Value::String(String::new()),
        Value::Dict(_, dict) => toml::Value::Table(dict.iter().map(|(k, v)| (k.clone(), plain(v))).collect()),
        Value::Array(_, items) => toml::Value::Array(items.iter().map(plain).collect()),
    }
}

/// Edits between two keys, for "did you mean".
fn distance(a: &str, b: &str) -> usize {
    strsim::levenshtein(a, b)
}

struct Flag(Override);

impl Provider for Flag {
    fn metadata(&self) -> Metadata {
        Metadata::from(self.0.flag, Source::Custom(self.0.flag.to_owned()))
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        // As from the environment: numbers and booleans are recognised, anything else is text.
        let value = self.0.value.parse::<Value>().unwrap_or_else(|_| Value::from(self.0.value.clone()));
        let value = match value {
            Value::String(..) | Value::Num(..) | Value::Bool(..) => value,
            _ => Value::String(Tag::Default, self.0.value.clone()),
        };
        let nested = figment::util::nest(self.0.key, value);
        let dict = nested.into_dict().unwrap_or_default();
        Ok(Profile::Default.collect(dict))
    }
}
