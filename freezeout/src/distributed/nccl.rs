//! Many processes with a GPU each, over NCCL.
use std::cell::Cell;
use std::fmt;
use std::time::{Duration, Instant};

use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr};
use candle_core::cuda_backend::cudarc::nccl::result::{NcclError, NcclStatus};
use candle_core::cuda_backend::cudarc::nccl::safe::{group_end, group_start, NcclType};
use candle_core::cuda_backend::cudarc::nccl::{Comm, Id, ReduceOp};
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, DType, Device, InplaceOp1, Layout, Result as Candle,
    Tensor,
};

use super::Communicator;
use crate::Error;

/// Processes with a CUDA device each. Gradients go from GPU to GPU, all of them in one NCCL group; what lies in the host's
/// memory goes through the GPU.
///
/// After each collective call this process waits for its GPU, and gives up after the time-out with an error. While NCCL connects,
/// once all have the id, no time-out holds: NCCL's call cannot be left.
pub struct Nccl {
    comm: Comm,
    device: CudaDevice,
    timeout: Duration,
    /// Whether somebody did not answer: the GPU's queue is stuck then.
    lost: Cell<bool>,
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Nccl");
        out.field("rank", &self.comm.rank());
        out.field("size", &self.comm.world_size())
            .finish_non_exhaustive()
    }
}

impl Nccl {
    /// Connects the processes of `ranks`, which hands NCCL's id round; `device` is this process's own GPU.
    ///
    /// # Errors
    /// [`Error::Distributed`]: `device` is no CUDA device, or NCCL cannot connect (a GPU that two processes take).
    pub fn over(
        ranks: &dyn Communicator,
        device: &Device,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let hand_round = |id: &mut [u8]| ranks.broadcast(id, 0);
        Self::connect(device, (ranks.rank(), ranks.size()), timeout, hand_round)
    }

    /// Connects process `rank` of `size`, where rank 0 hands NCCL's id round at `address` (`host:port`), which is its own and
    /// free. For launchers that tell rank, size and an address and nothing else (torchrun: `RANK`, `WORLD_SIZE`, `MASTER_ADDR`,
    /// `MASTER_PORT`; that port is torchrun's own, take the next).
    ///
    /// # Errors
    /// As [`Nccl::over`]; nobody at `address` within the time-out.
    pub fn at(
        address: &str,
        (rank, size): (usize, usize),
        device: &Device,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let hand_round = |id: &mut [u8]| super::rendezvous::share(id, address, rank, size, timeout);
        Self::connect(device, (rank, size), timeout, hand_round)
    }

    fn connect(
        device: &Device,
        (rank, size): (usize, usize),
        timeout: Duration,
        hand_round: impl FnOnce(&mut [u8]) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let failed = |what: String| Error::Distributed(format!("rank {rank} of {size}: {what}"));
        let Device::Cuda(device) = device else {
            return Err(failed("NCCL needs a CUDA device".into()));
        };
        let mut id = [0u8; 128];
        if rank == 0 {
            let own = Id::new().map_err(|e| failed(told(e)))?;
            id = own.internal().map(|c| c as u8);
        }
        hand_round(&mut id)?;
        let id = Id::uninit(id.map(|c| c as _));
        let comm = Comm::from_rank(device.cuda_stream(), rank, size, id)
            .map_err(|e| failed(format!("{}; each rank needs a GPU of its own", told(e))))?;
        Ok(Self {
            comm,
            device: device.clone(),
            timeout,
            lost: Cell::new(false),
        })
    }

    fn error(&self, what: impl fmt::Display) -> Error {
        let (rank, size) = (self.comm.rank(), self.comm.world_size());
        Error::Distributed(format!("rank {rank} of {size}: {what}"))
    }

    /// Waits until the GPU has done all so far.
    fn wait(&self, what: &str) -> Result<(), Error> {
        let done = self.device.cuda_stream().record_event(None);
        let done = done.map_err(|e| self.error(e))?;
        let start = Instant::now();
        while !done.try_is_complete().map_err(|e| self.error(e))? {
            if start.elapsed() > self.timeout {
                self.lost.set(true);
                return Err(self.error(format!(
                    "nobody answered {what} for {} s; another process hangs, has ended, or is much slower than this one",
                    self.timeout.as_secs_f64()
                )));
            }
            // An all-reduce between GPUs takes some hundred of these.
            std::thread::sleep(Duration::from_micros(20));
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Error> {
        match self.lost.get() {
            true => Err(self.error("another process did not answer before")),
            false => Ok(()),
        }
    }

    /// Values of the host, to the GPU, through a collective call, and back.
    fn through<T: NcclType + DeviceRepr>(
        &self,
        what: &str,
        values: &mut [T],
        call: impl FnOnce(&mut CudaSlice<T>) -> Result<NcclStatus, NcclError>,
    ) -> Result<(), Error> {
        if values.is_empty() || self.size() == 1 {
            return Ok(());
        }
        self.check()?;
        let stream = self.device.cuda_stream();
        let mut there = stream.clone_htod(values).map_err(|e| self.error(e))?;
        call(&mut there).map_err(|e| self.error(told(e)))?;
        self.wait(what)?;
        let back = stream.memcpy_dtoh(&there, values);
        back.map_err(|e| self.error(e))?;
        stream.synchronize().map_err(|e| self.error(e))
    }
}

fn told(error: NcclError) -> String {
    format!("NCCL: {:?}", error.0)
}

impl Communicator for Nccl {
    fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn size(&self) -> usize {
        self.comm.world_size()
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<(), Error> {
        let sum = |there: &mut _| self.comm.all_reduce_in_place(there, &ReduceOp::Sum);
        self.through("an all-reduce", values, sum)
    }

    fn all_reduce_f64(&self, values: &mut [f64]) -> Result<(), Error> {
        let sum = |there: &mut _| self.comm.all_reduce_in_place(there, &ReduceOp::Sum);
        self.through("an all-reduce", values, sum)
    }

    fn all_reduce_tensors(&self, tensors: &[&Tensor]) -> Option<Result<Vec<Tensor>, Error>> {
        let own =
            |t: &&Tensor| matches!(t.device(), Device::Cuda(d) if d.same_device(&self.device));
        tensors.iter().all(own).then(|| {
            self.check()?;
            // Copies: candle may have given two gradients the same memory.
            let sums: Vec<Tensor> = tensors
                .iter()
                .map(|t| t.to_dtype(DType::F32)?.contiguous()?.copy())
                .collect::<Candle<_>>()?;
            group_start().map_err(|e| self.error(told(e)))?;
            let queued = sums
                .iter()
                .try_for_each(|sum| sum.inplace_op1(&Sum(&self.comm)));
            group_end().map_err(|e| self.error(told(e)))?;
            queued?;
            self.wait("an all-reduce")?;
            Ok(sums)
        })
    }

    fn broadcast(&self, bytes: &mut [u8], root: usize) -> Result<(), Error> {
        if root >= self.size() {
            return Err(self.error(format!("there is no rank {root}")));
        }
        let copy = |there: &mut _| self.comm.broadcast_in_place(there, root as i32);
        self.through("a broadcast", bytes, copy)
    }

    fn barrier(&self) -> Result<(), Error> {
        self.all_reduce(&mut [0.0])
    }
}

/// The sum over all ranks, in place; runs at the group's end.
struct Sum<'a>(&'a Comm);

impl InplaceOp1 for Sum<'_> {
    fn name(&self) -> &'static str {
        "all_reduce"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Candle<()> {
        candle_core::bail!("all_reduce by NCCL: on CUDA devices alone")
    }

    fn cuda_fwd(&self, values: &mut CudaStorage, layout: &Layout) -> Candle<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("all_reduce: a contiguous tensor expected");
        };
        if start == end {
            return Ok(());
        }
        let mut values = values.as_cuda_slice_mut::<f32>()?.slice_mut(start..end);
        let queued = self.0.all_reduce_in_place(&mut values, &ReduceOp::Sum);
        queued.map_err(|e| candle_core::Error::Msg(told(e)).bt())?;
        Ok(())
    }
}
