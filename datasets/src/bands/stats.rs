//! Mean and deviation of each channel over many images.

use crate::Bands;

/// Of each channel the mean and the deviation over all pixels, in the units of [`Bands::values`]: what images are normalised
/// by. Computed in f64; images that are merged in the same order give the same bits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChannelStats {
    pixels: f64,
    /// Mean, and sum of the squared distances to it.
    channels: Vec<(f64, f64)>,
}

impl ChannelStats {
    /// Of one image.
    pub fn of(image: &Bands) -> Self {
        let pixels = (image.width * image.height) as f64;
        let one = |c: usize| {
            let values = image.values.iter().skip(c).step_by(image.channels.max(1));
            let mean = values.clone().map(|&x| f64::from(x)).sum::<f64>() / pixels;
            let squares = values.map(|&x| (f64::from(x) - mean).powi(2));
            (mean, squares.sum())
        };
        Self {
            pixels,
            channels: (0..image.channels).map(one).collect(),
        }
    }

    /// Of these images and those (Chan, Golub and LeVeque, Am. Stat. 37, 1983, page 242).
    pub fn merge(&mut self, other: &Self) {
        if self.pixels == 0.0 {
            return self.clone_from(other);
        }
        let all = self.pixels + other.pixels;
        for ((mean, squares), (their_mean, their_squares)) in
            self.channels.iter_mut().zip(&other.channels)
        {
            let distance = their_mean - *mean;
            *mean += distance * other.pixels / all;
            *squares += their_squares + distance * distance * self.pixels * other.pixels / all;
        }
        self.pixels = all;
    }

    /// The mean of each channel.
    pub fn mean(&self) -> Vec<f64> {
        self.channels.iter().map(|(mean, _)| *mean).collect()
    }

    /// The standard deviation of each channel, over all pixels as the whole population.
    pub fn deviation(&self) -> Vec<f64> {
        let one = |(_, squares): &(f64, f64)| (squares / self.pixels).sqrt();
        self.channels.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_images_are_one_large_one() {
        let value = |i: usize| ((i * 7919) % 1000) as f32 / 250.0 + 1000.0;
        let image = |first: usize, width: usize| Bands {
            width,
            height: 2,
            channels: 2,
            values: (first..first + 4 * width).map(value).collect(),
        };
        let mut parts = ChannelStats::default();
        for (first, width) in [(0, 3), (12, 1), (16, 6)] {
            parts.merge(&ChannelStats::of(&image(first, width)));
        }
        let whole = ChannelStats::of(&image(0, 10));
        let close = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9);
        assert!(close(parts.mean(), whole.mean()));
        assert!(close(parts.deviation(), whole.deviation()));
        // By the formula.
        let values: Vec<f64> = (0..20).map(|i| f64::from(value(2 * i))).collect();
        let mean = values.iter().sum::<f64>() / 20.0;
        let square = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20.0;
        assert!(close(
            vec![whole.mean()[0], whole.deviation()[0]],
            vec![mean, square.sqrt()]
        ));
    }
}
