//! Some bytes of rank 0 for all others, before there is anything else that connects them.
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::Error;

const PAUSE: Duration = Duration::from_millis(20);
/// What both sides say first: whoever else connects to the port is turned away.
const HELLO: &[u8; 16] = b"freezeout rank 0";

/// Rank 0 listens at the port of `address` until each of the others has fetched its `bytes`; they ask there until it
/// answers. It listens on all of its interfaces: a name like `localhost` or a cluster's own often means another one to it
/// than to the others.
///
/// # Errors
/// [`Error::Distributed`]: not all came within the time-out; rank 0 cannot listen there; no such host.
pub(super) fn share(
    bytes: &mut [u8],
    address: &str,
    rank: usize,
    size: usize,
    timeout: Duration,
) -> Result<(), Error> {
    let until = Instant::now() + timeout;
    let done = match rank {
        _ if size == 1 => return Ok(()),
        0 => give(bytes, address, size, until),
        _ => take(bytes, address, until),
    };
    done.map_err(|e| Error::Distributed(format!("rank {rank} of {size}: {address}: {e}")))
}

fn give(bytes: &[u8], address: &str, size: usize, until: Instant) -> io::Result<()> {
    let listener = listen(address)
        .map_err(|e| io::Error::new(e.kind(), format!("rank 0 cannot listen there: {e}")))?;
    listener.set_nonblocking(true)?;
    let mut served = 1;
    while served < size {
        match listener.accept() {
            // One that is slow or a stranger does not count; who was cut off asks again.
            Ok((peer, _)) => served += usize::from(serve(peer, bytes).is_ok()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let missing = size - served;
                wait(until, || format!("{missing} of {size} ranks did not come"))?;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// IPv6 takes IPv4 along; not every host has it.
fn listen(address: &str) -> io::Result<TcpListener> {
    let port = address
        .rsplit(':')
        .next()
        .and_then(|port| port.parse().ok());
    let port: u16 = port.ok_or_else(|| io::Error::other("host:port expected"))?;
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|e| match e.kind() {
        io::ErrorKind::AddrInUse => Err(e),
        _ => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
    })
}

fn serve(mut peer: TcpStream, bytes: &[u8]) -> io::Result<()> {
    peer.set_nonblocking(false)?;
    hello(&mut peer)?;
    peer.write_all(bytes)?;
    // Until it says that all has arrived.
    peer.read_exact(&mut [0])
}

fn take(bytes: &mut [u8], address: &str, until: Instant) -> io::Result<()> {
    loop {
        let Err(error) = ask(bytes, address) else {
            return Ok(());
        };
        wait(until, || format!("rank 0 does not answer: {error}"))?;
    }
}

fn ask(bytes: &mut [u8], address: &str) -> io::Result<()> {
    let mut last = io::Error::other("no such host");
    // A name may have several addresses, of which some lead nowhere.
    for to in address.to_socket_addrs()? {
        match fetch(bytes, to) {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn fetch(bytes: &mut [u8], from: SocketAddr) -> io::Result<()> {
    let mut peer = TcpStream::connect_timeout(&from, Duration::from_secs(5))?;
    hello(&mut peer)?;
    peer.read_exact(bytes)?;
    peer.write_all(&[1])
}

fn hello(peer: &mut TcpStream) -> io::Result<()> {
    peer.set_read_timeout(Some(Duration::from_secs(5)))?;
    peer.set_write_timeout(Some(Duration::from_secs(5)))?;
    peer.write_all(HELLO)?;
    let mut said = [0; HELLO.len()];
    peer.read_exact(&mut said)?;
    match said == *HELLO {
        true => Ok(()),
        false => Err(io::Error::other("something else listens there")),
    }
}

fn wait(until: Instant, late: impl FnOnce() -> String) -> io::Result<()> {
    if Instant::now() > until {
        return Err(io::Error::new(io::ErrorKind::TimedOut, late()));
    }
    std::thread::sleep(PAUSE);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the host's own, free a moment ago.
    fn free_address() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    }

    fn rank(rank: usize, size: usize, address: &str, seconds: f64) -> Result<[u8; 128], Error> {
        let mut bytes = [rank as u8 + 7; 128];
        let timeout = Duration::from_secs_f64(seconds);
        share(&mut bytes, address, rank, size, timeout).map(|()| bytes)
    }

    #[test]
    fn all_get_the_bytes_of_rank_0_whoever_comes_first() {
        for size in [1, 2, 5] {
            let address = &free_address();
            std::thread::scope(|scope| {
                let ranks: Vec<_> = (0..size)
                    .rev()
                    .map(|r| {
                        std::thread::sleep(Duration::from_millis(30));
                        scope.spawn(move || rank(r, size, address, 20.0).unwrap())
                    })
                    .collect();
                for got in ranks {
                    assert_eq!(got.join().unwrap(), [7; 128]);
                }
            });
        }
    }

    #[test]
    fn any_of_the_hosts_names_will_do() {
        for host in ["localhost", "127.0.0.1", "127.0.0.2"] {
            let port = free_address().rsplit(':').next().unwrap().to_owned();
            let address = format!("{host}:{port}");
            std::thread::scope(|scope| {
                let first = scope.spawn(|| rank(0, 2, &address, 20.0));
                assert_eq!(rank(1, 2, &address, 20.0).unwrap(), [7; 128]);
                assert!(first.join().unwrap().is_ok());
            });
        }
    }

    #[test]
    fn strangers_do_not_count() {
        let address = free_address();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| rank(0, 2, &address, 20.0));
            std::thread::sleep(Duration::from_millis(100));
            for words in [&b"GET / HTTP/1.1\r\n\r\n"[..], b""] {
                let mut stranger = TcpStream::connect(&address).unwrap();
                stranger.write_all(words).unwrap();
            }
            assert_eq!(rank(1, 2, &address, 20.0).unwrap(), [7; 128]);
            assert!(first.join().unwrap().is_ok());
        });
    }

    #[test]
    fn who_does_not_come_is_told() {
        let address = free_address();
        let told = rank(0, 3, &address, 0.1).unwrap_err().to_string();
        assert!(
            told.contains("rank 0 of 3") && told.contains("2 of 3 ranks did not come"),
            "{told}"
        );
        let told = rank(1, 3, &address, 0.1).unwrap_err().to_string();
        assert!(told.contains("rank 0 does not answer"), "{told}");
        let taken = TcpListener::bind(&address).unwrap();
        let told = rank(0, 3, &address, 0.1).unwrap_err().to_string();
        assert!(told.contains("cannot listen there"), "{told}");
        drop(taken);
    }
}
