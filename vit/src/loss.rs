//! Losses of a classifier: composed of candle's ops, since logits are small beside a forward pass.
use candle_core::{Result, Tensor, D};

/// `(B, C), (B, C) -> ()`: cross entropy with a distribution as the target of each image, averaged over the batch,
/// `-1/B sum_b sum_c t_bc log softmax(z_b)_c`, as timm's `SoftTargetCrossEntropy` (mixup and CutMix make such targets).
///
/// # Errors
/// Shapes that differ.
pub fn soft_target_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (batch, _) = logits.dims2()?;
    if logits.dims() != targets.dims() {
        candle_core::bail!(
            "soft_target_cross_entropy: logits {:?} and targets {:?}",
            logits.dims(),
            targets.dims()
        );
    }
    (log_softmax(logits)? * targets)?.sum_all()? * (-1.0 / batch.max(1) as f64)
}

/// `(B, C), (B) -> ()`: cross entropy with the labels, of whose targets `smoothing` is spread evenly over all classes,
/// averaged over the batch: `-(1 - s) log p_y - s/C sum_c log p_c` (Szegedy et al., arXiv 1512.00567, section 7), as timm's
/// `LabelSmoothingCrossEntropy` and PyTorch's `label_smoothing`. 0 = the usual cross entropy.
///
/// # Errors
/// A number of labels that is not B, a label beyond the classes, a smoothing outside of `[0, 1]`.
pub fn cross_entropy(logits: &Tensor, labels: &[u32], smoothing: f64) -> Result<Tensor> {
    let (batch, classes) = logits.dims2()?;
    if labels.len() != batch {
        candle_core::bail!("cross_entropy: {} labels for {batch} images", labels.len());
    }
    if let Some(label) = labels.iter().find(|&&label| label as usize >= classes) {
        candle_core::bail!("cross_entropy: label {label}, there are {classes} classes");
    }
    if !(0.0..=1.0).contains(&smoothing) {
        candle_core::bail!("cross_entropy: smoothing {smoothing}, it must lie in [0, 1]");
    }
    let mut targets = vec![(smoothing / classes as f64) as f32; batch * classes];
    for (row, &label) in targets.chunks_exact_mut(classes).zip(labels) {
        row[label as usize] += (1.0 - smoothing) as f32;
    }
    let targets = Tensor::from_vec(targets, (batch, classes), logits.device())?;
    soft_target_cross_entropy(logits, &targets.to_dtype(logits.dtype())?)
}

/// `(B, C) -> (B, C)`: `z - m - log sum exp(z - m)`. The maximum `m` cancels, so no gradient goes through it.
fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let max = logits.detach().max_keepdim(D::Minus1)?;
    let x = logits.broadcast_sub(&max)?;
    x.broadcast_sub(&x.exp()?.sum_keepdim(D::Minus1)?.log()?)
}
