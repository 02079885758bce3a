//! Values that may be secrets, and where they come from.

use std::fmt;

use toml::Value;

/// What stands for a secret wherever it would be shown.
pub const HIDDEN: &str = "(hidden)";

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for whom it is meant.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// The text that a value stands for: its own, that of the variable in `{ env = "NAME" }`, or that of the file in
/// `{ file = "PATH" }` without the line end behind it.
///
/// # Errors
/// The variable is not set, the file cannot be read, or the value is neither text nor one of these. The message goes on
/// where the option's name ends.
pub fn resolve(value: &Value) -> Result<Secret, String> {
    let Value::Table(table) = value else {
        return Ok(Secret(value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
    };
    let mut entries = table.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    match (entries.next(), entries.next()) {
        (Some(("env", Some(name))), None) => std::env::var(name).map(Secret).map_err(|e| match e {
            std::env::VarError::NotPresent => format!("is to come from the variable {name}, which is not set"),
            std::env::VarError::NotUnicode(_) => format!("is to come from the variable {name}, which is not UTF-8"),
        }),
        (Some(("file", Some(path))), None) => match std::fs::read_to_string(path) {
            Ok(text) => {
                let line = text.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
                Ok(Secret(line.unwrap_or(&text).to_owned()))
            }
            Err(e) => Err(format!("is to come from the file {path}, which cannot be read: {e}")),
        },
        _ => Err("is a table that is neither { env = \"NAME\" } nor { file = \"PATH\" }".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(toml: &str) -> Result<String, String> {
        let table: toml::Table = format!("value = {toml}").parse().expect("TOML");
        resolve(&table["value"]).map(|secret| secret.reveal().to_owned())
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Secret::new("opensesame".to_owned())), HIDDEN);
    }

    #[test]
    fn numbers_and_switches_are_texts() {
        assert_eq!(resolved("6000"), Ok("6000".to_owned()));
        assert_eq!(resolved("true"), Ok("true".to_owned()));
        assert_eq!(resolved("\"ssl\""), Ok("ssl".to_owned()));
    }

    #[test]
    fn a_file_gives_its_text_without_the_last_line_end() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for (content, text) in [("a b\n", "a b"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a", "a"), ("", "")] {
            std::fs::write(file.path(), content).expect("a file");
            assert_eq!(resolved(&format!("{{ file = {:?} }}", file.path())), Ok(text.to_owned()));
        }
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        let problem = |toml| resolved(toml).expect_err("a problem");
        assert!(problem("{ env = \"NO_SUCH_VARIABLE\" }").contains("NO_SUCH_VARIABLE, which is not set"));
        assert!(problem("{ file = \"/no/such/file\" }").contains("/no/such/file, which cannot be read: No such file"));
        assert!(problem("{ env = \"A\", file = \"B\" }").contains("neither"));
        assert!(problem("{ enf = \"A\" }").contains("neither"));
        assert!(problem("{ env = 1 }").contains("neither"));
    }
}
