//! The processes that train together: how many there are, and how they stop together.
use std::fmt;
use std::process::{Command, ExitCode, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use candle_core::Device;
use freezeout::distributed::{Alone, Communicator};

#[cfg(feature = "nccl")]
use crate::machine::torchrun;
use crate::machine::{device, interrupt};
use crate::run::metrics::NotFinite;
use crate::usage::{is_usage, usage};

/// This process among those that train together.
#[derive(Debug, Clone)]
pub struct Workers {
    comm: Rc<dyn Communicator>,
    /// How many of them are on this machine.
    pub local: usize,
    /// Which one of those this is, from 0.
    local_rank: usize,
    /// The GPU that it was connected by.
    gpu: Option<Device>,
    #[cfg(feature = "mpi")]
    mpi: Option<Rc<freezeout::distributed::Mpi>>,
}

/// Seconds until a worker that does not answer is given up.
#[cfg(any(feature = "mpi", feature = "nccl"))]
const TIMEOUT: Duration = Duration::from_secs(60);

/// What workers tell each other of their errors; 0: none.
const FAILURE: f64 = 1.0;
const USAGE: f64 = 2.0;
const NOT_FINITE: f64 = 3.0;

/// What launchers tell the processes that they start: the variable with how many there are.
const LAUNCHERS: [(&str, &str); 4] = [
    ("OMPI_COMM_WORLD_SIZE", "mpirun"),
    ("PMI_SIZE", "mpiexec"),
    ("SLURM_STEP_NUM_TASKS", "srun"),
    ("WORLD_SIZE", "torchrun"),
];

/// By whom this process was started with others, and how many they are.
fn launched() -> Option<(&'static str, usize)> {
    LAUNCHERS.iter().find_map(|(variable, launcher)| {
        let count: usize = std::env::var(variable).ok()?.parse().ok()?;
        (count > 1).then_some((*launcher, count))
    })
}

/// Does the work of a command on all workers: on `nproc` that are started here, or on those that a launcher has started.
/// The first one speaks.
pub fn together(
    nproc: Option<u16>,
    work: impl FnOnce(&Workers) -> Result<ExitCode>,
) -> Result<ExitCode> {
    if let Some(code) = nproc.map(launch).transpose()?.flatten() {
        return Ok(code);
    }
    let workers = Workers::open()?;
    if !workers.first() {
        crate::console::be_quiet();
    }
    let result = work(&workers);
    workers.finish(&result);
    result
}

/// Starts this command line on so many workers by mpiexec and waits for them; `None` if this is one of them, or if there
/// is to be one.
fn launch(count: u16) -> Result<Option<ExitCode>> {
    if count == 1 || launched().is_some() {
        return Ok(None);
    }
    if cfg!(not(feature = "mpi")) {
        return Err(usage(
            "--nproc: this build cannot connect workers: build it with --features mpi",
        ));
    }
    let mut command = Command::new("mpiexec");
    command.arg("-n").arg(count.to_string());
    command
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1));
    // Out of the terminal's reach: Open MPI kills its processes a second after ctrl-C, and a step may take longer.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let started = Arc::new(AtomicU32::new(0));
    let running = started.clone();
    interrupt::listen_for_others(
        "the workers finish this step, then stop",
        move || match running.load(Ordering::SeqCst) {
            0 => {}
            mpiexec => kill("TERM", mpiexec),
        },
    )?;
    let mut workers = command
        .spawn()
        .map_err(|e| usage(format!("--nproc: mpiexec cannot be started: {e}")))?;
    started.store(workers.id(), Ordering::SeqCst);
    let mut asked = false;
    let status = loop {
        if let Some(status) = workers.try_wait()? {
            break status;
        }
        if !asked && interrupt::asked() {
            asked = true;
            // MPI's launchers pass it on to the workers, while SIGTERM is for the launcher itself.
            kill("USR1", workers.id());
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(Some(match (asked, code) {
        (true, Some(_)) => ExitCode::from(interrupt::exit_code()),
        _ => ExitCode::from(code.unwrap_or(1)),
    }))
}

/// Sends a process a signal. By the shell: the standard library only kills.
fn kill(signal: &str, process: u32) {
    let kill = format!("kill -{signal} {process}");
    // It may just have ended.
    let _ = Command::new("sh")
        .args(["-c", &kill])
        .stderr(Stdio::null())
        .status();
}

impl Workers {
    /// One process.
    pub fn alone() -> Self {
        Self {
            comm: Rc::new(Alone),
            local: 1,
            local_rank: 0,
            gpu: None,
            #[cfg(feature = "mpi")]
            mpi: None,
        }
    }

    /// Those that a launcher has started, or this one alone.
    pub fn open() -> Result<Self> {
        match launched() {
            None => Ok(Self::alone()),
            Some(("torchrun", count)) => Self::connect_gpus(count),
            Some((launcher, count)) => Self::connect(launcher, count),
        }
    }

    #[cfg(feature = "mpi")]
    fn connect(launcher: &str, count: usize) -> Result<Self> {
        let mpi = Rc::new(freezeout::distributed::Mpi::new(TIMEOUT)?);
        if mpi.size() != count {
            return Err(usage(format!(
                "{launcher} started {count} workers, and MPI connects {}; the launcher is of another MPI than the one that this program was built with",
                mpi.size()
            )));
        }
        Ok(Self {
            comm: mpi.clone(),
            local: mpi.local_size(),
            local_rank: mpi.local_rank(),
            gpu: None,
            mpi: Some(mpi),
        })
    }

    /// Those that torchrun has started, by NCCL alone.
    #[cfg(feature = "nccl")]
    fn connect_gpus(_: usize) -> Result<Self> {
        let place = torchrun::place(|name| std::env::var(name).ok())?;
        let gpu = device::open(&format!("cuda:{}", place.local_rank))?;
        let ranks = (place.rank, place.size);
        let nccl = freezeout::distributed::Nccl::at(&place.address, ranks, &gpu, TIMEOUT)?;
        Ok(Self {
            comm: Rc::new(nccl),
            local: place.local_size,
            local_rank: place.local_rank,
            gpu: Some(gpu),
            #[cfg(feature = "mpi")]
            mpi: None,
        })
    }

    #[cfg(not(feature = "nccl"))]
    fn connect_gpus(count: usize) -> Result<Self> {
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

    /// The same workers, connected by their GPUs where they compute on some.
    #[cfg(feature = "nccl")]
    pub fn by_gpu(&self, device: &Device) -> Result<Self> {
        if self.size() == 1 || self.gpu.is_some() || !device.is_cuda() {
            return Ok(self.clone());
        }
        let nccl = freezeout::distributed::Nccl::over(&*self.comm, device, TIMEOUT)?;
        Ok(Self {
            comm: Rc::new(nccl),
            ..self.clone()
        })
    }

    #[cfg(not(feature = "nccl"))]
    pub fn by_gpu(&self, _: &Device) -> Result<Self> {
        Ok(self.clone())
    }

    #[cfg(not(feature = "mpi"))]
    fn connect(launcher: &str, count: usize) -> Result<Self> {
        Err(usage(format!(
            "{launcher} started {count} workers, and this build cannot connect them: build it with --features mpi"
        )))
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

    /// This one's result, if all have one. An error of one is an error of all, told by the first that has one.
    pub fn agree<T>(&self, mine: Result<T>) -> Result<T> {
        if self.size() == 1 {
            return mine;
        }
        let mut codes = vec![0.0; self.size()];
        if let Err(error) = &mine {
            codes[self.rank()] = match error {
                _ if error.is::<NotFinite>() => NOT_FINITE,
                _ if is_usage(error) => USAGE,
                _ => FAILURE,
            };
        }
        if let Err(lost) = self.comm.all_reduce_f64(&mut codes) {
            // Its own error says more than that nobody listens.
            return Err(mine.err().unwrap_or_else(|| lost.into()));
        }
        let Some(failed) = codes.iter().position(|&code| code > 0.0) else {
            return mine;
        };
        match mine {
            Err(error) if failed == self.rank() => Err(error.context(Together {
                rank: self.rank(),
                size: self.size(),
            })),
            _ => Err(Elsewhere {
                code: if codes[failed] == USAGE { 2 } else { 1 },
                not_finite: codes[failed] == NOT_FINITE,
            }
            .into()),
        }
    }

    /// Whether all stop by this error, in the same place.
    pub fn all_know(&self, error: &anyhow::Error) -> bool {
        self.size() == 1 || error.is::<Together>() || error.is::<Elsewhere>()
    }

    /// An error that all agree on, with more to say behind it.
    pub fn with_more(&self, error: anyhow::Error, more: &str) -> anyhow::Error {
        if error.is::<Elsewhere>() {
            return error;
        }
        let own = usize::from(error.is::<Together>());
        let causes: Vec<String> = error.chain().skip(own).map(|e| e.to_string()).collect();
        let told = anyhow::anyhow!("{}; {more}", causes.join(": "));
        match self.size() {
            1 => told,
            size => told.context(Together {
                rank: self.rank(),
                size,
            }),
        }
    }

    /// What the first one does alone, for instance writing; its error is one of all.
    pub fn first_does(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.agree(if self.first() { work() } else { Ok(()) })
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

    /// Ends the job. Where only this worker has failed, the others wait for it in vain: it takes them along.
    fn finish(&self, result: &Result<ExitCode>) {
        let Err(error) = result else { return };
        if self.all_know(error) {
            return;
        }
        crate::console::warn(format!(
            "error: worker {} of {}: {error:#}",
            self.rank() + 1,
            self.size()
        ));
        #[cfg(feature = "mpi")]
        if let Some(mpi) = &self.mpi {
            mpi.abort(1);
        }
        std::process::exit(1);
    }
}

/// Whose error it is, where all stop because of it.
#[derive(Debug)]
struct Together {
    rank: usize,
    size: usize,
}

impl fmt::Display for Together {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "worker {} of {}", self.rank + 1, self.size)
    }
}

/// Another worker has failed, and tells why.
#[derive(Debug)]
pub struct Elsewhere {
    /// The exit code of it.
    pub code: u8,
    /// Whether its loss was not finite.
    pub not_finite: bool,
}

impl fmt::Display for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("another worker has failed")
    }
}

impl std::error::Error for Elsewhere {}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of two; the other one has this code.
    #[derive(Debug)]
    struct OneOfTwo(usize, f64);

    type Done = Result<(), freezeout::Error>;

    impl Communicator for OneOfTwo {
        fn rank(&self) -> usize {
            self.0
        }

        fn size(&self) -> usize {
            2
        }

        fn all_reduce(&self, _: &mut [f32]) -> Done {
            Ok(())
        }

        fn all_reduce_f64(&self, values: &mut [f64]) -> Done {
            values[1 - self.0] += self.1;
            Ok(())
        }

        fn broadcast(&self, _: &mut [u8], _: usize) -> Done {
            Ok(())
        }

        fn barrier(&self) -> Done {
            Ok(())
        }
    }

    fn one_of_two(rank: usize, other: f64) -> Workers {
        Workers {
            comm: Rc::new(OneOfTwo(rank, other)),
            ..Workers::alone()
        }
    }

    fn not_finite() -> Result<u8> {
        Err(NotFinite("step 3: the loss is NaN".into()).into())
    }

    #[test]
    fn all_are_well() {
        assert_eq!(one_of_two(0, 0.0).agree(Ok(7)).unwrap(), 7);
        assert_eq!(Workers::alone().agree(Ok(7)).unwrap(), 7);
    }

    #[test]
    fn a_loss_that_is_nan_on_one_alone_stops_both_and_one_tells() {
        let told = one_of_two(1, 0.0).agree(not_finite()).unwrap_err();
        assert_eq!(
            format!("{told:#}"),
            "worker 2 of 2: step 3: the loss is NaN"
        );
        assert!(told.is::<NotFinite>());
        let silent = one_of_two(0, NOT_FINITE).agree(Ok(7)).unwrap_err();
        let elsewhere = silent.downcast_ref::<Elsewhere>().unwrap();
        assert!(elsewhere.code == 1 && elsewhere.not_finite);
    }

    #[test]
    fn the_first_of_two_that_fail_tells() {
        let told = one_of_two(0, 2.0).agree(not_finite()).unwrap_err();
        assert!(told.is::<Together>(), "{told:#}");
        let silent = one_of_two(1, 2.0).agree(not_finite()).unwrap_err();
        // A usage error's code is the other one's.
        let elsewhere = silent.downcast_ref::<Elsewhere>().unwrap();
        assert!(elsewhere.code == 2 && !elsewhere.not_finite);
    }

    #[test]
    fn more_to_say_goes_behind_the_cause() {
        let told = one_of_two(1, 0.0).agree(not_finite()).unwrap_err();
        let told = one_of_two(1, 0.0).with_more(told, "nothing is lost");
        assert_eq!(
            format!("{told:#}"),
            "worker 2 of 2: step 3: the loss is NaN; nothing is lost"
        );
        let silent = one_of_two(0, 1.0).agree(Ok(7)).unwrap_err();
        assert!(one_of_two(0, 1.0).with_more(silent, "x").is::<Elsewhere>());
    }

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
