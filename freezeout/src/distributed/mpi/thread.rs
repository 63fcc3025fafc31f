//! The thread that MPI runs on.
use std::sync::mpsc::{Receiver, Sender};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use mpi::collective::SystemOperation;
use mpi::datatype::Equivalence;
use mpi::environment::{initialize_with_threading, library_version};
use mpi::request::{scope, Request, Scope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator as _, CommunicatorCollectives as _, Root as _};
use mpi::Threading;

/// How long a wait asks without a pause before it begins to sleep. A bucket takes milliseconds.
const BUSY: Duration = Duration::from_millis(20);

/// How long it sleeps then.
const NAP: Duration = Duration::from_micros(200);

/// What the thread does; it gives the same back with the result in it.
pub(super) enum Job {
    Sum(Vec<f32>),
    SumF64(Vec<f64>),
    Broadcast(Vec<u8>, usize),
    Barrier,
    /// Ends all processes. The code is in a cell of its own, where a thread that waits for others sees it too.
    Abort,
}

/// Where this process is among the others.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub rank: usize,
    pub size: usize,
    pub local_rank: usize,
    pub local_size: usize,
    pub library: String,
}

/// Initialises MPI, does jobs as long as there may come some, and ends MPI.
pub(super) fn run(
    jobs: &Receiver<Job>,
    done: &Sender<Job>,
    started: &Sender<Result<Place, String>>,
    abort: &OnceLock<i32>,
) {
    // MPI is called from this thread alone, which it therefore takes for the main one.
    let Some((universe, threading)) = initialize_with_threading(Threading::Funneled) else {
        let _ = started.send(Err("MPI was initialised before in this process".into()));
        return;
    };
    let world = universe.world();
    let local = world.split_shared(world.rank());
    let number = |n: i32| usize::try_from(n).unwrap_or_default();
    let place = Place {
        rank: number(world.rank()),
        size: number(world.size()),
        local_rank: number(local.rank()),
        local_size: number(local.size()),
        library: library_name(),
    };
    let _ = started.send(match threading {
        Threading::Single => Err(format!(
            "{} cannot be used beside other threads",
            place.library
        )),
        _ => Ok(place),
    });
    let wait = Wait {
        world: &world,
        abort,
    };
    let mut spare = Vec::new();
    for job in jobs {
        let job = match job {
            Job::Sum(values) => {
                let sum = wait.sum(&values, std::mem::take(&mut spare));
                spare = values;
                Job::Sum(sum)
            }
            Job::SumF64(values) => Job::SumF64(wait.sum(&values, Vec::new())),
            Job::Broadcast(mut bytes, root) => {
                let root = world.process_at_rank(i32::try_from(root).unwrap_or(i32::MAX));
                scope(|scope| wait.of(root.immediate_broadcast_into(scope, &mut bytes[..])));
                Job::Broadcast(bytes, 0)
            }
            Job::Barrier => {
                wait.of(world.immediate_barrier());
                Job::Barrier
            }
            Job::Abort => world.abort(abort.get().copied().unwrap_or(1)),
        };
        if done.send(job).is_err() {
            break;
        }
    }
}

/// The first line of what MPI tells of itself: `Open MPI v4.1.4`, `MPICH Version: 4.0.2`.
fn library_name() -> String {
    let version = library_version().unwrap_or_default();
    let name = version.split([',', '\n', '\0']).next().unwrap_or_default();
    name.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Waits for what was begun, and looks meanwhile whether all shall end.
struct Wait<'a> {
    world: &'a SimpleCommunicator,
    abort: &'a OnceLock<i32>,
}

impl Wait<'_> {
    /// The sum over all ranks, in `sum`.
    fn sum<T: Equivalence + Default + Clone>(&self, values: &[T], mut sum: Vec<T>) -> Vec<T> {
        sum.resize(values.len(), T::default());
        let add = SystemOperation::sum();
        scope(|scope| {
            self.of(self
                .world
                .immediate_all_reduce_into(scope, values, &mut sum[..], add));
        });
        sum
    }

    fn of<'b, D: ?Sized, S: Scope<'b>>(&self, mut request: Request<'b, D, S>) {
        let start = Instant::now();
        loop {
            match request.test() {
                Ok(_) => return,
                Err(unfinished) => request = unfinished,
            }
            if let Some(&code) = self.abort.get() {
                self.world.abort(code);
            }
            if start.elapsed() < BUSY {
                std::thread::yield_now();
            } else {
                std::thread::sleep(NAP);
            }
        }
    }
}
