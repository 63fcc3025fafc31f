//! The numbers of an architecture.
use serde::{Deserialize, Serialize};

use crate::swin::STAGES;
use crate::{Error, SwinConfig};

/// Largest theta of rotary positions. Language models have up to 1e7.
pub(crate) const MAX_THETA: f64 = 1e9;

/// Most channels of images: far beyond use.
pub(crate) const MOST_CHANNELS: usize = 1 << 10;

/// Width, depth, sizes and variants of a Vision Transformer. The default is ViT-B/16 at 224 px without a head.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct VitConfig {
    /// Height of the input image in pixels, and its width unless `image_width` says otherwise.
    pub image_size: usize,
    /// Width of the input image in pixels, where it is not square.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_width: Option<usize>,
    /// Channels of the images: 3 for RGB.
    #[serde(default = "rgb", skip_serializing_if = "is_rgb")]
    pub in_chans: usize,
    /// Side of a square patch, in pixels; divides height and width.
    pub patch_size: usize,
    /// Width of a token, D.
    pub embed_dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads; divides `embed_dim`.
    pub num_heads: usize,
    /// Width of the MLP's hidden layer over `embed_dim`; see [`VitConfig::mlp_hidden`].
    pub mlp_ratio: f64,
    /// Added to the variance in every LayerNorm. 1e-6, as timm; CLIP has 1e-5, Hugging Face's ViT 1e-12.
    pub norm_eps: f64,
    /// Where position embeddings come from.
    #[serde(default)]
    pub pos_embed: PosEmbed,
    /// Only patches have position embeddings, the tokens before them have none (timm's name; DeiT III, DINOv2 with
    /// registers).
    #[serde(default)]
    pub no_embed_class: bool,
    /// Register tokens (Darcet et al., arXiv 2309.16588), between class token and patches.
    #[serde(default)]
    pub reg_tokens: usize,
    /// A distillation token after the class token, with a head of its own (DeiT, arXiv 2012.12877).
    #[serde(default)]
    pub dist_token: bool,
    /// A LayerNorm `norm_pre` before the blocks and no bias in the patch embedding (CLIP).
    #[serde(default)]
    pub pre_norm: bool,
    /// Whether queries, keys and values have a bias.
    #[serde(default = "yes")]
    pub qkv_bias: bool,
    /// Whether keys have it too; else it is in two variables, those of queries and of values (BEiT, DINOv3).
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub key_bias: bool,
    /// The MLP's non-linearity.
    #[serde(default)]
    pub activation: Activation,
    /// LayerScale (CaiT, arXiv 2103.17239), and where its factors start; `None`: there is none.
    #[serde(default)]
    pub init_values: Option<f64>,
    /// How tokens become one vector.
    #[serde(default)]
    pub pool: Pool,
    /// The last LayerNorm comes after pooling (`fc_norm`), not before (`norm`), as MAE fine-tunes.
    #[serde(default)]
    pub fc_norm: bool,
    /// Outputs of the head; 0: there is none.
    #[serde(default)]
    pub num_classes: usize,
    /// Dropout while training, after position embeddings, attention and both layers of the MLP.
    #[serde(default)]
    pub drop_rate: f64,
    /// Stochastic depth while training (arXiv 1603.09382): the last block's rate; block i of n has i / (n - 1) of it.
    #[serde(default)]
    pub drop_path_rate: f64,
    /// What makes it a Swin Transformer, which [`Swin`](crate::Swin) computes; `None`: a ViT. Width and heads above are then
    /// those of the first stage, `depth` counts the blocks of all stages, and there is no position table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swin: Option<SwinConfig>,
}

/// Where position embeddings come from.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PosEmbed {
    /// The variable `pos_embed`.
    #[default]
    Learnt,
    /// The fixed table of [`crate::sincos_2d`].
    SinCos,
    /// No table: in every block the patches' queries and keys are turned by [`crate::axial_rope`] (DINOv3). The tokens before
    /// them are not. Coordinates are never moved, not in training either, as DINOv3's own training does (shift, jitter,
    /// rescale).
    Rope {
        /// The largest period over the smallest one, or nearly: 100 in DINOv3.
        theta: f64,
    },
}

/// The non-linearity of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `x / 2 * (1 + erf(x / sqrt 2))`
    #[default]
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`, as OpenAI's CLIP.
    QuickGelu,
    /// `silu(a) * b` on the two halves of a hidden layer (arXiv 2002.05202); `fc2` then has half as many inputs.
    SwiGlu,
}

/// How tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pool {
    /// The class token (with a distillation token: the mean of both).
    #[default]
    Token,
    /// The mean of the patches.
    Avg,
    /// The class token, then the mean of the patches: twice as wide, as Hugging Face's DINOv2 classifier.
    TokenAvg,
}

fn yes() -> bool {
    true
}

/// Files of models that have keys' biases stay as they are.
fn is_yes(yes: &bool) -> bool {
    *yes
}

fn rgb() -> usize {
    3
}

/// Files of models of RGB images stay as they are.
fn is_rgb(channels: &usize) -> bool {
    *channels == rgb()
}

impl Default for VitConfig {
    fn default() -> Self {
        Self {
            image_size: 224,
            image_width: None,
            in_chans: rgb(),
            patch_size: 16,
            embed_dim: 768,
            depth: 12,
            num_heads: 12,
            mlp_ratio: 4.0,
            norm_eps: 1e-6,
            pos_embed: PosEmbed::Learnt,
            no_embed_class: false,
            reg_tokens: 0,
            dist_token: false,
            pre_norm: false,
            qkv_bias: true,
            key_bias: true,
            activation: Activation::Gelu,
            init_values: None,
            pool: Pool::Token,
            fc_norm: false,
            num_classes: 0,
            drop_rate: 0.0,
            drop_path_rate: 0.0,
            swin: None,
        }
    }
}

impl VitConfig {
    /// Height and width of the input image in pixels.
    pub fn image(&self) -> (usize, usize) {
        (self.image_size, self.image_width.unwrap_or(self.image_size))
    }

    /// The same architecture for images of another (height, width).
    pub fn with_image(self, (height, width): (usize, usize)) -> Self {
        Self {
            image_size: height,
            image_width: (width != height).then_some(width),
            ..self
        }
    }

    /// The same architecture with the fixed position table of [`crate::sincos_2d`]; a Swin, which has no table, as it is.
    pub fn with_fixed_positions(self) -> Self {
        Self {
            pos_embed: match self.swin {
                Some(_) => self.pos_embed,
                None => PosEmbed::SinCos,
            },
            ..self
        }
    }

    /// Rows and columns of patches.
    pub fn grid(&self) -> (usize, usize) {
        let (height, width) = self.image();
        (height / self.patch_size, width / self.patch_size)
    }

    /// Number of patches, N = rows * columns.
    pub fn patches(&self) -> usize {
        let (rows, columns) = self.grid();
        rows * columns
    }

    /// Tokens before the patches: class, distillation, registers. A Swin has none.
    pub fn prefix_tokens(&self) -> usize {
        match self.swin {
            Some(_) => 0,
            None => 1 + usize::from(self.dist_token) + self.reg_tokens,
        }
    }

    /// Of these, how many have a position embedding.
    pub fn embedded_prefix(&self) -> usize {
        if self.no_embed_class || self.rope_theta().is_some() {
            0
        } else {
            self.prefix_tokens()
        }
    }

    /// Of rotary positions, the theta.
    pub fn rope_theta(&self) -> Option<f64> {
        match self.pos_embed {
            PosEmbed::Rope { theta } => Some(theta),
            PosEmbed::Learnt | PosEmbed::SinCos => None,
        }
    }

    /// Width of the MLP's hidden layer, outputs of `fc1`.
    pub fn mlp_hidden(&self) -> usize {
        (self.mlp_ratio * self.embed_dim as f64).round() as usize
    }

    /// Width of the vector that the head sees.
    pub fn features(&self) -> usize {
        match (self.swin, self.pool) {
            (Some(_), _) => self.stage_dim(STAGES - 1),
            (None, Pool::TokenAvg) => 2 * self.embed_dim,
            _ => self.embed_dim,
        }
    }

    /// Drop path rate of block `index`.
    pub fn drop_path(&self, index: usize) -> f64 {
        self.drop_path_rate * index as f64 / self.depth.saturating_sub(1).max(1) as f64
    }

    /// Refuses sizes that do not fit together.
    ///
    /// # Errors
    /// [`Error::Config`] with both numbers.
    pub fn validate(&self) -> Result<(), Error> {
        let fail = |message: String| Err(Error::Config(message));
        let (height, width) = self.image();
        let hidden = self.mlp_ratio * self.embed_dim as f64;
        // Bounds beyond any model that exists, so that no product of sizes overflows.
        let sizes = [
            ("image height", height, 1 << 16),
            ("image width", width, 1 << 16),
            ("in_chans", self.in_chans, MOST_CHANNELS),
            ("patch size", self.patch_size, 1 << 10),
            ("embed_dim", self.embed_dim, 1 << 16),
            ("depth", self.depth, 1 << 10),
            ("num_heads", self.num_heads, 1 << 12),
            ("mlp width", hidden.max(0.0) as usize, 1 << 20),
            ("reg_tokens + 1", self.reg_tokens.saturating_add(1), 1 << 10),
            (
                "num_classes + 1",
                self.num_classes.saturating_add(1),
                1 << 24,
            ),
        ];
        if let Some((name, value, _)) = sizes.iter().find(|(_, n, most)| *n == 0 || n > most) {
            return fail(format!("{name} is {value}"));
        }
        let patches = (height / self.patch_size) * (width / self.patch_size);
        if patches > 1 << 16 {
            return fail(format!(
                "{height} x {width} pixels make {patches} patches, at most 65536 are possible"
            ));
        }
        for (name, pixels) in [("size", height), ("width", width)] {
            if !pixels.is_multiple_of(self.patch_size) {
                return fail(format!(
                    "image {name} {pixels} is not divisible by patch size {}",
                    self.patch_size
                ));
            }
        }
        if !self.embed_dim.is_multiple_of(self.num_heads) {
            return fail(format!(
                "embed_dim {} is not divisible by num_heads {}",
                self.embed_dim, self.num_heads
            ));
        }
        if self.pos_embed == PosEmbed::SinCos && !self.embed_dim.is_multiple_of(4) {
            return fail(format!(
                "embed_dim {} is not divisible by 4, as the sin-cos position embedding needs",
                self.embed_dim
            ));
        }
        if let Some(theta) = self.rope_theta() {
            let head = self.embed_dim / self.num_heads;
            if !head.is_multiple_of(4) {
                return fail(format!(
                    "heads of width {head} ({} / {}) are not divisible by 4, as rotary positions need",
                    self.embed_dim, self.num_heads
                ));
            }
            if !(f64::MIN_POSITIVE..=MAX_THETA).contains(&theta) {
                return fail(format!(
                    "theta of the rotary positions is {theta}, it must be above 0 and at most {MAX_THETA:e}"
                ));
            }
        }
        if self.activation == Activation::SwiGlu && !self.mlp_hidden().is_multiple_of(2) {
            return fail(format!(
                "SwiGLU halves the MLP's width, which is {}",
                self.mlp_hidden()
            ));
        }
        if let Some(swin) = &self.swin {
            swin.check(self).map_err(Error::Config)?;
        }
        if !(f64::MIN_POSITIVE..=1.0).contains(&self.norm_eps) {
            return fail(format!(
                "norm_eps is {:e}, it must be above 0 and at most 1",
                self.norm_eps
            ));
        }
        if self.dist_token && (self.pool != Pool::Token || self.fc_norm) {
            return fail("a distillation token needs pool 'token' and no fc_norm".into());
        }
        for (name, rate) in [
            ("drop_rate", self.drop_rate),
            ("drop_path_rate", self.drop_path_rate),
        ] {
            if !(0.0..1.0).contains(&rate) {
                return fail(format!("{name} is {rate}, it must lie in [0, 1)"));
            }
        }
        Ok(())
    }
}
