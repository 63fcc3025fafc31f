//! Measures how many images a second come out of the loader.
//!
//! `cargo run --release -p vitfreeze-datasets --example loader_speed -- shapes|<folder> <size> <threads> [seconds]`

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datasets::{ImageFolder, Loader, LoaderConfig, PretrainTransform, Shapes, Source};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [from, size, threads, seconds @ ..] = &args[..] else {
        return Err("usage: loader_speed shapes|<folder> <size> <threads> [seconds]".into());
    };
    let (size, threads) = (size.parse()?, threads.parse()?);
    let seconds = seconds.first().map_or(Ok(5), |s| s.parse())?;
    let source: Arc<dyn Source> = match from.as_str() {
        "shapes" => Arc::new(Shapes::new(0, size, 100_000)),
        folder => Arc::new(ImageFolder::open(Path::new(folder), "train")?),
    };
    println!("{}", source.describe());
    let config = LoaderConfig {
        batch_size: 16,
        seed: 0,
        threads,
        prefetch: 4,
        ..LoaderConfig::default()
    };
    let loader = Loader::new(source, PretrainTransform::imagenet(size), config)?;

    let start = Instant::now();
    let mut batches = loader.stream(0, 0);
    batches.next().transpose()?;
    println!(
        "first batch after {:.1} ms",
        start.elapsed().as_secs_f64() * 1e3
    );
    let (start, mut images) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(seconds) {
        let batch = batches.next().ok_or("the stream ended")??;
        images += batch.labels.len();
    }
    println!(
        "{:.0} images/s at {size} px, {threads} threads",
        images as f64 / start.elapsed().as_secs_f64()
    );
    Ok(())
}
