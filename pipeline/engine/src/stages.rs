//! Which stages a process runs, and so what it reads and writes.

use std::{fmt, str::FromStr};

use tonearm_schemas::{block::BlockKind, reject::Stage};

/// A run of stages without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stages {
    first: Stage,
    last: Stage,
}

impl Stages {
    pub const ALL: Self = Self { first: Stage::Decode, last: Stage::Infer };

    pub fn first(self) -> Stage {
        self.first
    }

    pub fn last(self) -> Stage {
        self.last
    }

    pub fn has(self, stage: Stage) -> bool {
        self.first <= stage && stage <= self.last
    }

    /// The blocks it reads; `None` if it reads encoded tracks.
    pub fn reads(self) -> Option<BlockKind> {
        match self.first {
            Stage::Decode => None,
            Stage::Features => Some(BlockKind::Pcm),
            Stage::Infer => Some(BlockKind::Features),
        }
    }

    /// The blocks it writes; `None` if it writes predictions.
    pub fn writes(self) -> Option<BlockKind> {
        match self.last {
            Stage::Decode => Some(BlockKind::Pcm),
            Stage::Features => Some(BlockKind::Features),
            Stage::Infer => None,
        }
    }
}

impl FromStr for Stages {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = |word: &str| Stage::ALL.into_iter().find(|stage| stage.as_str() == word.trim());
        let stages: Vec<Option<Stage>> = text.split(',').map(known).collect();
        if let (Some(&Some(first)), Some(&Some(last))) = (stages.first(), stages.last()) {
            let run = Self { first, last };
            if Stage::ALL.into_iter().filter(|stage| run.has(*stage)).map(Some).eq(stages) {
                return Ok(run);
            }
        }
        Err(format!("{text:?} is not a run of stages without a gap, such as decode or features,infer"))
    }
}

impl fmt::Display for Stages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = Stage::ALL.into_iter().filter(|stage| self.has(*stage)).map(Stage::as_str).collect();
        f.write_str(&words.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_stages_are_read_as_they_are_written() {
        for text in ["decode", "features", "infer", "decode,features", "features,infer", "decode,features,infer"] {
            assert_eq!(text.parse::<Stages>().map(|stages| stages.to_string()), Ok(text.to_owned()));
        }
        assert_eq!(
            "decode, features".parse::<Stages>().map(|stages| stages.to_string()),
            Ok("decode,features".to_owned())
        );
        assert_eq!("decode,features,infer".parse(), Ok(Stages::ALL));
    }

    #[test]
    fn gaps_repeats_and_unknown_stages_are_refused() {
        for text in ["", "decode,infer", "infer,features", "decode,decode", "resample", "decode,"] {
            assert!(text.parse::<Stages>().is_err(), "{text}");
        }
    }
}
