//! FreezeOut on a ResNet with BatchNorm and dropout: frozen layers run them in evaluation mode.
//!
//!     cargo run --release -p vitfreeze-examples --example freeze_cnn
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{batch_norm, conv2d_no_bias, linear, loss::cross_entropy, BatchNorm, Conv2d};
use candle_nn::{Conv2dConfig, Dropout, Linear, Module, ModuleT, VarBuilder, VarMap};
use freezeout::{is_live, AdamW, FreezeOut, Layers, Optimizer, Schedule};

/// Convolution, BatchNorm, ReLU, dropout.
struct ConvBn(Conv2d, BatchNorm, Dropout);

impl ConvBn {
    fn new(from: usize, to: usize, vb: VarBuilder) -> Result<Self> {
        let cfg = Conv2dConfig {
            padding: 1,
            ..Default::default()
        };
        let conv = conv2d_no_bias(from, to, 3, cfg, vb.pp("conv"))?;
        let bn = batch_norm(to, 1e-5, vb.pp("bn"))?;
        Ok(Self(conv, bn, Dropout::new(0.05)))
    }
}

impl ModuleT for ConvBn {
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        // The one line for freezing: a layer made of plain tensors is frozen.
        let train = train && is_live(self.0.weight());
        let x = self.1.forward_t(&self.0.forward(x)?, train)?.relu()?;
        self.2.forward(&x, train)
    }
}

struct ResNet {
    stem: ConvBn,
    blocks: Vec<(ConvBn, ConvBn)>,
    head: Linear,
}

impl ResNet {
    fn new(vb: VarBuilder) -> Result<Self> {
        let conv = |name: String| ConvBn::new(16, 16, vb.pp(name));
        let block = |i| {
            let a = conv(format!("blocks.{i}.a"))?;
            Ok((a, conv(format!("blocks.{i}.b"))?))
        };
        Ok(Self {
            stem: ConvBn::new(3, 16, vb.pp("stem"))?,
            blocks: (0..4).map(block).collect::<Result<_>>()?,
            head: linear(16, 3, vb.pp("head"))?,
        })
    }

    fn logits(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = self.stem.forward_t(images, train)?;
        for (a, b) in &self.blocks {
            x = (&x + b.forward_t(&a.forward_t(&x, train)?, train)?)?;
        }
        self.head.forward(&x.flatten_from(2)?.mean(2)?)
    }
}

/// 16 noisy images (16, 3, 12, 12) of stripes along, across or diagonal, and which.
fn batch() -> Result<(Tensor, Tensor)> {
    let stripe = |class, y, x| [x, y, x + y][class] % 4 / 2;
    let pixel = |i: usize| stripe(i / 144 % 3, i / 12 % 12, i % 12) as f32;
    let stripes = Tensor::from_iter((0..16 * 144).map(pixel), &Device::Cpu)?;
    let noise = Tensor::randn(0f32, 0.3, (16, 3, 12, 12), &Device::Cpu)?;
    let images = noise.broadcast_add(&stripes.reshape((16, 1, 12, 12))?)?;
    let labels = Tensor::from_iter((0..16).map(|i| i % 3u32), &Device::Cpu)?;
    Ok((images, labels))
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let vars = VarMap::new();
    let mut model = ResNet::new(VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
    let layers = Layers::infer(&vars)?; // stem, blocks.0 to blocks.3; the head is in no layer
    let schedule = Schedule::cubic(0.6, layers.len(), 60);
    let mut freeze = FreezeOut::with_layers(&vars, schedule, &layers)?;
    let mut opt = Optimizer::new(AdamW::default());
    let start = Instant::now();
    for step in 0..60 {
        if freeze.advance(step)? {
            model = ResNet::new(freeze.vars())?;
        }
        let (images, labels) = batch()?;
        let loss = cross_entropy(&model.logits(&images, true)?, &labels)?;
        let grads = freeze.backward(&loss)?;
        opt.step(&freeze, step, &grads)?;
        if step % 10 == 9 {
            let (loss, ms) = (loss.to_scalar::<f32>()?, start.elapsed().as_millis());
            println!("loss {loss:.3}, {} frozen, {ms} ms", freeze.frozen());
        }
    }
    Ok(())
}
