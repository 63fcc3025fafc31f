//! What both targets do with a file: open it as a checkpoint, read every tensor, load the model.
use std::path::Path;

use vit::{Checkpoint, Hints, LoadOptions};

pub fn read(path: &Path) {
    // As many heads as the fixtures have, which their .pth files do not tell.
    let hints = Hints {
        num_heads: Some(3),
        ..Hints::default()
    };
    let Ok(checkpoint) = Checkpoint::open_path("fuzz", path, &hints) else {
        return;
    };
    for name in checkpoint.tensors().keys() {
        let _ = checkpoint.values(name);
    }
    let _ = checkpoint.load(&LoadOptions::default());
}
