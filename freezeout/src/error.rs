//! Everything that can go wrong in this crate.

/// Errors of this crate. Every message says what is wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A number of the schedule is out of range.
    #[error("schedule: {0}")]
    Schedule(String),
    /// A variable was put into a layer that the schedule does not have.
    #[error(
        "variable '{name}' was assigned to layer {layer}, but the schedule has layers 0 to {last}"
    )]
    UnknownLayer {
        /// Name of the variable.
        name: String,
        /// The layer that `layer_of` gave.
        layer: usize,
        /// Last layer of the schedule.
        last: usize,
    },
    /// A layer holds no variable, so freezing it would do nothing.
    #[error("layers {0:?} hold no variable; check layer_of, or give the schedule fewer layers")]
    EmptyLayers(Vec<usize>),
    /// Live variables got no gradient: an op between them and the loss is not differentiable, or they are unused.
    #[error(
        "{} live variable(s) got no gradient: {}; an op between them and the loss cuts the graph (candle_nn's \
         LayerNorm on contiguous input and softmax_last_dim do), or the loss does not use them",
        .0.len(), list(.0)
    )]
    NoGradient(Vec<String>),
    /// A model asked for a variable that was not there when [`FreezeOut`](crate::FreezeOut) was made.
    #[error("there is no variable '{0}'; FreezeOut knows those that existed when it was made")]
    NoVariable(String),
    /// Saved optimiser state does not fit the variables.
    #[error("optimiser state: {0}")]
    State(String),
    /// An error of candle.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

fn list(names: &[String]) -> String {
    let mut text = names.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 8 {
        text += ", ...";
    }
    text
}
