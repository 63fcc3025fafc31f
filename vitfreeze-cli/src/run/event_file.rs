//! TensorBoard event files: records of a length, a checksum, a protobuf `Event` and its checksum.
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// An event file of one session.
pub struct EventFile {
    file: BufWriter<File>,
}

impl EventFile {
    /// A new file in `dir` for a run that goes on after `step` steps. TensorBoard then forgets what earlier files say of
    /// later steps.
    pub fn open(dir: &Path, step: usize) -> Result<Self> {
        // TensorBoard reads a folder's files in the order of their names.
        let path = dir.join(format!("events.out.tfevents.{:017.6}.vitfreeze", now()));
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        let mut events = Self {
            file: BufWriter::new(file),
        };
        let mut event = time(now());
        bytes(&mut event, 3, b"brain.Event:2");
        events.record(&event)?;
        events.record(&start(now(), step))?;
        events.flush()?;
        Ok(events)
    }

    /// One number of one step.
    pub fn scalar(&mut self, tag: &str, step: usize, value: f64) -> Result<()> {
        self.record(&number(now(), tag, step, value))
    }

    /// A PNG of one step.
    pub fn image(&mut self, tag: &str, step: usize, png: &[u8]) -> Result<()> {
        self.record(&picture(now(), tag, step, png))
    }

    /// How many of some values lie where.
    pub fn histogram(&mut self, tag: &str, step: usize, values: &[f32]) -> Result<()> {
        self.record(&distribution(now(), tag, step, values))
    }

    /// A text, shown as it is.
    pub fn text(&mut self, tag: &str, step: usize, text: &str) -> Result<()> {
        // Markdown for lines that stay lines.
        let lines: Vec<String> = text.lines().map(|line| format!("    {line}")).collect();
        self.record(&words(now(), tag, step, &lines.join("\n")))
    }

    /// Hands everything to the system.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().context("cannot write the event file")
    }

    fn record(&mut self, event: &[u8]) -> Result<()> {
        let written = self.file.write_all(&framed(event));
        written.context("cannot write the event file")
    }
}

/// A TFRecord: length, its checksum, data, their checksum.
fn framed(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), event, &masked(event)].concat()
}

/// `Event { wall_time, step, summary: { value: { tag, what } } }`
fn summary(time_now: f64, tag: &str, step: usize, what: &[u8]) -> Vec<u8> {
    let (mut value, mut summary, mut event) = (Vec::new(), Vec::new(), time(time_now));
    bytes(&mut value, 1, tag.as_bytes());
    value.extend(what);
    bytes(&mut summary, 1, &value);
    event.push(2 << 3);
    varint(&mut event, step as u64);
    bytes(&mut event, 5, &summary);
    event
}

/// `simple_value`
fn number(time_now: f64, tag: &str, step: usize, value: f64) -> Vec<u8> {
    let mut number = vec![2 << 3 | 5];
    number.extend((value as f32).to_le_bytes());
    summary(time_now, tag, step, &number)
}

/// `image: { height, width, colorspace: RGBA, encoded_image_string }`; a PNG's sides are in its first chunk.
fn picture(time_now: f64, tag: &str, step: usize, png: &[u8]) -> Vec<u8> {
    let side = |at: usize| {
        let side = png.get(at..at + 4).and_then(|s| s.try_into().ok());
        u64::from(side.map_or(0, u32::from_be_bytes))
    };
    let (mut image, mut value) = (Vec::new(), Vec::new());
    for (field, number) in [(1, side(20)), (2, side(16)), (3, 4)] {
        image.push(field << 3);
        varint(&mut image, number);
    }
    bytes(&mut image, 4, png);
    bytes(&mut value, 4, &image);
    summary(time_now, tag, step, &value)
}

/// Parts of a histogram, all of one width.
const PARTS: usize = 40;

/// `histo: { min, max, num, sum, sum_squares, bucket_limit, bucket }`
fn distribution(time_now: f64, tag: &str, step: usize, values: &[f32]) -> Vec<u8> {
    let values = || {
        values
            .iter()
            .map(|&x| f64::from(x))
            .filter(|x| x.is_finite())
    };
    let low = values().fold(f64::INFINITY, f64::min);
    let high = values().fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = if low <= high { (low, high) } else { (0.0, 0.0) };
    let width = (high - low).max(1e-12) / PARTS as f64;
    let mut counts = [0.0; PARTS];
    for x in values() {
        counts[(((x - low) / width) as usize).min(PARTS - 1)] += 1.0;
    }
    let numbers = [
        low,
        high,
        counts.iter().sum(),
        values().sum(),
        values().map(|x| x * x).sum(),
    ];
    let limits: Vec<f64> = (1..=PARTS).map(|i| low + width * i as f64).collect();
    let (mut histogram, mut value) = (Vec::new(), Vec::new());
    for (field, number) in (1..).zip(numbers) {
        // A number that is 0 is not written.
        if number != 0.0 {
            histogram.push(field << 3 | 1);
            histogram.extend(number.to_le_bytes());
        }
    }
    for (field, packed) in [(6, &limits[..]), (7, &counts)] {
        let packed: Vec<u8> = packed.iter().flat_map(|x| x.to_le_bytes()).collect();
        bytes(&mut histogram, field, &packed);
    }
    bytes(&mut value, 5, &histogram);
    summary(time_now, tag, step, &value)
}

/// `tensor: { dtype: DT_STRING, tensor_shape: { dim: { size: 1 } }, string_val }`,
/// `metadata: { plugin_data: { plugin_name: "text" } }`
fn words(time_now: f64, tag: &str, step: usize, text: &str) -> Vec<u8> {
    let (mut tensor, mut plugin, mut metadata) = (vec![1 << 3, 7], Vec::new(), Vec::new());
    bytes(&mut tensor, 2, &[2 << 3 | 2, 2, 1 << 3, 1]);
    bytes(&mut tensor, 8, text.as_bytes());
    bytes(&mut plugin, 1, b"text");
    bytes(&mut metadata, 1, &plugin);
    let mut value = Vec::new();
    bytes(&mut value, 8, &tensor);
    bytes(&mut value, 9, &metadata);
    summary(time_now, tag, step, &value)
}

/// `Event { wall_time, step, session_log: { status: START } }`
fn start(time_now: f64, step: usize) -> Vec<u8> {
    let mut event = time(time_now);
    event.push(2 << 3);
    varint(&mut event, step as u64);
    bytes(&mut event, 7, &[1 << 3, 1]);
    event
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |time| time.as_secs_f64())
}

fn time(time_now: f64) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend(time_now.to_le_bytes());
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

    /// Byte for byte what the package tensorboard writes (scripts/tensorboard_check.py --write-fixture).
    #[test]
    fn as_the_real_package_writes() {
        let real = include_bytes!("../../tests/fixtures/real.tfevents");
        // The beginning of a PNG of 640 x 480.
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        png.extend([0, 0, 2, 128, 0, 0, 1, 224]);
        let mut version = time(1.5);
        bytes(&mut version, 3, b"brain.Event:2");
        let ours = [
            framed(&version),
            framed(&start(2.5, 300)),
            framed(&number(3.25, "lr/layer_00", 300, 1e-3)),
            framed(&number(4.0, "loss", 70_000, -2.5)),
            framed(&picture(5.0, "seen", 300, &png)),
            framed(&distribution(6.0, "weights", 300, &[-1.0, 0.5, 0.5, 3.0])),
            framed(&words(7.0, "config", 300, "    a = 1")),
        ];
        assert!(ours.concat() == real);
    }
}
