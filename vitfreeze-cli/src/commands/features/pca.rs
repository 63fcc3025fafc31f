//! The largest principal components, by orthogonal iteration: no covariance matrix is made.
use rayon::prelude::*;

/// Iterations: the picture does not change any more.
const ROUNDS: usize = 60;

/// Directions of the greatest variance.
pub struct Pca {
    mean: Vec<f64>,
    directions: Vec<Vec<f64>>,
    /// The part of the variance that lies in them.
    pub told: f64,
}

impl Pca {
    /// Of rows of `width` numbers; values that are not finite count as 0.
    pub fn new(values: &[f32], width: usize, count: usize) -> Self {
        let count = count.min(width);
        let rows = (values.len() / width).max(1) as f64;
        let mut mean = vec![0.0; width];
        for row in values.chunks_exact(width) {
            mean.iter_mut()
                .zip(row)
                .for_each(|(m, &x)| *m += finite(x) / rows);
        }
        // Any start does that is not orthogonal to what is looked for.
        let start = |k: usize| {
            (0..width).map(move |i| (((i + 1) * (k + 3) * 7919) % 101) as f64 / 50.0 - 1.0)
        };
        let mut directions: Vec<Vec<f64>> = (0..count).map(|k| start(k).collect()).collect();
        orthogonal(&mut directions);
        let mut variances = vec![0.0; count];
        for _ in 0..ROUNDS {
            directions = times_covariance(values, &mean, &directions);
            for (variance, direction) in variances.iter_mut().zip(&directions) {
                *variance = length(direction) / rows;
            }
            orthogonal(&mut directions);
        }
        // The same picture whatever sign the iteration came to.
        for direction in &mut directions {
            let largest = direction
                .iter()
                .copied()
                .max_by(|a, b| a.abs().total_cmp(&b.abs()));
            if largest.is_some_and(|x| x < 0.0) {
                direction.iter_mut().for_each(|x| *x = -*x);
            }
        }
        let all: f64 = values
            .chunks_exact(width)
            .flat_map(|row| row.iter().zip(&mean).map(|(&x, m)| (finite(x) - m).powi(2)))
            .sum();
        let told = variances.iter().sum::<f64>() / (all / rows).max(f64::MIN_POSITIVE);
        Self {
            mean,
            directions,
            told: told.min(1.0),
        }
    }

    /// The components of each row.
    pub fn of<'a>(&'a self, values: &'a [f32]) -> impl Iterator<Item = Vec<f64>> + 'a {
        let rows = values.chunks_exact(self.mean.len());
        rows.map(|row| project(row, &self.mean, &self.directions))
    }
}

fn finite(x: f32) -> f64 {
    if x.is_finite() {
        f64::from(x)
    } else {
        0.0
    }
}

fn project(row: &[f32], mean: &[f64], directions: &[Vec<f64>]) -> Vec<f64> {
    let along = |direction: &Vec<f64>| {
        let terms = row.iter().zip(mean).zip(direction);
        terms.map(|((&x, m), d)| (finite(x) - m) * d).sum::<f64>()
    };
    directions.iter().map(along).collect()
}

/// `X^T X v` of each direction, X being the rows without their mean. Rows are added in pieces of fixed size, so that the
/// number of threads changes nothing.
fn times_covariance(values: &[f32], mean: &[f64], directions: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let width = mean.len();
    let zeros = || vec![vec![0.0; width]; directions.len()];
    let piece = |rows: &[f32]| {
        let mut sums = zeros();
        for row in rows.chunks_exact(width) {
            let along = project(row, mean, directions);
            for (sum, along) in sums.iter_mut().zip(along) {
                let terms = sum.iter_mut().zip(row).zip(mean);
                terms.for_each(|((s, &x), m)| *s += along * (finite(x) - m));
            }
        }
        sums
    };
    let pieces: Vec<_> = values.par_chunks(256 * width).map(piece).collect();
    pieces.into_iter().fold(zeros(), |mut all, piece| {
        for (a, b) in all.iter_mut().flatten().zip(piece.iter().flatten()) {
            *a += b;
        }
        all
    })
}

fn length(v: &[f64]) -> f64 {
    v.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Gram and Schmidt; what has no length stays zero.
fn orthogonal(directions: &mut [Vec<f64>]) {
    for k in 0..directions.len() {
        let (before, rest) = directions.split_at_mut(k);
        let own = &mut rest[0];
        for other in before {
            let along: f64 = own.iter().zip(&*other).map(|(a, b)| a * b).sum();
            own.iter_mut()
                .zip(&*other)
                .for_each(|(a, b)| *a -= along * b);
        }
        let length = length(own);
        if length > 1e-30 {
            own.iter_mut().for_each(|x| *x /= length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_directions_of_the_greatest_variance() {
        // A long axis along (3, 4) / 5, a short one across, a third without any variance.
        let points = (0..40).flat_map(|i| {
            let (long, short) = (f64::from(i) - 19.5, f64::from(i * 17 % 5) - 2.0);
            [3.0 * long - 4.0 * short, 4.0 * long + 3.0 * short, 7.0].map(|x| x as f32 / 5.0)
        });
        let values: Vec<f32> = points.collect();
        let pca = Pca::new(&values, 3, 2);
        assert!(
            (pca.directions[0][0] - 0.6).abs() < 0.02,
            "{:?}",
            pca.directions
        );
        assert!((pca.directions[0][1] - 0.8).abs() < 0.02);
        assert!(pca.told > 0.999, "{}", pca.told);
        assert!(pca.of(&values).next().unwrap()[0] < -18.0);
        let nothing = Pca::new(&[1.0, f32::NAN, 1.0, 0.0], 2, 2);
        assert!(nothing.told.is_finite() && nothing.of(&[1.0, 0.0]).all(|p| p[0].abs() < 1e-9));
    }
}
