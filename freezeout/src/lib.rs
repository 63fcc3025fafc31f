#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![cfg_attr(not(feature = "cuda"), forbid(unsafe_code))]
#![cfg_attr(feature = "cuda", deny(unsafe_code))]

mod autofreeze;
mod check;
pub mod checkpoint;
mod cluster;
mod decay;
pub mod distributed;
mod ema;
mod entries;
mod error;
mod estimate;
mod freeze;
mod gradients;
mod inplace;
mod layers;
mod names;
mod optim;
mod plasticity;
mod policy;
mod profile;
mod reduce;
mod schedule;
mod spacing;
mod steps;
mod view;

pub use autofreeze::AutoFreeze;
pub use candle_core as candle;
pub use cluster::{Cluster, StepTime};
pub use decay::{Curve, Decay};
pub use ema::Ema;
pub use error::Error;
pub use estimate::{freezeout_speedup, Costs, Estimate, LayerCost, StepCost};
pub use freeze::FreezeOut;
pub use gradients::Gradients;
pub use layers::{Layers, LayersBuilder};
pub use optim::{
    decays, layer_decay, AdamW, Group, Lars, Lion, Optimizer, Param, Rule, Sgd, Slices, Update,
};
pub use plasticity::Plasticity;
pub use policy::Policy;
pub use profile::{profile, Measured, Profile};
pub use schedule::{LayerLr, Schedule, Warmup};
pub use spacing::{Change, Spacing};
pub use steps::Steps;
pub use view::is_live;
