//! Where it runs and in which type it multiplies: `--device`, `--threads`, `--dtype`.
use anyhow::Result;
use candle_core::Device;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use vit::ops::{Compute, Precision};

use crate::console::note;
#[cfg(feature = "cuda")]
use crate::machine::gpu;
use crate::machine::{allocator, doors, memory};
use crate::usage::usage;

/// The type of the operands of matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dtype {
    /// 32 bits
    #[default]
    F32,
    /// 16 bits, where the processor has a unit for them; weights, sums and the residual stream stay 32 bits
    Bf16,
}

impl Dtype {
    /// With what multiplies it: `f32`, `bf16 (AMX)`.
    pub fn describe(self, unit: Option<&str>) -> String {
        match self {
            Self::F32 => "f32".into(),
            Self::Bf16 => format!("bf16 ({})", unit.unwrap_or("not available here, f32")),
        }
    }

    /// As the model takes it.
    pub fn precision(self) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
        }
    }

    /// How a model computes in it; says in one line what will multiply.
    pub fn compute(self, device: &Device) -> Result<Compute> {
        let mut compute = doors::compute()?;
        if self == Self::F32 {
            return Ok(compute);
        }
        if !device.is_cpu() {
            return Err(usage(
                "--dtype bf16 is for the CPU: on a GPU products are f32; continue a run in bf16 with --device cpu",
            ));
        }
        compute.precision = self.precision();
        let unit = compute.bf16_unit();
        let unit = unit.unwrap_or("not available here, using f32");
        note(format!("bf16: {unit}"));
        Ok(compute)
    }
}

/// Opens `cpu`, `cuda`, `cuda:N` or `metal`.
pub fn open(name: &str) -> Result<Device> {
    let (kind, ordinal) = match name.split_once(':') {
        Some((kind, n)) => match n.parse::<usize>() {
            Ok(n) => (kind, n),
            Err(_) => return Err(usage(format!("--device {name}: '{n}' is no device number"))),
        },
        None => (name, 0),
    };
    let device = match kind {
        "cpu" if name == "cpu" => return Ok(Device::Cpu),
        "cuda" => Device::new_cuda(ordinal),
        "metal" => Device::new_metal(ordinal),
        _ => {
            return Err(usage(format!(
                "--device {name}: expected cpu, cuda, cuda:N or metal"
            )))
        }
    };
    let device = device.map_err(|e| {
        let first = e.to_string();
        let first = first.lines().next().unwrap_or_default();
        usage(format!(
            "--device {name} cannot be used: {first} (a build has it with --features {kind})"
        ))
    })?;
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = &device {
        gpu::keep_memory(cuda);
    }
    Ok(device)
}

/// Hands free memory back now, the host's and the device's: after a freeze, which leaves much of it over.
pub fn release_memory(device: &Device) {
    allocator::release_memory();
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => gpu::release_memory(cuda),
        _ => {}
    }
}

/// Forgets the peak of the memory that `device` computes in; `false` where it is not known.
pub fn reset_peak(device: &Device) -> bool {
    match device {
        Device::Cpu => memory::reset_peak(),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => gpu::reset_peak(cuda).is_ok(),
        _ => false,
    }
}

/// The peak since then: of the process, or of the tensors on the device.
pub fn peak_bytes(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu => memory::peak_bytes(),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => gpu::peak_bytes(cuda).ok(),
        _ => None,
    }
}

/// Sets the number of threads of everything, 0 = one per core, and returns it. To be called before any thread runs, by the one
/// that computes, which becomes one of rayon's and must live as long as the process; a second call must say the same. With one
/// thread in all, no other thread may call rayon: it would wait for this one.
pub fn set_threads(threads: usize) -> Result<usize> {
    set_threads_of(threads, 1)
}

/// The same where so many workers share the cores.
pub fn set_threads_of(threads: usize, workers: usize) -> Result<usize> {
    let available = std::thread::available_parallelism().map_or(1, |n| n.get());
    let available = (available / workers).max(1);
    if threads > 1024 {
        return Err(usage(format!("--threads {threads}: at most 1024")));
    }
    let threads = if threads == 0 { available } else { threads };
    // candle's own products read this variable, everything else uses the pool below.
    std::env::set_var("RAYON_NUM_THREADS", threads.to_string());
    // candle's second pool, for element-wise ops, spins while it waits and takes the cores from the first one.
    std::env::set_var("CANDLE_NUM_THREADS", "1");
    let built = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        // This thread works too: it need not be woken at the end of each of a step's thousand parallel loops.
        .use_current_thread()
        .build_global();
    // A study measures the steps of several configurations one after the other: the pool that is there will do.
    match built {
        Err(_) if rayon::current_num_threads() != threads => Err(usage(format!(
            "--threads {threads}: this process works with {} already",
            rayon::current_num_threads()
        ))),
        _ => Ok(threads),
    }
}
