//! The same weights on all ranks before the first step.
use candle_core::{DType, Device, Tensor};

use super::{agree, Communicator};
use crate::{Error, FreezeOut};

/// Gives all ranks the weights of rank `root`, running statistics included. Do this once, before the first step, unless all
/// ranks have drawn or loaded the same: what starts equal stays equal, since all do the same updates.
///
/// # Errors
/// [`Error::Distributed`] where the ranks have not the same variables, or do not answer.
pub fn broadcast_weights(
    freeze: &FreezeOut,
    ranks: &dyn Communicator,
    root: usize,
) -> Result<(), Error> {
    if ranks.size() == 1 {
        return ranks.broadcast(&mut [], root);
    }
    agree(
        "variables",
        freeze.all().map(|(name, var)| (name, var.elem_count())),
        ranks,
    )?;
    for (_, var) in freeze.all() {
        // f64 holds every value of any type that trains.
        let flat = var.as_detached_tensor().to_device(&Device::Cpu)?;
        let values = flat.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        let mut bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        ranks.broadcast(&mut bytes, root)?;
        if ranks.rank() != root {
            let (values, _) = bytes.as_chunks::<8>();
            let values: Vec<f64> = values
                .iter()
                .map(|value| f64::from_le_bytes(*value))
                .collect();
            let values = Tensor::from_vec(values, var.shape(), &Device::Cpu)?;
            var.set(&values.to_dtype(var.dtype())?.to_device(var.device())?)?;
        }
    }
    Ok(())
}
