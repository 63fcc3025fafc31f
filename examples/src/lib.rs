//! Short programs that use the vitfreeze crates; see `examples/`.
