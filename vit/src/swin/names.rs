//! Layers of a Swin's variables.
use super::SwinConfig;

impl SwinConfig {
    /// The layer of a variable, as [`VitConfig::layer_of`](crate::VitConfig::layer_of) counts them: blocks over all stages, a
    /// stage's merging with its first block, as timm groups them.
    pub(crate) fn layer_of(&self, name: &str) -> Option<usize> {
        let mut parts = name.split('.');
        if parts.next()? != "layers" {
            return None;
        }
        let stage: usize = parts.next()?.parse().ok()?;
        let depth = *self.depths.get(stage)?;
        let index = match parts.next()? {
            "downsample" => 0,
            "blocks" => parts.next()?.parse().ok()?,
            _ => return None,
        };
        (index < depth).then(|| self.first_block(stage) + index + 1)
    }
}
