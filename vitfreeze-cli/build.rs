//! Hands the versions of the crates that compute to the program, from the Cargo.lock that it is built with.
use std::path::Path;

/// Crates that decide what comes out of a run.
const CRATES: [&str; 7] = [
    "candle-core",
    "candle-nn",
    "gemm",
    "freezeout",
    "candle-vit",
    "localmim",
    "vitfreeze-datasets",
];

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let locks = Path::new(&folder).ancestors().map(|f| f.join("Cargo.lock"));
    let mut versions = Vec::new();
    // A build without one (a vendored copy) knows none: result.json then has the program's own version alone.
    if let Some(lock) = locks.into_iter().find(|lock| lock.is_file()) {
        println!("cargo:rerun-if-changed={}", lock.display());
        let text = std::fs::read_to_string(&lock).unwrap_or_default();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let name = line
                .strip_prefix("name = \"")
                .and_then(|n| n.strip_suffix('"'));
            let Some(name) = name.filter(|name| CRATES.contains(name)) else {
                continue;
            };
            let version = lines.next().and_then(|l| l.strip_prefix("version = \""));
            if let Some(version) = version.and_then(|v| v.strip_suffix('"')) {
                versions.push(format!("{name}={version}"));
            }
        }
    }
    println!("cargo:rustc-env=VITFREEZE_CRATES={}", versions.join(","));
}
