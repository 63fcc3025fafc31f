//! With what products are computed.
use super::bf16::Unit;
use crate::ops::profile::Profile;

/// With what products are computed, and who times them.
#[derive(Clone, Copy)]
pub struct Engine<'a> {
    /// What multiplies numbers rounded to bf16; `None`: they are f32.
    pub unit: Option<Unit>,
    pub profile: &'a Profile,
}
