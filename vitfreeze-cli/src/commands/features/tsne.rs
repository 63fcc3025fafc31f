//! t-SNE (van der Maaten and Hinton, 2008), exact, begun at the principal components: the same vectors, the same map. By hand,
//! since the crates that do it begin at random or have candle built anew.
use rayon::prelude::*;

/// Neighbours that count, roughly, where there are as many.
const PERPLEXITY: f64 = 30.0;

/// Of so many points; `None`: too few for a map of their own.
pub fn perplexity(count: usize) -> Option<f64> {
    (count >= 4).then(|| PERPLEXITY.min((count - 1) as f64 / 3.0))
}

const ROUNDS: usize = 750;
/// In the first of them all neighbours attract so much more, so that groups find each other.
const EARLY: (usize, f64) = (250, 12.0);

type Point = (f64, f64);

/// Of rows of `width` numbers; `start` has a point for each.
pub fn tsne(values: &[f32], width: usize, start: &[Point]) -> Vec<Point> {
    let count = start.len();
    let Some(perplexity) = perplexity(count) else {
        return start.to_vec();
    };
    let near = neighbours(values, width, count, perplexity);
    let mut points = small(start);
    let mut speed = vec![(0.0, 0.0); count];
    let mut gains = vec![(1.0, 1.0); count];
    let rate = (count as f64 / EARLY.1 / 4.0).max(50.0);
    for round in 0..ROUNDS {
        let early = round < EARLY.0;
        let (pull, momentum) = if early { (EARLY.1, 0.5) } else { (1.0, 0.8) };
        let slopes = slopes(&near, &points, pull);
        for i in 0..count {
            let step = |slope: f64, speed: &mut f64, gain: &mut f64| {
                // Longer where it goes on, shorter where it turns.
                *gain = if (slope > 0.0) == (*speed > 0.0) {
                    *gain * 0.8
                } else {
                    *gain + 0.2
                };
                *gain = gain.max(0.01);
                *speed = momentum * *speed - rate * *gain * slope;
                *speed
            };
            points[i].0 += step(slopes[i].0, &mut speed[i].0, &mut gains[i].0);
            points[i].1 += step(slopes[i].1, &mut speed[i].1, &mut gains[i].1);
        }
    }
    points
}

/// The start, so near to its middle that all points feel each other.
fn small(start: &[Point]) -> Vec<Point> {
    let count = start.len() as f64;
    let mean = start
        .iter()
        .fold((0.0, 0.0), |m, p| (m.0 + p.0 / count, m.1 + p.1 / count));
    let square = |p: &Point| (p.0 - mean.0).powi(2) + (p.1 - mean.1).powi(2);
    let spread = (start.iter().map(square).sum::<f64>() / count)
        .sqrt()
        .max(1e-300);
    let scale = 1e-4 / spread;
    let one = |p: &Point| ((p.0 - mean.0) * scale, (p.1 - mean.1) * scale);
    start.iter().map(one).collect()
}

/// How much each row is a neighbour of each other: of both together, all sum to 1.
fn neighbours(values: &[f32], width: usize, count: usize, perplexity: f64) -> Vec<f32> {
    let rows: Vec<&[f32]> = values.chunks_exact(width).take(count).collect();
    let distance = |a: &[f32], b: &[f32]| -> f64 {
        let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
        let sum: f64 = squares.sum();
        if sum.is_finite() {
            sum
        } else {
            f64::MAX.sqrt()
        }
    };
    let of_row = |i: usize| {
        let all: Vec<f64> = rows.iter().map(|row| distance(rows[i], row)).collect();
        of_distances(&all, i, perplexity)
    };
    let one_way: Vec<Vec<f32>> = (0..count).into_par_iter().map(of_row).collect();
    let both = |i: usize| (i / count, i % count);
    let mean = |(i, j): (usize, usize)| (one_way[i][j] + one_way[j][i]) / (2 * count) as f32;
    (0..count * count)
        .into_par_iter()
        .map(|i| mean(both(i)))
        .collect()
}

/// A normal distribution around row `own`, as wide as gives it so many neighbours.
fn of_distances(distances: &[f64], own: usize, perplexity: f64) -> Vec<f32> {
    let others = || {
        distances
            .iter()
            .enumerate()
            .filter(move |(j, _)| *j != own)
            .map(|(_, &d)| d)
    };
    let nearest = others().fold(f64::INFINITY, f64::min);
    let mean = others().map(|d| d - nearest).sum::<f64>() / distances.len() as f64;
    // All alike: any width does.
    let mut narrow = 1.0 / mean.max(1e-12);
    let (mut low, mut high) = (0.0, f64::INFINITY);
    let weight = |d: f64, narrow: f64| (-(d - nearest) * narrow).exp();
    for _ in 0..60 {
        let sum: f64 = others().map(|d| weight(d, narrow)).sum();
        let far: f64 = others().map(|d| (d - nearest) * weight(d, narrow)).sum();
        let entropy = sum.ln() + narrow * far / sum;
        match entropy > perplexity.ln() {
            true => low = narrow,
            false => high = narrow,
        }
        narrow = if high.is_finite() {
            (low + high) / 2.0
        } else {
            2.0 * narrow
        };
    }
    let sum: f64 = others().map(|d| weight(d, narrow)).sum();
    let one = |(j, &d): (usize, &f64)| match j == own {
        true => 0.0,
        false => (weight(d, narrow) / sum) as f32,
    };
    distances.iter().enumerate().map(one).collect()
}

/// Where each point is pushed from: the gradient of the Kullback-Leibler divergence.
fn slopes(near: &[f32], points: &[Point], pull: f64) -> Vec<Point> {
    let count = points.len();
    let closeness = |a: Point, b: Point| 1.0 / (1.0 + (a.0 - b.0).powi(2) + (a.1 - b.1).powi(2));
    let of_row = |i: usize| {
        let (mut attract, mut repel, mut sum) = ((0.0, 0.0), (0.0, 0.0), 0.0);
        for (j, &other) in points.iter().enumerate() {
            if i == j {
                continue;
            }
            let close = closeness(points[i], other);
            let away = (points[i].0 - other.0, points[i].1 - other.1);
            let together = f64::from(near[i * count + j]) * close;
            attract = (attract.0 + together * away.0, attract.1 + together * away.1);
            repel = (
                repel.0 + close * close * away.0,
                repel.1 + close * close * away.1,
            );
            sum += close;
        }
        (attract, repel, sum)
    };
    let rows: Vec<_> = (0..count).into_par_iter().map(of_row).collect();
    // In one order, so that the sum is the same with any number of threads.
    let all: f64 = rows.iter().map(|row| row.2).sum();
    let slope = |(attract, repel, _): &(Point, Point, f64)| {
        let of = |attract: f64, repel: f64| 4.0 * (pull * attract - repel / all);
        (of(attract.0, repel.0), of(attract.1, repel.1))
    };
    rows.iter().map(slope).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three groups in ten dimensions stay three groups, and twice is the same.
    #[test]
    fn groups_stay_together() {
        let (width, each) = (10, 30);
        let value = |i: usize| {
            let (row, column) = (i / width, i % width);
            let noise = ((i * 7919) % 101) as f32 / 200.0;
            noise + if column == row / each { 8.0 } else { 0.0 }
        };
        let values: Vec<f32> = (0..3 * each * width).map(value).collect();
        let start: Vec<Point> = values
            .chunks_exact(width)
            .map(|r| (f64::from(r[0]), f64::from(r[1])))
            .collect();
        let points = tsne(&values, width, &start);
        assert_eq!(points, tsne(&values, width, &start));
        let middle = |group: usize| {
            let points = &points[group * each..(group + 1) * each];
            let sum = points
                .iter()
                .fold((0.0, 0.0), |s, p| (s.0 + p.0, s.1 + p.1));
            (sum.0 / each as f64, sum.1 / each as f64)
        };
        let distance = |a: Point, b: Point| (a.0 - b.0).hypot(a.1 - b.1);
        let groups = [0, 1, 2].map(middle);
        for (i, &point) in points.iter().enumerate() {
            let own = distance(point, groups[i / each]);
            for other in (0..3).filter(|&g| g != i / each) {
                assert!(own < distance(point, groups[other]) / 2.0, "{i}");
            }
        }
        // Images that are all alike, too few, and no numbers end as well.
        let alike = tsne(&vec![1.0; 20 * width], width, &vec![(0.0, 0.0); 20]);
        assert!(alike.iter().all(|p| p.0.is_finite() && p.1.is_finite()));
        assert_eq!(tsne(&[1.0; 20], width, &[(1.0, 2.0), (3.0, 4.0)]).len(), 2);
        let none = tsne(&vec![f32::NAN; 20 * width], width, &vec![(0.0, 0.0); 20]);
        assert!(none.iter().all(|p| p.0.is_finite()));
    }
}
