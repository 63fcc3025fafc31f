//! What variables a model has: those that it asks for.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use crate::{Backbone, Error, PosEmbed, VitConfig};

/// A variable of a model.
#[derive(Debug, Clone)]
pub(crate) struct Variable {
    pub shape: Vec<usize>,
    /// What it starts as.
    pub law: Init,
}

/// Every variable that [`Backbone::new`] asks for, by name.
///
/// # Errors
/// Sizes that do not fit.
pub(crate) fn variables(cfg: &VitConfig) -> std::result::Result<BTreeMap<String, Variable>, Error> {
    const TABLE: &str = "pos_embed";
    let asked = Arc::default();
    let backend = Box::new(Recorder(Arc::clone(&asked)));
    // A fixed position table is no variable, and may be large: it is asked for like a learnt one, and left out.
    let learnt = match cfg.pos_embed {
        PosEmbed::SinCos => VitConfig {
            pos_embed: PosEmbed::Learnt,
            ..*cfg
        },
        PosEmbed::Learnt | PosEmbed::Rope { .. } => *cfg,
    };
    Backbone::new(
        &learnt,
        VarBuilder::from_backend(backend, DType::F32, Device::Cpu),
    )?;
    let mut asked = std::mem::take(&mut *lock(&asked));
    if cfg.pos_embed == PosEmbed::SinCos {
        asked.remove(TABLE);
    }
    Ok(asked)
}

type Asked = Mutex<BTreeMap<String, Variable>>;

fn lock(asked: &Asked) -> std::sync::MutexGuard<'_, BTreeMap<String, Variable>> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A `VarBuilder` backend that writes down what it is asked for, and gives zeros that take no memory.
struct Recorder(Arc<Asked>);

impl SimpleBackend for Recorder {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        law: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let variable = Variable {
            shape: shape.dims().to_vec(),
            law,
        };
        lock(&self.0).insert(name.to_owned(), variable);
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("variable '{name}' is asked for without a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}
