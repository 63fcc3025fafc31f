//! What the ops' forms for the CPU are made of. Each file uses only those above it (and `ops::profile`):
//!
//! | file | what |
//! |---|---|
//! | `math` | element-wise functions and sums that the compiler vectorises |
//! | `scratch`, `unwritten`, `storage` | memory: used again, new, a tensor's |
//! | `rounding`, `tiles` | bf16, and matrices of it in the order of products |
//! | `matrix` | matrices, and a product's operands |
//! | `activations`, `sums` | what goes through a block; sums over rows, and their rounding |
//! | `bf16`, `gemm`, `transpose` | products of tiles of bf16; products in f32; a transpose |
//! | `engine`, `prepared` | what multiplies; right operands in its order, for one product or for many |
//! | `product` | the door to all products |
//! | `limit` | how fast the machine multiplies in registers, to compare products with |
pub mod activations;
pub mod bf16;
pub mod engine;
pub mod gemm;
pub mod limit;
pub mod math;
pub mod matrix;
pub mod prepared;
pub mod product;
pub mod rounding;
pub mod scratch;
pub mod storage;
pub mod sums;
pub mod tiles;
pub mod transpose;
pub mod unwritten;
