//! What several test files use.
#![allow(dead_code)]

pub mod server;
