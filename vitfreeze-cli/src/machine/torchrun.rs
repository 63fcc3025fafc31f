//! What torchrun, and launchers that speak like it, tell a worker in its environment.
use anyhow::Result;

use crate::usage::usage;

/// This worker's place.
#[derive(Debug, PartialEq)]
pub struct Place {
    pub rank: usize,
    pub size: usize,
    pub local_rank: usize,
    pub local_size: usize,
    /// Where worker 0 hands NCCL's id round, `host:port`.
    pub address: String,
}

/// Reads it from the environment.
///
/// # Errors
/// A usage error that names the variable.
pub fn place(variable: impl Fn(&str) -> Option<String>) -> Result<Place> {
    let text = |name: &str| {
        variable(name).ok_or_else(|| usage(format!("{name} is not set; torchrun sets it")))
    };
    let number = |name: &str| -> Result<usize> {
        let text = text(name)?;
        text.parse()
            .map_err(|_| usage(format!("{name}={text}: expected a number")))
    };
    let (rank, size) = (number("RANK")?, number("WORLD_SIZE")?);
    let local_rank = number("LOCAL_RANK")?;
    // Some launchers leave it out: then all are taken to be on this machine.
    let local_size = match variable("LOCAL_WORLD_SIZE") {
        Some(_) => number("LOCAL_WORLD_SIZE")?,
        None => size,
    };
    if rank >= size || local_rank >= local_size {
        return Err(usage(format!(
            "RANK={rank} of WORLD_SIZE={size}, LOCAL_RANK={local_rank} of {local_size}: ranks count from 0"
        )));
    }
    // MASTER_PORT itself is torchrun's own.
    let port = number("MASTER_PORT")?;
    let port = u16::try_from(port + 1)
        .map_err(|_| usage(format!("MASTER_PORT={port}: expected at most 65534")))?;
    let host = text("MASTER_ADDR")?;
    let address = match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    Ok(Place {
        rank,
        size,
        local_rank,
        local_size,
        address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &str) -> Result<Place> {
        place(|name| {
            let mut pairs = variables.split(' ').filter_map(|pair| pair.split_once('='));
            Some(pairs.find(|(key, _)| *key == name)?.1.to_owned())
        })
    }

    #[test]
    fn places() {
        let place = of(
            "RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 MASTER_ADDR=a.b MASTER_PORT=29500",
        );
        let want = Place {
            rank: 5,
            size: 8,
            local_rank: 1,
            local_size: 4,
            address: "a.b:29501".into(),
        };
        assert_eq!(place.unwrap(), want);
        let place = of("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=::1 MASTER_PORT=1").unwrap();
        assert_eq!((place.local_size, &*place.address), (2, "[::1]:2"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (variables, told) in [
            ("WORLD_SIZE=2", "RANK is not set"),
            ("RANK=x WORLD_SIZE=2", "RANK=x"),
            ("RANK=2 WORLD_SIZE=2 LOCAL_RANK=0", "count from 0"),
            ("RANK=1 WORLD_SIZE=2 LOCAL_RANK=1", "MASTER_PORT is not set"),
            (
                "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 MASTER_PORT=65535",
                "65534",
            ),
            (
                "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 MASTER_PORT=9",
                "MASTER_ADDR",
            ),
        ] {
            let error = of(variables).unwrap_err().to_string();
            assert!(error.contains(told), "{variables}: {error}");
        }
    }
}
