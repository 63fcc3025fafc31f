//! TensorBoard event files: records of a length, a checksum, a protobuf `Event` and its checksum.
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// An event file of one session.
pub struct EventFile {
    file: BufWriter<File>,
}

impl EventFile {
    /// A new file in `dir` for a run that goes on after `step` steps.
    pub fn open(dir: &Path, step: usize) -> Result<Self> {
        let name = format!("events.out.tfevents.{:.0}.{step}.vitfreeze", now());
        let path = dir.join(name);
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut events = Self {
            file: BufWriter::new(file),
        };
        let mut event = time();
        bytes(&mut event, 3, b"brain.Event:2");
        events.record(&event)?;
        Ok(events)
    }

    /// One number of one step.
    pub fn scalar(&mut self, tag: &str, step: usize, value: f64) -> Result<()> {
        let (mut number, mut summary, mut event) = (Vec::new(), Vec::new(), time());
        bytes(&mut number, 1, tag.as_bytes());
        number.push(2 << 3 | 5);
        number.extend((value as f32).to_le_bytes());
        bytes(&mut summary, 1, &number);
        event.push(2 << 3);
        varint(&mut event, step as u64);
        bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    /// Hands everything to the system.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().context("cannot write the event file")
    }

    fn record(&mut self, event: &[u8]) -> Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let parts = [&length[..], &masked(&length), event, &masked(event)];
        let written = self.file.write_all(&parts.concat());
        written.context("cannot write the event file")
    }
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |time| time.as_secs_f64())
}

fn time() -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend(now().to_le_bytes());
    event
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

/// CRC-32C, rotated and offset as TFRecord wants it.
fn masked(data: &[u8]) -> [u8; 4] {
    let mut crc = !0u32;
    for &byte in data {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    (!crc)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
        .to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC-32C of "123456789" is e3069283 (RFC 3720); the mask is TFRecord's.
    #[test]
    fn checksums_are_masked_crc32c() {
        let want = 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked(b"123456789"), want.to_le_bytes());
    }
}
