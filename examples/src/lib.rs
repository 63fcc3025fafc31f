//! Short programs that use the vitfreeze crates; see `examples/`.
use std::error::Error;
use std::num::NonZero;
use std::thread::available_parallelism;
use std::time::Duration;

#[cfg(not(feature = "mpi"))]
use freezeout::distributed::Alone;
use freezeout::distributed::Communicator;
#[cfg(feature = "mpi")]
use freezeout::distributed::Mpi;

/// The processes that train together and the threads of each: this one alone with all cores, or with the feature `mpi` those
/// that `mpirun` started. A peer that is silent for so long counts as hanging.
pub fn ranks(timeout: Duration) -> Result<(Box<dyn Communicator>, usize), Box<dyn Error>> {
    let cores = available_parallelism().map_or(1, NonZero::get);
    #[cfg(feature = "mpi")]
    {
        let ranks = Mpi::new(timeout)?;
        let threads = (cores / ranks.local_size()).max(1);
        Ok((Box::new(ranks), threads))
    }
    #[cfg(not(feature = "mpi"))]
    {
        let _ = timeout;
        Ok((Box::new(Alone), cores))
    }
}
