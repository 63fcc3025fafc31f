//! Axes: where ticks stand and what they say.

/// Numbers from `low` to `high`, spread over a length.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    pub low: f64,
    pub high: f64,
    /// The place of the logarithm.
    pub log: bool,
}

impl Axis {
    /// An axis of at least some length.
    pub fn new(low: f64, high: f64) -> Self {
        let log = false;
        match high > low {
            true => Self { low, high, log },
            false => Self {
                low: low - 0.5,
                high: low + 0.5,
                log,
            },
        }
    }

    /// From the least to the greatest of these, with some room.
    pub fn around(values: impl Iterator<Item = f64> + Clone, room: f64) -> Self {
        let values = values.filter(|x| x.is_finite());
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        let length = high - low;
        match length > 1e-9 * high.abs() {
            true => Self::new(low - room * length, high + room * length),
            // All alike, or none at all.
            false if low <= high => Self::new(low - 0.5, low + 0.5),
            false => Self::new(0.0, 1.0),
        }
    }

    /// A logarithmic axis around the positive ones of these.
    pub fn log_around(values: impl Iterator<Item = f64> + Clone) -> Self {
        let values = values.filter(|x| x.is_finite() && *x > 0.0);
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(0.0, f64::max);
        let (low, high) = if low <= high { (low, high) } else { (0.1, 1.0) };
        Self {
            low: 0.93 * low,
            high: 1.08 * high,
            log: true,
        }
    }

    /// 0 at `low`, 1 at `high`.
    pub fn place(&self, x: f64) -> f64 {
        match self.log {
            true => (x / self.low).ln() / (self.high / self.low).ln(),
            false => (x - self.low) / (self.high - self.low),
        }
    }

    /// Round numbers inside, about so many.
    pub fn ticks(&self, about: usize) -> Vec<f64> {
        let ticks = match self.log {
            true => self.log_ticks(about),
            false => Vec::new(),
        };
        // Where a logarithm has no round numbers it is as good as straight.
        if ticks.len() > 1 {
            return ticks;
        }
        let step = self.step(about);
        let first = (self.low / step - 1e-9).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last.min(first + 1000))
            .map(|i| i as f64 * step)
            .collect()
    }

    /// Powers of ten, then 2 and 5 times them, then every digit: as many of these as there is room for.
    fn log_ticks(&self, about: usize) -> Vec<f64> {
        let (low, high) = (
            self.low.log10().floor() as i32,
            self.high.log10().ceil() as i32,
        );
        let digits: [&[u32]; 3] = [&[1, 2, 3, 4, 5, 6, 7, 8, 9], &[1, 2, 5], &[1]];
        let ticks = |digits: &[u32]| {
            let powers = (low..=high).map(|power| 10f64.powi(power));
            let all = powers.flat_map(|power| digits.iter().map(move |&d| f64::from(d) * power));
            all.filter(|x| (self.low..=self.high).contains(x))
                .collect::<Vec<f64>>()
        };
        let found = digits.map(ticks);
        let fits = found.iter().find(|ticks| ticks.len() <= about.max(4));
        fits.unwrap_or(&found[2]).clone()
    }

    fn step(&self, about: usize) -> f64 {
        let raw = (self.high - self.low) / about.max(1) as f64;
        let power = 10f64.powf(raw.log10().floor());
        let round = [1.0, 2.0, 5.0, 10.0];
        let nearest = round.into_iter().min_by(|a, b| {
            let far = |x: &f64| (x * power / raw).ln().abs();
            far(a).total_cmp(&far(b))
        });
        nearest.unwrap_or(1.0) * power
    }

    /// What the ticks say, and a power of ten that the axis' name then tells.
    pub fn labels(&self, ticks: &[f64]) -> (Vec<String>, i32) {
        let largest = ticks.iter().fold(0f64, |m, x| m.max(x.abs()));
        let power = match largest {
            x if x > 0.0 && !(0.0099..1e5).contains(&x) => x.log10().floor() as i32,
            _ => 0,
        };
        let scaled: Vec<f64> = ticks.iter().map(|x| x / 10f64.powi(power)).collect();
        // As many digits as tell each from the next.
        let exact = |digits: usize| {
            let unit = 10f64.powi(digits as i32);
            scaled
                .iter()
                .all(|x| (x * unit - (x * unit).round()).abs() < 1e-6 * unit.max(1.0))
        };
        let digits = (0..6).find(|&digits| exact(digits)).unwrap_or(6);
        let text = |x: &f64| format!("{:.digits$}", x + 0.0).replace('-', "\u{2212}");
        (scaled.iter().map(text).collect(), power)
    }
}

/// ` (× 10⁻³)`, or nothing for a power of 0.
pub fn times_ten_to(power: i32) -> String {
    if power == 0 {
        return String::new();
    }
    let raised = |c: char| match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        c => char::from_u32('⁰' as u32 + c.to_digit(10).unwrap_or(0)).unwrap_or(c),
    };
    let power: String = power.to_string().chars().map(raised).collect();
    format!(" (× 10{power})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(low: f64, high: f64) -> (Vec<String>, i32) {
        let axis = Axis::new(low, high);
        axis.labels(&axis.ticks(5))
    }

    #[test]
    fn ticks_are_round_and_read_well() {
        assert_eq!(said(0.0, 100.0).0, ["0", "20", "40", "60", "80", "100"]);
        let (rates, power) = said(0.0, 1.68e-3);
        assert_eq!((rates[1].as_str(), power), ("0.5", -3), "{rates:?}");
        assert_eq!(times_ten_to(power), " (× 10⁻³)");
        assert_eq!(times_ten_to(12) + &times_ten_to(0), " (× 10¹²)");
        assert_eq!(said(-1.0, 1.0).0[0], "\u{2212}1.0");
        let (percents, _) = said(29.1, 31.3);
        assert!(percents.contains(&"30.0".to_owned()), "{percents:?}");
        assert_eq!(said(3.0, 3.0).1, 0);
        let log = Axis::log_around([0.03, 0.4].into_iter());
        assert_eq!(log.labels(&log.ticks(5)).0, ["0.05", "0.10", "0.20"]);
        assert!((log.place(log.low), log.place(log.high)) == (0.0, 1.0));
        let narrow = Axis::log_around([2.302, 2.303].into_iter());
        assert_eq!(narrow.labels(&narrow.ticks(3)).0, ["2.2", "2.3", "2.4"]);
        let alike = Axis::around([10.0, 10.0].into_iter(), 0.1);
        assert!(alike.ticks(5).len() < 8 && alike.labels(&[9.8, 10.0]).0 == ["9.8", "10.0"]);
        let none = Axis::around([f64::NAN].into_iter(), 0.1);
        assert_eq!(none.place(0.5), 0.5);
    }
}
