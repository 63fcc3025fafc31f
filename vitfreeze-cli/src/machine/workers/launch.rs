//! Workers that a launcher has started, and those that the program starts itself.
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use crate::machine::interrupt;
use crate::usage::usage;

/// Flags of a command that many workers can do together.
#[derive(clap::Args)]
pub struct Flags {
    /// Start N workers on this machine (needs a build with --features mpi)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Workers")]
    nproc: Option<u16>,
    /// Seconds of silence after which a worker is given up, and the job with it
    #[arg(long, value_name = "S", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=1_000_000), help_heading = "Workers")]
    worker_timeout: u64,
}

impl Flags {
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.worker_timeout)
    }

    /// Refuses another number than a launcher has started: those that this same command line has started are as many.
    pub fn check(&self) -> Result<()> {
        match (self.nproc, launched()) {
            (Some(count), Some((launcher, started))) if started != usize::from(count) => {
                Err(usage(format!(
                    "--nproc {count} is for a program that no launcher has started; {launcher} has started {started} of it"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Starts this command line on so many workers and waits for them; `None` if this is one of them, or the only one.
    pub fn launch(&self) -> Result<Option<ExitCode>> {
        self.nproc.map(launch).transpose().map(Option::flatten)
    }
}

/// What launchers tell the processes that they start: the variable with how many there are.
const LAUNCHERS: [(&str, &str); 4] = [
    ("OMPI_COMM_WORLD_SIZE", "mpirun"),
    ("PMI_SIZE", "mpiexec"),
    ("SLURM_STEP_NUM_TASKS", "srun"),
    ("WORLD_SIZE", "torchrun"),
];

/// By whom this process was started with others, and how many they are.
pub fn launched() -> Option<(&'static str, usize)> {
    LAUNCHERS.iter().find_map(|(variable, launcher)| {
        let count: usize = std::env::var(variable).ok()?.parse().ok()?;
        // mpirun knows no second one inside it, not even of one process.
        (count > 1 || *launcher == "mpirun").then_some((*launcher, count))
    })
}

/// What mpiexec is told where it is Open MPI's (4, then 5): that workers share the cores, where it would bind the threads of
/// each to one core, and that there may be more of them than cores. Other MPIs do not look at it.
const OPEN_MPI: [(&str, &str); 4] = [
    ("OMPI_MCA_hwloc_base_binding_policy", "none"),
    ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
    ("PRTE_MCA_hwloc_default_binding_policy", "none"),
    ("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"),
];

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
    for (setting, value) in OPEN_MPI {
        if std::env::var_os(setting).is_none() {
            command.env(setting, value);
        }
    }
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
