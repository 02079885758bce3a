//! Random names, and random moments that can be had again.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A name no other test has.
pub fn name(what: &str) -> String {
    format!("{what}-{:016x}", RandomState::new().build_hasher().finish())
}

/// A seed no other run has.
pub fn seed() -> u64 {
    // Short enough to be typed again.
    RandomState::new().build_hasher().finish() >> 44
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub struct Chance(u64);

impl Chance {
    /// Another sequence every time, or that of `TONEARM_TEST_SEED`. The seed is printed, and shown when the test fails.
    pub fn new() -> Self {
        let given = std::env::var("TONEARM_TEST_SEED").ok();
        let seed = given.map_or_else(
            || RandomState::new().build_hasher().finish(),
            |seed| seed.parse().expect("TONEARM_TEST_SEED is a whole number"),
        );
        println!("TONEARM_TEST_SEED={seed}");
        Self::of(seed)
    }

    /// The sequence of `seed`.
    pub fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// A number in `0..below`.
    pub fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }
}

impl Default for Chance {
    fn default() -> Self {
        Self::new()
    }
}
