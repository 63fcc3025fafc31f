//! `a = keep * a + add * b`, in place.
use candle_core::{CpuStorage, InplaceOp2, Layout, Result};
use rayon::prelude::*;

use crate::reduce::CHUNK;

/// `a = keep * a + add * b` for f32 tensors in host memory.
pub(crate) struct Scaled {
    pub keep: f32,
    pub add: f32,
}

impl InplaceOp2 for Scaled {
    fn name(&self) -> &'static str {
        "scaled-add"
    }

    fn cpu_fwd(
        &self,
        a: &mut CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<()> {
        let (CpuStorage::F32(a), CpuStorage::F32(b)) = (a, b) else {
            candle_core::bail!("scaled-add: both tensors must be f32");
        };
        let (Some((a0, a1)), Some((b0, b1))) =
            (a_layout.contiguous_offsets(), b_layout.contiguous_offsets())
        else {
            candle_core::bail!("scaled-add: both tensors must be contiguous");
        };
        let (a, b) = (&mut a[a0..a1], &b[b0..b1]);
        if a.len() != b.len() {
            candle_core::bail!("scaled-add: {} and {} elements", a.len(), b.len());
        }
        let (keep, add) = (self.keep, self.add);
        a.par_chunks_mut(CHUNK)
            .zip(b.par_chunks(CHUNK))
            .for_each(|(a, b)| {
                for (a, &b) in a.iter_mut().zip(b) {
                    *a = keep * *a + add * b;
                }
            });
        Ok(())
    }
}
