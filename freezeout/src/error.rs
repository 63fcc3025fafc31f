//! Everything that can go wrong in this crate.

/// Errors of this crate. Every message says what is wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A number of the schedule is out of range.
    #[error("schedule: {0}")]
    Schedule(String),
    /// Layers that were described do not fit the variables.
    #[error("layers: {0}")]
    Layers(String),
    /// Variables were put into a layer that the schedule does not have.
    #[error(
        "{} variable(s) were assigned to layer {layer}, but the schedule has layers 0 to {last}: {}",
        .names.len(), list(.names)
    )]
    UnknownLayer {
        /// Names of the variables.
        names: Vec<String>,
        /// The layer that `layer_of` gave.
        layer: usize,
        /// Last layer of the schedule.
        last: usize,
    },
    /// A layer holds no variable, so freezing it would do nothing.
    #[error(
        "layers {layers:?} hold no variable; check layer_of, or give the schedule fewer layers (there are variables {})",
        list(.names)
    )]
    EmptyLayers {
        /// The empty layers.
        layers: Vec<usize>,
        /// What the variables' names begin with.
        names: Vec<String>,
    },
    /// Numbered blocks whose layers do not rise with their numbers: layer 0 must be nearest the input.
    #[error(
        "'{later}' is in layer {later_layer}, before '{earlier}' in layer {earlier_layer}: layers count from the input: \
         reverse layer_of, or, if data really flow that way, describe the layers with Layers and use FreezeOut::with_layers"
    )]
    OutOfOrder {
        /// A variable of the block with the smaller number.
        earlier: String,
        /// Its layer.
        earlier_layer: usize,
        /// A variable of the block with the larger number.
        later: String,
        /// Its layer.
        later_layer: usize,
    },
    /// Live variables got no gradient: an op between them and the loss is not differentiable, or they are unused.
    #[error(
        "{} live variable(s) got no gradient: {}; an op between them and the loss cuts the graph (candle_nn's \
         LayerNorm on contiguous input and softmax_last_dim do), the model was not rebuilt after layers were unfrozen, or the \
         loss does not use them, which FreezeOut::allow_missing permits",
        .0.len(), list(.0)
    )]
    NoGradient(Vec<String>),
    /// The graph still holds frozen variables: the model in use is older than the last change of the frozen set.
    #[error(
        "{} frozen variable(s) are still in the graph, so freezing them saves nothing: {}; rebuild the model from \
         FreezeOut::vars() whenever advance() returns true",
        .0.len(), list(.0)
    )]
    NotRebuilt(Vec<String>),
    /// A model asked for a variable that was not there when [`FreezeOut`](crate::FreezeOut) was made.
    #[error("there is no variable '{0}'; FreezeOut knows those that existed when it was made")]
    NoVariable(String),
    /// An optimiser that does not exist, or numbers that make none.
    #[error("optimiser: {0}")]
    Optimizer(String),
    /// Saved optimiser state does not fit the variables.
    #[error("optimiser state: {0}")]
    State(String),
    /// A checkpoint does not fit the model or its schedule.
    #[error("{0}")]
    Checkpoint(String),
    /// Saved state of a policy does not fit.
    #[error("policy state: {0}")]
    Policy(String),
    /// A measurement that cannot be made.
    #[error("profile: {0}")]
    Profile(String),
    /// Workers whose time cannot be estimated.
    #[error("cluster: {0}")]
    Cluster(String),
    /// Processes that train together and do not answer, or do not do the same.
    #[error("{0}")]
    Distributed(String),
    /// An error of candle.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// The first few names, with commas.
pub(crate) fn list(names: &[String]) -> String {
    let mut text = names.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 8 {
        text += ", ...";
    }
    text
}
