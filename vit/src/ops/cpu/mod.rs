//! What the ops' forms for the CPU are made of: matrices and their products, buffers, element-wise functions.
pub mod bf16;
pub mod held;
pub mod kept;
pub mod math;
pub mod product;
pub mod scratch;
pub mod storage;
pub mod transpose;
pub mod unwritten;
