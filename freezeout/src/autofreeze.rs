//! AutoFreeze: freeze the layers whose gradients have stopped changing.
use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use crate::policy::{frozen, rows, table};
use crate::{Error, FreezeOut, Gradients, Policy};

/// Freezes the layers whose gradient norm changes least (AutoFreeze, arXiv 2102.01386, section 4).
///
/// Over each interval T of steps the gradient of every live layer is accumulated to a number Delta, and
///
/// ```text
/// eta = |Delta_{T-1} - Delta_T| / Delta_{T-1}
/// ```
///
/// is its rate of change. Counted from the boundary, layers freeze as long as their eta is not above the `percentile` of
/// the live layers'. Delta is the sum of the L2 norms of the single gradients; the paper's norm of the summed gradient
/// would need one more buffer of the size of the model. Layers of [`crate::Schedule::keep_last`] never freeze.
///
/// ```
/// # use candle_core::{DType, Device};
/// # use candle_nn::{linear, VarBuilder, VarMap};
/// use freezeout::{AutoFreeze, FreezeOut, Schedule};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let vars = VarMap::new();
/// # let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// # for i in 0..4 { linear(2, 2, vb.pp("blocks").pp(i))?; }
/// # let layer_of = |name: &str| name.split('.').nth(1)?.parse().ok();
/// let schedule = Schedule::cubic(1.0, 4, 1000); // the learning rates
/// let mut policy = AutoFreeze::default();
/// policy.interval = 50;
/// let freeze = FreezeOut::new(&vars, schedule, layer_of)?.with_policy(policy);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct AutoFreeze {
    /// Steps between decisions. 100.
    pub interval: usize,
    /// Which share of the live layers counts as calm, in percent. 50, the median, as in the paper.
    pub percentile: f64,
    /// Steps before the first interval. 0.
    pub start: usize,
    memory: Memory,
}

#[derive(Debug, Clone, Default)]
struct Memory {
    frozen: usize,
    /// Delta of each layer in the running interval.
    sum: Vec<f64>,
    /// Delta of each layer in the last one, empty before there was one.
    last: Vec<f64>,
}

impl Default for AutoFreeze {
    fn default() -> Self {
        Self {
            interval: 100,
            percentile: 50.0,
            start: 0,
            memory: Memory::default(),
        }
    }
}

impl Policy for AutoFreeze {
    fn advance(&mut self, step: usize, freeze: &FreezeOut) -> Result<usize, Error> {
        if self.interval == 0 || !(0.0..=100.0).contains(&self.percentile) {
            return Err(Error::Policy(format!(
                "AutoFreeze: interval {} must be at least 1, percentile {} lie in [0, 100]",
                self.interval, self.percentile
            )));
        }
        let memory = &mut self.memory;
        if step <= self.start {
            memory.sum.clear();
        }
        if step <= self.start || !(step - self.start).is_multiple_of(self.interval) {
            return Ok(memory.frozen);
        }
        let sum = std::mem::take(&mut memory.sum);
        if sum.is_empty() && freeze.reduced() {
            return Err(Error::Policy(format!(
                "AutoFreeze: no gradients shown in the last {} steps; call FreezeOut::observe after Gradients::all_reduce",
                self.interval
            )));
        }
        let schedule = freeze.schedule();
        let most = schedule.layers - schedule.keep_last;
        if memory.last.len() == sum.len() {
            let rate = |layer: usize| {
                let (last, now) = (memory.last[layer], sum[layer]);
                ((last - now).abs() / last.max(f64::MIN_POSITIVE), layer)
            };
            let rates: Vec<f64> = (memory.frozen..sum.len()).map(|i| rate(i).0).collect();
            let limit = percentile(&rates, self.percentile);
            let calm = rates.iter().take_while(|&&rate| rate <= limit).count();
            memory.frozen = (memory.frozen + calm).min(most);
        }
        memory.last = sum;
        Ok(memory.frozen)
    }

    fn observe(&mut self, freeze: &FreezeOut, grads: &Gradients) -> Result<(), Error> {
        let mut squares = vec![0.0; freeze.schedule().layers];
        for (name, layer, _) in freeze.live() {
            if let (Some(layer), Some(grad)) = (layer, grads.get(name)) {
                squares[layer] += crate::reduce::sum_of_squares(grad)?;
            }
        }
        self.memory.sum.resize(squares.len(), 0.0);
        for (sum, square) in self.memory.sum.iter_mut().zip(squares) {
            *sum += square.sqrt();
        }
        Ok(())
    }

    fn state(&self, _: &FreezeOut) -> Result<BTreeMap<String, Tensor>, Error> {
        let Memory { frozen, sum, last } = &self.memory;
        Ok(BTreeMap::from([
            ("frozen".into(), Tensor::new(*frozen as i64, &Device::Cpu)?),
            ("sum".into(), table(std::slice::from_ref(sum))?),
            ("last".into(), table(std::slice::from_ref(last))?),
        ]))
    }

    fn load_state(
        &mut self,
        freeze: &FreezeOut,
        saved: &BTreeMap<String, Tensor>,
    ) -> Result<(), Error> {
        let row = |key: &str| -> Result<Vec<f64>, Error> {
            let row = rows(saved, key, 1)?.concat();
            if row.is_empty() || row.len() == freeze.schedule().layers {
                Ok(row)
            } else {
                Err(Error::Policy(format!(
                    "'{key}' has {} layers, the schedule {}",
                    row.len(),
                    freeze.schedule().layers
                )))
            }
        };
        self.memory = Memory {
            frozen: frozen(saved, freeze)?,
            sum: row("sum")?,
            last: row("last")?,
        };
        Ok(())
    }
}

/// The value that `percent` of the numbers are not above, interpolated between neighbours as numpy does.
fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let at = percent / 100.0 * last as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (at - low as f64)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_numpys() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(percentile(&values, 50.0), 2.5);
        assert_eq!(percentile(&values, 0.0), 1.0);
        assert_eq!(percentile(&values, 100.0), 4.0);
        assert!((percentile(&values, 90.0) - 3.7).abs() < 1e-12);
        assert!(percentile(&[], 50.0).is_nan());
    }
}
