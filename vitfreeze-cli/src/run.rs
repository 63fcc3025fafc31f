//! A run and its folder: configuration, checkpoint, metrics, event file, result, report.
pub mod checkpoint;
pub mod data;
pub mod event_file;
pub mod folder;
pub mod metrics;
pub mod report;
pub mod result;
pub mod work;
