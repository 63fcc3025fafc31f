//! Memory of a CUDA device: the driver's pool, from which candle takes all tensors.
use candle_core::cuda_backend::cudarc::driver::result::{device, mem_pool, DriverError};
use candle_core::cuda_backend::cudarc::driver::sys::{CUmemPool_attribute, CUmemoryPool};
use candle_core::CudaDevice;

use CUmemPool_attribute::{CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, CU_MEMPOOL_ATTR_USED_MEM_HIGH};

/// Makes the pool keep free memory: by itself it gives all of it back whenever the program waits for the device, and each
/// step takes it anew. A device without pools (some virtual ones) works as it is.
pub fn keep_memory(cuda: &CudaDevice) {
    let _ = set(cuda, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX);
}

/// Hands the pool's free memory back; where there is no pool, there is none.
pub fn release_memory(cuda: &CudaDevice) {
    // Tensors are freed in the device's order of work: the last ones are free once it is done.
    let _ = cuda.cuda_stream().synchronize();
    if let Ok(pool) = pool(cuda) {
        // SAFETY: the pool is the device's own; only memory that nothing uses is given back.
        let _ = unsafe { mem_pool::trim_to(pool, 0) };
    }
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
