//! The head of a linear probe: batch normalisation without weights, then a linear layer.
use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use datasets::rng::{normal, rng};
use freezeout::distributed::Communicator;
use vit::Linear;

/// Added to variances.
const EPS: f64 = 1e-6;
/// Weight of the latest batch in the running statistics, PyTorch's.
const MOMENTUM: f64 = 0.1;
/// Standard deviation of the first weights.
const STD: f32 = 0.01;

/// `y = W (x - mean) / sqrt(var + 1e-6) + b`, as MAE (arXiv 2111.06377, A.1); variables `head.weight` (C, D), `head.bias`
/// (C), and the running statistics `bn.running_mean`, `bn.running_var` (D).
pub struct Head {
    linear: Linear,
    /// Share the memory of the variables, where they are ones.
    mean: Var,
    var: Var,
}

/// First variables: weights from (seed), everything else 0, variance 1.
pub fn variables(width: usize, classes: usize, seed: u64, device: &Device) -> Result<VarMap> {
    let mut rng = rng(seed, "probe", 0, 0);
    let weight: Vec<f32> = (0..classes * width)
        .map(|_| STD * normal(&mut rng))
        .collect();
    let tensors = [
        (
            "head.weight",
            Tensor::from_vec(weight, (classes, width), device)?,
        ),
        ("head.bias", Tensor::zeros(classes, DType::F32, device)?),
        ("bn.running_mean", Tensor::zeros(width, DType::F32, device)?),
        ("bn.running_var", Tensor::ones(width, DType::F32, device)?),
    ];
    let vars = VarMap::new();
    let mut map = vars.data().lock().unwrap_or_else(|e| e.into_inner());
    for (name, tensor) in tensors {
        map.insert(name.to_owned(), Var::from_tensor(&tensor)?);
    }
    drop(map);
    Ok(vars)
}

impl Head {
    pub fn new(width: usize, classes: usize, vb: VarBuilder) -> Result<Self> {
        let (linear, bn) = (Linear::new(width, classes, vb.pp("head"))?, vb.pp("bn"));
        let running = |name| Var::from_tensor(&bn.get(width, name)?);
        Ok(Self {
            linear,
            mean: running("running_mean")?,
            var: running("running_var")?,
        })
    }

    /// `(B, D) -> (B, C)` by mean and variance of the batches of all workers together, which are taken into the running ones.
    pub fn train(&self, x: &Tensor, comm: &dyn Communicator) -> Result<Tensor> {
        let count = (x.dim(0)? * comm.size()) as f64;
        let mean = mean_of_all(x.mean(0)?, comm)?;
        let centred = x.broadcast_sub(&mean)?;
        let var = mean_of_all(centred.sqr()?.mean(0)?, comm)?;
        let unbiased = (&var * (count / (count - 1.0).max(1.0)))?;
        for (running, new) in [(&self.mean, &mean), (&self.var, &unbiased)] {
            let old = running.as_detached_tensor();
            running.set(&((old * (1.0 - MOMENTUM))? + (new * MOMENTUM)?)?)?;
        }
        let x = centred.broadcast_div(&(var + EPS)?.sqrt()?)?;
        Ok(self.linear.forward(&x)?)
    }

    /// `(B, D) -> (B, C)` by the running statistics.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.broadcast_sub(&self.mean)?;
        let x = x.broadcast_div(&(self.var.as_tensor() + EPS)?.sqrt()?)?;
        Ok(self.linear.forward(&x)?)
    }
}

/// The mean over the workers, whose batches have the same size. No gradient goes through it: nothing in front of it trains.
fn mean_of_all(mean: Tensor, comm: &dyn Communicator) -> Result<Tensor> {
    if comm.size() == 1 {
        return Ok(mean);
    }
    let mut values: Vec<f64> = mean.to_dtype(DType::F64)?.to_vec1()?;
    comm.all_reduce_f64(&mut values)?;
    let values: Vec<f32> = values
        .iter()
        .map(|sum| (sum / comm.size() as f64) as f32)
        .collect();
    Ok(Tensor::new(values, mean.device())?)
}

/// The same as one linear layer `head.weight`, `head.bias`, so that any reader of classifiers understands it:
/// `W' = W / s`, `b' = b - W' mean` with `s = sqrt(var + 1e-6)`.
pub fn folded(weights: &BTreeMap<String, Tensor>) -> Result<[(String, Tensor); 2]> {
    let get = |name: &str| {
        let found = weights.get(name);
        found.ok_or_else(|| anyhow::anyhow!("there is no weight '{name}'"))
    };
    let scale = (get("bn.running_var")? + EPS)?.sqrt()?;
    let weight = get("head.weight")?.broadcast_div(&scale)?;
    let mean = get("bn.running_mean")?.unsqueeze(1)?;
    let bias = (get("head.bias")? - weight.matmul(&mean)?.squeeze(1)?)?;
    Ok([("head.weight".into(), weight), ("head.bias".into(), bias)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Numbers by hand: features 1, 3 have mean 2 and variance 1 (unbiased 2).
    #[test]
    fn normalises_by_the_batch_then_by_what_was_learnt() {
        let vars = variables(1, 2, 0, &Device::Cpu).unwrap();
        let set = |name: &str, values: &[f32]| {
            let var = vars.data().lock().unwrap()[name].clone();
            let values = Tensor::from_slice(values, var.shape(), &Device::Cpu).unwrap();
            var.set(&values).unwrap();
        };
        set("head.weight", &[1.0, -2.0]);
        set("head.bias", &[0.5, 0.0]);
        let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
        let head = Head::new(1, 2, vb).unwrap();
        let x = Tensor::new(&[[1f32], [3.0]], &Device::Cpu).unwrap();
        let got = flat(&head.train(&x, &freezeout::distributed::Alone).unwrap());
        for (got, want) in got.iter().zip([-0.5, 2.0, 1.5, -2.0]) {
            assert!((got - want).abs() < 1e-5, "{got} {want}");
        }
        // 0.9 * 0 + 0.1 * 2, 0.9 * 1 + 0.1 * 2: in the variables themselves.
        let map = vars.data().lock().unwrap();
        assert!((flat(&map["bn.running_mean"])[0] - 0.2).abs() < 1e-6);
        assert!((flat(&map["bn.running_var"])[0] - 1.1).abs() < 1e-6);
        let weights = map.iter().map(|(n, v)| (n.clone(), v.as_detached_tensor()));
        let [(_, weight), (_, bias)] = folded(&weights.collect()).unwrap();
        let want = flat(&head.forward(&x).unwrap());
        let got = x.matmul(&weight.t().unwrap()).unwrap();
        let got = flat(&got.broadcast_add(&bias).unwrap());
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() < 1e-5, "{got} {want}");
        }
        let want = (1.0 - 0.2) / (1.1f32 + 1e-6).sqrt() + 0.5;
        assert!((got[0] - want).abs() < 1e-5);
    }
}
