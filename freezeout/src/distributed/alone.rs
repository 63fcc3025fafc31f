//! One process.
use super::Communicator;
use crate::Error;

/// The only process: rank 0 of 1. A sum over one rank is the value itself, so nothing is done and nothing is copied.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Communicator for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_reduce(&self, _: &mut [f32]) -> Result<(), Error> {
        Ok(())
    }

    fn all_reduce_f64(&self, _: &mut [f64]) -> Result<(), Error> {
        Ok(())
    }

    fn broadcast(&self, _: &mut [u8], root: usize) -> Result<(), Error> {
        match root {
            0 => Ok(()),
            _ => Err(Error::Distributed(format!(
                "rank {root} cannot broadcast, there is only rank 0"
            ))),
        }
    }

    fn barrier(&self) -> Result<(), Error> {
        Ok(())
    }
}
