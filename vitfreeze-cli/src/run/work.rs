//! How much of a run's work its steps are, to tell how long the rest takes.

/// Work by step, in any unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Work(Vec<(usize, f64)>);

impl Work {
    /// Every step has the same.
    pub fn even() -> Self {
        Self(vec![(0, 1.0)])
    }

    /// From each of these steps on, the first of which is 0, every step has so much.
    pub fn by_step(parts: Vec<(usize, f64)>) -> Self {
        Self(parts)
    }

    /// That of a run's first steps.
    pub fn of_first(&self, steps: usize) -> f64 {
        let ends = self.0.iter().skip(1).map(|part| part.0);
        let parts = self.0.iter().zip(ends.chain([usize::MAX]));
        let one = |(&(start, each), end): (&(usize, f64), usize)| {
            each * steps.min(end).saturating_sub(start) as f64
        };
        parts.map(one).sum()
    }

    /// That of the steps from `start` up to `end`.
    pub fn between(&self, start: usize, end: usize) -> f64 {
        self.of_first(end.max(start)) - self.of_first(start)
    }
}

#[cfg(test)]
mod tests {
    use super::Work;

    #[test]
    fn steps_count_as_much_as_they_compute() {
        let work = Work::by_step(vec![(0, 0.25), (4, 0.5), (8, 1.0)]);
        assert_eq!(work.of_first(2), 0.5);
        assert_eq!(work.of_first(9), 1.0 + 2.0 + 1.0);
        assert_eq!(work.between(3, 5), 0.75);
        assert_eq!(work.between(5, 3), 0.0);
        assert_eq!(Work::even().between(2, 7), 5.0);
    }
}
