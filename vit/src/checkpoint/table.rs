//! Where the tensors of a file lie, and reading them: what both file formats come down to.
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use crate::Error;

/// How the numbers of a stored tensor are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum StoredType {
    F64,
    F32,
    F16,
    Bf16,
    /// Anything that is no weight: integers, booleans, 8-bit floats. Its name and bytes per number.
    Other(&'static str, usize),
}

impl StoredType {
    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Other(_, size) => size,
        }
    }

    /// As safetensors writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Other(name, _) => name,
        }
    }
}

/// A tensor in a file. All numbers have been checked against the file's length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Type of its numbers.
    pub dtype: StoredType,
    /// Its dimensions; their product and its bytes fit in usize.
    pub shape: Vec<usize>,
    /// Byte of the file where its first number is.
    pub(crate) start: u64,
    /// Numbers between neighbours of each dimension, where it is not row-major.
    pub(crate) strides: Option<Vec<usize>>,
    /// Which file of the checkpoint.
    pub(crate) file: usize,
}

impl StoredTensor {
    /// Number of its elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Most dimensions of a tensor. Weights have up to five.
const MAX_DIMENSIONS: usize = 16;

/// Number of elements and of bytes of a shape.
///
/// # Errors
/// What no tensor has, as the rest of a sentence about it.
pub(crate) fn sizes(shape: &[usize], dtype: StoredType) -> Result<(usize, usize), String> {
    if shape.len() > MAX_DIMENSIONS {
        return Err(format!(
            "has {} dimensions, at most {MAX_DIMENSIONS} are read",
            shape.len()
        ));
    }
    // A dimension of 0 must not hide an overflow of the others: later products would meet it.
    let bound = |n: usize, d: &usize| n.checked_mul((*d).max(1));
    if shape.iter().try_fold(dtype.size(), bound).is_none() {
        return Err(format!("has shape {shape:?}, which overflows"));
    }
    let elements: usize = shape.iter().product();
    Ok((elements, elements * dtype.size()))
}

/// One file of a checkpoint, open.
#[derive(Debug)]
pub(crate) struct Source {
    pub path: PathBuf,
    pub file: File,
    pub length: u64,
}

impl Source {
    pub fn open(path: &Path) -> Result<Self, Error> {
        let error = |reason: String| Error::Read {
            path: path.to_owned(),
            reason,
        };
        let fail = |e: io::Error| match std::fs::read_link(path) {
            Ok(to) => error(format!(
                "a link to {}, which leads nowhere: {e}",
                to.display()
            )),
            Err(_) => error(e.to_string()),
        };
        // Before it is opened: a pipe would wait for its other end.
        if !std::fs::metadata(path).map_err(fail)?.is_file() {
            return Err(error("not a file: a folder, a pipe or a device".into()));
        }
        let file = File::open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            length: metadata.len(),
        })
    }

    pub fn error(&self, reason: impl Into<String>) -> Error {
        Error::Read {
            path: self.path.clone(),
            reason: reason.into(),
        }
    }

    pub fn tensor_error(&self, tensor: &str, reason: impl Into<String>) -> Error {
        Error::Tensor {
            path: self.path.clone(),
            tensor: tensor.to_owned(),
            reason: reason.into(),
        }
    }

    /// Fills `buffer` from byte `offset` on.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        #[cfg(unix)]
        {
            std::os::unix::fs::FileExt::read_exact_at(&self.file, buffer, offset)
        }
        #[cfg(not(unix))]
        {
            use std::io::{Read, Seek, SeekFrom};
            // A handle of its own: several threads read, and the position is the handle's.
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(offset))?;
            file.read_exact(buffer)
        }
    }

    /// Reads a tensor as f32 on the CPU. NaN and infinity are errors: no weight has them.
    pub fn load(&self, name: &str, tensor: &StoredTensor) -> Result<Tensor, Error> {
        let values = self.values(name, tensor)?;
        // One NaN or infinity makes the sum of x * 0 not 0; eight sums, so that the compiler can vectorise it.
        let mut lanes = [0f32; 8];
        let chunks = values.chunks_exact(8);
        let rest: f32 = chunks.remainder().iter().map(|x| x * 0.0).sum();
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane += x * 0.0;
            }
        }
        if lanes.iter().sum::<f32>() + rest != 0.0 {
            let count = values.iter().filter(|x| !x.is_finite()).count();
            let numbers = format!("{count} of {} numbers", values.len());
            return Err(self.tensor_error(name, format!("has NaN or infinity in {numbers}")));
        }
        Ok(Tensor::from_vec(
            values,
            tensor.shape.as_slice(),
            &Device::Cpu,
        )?)
    }

    /// The numbers of a tensor in row-major order, as f32, NaN included.
    pub fn values(&self, name: &str, tensor: &StoredTensor) -> Result<Vec<f32>, Error> {
        let Some(strides) = &tensor.strides else {
            return self.read(name, tensor.dtype, tensor.elements(), tensor.start);
        };
        if tensor.elements() == 0 {
            return Ok(Vec::new());
        }
        let ends = tensor.shape.iter().zip(strides).map(|(d, s)| (d - 1) * s);
        let span = 1 + ends.sum::<usize>();
        let storage = self.read(name, tensor.dtype, span, tensor.start)?;
        let mut index = vec![0; tensor.shape.len()];
        let mut values = Vec::with_capacity(tensor.elements());
        for _ in 0..tensor.elements() {
            values.push(storage[index.iter().zip(strides).map(|(i, s)| i * s).sum::<usize>()]);
            for d in (0..index.len()).rev() {
                index[d] += 1;
                if index[d] < tensor.shape[d] {
                    break;
                }
                index[d] = 0;
            }
        }
        Ok(values)
    }

    fn read(
        &self,
        name: &str,
        dtype: StoredType,
        count: usize,
        start: u64,
    ) -> Result<Vec<f32>, Error> {
        let fail = |e: io::Error| self.tensor_error(name, format!("cannot be read: {e}"));
        if dtype == StoredType::F32 && cfg!(target_endian = "little") {
            let mut values = vec![0f32; count];
            self.read_at(bytemuck::cast_slice_mut(&mut values), start)
                .map_err(fail)?;
            return Ok(values);
        }
        if matches!(dtype, StoredType::Other(..)) {
            let reason = format!("is of type {}, weights are floats", dtype.name());
            return Err(self.tensor_error(name, reason));
        }
        let mut bytes = vec![0u8; count * dtype.size()];
        self.read_at(&mut bytes, start).map_err(fail)?;
        let two = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
        Ok(match dtype {
            StoredType::F16 => bytes
                .chunks_exact(2)
                .map(|b| half::f16::from_bits(two(b)).to_f32())
                .collect(),
            StoredType::Bf16 => bytes
                .chunks_exact(2)
                .map(|b| half::bf16::from_bits(two(b)).to_f32())
                .collect(),
            StoredType::F64 => bytes
                .chunks_exact(8)
                .map(|b| {
                    f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32
                })
                .collect(),
            _ => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
        })
    }
}
