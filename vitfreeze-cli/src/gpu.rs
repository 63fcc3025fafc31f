//! Memory of a CUDA device: the driver's pool, from which candle takes all tensors.
use candle_core::cuda_backend::cudarc::driver::result::{device, mem_pool, DriverError};
use candle_core::cuda_backend::cudarc::driver::sys::{CUmemPool_attribute, CUmemoryPool};
use candle_core::{CudaDevice, Device};

use CUmemPool_attribute::{CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, CU_MEMPOOL_ATTR_USED_MEM_HIGH};

/// Makes the pool keep free memory: by itself it gives all of it back whenever the program waits for the device, and each
/// step takes it anew.
pub fn keep_memory(device: &Device) -> anyhow::Result<()> {
    if let Device::Cuda(cuda) = device {
        set(cuda, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)?;
    }
    Ok(())
}

/// Forgets the peak so far.
pub fn reset_peak(cuda: &CudaDevice) -> Result<(), DriverError> {
    set(cuda, CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0)
}

/// Most bytes in tensors since then.
pub fn peak_bytes(cuda: &CudaDevice) -> Result<u64, DriverError> {
    let mut bytes = 0u64;
    // SAFETY: the pool is the device's own; this attribute is a u64.
    unsafe {
        let to = (&raw mut bytes).cast();
        mem_pool::get_attribute(pool(cuda)?, CU_MEMPOOL_ATTR_USED_MEM_HIGH, to)?;
    }
    Ok(bytes)
}

fn set(cuda: &CudaDevice, what: CUmemPool_attribute, mut value: u64) -> Result<(), DriverError> {
    // SAFETY: the pool is the device's own; both attributes used here are a u64.
    unsafe { mem_pool::set_attribute(pool(cuda)?, what, (&raw mut value).cast()) }
}

fn pool(cuda: &CudaDevice) -> Result<CUmemoryPool, DriverError> {
    let device = cuda.cuda_stream().context().cu_device();
    // SAFETY: a device that is open.
    unsafe { device::get_default_mem_pool(device) }
}
