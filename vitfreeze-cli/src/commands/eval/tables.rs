//! An evaluation as CSV files.
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{anyhow, Context, Result};
use vit::Staged;

use crate::accuracy::Confusion;
use crate::usage::usage;

/// Most classes whose confusion matrix is written cell by cell.
pub const DENSE: usize = 200;

/// A CSV file in the making; there once it is finished, not before.
pub struct Table {
    file: BufWriter<File>,
    staged: Staged,
    path: PathBuf,
}

impl Table {
    fn create(path: &Path, header: &str) -> Result<Self> {
        let staged = Staged::beside(path)?;
        let file = File::create(staged.place());
        let mut table = Self {
            file: BufWriter::new(file.with_context(|| format!("cannot write {}", path.display()))?),
            staged,
            path: path.to_owned(),
        };
        table.line(header)?;
        Ok(table)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        writeln!(self.file, "{line}")
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Puts the file in its place.
    pub fn finish(self) -> Result<()> {
        let file = self.file.into_inner();
        file.map_err(|e| anyhow!("cannot write {}: {}", self.path.display(), e.error()))?;
        Ok(self.staged.commit()?)
    }

    /// The table of every image.
    pub fn predictions(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let path = path.display();
            return Err(usage(format!(
                "--predictions {path}: is a folder; name a file"
            )));
        }
        let places = (1..=5).map(|i| format!(",prediction{i},probability{i}"));
        let header = format!("name,label{}", places.collect::<String>());
        Self::create(path, &header).map_err(|e| usage(format!("--predictions: {e:#}")))
    }

    /// One image: the five largest of its logits as probabilities (fewer where there are fewer classes).
    pub fn prediction(
        &mut self,
        name: &str,
        label: u32,
        logits: &[f32],
        names: &[String],
    ) -> Result<()> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let power = |x: f32| f64::from(x - max).exp();
        let sum: f64 = logits.iter().map(|&x| power(x)).sum();
        let mut order: Vec<(usize, f32)> = logits.iter().copied().enumerate().collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let class = |i: usize| names.get(i).map_or(String::new(), |name| quote(name));
        let mut line = format!("{},{}", quote(name), class(label as usize));
        for place in 0..5 {
            line += &match order.get(place) {
                Some(&(i, x)) => format!(",{},{:.6}", class(i), power(x) / sum),
                None => ",,".into(),
            };
        }
        self.line(&line)
    }
}

/// A field of a CSV file (RFC 4180).
fn quote(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

/// (images, right ones) of each class.
fn counts(cells: &Confusion, classes: usize) -> Vec<(u64, u64)> {
    let mut counts = vec![(0, 0); classes];
    for (&(class, guess), &images) in cells {
        counts[class].0 += images;
        counts[class].1 += if class == guess { images } else { 0 };
    }
    counts
}

fn percent(right: u64, images: u64) -> String {
    match images {
        0 => String::new(),
        _ => format!("{:.2}", 100.0 * right as f64 / images as f64),
    }
}

/// How many images of each class were recognised.
pub fn per_class(path: &Path, names: &[String], cells: &Confusion) -> Result<()> {
    let mut table = Table::create(path, "class,images,right,top1")?;
    for (name, (images, right)) in names.iter().zip(counts(cells, names.len())) {
        let top1 = percent(right, images);
        table.line(&format!("{},{images},{right},{top1}", quote(name)))?;
    }
    table.finish()
}

/// Up to [`DENSE`] classes a row for each and a column for each that it was taken for; above, where that would be mostly
/// zeros and a gigabyte, a line for each pair that occurred.
pub fn confusion(path: &Path, names: &[String], cells: &Confusion) -> Result<()> {
    if names.len() > DENSE {
        let mut table = Table::create(path, "label,prediction,count")?;
        for (&(class, guess), images) in cells {
            let (class, guess) = (quote(&names[class]), quote(&names[guess]));
            table.line(&format!("{class},{guess},{images}"))?;
        }
        return table.finish();
    }
    let join = |fields: Vec<String>| fields.join(",");
    let header = join(names.iter().map(|n| quote(n)).collect());
    let mut table = Table::create(path, &format!("truth,{header}"))?;
    for (class, name) in names.iter().enumerate() {
        let images = |guess| cells.get(&(class, guess)).unwrap_or(&0).to_string();
        let numbers = join((0..names.len()).map(images).collect());
        table.line(&format!("{},{numbers}", quote(name)))?;
    }
    table.finish()
}

/// Lines on the classes that are recognised worst: three, where there are more than three.
pub fn worst(names: &[String], cells: &Confusion) -> Vec<String> {
    let all = names.iter().zip(counts(cells, names.len()));
    let mut all: Vec<_> = all.filter(|(_, (images, _))| *images > 0).collect();
    all.sort_by(|a, b| {
        let part = |(images, right): (u64, u64)| right as f64 / images as f64;
        part(a.1).total_cmp(&part(b.1))
    });
    if all.len() <= 3 {
        all.clear();
    }
    let line = |&(name, (images, right)): &(&String, (u64, u64))| {
        let top1 = percent(right, images);
        format!("  worst: {top1:>6} % of {images} '{}'", name.escape_debug())
    };
    all.iter().take(3).map(line).collect()
}
