//! Exact nearest neighbours by cosine, and their votes.
use std::cmp::Ordering;
use std::collections::BinaryHeap;

use anyhow::Result;
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Queries and features of the bank compared at once: a similarity matrix of 16 MB.
const QUERIES: usize = 256;
const FEATURES: usize = 16_384;

/// Features of length 1, and labels.
pub struct Bank {
    /// (N, D)
    values: Vec<f32>,
    labels: Vec<u32>,
    width: usize,
}

/// A feature of the bank and how similar it is to a query. The greater, the worse: less similar, then later.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    pub similarity: f32,
    pub index: u32,
}

impl Eq for Neighbour {}

impl Ord for Neighbour {
    fn cmp(&self, other: &Self) -> Ordering {
        let similar = other.similarity.total_cmp(&self.similarity);
        similar.then(self.index.cmp(&other.index))
    }
}

impl PartialOrd for Neighbour {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Bank {
    /// For so many features of so many numbers.
    pub fn with_capacity(count: usize, width: usize) -> Self {
        Self {
            values: Vec::with_capacity(count.saturating_mul(width)),
            labels: Vec::with_capacity(count),
            width: width.max(1),
        }
    }

    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Takes features (B, D), each scaled to length 1, and labels (B); the first that is not finite, if any.
    pub fn add(&mut self, features: &[f32], labels: &[u32]) -> Option<usize> {
        for (i, (row, &label)) in features.chunks_exact(self.width).zip(labels).enumerate() {
            let square: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            if !square.is_finite() {
                return Some(i);
            }
            // As PyTorch's normalize: a feature of zeros stays one.
            let scale = 1.0 / square.sqrt().max(1e-12);
            let scaled = row.iter().map(|&x| (f64::from(x) * scale) as f32);
            self.values.extend(scaled);
            self.labels.push(label);
        }
        None
    }

    /// Gives `each` the label of every query in turn, its `k` nearest, nearest first (of equals the one that comes first
    /// in the bank), and how many queries are done. Memory beside the features: one block of similarities.
    ///
    /// Every similarity is a sum in an order of its own, so the number of threads changes no bit.
    pub fn nearest(
        &self,
        queries: &Bank,
        k: usize,
        device: &Device,
        mut each: impl FnMut(u32, &[Neighbour], usize),
    ) -> Result<()> {
        let mut done = 0;
        let rows = queries.values.chunks(QUERIES * self.width);
        for (rows, labels) in rows.zip(queries.labels.chunks(QUERIES)) {
            let count = labels.len();
            let block = Tensor::from_slice(rows, (count, self.width), device)?;
            let mut heaps = vec![BinaryHeap::with_capacity(k + 1); count];
            for (number, values) in self.values.chunks(FEATURES * self.width).enumerate() {
                let size = values.len() / self.width;
                let bank = Tensor::from_slice(values, (size, self.width), device)?;
                let similar = block.matmul(&bank.t()?)?.flatten_all()?;
                let similar = similar.to_device(&Device::Cpu)?.to_vec1::<f32>()?;
                let first = (number * FEATURES) as u32;
                heaps
                    .par_iter_mut()
                    .zip(similar.par_chunks(size))
                    .for_each(|(heap, row)| keep_nearest(heap, k, row, first));
            }
            for (heap, &label) in heaps.into_iter().zip(labels) {
                done += 1;
                each(label, &heap.into_sorted_vec(), done);
            }
        }
        Ok(())
    }
}

/// Puts what is nearer than the worst of `k` into the heap.
fn keep_nearest(heap: &mut BinaryHeap<Neighbour>, k: usize, row: &[f32], first: u32) {
    for (index, &similarity) in (first..).zip(row) {
        if heap.len() == k {
            // Those before it go first among equals, so equality is not enough.
            match heap.peek() {
                Some(worst) if similarity > worst.similarity => drop(heap.pop()),
                _ => continue,
            }
        }
        heap.push(Neighbour { similarity, index });
    }
}

/// The place of `label` (0 = first) by the neighbours' votes `exp(similarity / temperature)`; `None` without a vote. Of
/// classes with equal votes the lower number goes first.
pub fn vote(
    neighbours: &[Neighbour],
    labels: &[u32],
    classes: usize,
    temperature: f64,
    label: u32,
) -> Option<usize> {
    let mut votes = vec![0f64; classes];
    for near in neighbours {
        let class = labels.get(near.index as usize).copied().unwrap_or(u32::MAX);
        if let Some(vote) = votes.get_mut(class as usize) {
            *vote += (f64::from(near.similarity) / temperature).exp();
        }
    }
    let label = label as usize;
    let own = votes.get(label).copied().filter(|&v| v > 0.0)?;
    let before = |(class, &vote): (usize, &f64)| vote > own || (vote == own && class < label);
    Some(votes.iter().enumerate().filter(|&x| before(x)).count())
}

#[cfg(test)]
mod tests;
