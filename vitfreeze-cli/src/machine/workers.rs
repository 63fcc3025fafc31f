//! The processes that train together: how many there are, and how they stop together.
mod failure;
mod launch;

use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use candle_core::Device;
use freezeout::distributed::{Alone, Communicator};

use crate::machine::device;
#[cfg(feature = "nccl")]
use crate::machine::torchrun;
use crate::run::checkpoint::{fnv, FNV};
use crate::usage::usage;

pub use failure::Elsewhere;
use launch::launched;
pub use launch::Flags;

/// This process among those that train together.
#[derive(Debug, Clone)]
pub struct Workers {
    comm: Rc<dyn Communicator>,
    /// As the launcher connects them, which can end them all.
    launched: Rc<dyn Communicator>,
    #[cfg_attr(not(feature = "nccl"), expect(dead_code))]
    timeout: Duration,
    /// How many of them are on this machine.
    pub local: usize,
    /// Which one of those this is, from 0.
    local_rank: usize,
    /// How many of them share this one's cores.
    pub sharing: usize,
    /// The GPU that it was connected by.
    gpu: Option<Device>,
}

/// Does the work of a command on all workers: on those that the flags start here, or that a launcher has started. The first
/// one speaks.
pub fn together(
    flags: &Flags,
    work: impl FnOnce(&Workers) -> Result<ExitCode>,
) -> Result<ExitCode> {
    if let Some(code) = flags.launch()? {
        return Ok(code);
    }
    let workers = Workers::open(flags.timeout())?;
    if !workers.first() {
        crate::console::be_quiet();
    }
    let checked = workers.agree(flags.check());
    workers.finish(checked.and_then(|()| work(&workers)))
}

impl Workers {
    /// One process.
    pub fn alone() -> Self {
        Self::of(Rc::new(Alone), (0, 1), Duration::ZERO)
    }

    /// Those that a launcher has started, or this one alone.
    fn open(timeout: Duration) -> Result<Self> {
        let mut workers = match launched() {
            None | Some((_, 1)) => return Ok(Self::alone()),
            Some(("torchrun", count)) => Self::connect_gpus(count, timeout)?,
            Some((launcher, count)) => Self::connect(launcher, count, timeout)?,
        };
        let cores = workers.of_each(cores())?;
        let same = cores
            .iter()
            .filter(|other| **other == cores[workers.rank()]);
        workers.sharing = same.count().min(workers.local);
        Ok(workers)
    }

    fn of(
        comm: Rc<dyn Communicator>,
        (local_rank, local): (usize, usize),
        timeout: Duration,
    ) -> Self {
        Self {
            launched: comm.clone(),
            comm,
            timeout,
            local,
            local_rank,
            sharing: local,
            gpu: None,
        }
    }

    #[cfg(feature = "mpi")]
    fn connect(launcher: &str, count: usize, timeout: Duration) -> Result<Self> {
        let mpi = freezeout::distributed::Mpi::new(timeout)?;
        if mpi.size() != count {
            return Err(usage(format!(
                "{launcher} started {count} workers, and MPI connects {}; the launcher belongs to another MPI than this program",
                mpi.size()
            )));
        }
        let local = (mpi.local_rank(), mpi.local_size());
        Ok(Self::of(Rc::new(mpi), local, timeout))
    }

    #[cfg(not(feature = "mpi"))]
    fn connect(launcher: &str, count: usize, _: Duration) -> Result<Self> {
        Err(usage(format!(
            "{launcher} started {count} workers, and this build cannot connect them: build it with --features mpi"
        )))
    }

    /// Those that torchrun has started, by NCCL alone.
    #[cfg(feature = "nccl")]
    fn connect_gpus(_: usize, timeout: Duration) -> Result<Self> {
        let place = torchrun::place(|name| std::env::var(name).ok())?;
        let gpu = device::open(&format!("cuda:{}", place.local_rank))?;
        let ranks = (place.rank, place.size);
        let nccl = freezeout::distributed::Nccl::at(&place.address, ranks, &gpu, timeout)?;
        let local = (place.local_rank, place.local_size);
        Ok(Self {
            gpu: Some(gpu),
            ..Self::of(Rc::new(nccl), local, timeout)
        })
    }

    #[cfg(not(feature = "nccl"))]
    fn connect_gpus(count: usize, _: Duration) -> Result<Self> {
        Err(usage(format!(
            "torchrun started {count} workers, and this build cannot connect them: build it with --features nccl (GPUs), or with --features mpi and start them with mpirun -np {count}"
        )))
    }

    /// The device that the settings name, for this worker: with several on a machine `cuda` is another GPU for each.
    pub fn open_device(&self, name: &str) -> Result<Device> {
        match (&self.gpu, name) {
            (Some(gpu), "cuda") => Ok(gpu.clone()),
            (Some(_), _) => Err(usage(format!(
                "--device {name}: torchrun's workers are connected by their GPUs: take --device cuda"
            ))),
            (None, "cuda") => device::open(&format!("cuda:{}", self.local_rank)),
            (None, _) if self.local > 1 && name.starts_with("cuda:") => Err(usage(format!(
                "--device {name}: {} workers on this machine need a GPU each: take --device cuda",
                self.local
            ))),
            (None, _) => device::open(name),
        }
    }

    /// The same workers, connected by their GPUs where they compute on some. All of them do so together.
    #[cfg(feature = "nccl")]
    pub fn by_gpu(&self, device: &Device) -> Result<Self> {
        if self.size() == 1 || self.gpu.is_some() || !device.is_cuda() {
            return Ok(self.clone());
        }
        let nccl = freezeout::distributed::Nccl::over(&*self.comm, device, self.timeout)?;
        Ok(Self {
            comm: Rc::new(nccl),
            ..self.clone()
        })
    }

    #[cfg(not(feature = "nccl"))]
    pub fn by_gpu(&self, _: &Device) -> Result<Self> {
        Ok(self.clone())
    }

    /// Which one this is, from 0.
    pub fn rank(&self) -> usize {
        self.comm.rank()
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.comm.size()
    }

    /// Whether it is the one that writes and speaks.
    pub fn first(&self) -> bool {
        self.rank() == 0
    }

    pub fn comm(&self) -> &Rc<dyn Communicator> {
        &self.comm
    }

    /// The first one's text.
    pub fn text_of_first(&self, text: &str) -> Result<String> {
        let mut length = [text.len() as f64 * f64::from(u8::from(self.first()))];
        self.comm.all_reduce_f64(&mut length)?;
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(length[0] as usize, 0);
        self.comm.broadcast(&mut bytes, 0)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A number of each one.
    fn of_each(&self, mine: u64) -> Result<Vec<u64>> {
        // In halves, which f64 holds exactly, each worker in a place of its own.
        let mut halves = vec![0.0; 2 * self.size()];
        let at = 2 * self.rank();
        (halves[at], halves[at + 1]) = (f64::from((mine >> 32) as u32), f64::from(mine as u32));
        self.comm.all_reduce_f64(&mut halves)?;
        let whole = |pair: &[f64]| (pair[0] as u64) << 32 | pair[1] as u64;
        Ok(halves.chunks_exact(2).map(whole).collect())
    }
}

/// Stands for the cores that this process may use: another number on another machine, and where the launcher has given it
/// some of its own.
fn cores() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = status
        .lines()
        .find(|line| line.starts_with("Cpus_allowed:"));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    fnv(
        fnv(FNV, host.as_bytes()),
        allowed.unwrap_or_default().as_bytes(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::is_usage;

    #[test]
    fn each_of_several_takes_a_gpu_of_its_own() {
        let two = Workers {
            local: 2,
            ..Workers::alone()
        };
        let error = two.open_device("cuda:1").unwrap_err();
        assert!(is_usage(&error) && error.to_string().contains("--device cuda"));
        assert!(two.open_device("cpu").unwrap().is_cpu());
    }
}
