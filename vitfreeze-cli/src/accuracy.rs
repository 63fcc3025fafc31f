//! Top-1, top-5, mean cross entropy and the confusion matrix of a classifier, counted batch by batch.
use std::collections::BTreeMap;

use freezeout::distributed::Communicator;

/// Images by (class, guess).
pub type Confusion = BTreeMap<(usize, usize), u64>;

/// What has been counted so far.
pub struct Accuracy {
    classes: usize,
    top1: usize,
    top5: usize,
    /// Sum of the cross entropies.
    loss: f64,
    images: usize,
    confusion: Confusion,
}

impl Accuracy {
    /// For so many classes.
    pub fn new(classes: usize) -> Self {
        Self {
            classes,
            top1: 0,
            top5: 0,
            loss: 0.0,
            images: 0,
            confusion: Confusion::new(),
        }
    }

    /// Counts a batch: `logits` is (B, classes), `labels` (B). Of equal logits the first class goes before. An image with a
    /// NaN among its logits counts as wrong, and is in no cell of the confusion matrix.
    pub fn add(&mut self, logits: &[f32], labels: &[u32]) {
        for (row, &label) in logits.chunks_exact(self.classes.max(1)).zip(labels) {
            let label = label as usize;
            let Some(&own) = row.get(label) else {
                continue;
            };
            self.images += 1;
            if row.iter().any(|x| x.is_nan()) {
                self.loss = f64::NAN;
                continue;
            }
            let before = |i: usize, x: f32| x > own || (x == own && i < label);
            let rank = row
                .iter()
                .enumerate()
                .filter(|&(i, &x)| before(i, x))
                .count();
            let best = (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
            self.top1 += usize::from(rank == 0);
            self.top5 += usize::from(rank < 5);
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
            self.loss += sum.ln() - f64::from(own - max);
            *self.confusion.entry((label, best)).or_default() += 1;
        }
    }

    /// The same of all workers together, each of which has counted a part; but for the confusion matrix.
    pub fn of_all(mut self, comm: &dyn Communicator) -> Result<Self, freezeout::Error> {
        let mut sums = [self.top1, self.top5, self.images]
            .map(|n| n as f64)
            .to_vec();
        sums.push(self.loss);
        comm.all_reduce_f64(&mut sums)?;
        [self.top1, self.top5, self.images] = [0, 1, 2].map(|i| sums[i] as usize);
        self.loss = sums[3];
        Ok(self)
    }

    /// Percent of the images whose class has the largest logit.
    pub fn top1(&self) -> f64 {
        100.0 * self.top1 as f64 / self.images.max(1) as f64
    }

    /// Percent of the images whose class is among the five largest.
    pub fn top5(&self) -> f64 {
        100.0 * self.top5 as f64 / self.images.max(1) as f64
    }

    /// Mean cross entropy.
    pub fn loss(&self) -> f64 {
        self.loss / self.images.max(1) as f64
    }

    /// How many images of a class were taken for another: (class, guess) -> images. Most pairs of many classes never occur.
    pub fn confusion(&self) -> &Confusion {
        &self.confusion
    }

    /// Images counted.
    pub fn images(&self) -> usize {
        self.images
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_and_losses_by_hand() {
        let mut accuracy = Accuracy::new(6);
        let rows = [
            [5.0f32, 4.0, 3.0, 2.0, 1.0, 0.0],
            [5.0, 4.0, 3.0, 2.0, 1.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ];
        // First, last, and second among equals.
        accuracy.add(&rows[..2].concat(), &[0, 5]);
        accuracy.add(&rows[2], &[1]);
        assert_eq!(accuracy.images(), 3);
        assert!((accuracy.top1() - 100.0 / 3.0).abs() < 1e-9);
        assert!((accuracy.top5() - 200.0 / 3.0).abs() < 1e-9);
        let all: f64 = (0..6).map(|i| (-f64::from(i)).exp()).sum();
        let want = (all.ln() + (all.ln() + 5.0) + 6f64.ln()) / 3.0;
        assert!((accuracy.loss() - want).abs() < 1e-6, "{want}");
    }

    #[test]
    fn equal_logits_nan_and_large_ones() {
        let mut accuracy = Accuracy::new(6);
        let mut logits = vec![0.0; 6];
        // The first of equals is the guess; the last of six is not among five.
        accuracy.add(&logits, &[0]);
        accuracy.add(&logits, &[5]);
        assert_eq!((accuracy.top1(), accuracy.top5()), (50.0, 50.0));
        assert!((accuracy.loss() - 6f64.ln()).abs() < 1e-12);
        logits[2] = 1e30;
        accuracy.add(&logits, &[2]);
        assert!((accuracy.loss() - 6f64.ln() * 2.0 / 3.0).abs() < 1e-12);
        logits[1] = f32::NAN;
        accuracy.add(&logits, &[1]);
        assert_eq!((accuracy.top1(), accuracy.images()), (50.0, 4));
        assert!(accuracy.loss().is_nan());
        let cells: Vec<(usize, usize)> = accuracy.confusion().keys().copied().collect();
        assert_eq!(cells, [(0, 0), (2, 2), (5, 0)]);
    }
}
