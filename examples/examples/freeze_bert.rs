//! FreezeOut on a BERT under Hugging Face's names.
//! candle-transformers' own BERT cannot be trained: `candle_nn::LayerNorm` has no backward pass on contiguous input and cuts
//! the graph in silence (FreezeOut::backward names the variables below). One thing had to change: `ops::layer_norm_slow`,
//! composed of differentiable ops, takes its place. Names and formulas are the same, so checkpoints fit. (No dropout.)
//!
//!     cargo run --release -p vitfreeze-examples --example freeze_bert
use candle_core::{DType, Device, Result, Tensor, D};
use candle_nn::{embedding, linear, loss::cross_entropy, ops};
use candle_nn::{Embedding, Init, Linear, Module, VarBuilder, VarMap};
use freezeout::{AdamW, FreezeOut, Layers, Optimizer, Schedule};

const DIM: usize = 64;
const LINEARS: [(&str, usize, usize); 6] = [
    ("attention.self.query", DIM, DIM),
    ("attention.self.key", DIM, DIM),
    ("attention.self.value", DIM, DIM),
    ("attention.output.dense", DIM, DIM),
    ("intermediate.dense", DIM, 4 * DIM),
    ("output.dense", 4 * DIM, DIM),
];

struct LayerNorm(Tensor, Tensor);

fn layer_norm(vb: VarBuilder) -> Result<LayerNorm> {
    let weight = vb.get_with_hints(DIM, "weight", Init::Const(1.0))?;
    Ok(LayerNorm(weight, vb.get(DIM, "bias")?))
}

fn normalise(x: &Tensor, norm: &LayerNorm) -> Result<Tensor> {
    ops::layer_norm_slow(x, &norm.0, &norm.1, 1e-12)
}

struct Layer(Vec<Linear>, LayerNorm, LayerNorm);

impl Layer {
    fn new(vb: VarBuilder) -> Result<Self> {
        let linears = LINEARS.map(|(name, from, to)| linear(from, to, vb.pp(name)));
        let linears = linears.into_iter().collect::<Result<_>>()?;
        let first = layer_norm(vb.pp("attention.output.LayerNorm"))?;
        Ok(Self(linears, first, layer_norm(vb.pp("output.LayerNorm"))?))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, n, _) = x.dims3()?;
        let heads = (b, n, 4, DIM / 4);
        let part = |i: usize| self.0[i].forward(x)?.reshape(heads)?.transpose(1, 2);
        let (q, k, v) = (part(0)?.contiguous()?, part(1)?, part(2)?.contiguous()?);
        let scores = q.matmul(&k.t()?.contiguous()?)?;
        let scores = ops::softmax(&(scores / (heads.3 as f64).sqrt())?, D::Minus1)?;
        let mixed = scores.matmul(&v)?.transpose(1, 2)?.flatten_from(2)?;
        let x = normalise(&(x + self.0[3].forward(&mixed)?)?, &self.1)?;
        let hidden = self.0[4].forward(&x)?.gelu_erf()?;
        normalise(&(&x + self.0[5].forward(&hidden)?)?, &self.2)
    }
}

struct Bert(Embedding, Embedding, LayerNorm, Vec<Layer>, Linear);

fn bert(vb: VarBuilder) -> Result<Bert> {
    let (embed, blocks) = (vb.pp("bert.embeddings"), vb.pp("bert.encoder.layer"));
    let words = embedding(32, DIM, embed.pp("word_embeddings"))?;
    let positions = embedding(16, DIM, embed.pp("position_embeddings"))?;
    let (norm, head) = (layer_norm(embed.pp("LayerNorm"))?, vb.pp("classifier"));
    let layers: Result<_> = (0..4).map(|i| Layer::new(blocks.pp(i))).collect();
    Ok(Bert(words, positions, norm, layers?, linear(DIM, 2, head)?))
}

fn logits(bert: &Bert, tokens: &Tensor) -> Result<Tensor> {
    let x = bert.0.forward(tokens)?;
    let x = normalise(&x.broadcast_add(bert.1.embeddings())?, &bert.2)?;
    let x = (bert.3.iter()).try_fold(x, |x, layer| layer.forward(&x))?;
    bert.4.forward(&x.mean(1)?)
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let vars = VarMap::new();
    let mut model = bert(VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
    let layers = Layers::infer(&vars)?; // embeddings, encoder.layer.0 to 3; not the classifier
    let mut freeze = FreezeOut::with_layers(&vars, Schedule::cubic(0.7, 5, 90), &layers)?;
    let mut opt = Optimizer::new(AdamW::default()).clip_norm(1.0);
    for step in 0..90 {
        if freeze.advance(step)? {
            model = bert(freeze.vars())?;
        }
        // To learn: whether small words outnumber large ones.
        let tokens = Tensor::rand(0f32, 32.0, (32, 16), &Device::Cpu)?.floor()?;
        let labels = tokens.mean(1)?.lt(15.5f32)?.to_dtype(DType::U32)?;
        let loss = cross_entropy(&logits(&model, &tokens.to_dtype(DType::U32)?)?, &labels)?;
        let grads = freeze.backward(&loss)?;
        opt.step(&freeze, step, &grads)?;
        if step % 10 == 9 {
            let (nodes, value) = (loss.sorted_nodes().len(), loss.to_scalar::<f32>()?);
            let frozen = freeze.frozen();
            println!("loss {value:.3}, {frozen} frozen, {nodes} nodes");
        }
    }
    Ok(())
}
