//! What the ops' forms for the CPU are made of. Each file uses only those above it (and `ops::profile`):
//!
//! | file | what |
//! |---|---|
//! | `math` | element-wise functions and sums that the compiler vectorises |
//! | `scratch`, `unwritten`, `storage` | memory: used again, new, a tensor's |
//! | `rounding`, `tiles` | bf16, and matrices of it in the order of products |
//! | `matrix` | matrices, and a product's operands |
//! | `activations`, `sums` | what goes through a block; sums over rows, and their rounding |
//! | `registers` | what kernels for AVX-512 share |
//! | `bf16`, `panels`, `gemm` | products of tiles of bf16; in f32 on AVX-512; in f32 |
//! | `engine`, `held` | what multiplies; right operands that are held for many products |
//! | `product` | the door to all products |
//! | `limit` | how fast the machine multiplies in registers, to compare products with |
pub mod activations;
pub mod bf16;
pub mod engine;
pub mod gemm;
pub mod held;
pub mod limit;
pub mod math;
pub mod matrix;
#[cfg(target_arch = "x86_64")]
pub mod panels;
pub mod product;
#[cfg(target_arch = "x86_64")]
pub mod registers;
pub mod rounding;
pub mod scratch;
pub mod storage;
pub mod sums;
pub mod tiles;
pub mod unwritten;
