//! With what products are computed.
use super::bf16::Unit;
use crate::ops::profile::{Profile, OFF};

/// With what products are computed, and who times them.
#[derive(Clone, Copy)]
pub struct Engine<'a> {
    /// What multiplies numbers rounded to bf16; `None`: they are f32.
    pub unit: Option<Unit>,
    pub profile: &'a Profile,
}

impl Engine<'_> {
    /// The same inside a parallel loop, which is timed as a whole: the thread that is timed does a part of it.
    pub fn untimed(self) -> Self {
        Self {
            profile: &OFF,
            ..self
        }
    }
}
