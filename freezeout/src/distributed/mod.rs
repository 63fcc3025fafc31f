//! Data parallel training: every process computes the gradients of its part of a batch, and all of them update the same
//! weights with the mean.
//!
//! A [`Communicator`] is what connects the processes: [`Alone`] for one, `Mpi` (feature `mpi`) for many, `Nccl` (feature
//! `nccl`) for many with a GPU each. Adopting it is
//!
//! 1. a communicator, and [`broadcast_weights`] once,
//! 2. the rank's own part of each batch ([`Communicator::rank`], [`Communicator::size`]),
//! 3. [`Gradients::all_reduce`](crate::Gradients::all_reduce) between the backward pass and the optimiser,
//! 4. output from rank 0 alone.
//!
//! ```
//! # use candle_core::{DType, Device, Tensor};
//! # use candle_nn::{linear, Module, VarBuilder, VarMap};
//! use freezeout::distributed::{broadcast_weights, Alone, Communicator};
//! use freezeout::{AdamW, FreezeOut, Optimizer, Schedule};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let vars = VarMap::new();
//! # let make = |vb: VarBuilder| linear(8, 1, vb.pp("0"));
//! # let mut model = make(VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
//! # let batch = Tensor::randn(0f32, 1.0, (12, 8), &Device::Cpu)?;
//! # let mut freeze = FreezeOut::new(&vars, Schedule::cubic(0.8, 1, 10), |_| Some(0))?;
//! # let mut opt = Optimizer::new(AdamW::default());
//! # let steps = 3;
//! let ranks: Box<dyn Communicator> = Box::new(Alone); // or Mpi::new(Duration::from_secs(60))?
//! broadcast_weights(&freeze, ranks.as_ref(), 0)?;
//! for step in 0..steps {
//!     if freeze.advance(step)? {
//!         model = make(freeze.vars())?;
//!     }
//!     let part = batch.chunk(ranks.size(), 0)?[ranks.rank()].clone();
//!     let mut grads = freeze.backward(&model.forward(&part)?.sqr()?.mean_all()?)?;
//!     let reduced = grads.all_reduce(ranks.as_ref())?;
//!     opt.step(&freeze, step, &grads)?;
//!     if ranks.rank() == 0 {
//!         println!("step {step}: {} bytes in {:.3} s", reduced.bytes, reduced.seconds);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! `running_mean` and `running_var` of a BatchNorm stay each rank's own, those of its part of the batches.
mod agree;
mod alone;
mod communicator;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod overlap;
mod reduce;
#[cfg(any(test, feature = "nccl"))]
mod rendezvous;
mod weights;

use agree::agree;
pub use alone::Alone;
pub use communicator::{Begun, Communicator};
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
#[cfg(feature = "nccl")]
pub use nccl::Nccl;
pub use overlap::Seen;
pub use reduce::Reduced;
pub use weights::broadcast_weights;

/// Bytes that are reduced at a time. Large enough that starting a reduction costs nothing beside its data (25 MB take 20 ms at
/// 10 GBit/s, a start less than 0.1 ms), small enough that the first can be sent long before the last gradient is known;
/// PyTorch's `DistributedDataParallel` takes the same.
pub(crate) const BUCKET_BYTES: usize = 25 << 20;
