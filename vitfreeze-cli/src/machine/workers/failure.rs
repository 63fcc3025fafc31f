//! How workers stop together.
use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{anyhow, Result};

use super::Workers;
use crate::run::metrics::NotFinite;
use crate::usage::{is_usage, tell, usage};

/// What workers tell each other of their errors; 0: none.
const FAILURE: f64 = 1.0;
const USAGE: f64 = 2.0;
const NOT_FINITE: f64 = 3.0;

impl Workers {
    /// This one's result, if all have one. An error of one is an error of all, told by the first that has one.
    pub fn agree<T>(&self, mine: Result<T>) -> Result<T> {
        // An error that all know they have all of them.
        if self.size() == 1 || mine.as_ref().is_err_and(|error| self.all_know(error)) {
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
            Err(error) if failed == self.rank() => Err(self.of_this(error)),
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
            _ => self.of_this(told),
        }
    }

    /// An error of this worker, which names it.
    fn of_this(&self, error: anyhow::Error) -> anyhow::Error {
        error.context(Together {
            rank: self.rank(),
            size: self.size(),
        })
    }

    /// What the first one does alone, for instance writing; its error is one of all.
    pub fn first_does(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.agree(if self.first() { work() } else { Ok(()) })
    }

    /// Refuses a number that is not the same on all of them.
    pub fn check_same(&self, what: &str, mine: u64) -> Result<()> {
        let all = self.of_each(mine)?;
        let other = all.iter().position(|other| *other != all[0]);
        self.agree(match other {
            Some(rank) if rank == self.rank() => Err(usage(format!(
                "this worker has other {what} than worker 1; all workers need the same"
            ))),
            _ => Ok(()),
        })
    }

    /// What a command ends with. An error that all stop by is told by the one that it is of, before any of them ends: a
    /// launcher ends the others as soon as one has ended with an error. Where only this worker has failed the others wait
    /// for it in vain: it takes them along.
    pub fn finish(&self, result: Result<ExitCode>) -> Result<ExitCode> {
        let error = match result {
            Err(error) if self.size() > 1 => error,
            result => return result,
        };
        if !self.all_know(&error) {
            tell(&self.of_this(match error.downcast_ref() {
                Some(freezeout::Error::Distributed(why)) => {
                    // All wait for the same one, and give up at the same moment: the first tells it, and ends the others.
                    std::thread::sleep(Duration::from_millis(200) * self.rank().min(25) as u32);
                    let own = format!("rank {} of {}: ", self.rank(), self.size());
                    let why = why.strip_prefix(&own).unwrap_or(why);
                    anyhow!("{why} (--worker-timeout sets how long workers wait)")
                }
                _ => error,
            }));
            self.launched.abort(1);
        }
        let code = match error.downcast_ref::<Elsewhere>() {
            Some(elsewhere) => elsewhere.code,
            None => tell(&error),
        };
        // Whoever does not come has ended: there is nobody to wait for.
        let _ = self.comm().barrier();
        Ok(ExitCode::from(code))
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
    use std::rc::Rc;

    use freezeout::distributed::Communicator;

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
    fn what_all_know_is_not_asked_again() {
        // The other one has failed as well by now: asking it would find a third error.
        let told = one_of_two(1, 0.0).agree(not_finite());
        let again = one_of_two(1, 2.0).agree(told).unwrap_err();
        assert_eq!(
            format!("{again:#}"),
            "worker 2 of 2: step 3: the loss is NaN"
        );
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
}
