//! What the program says about itself: metrics, the admin port that serves them, and logs.

pub mod admin;
pub mod health;
pub mod log;
pub mod metrics;
