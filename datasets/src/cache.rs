//! Decoded images in one file.
//!
//! | bytes | what |
//! |---|---|
//! | 16 | `vitfreeze-cache1` |
//! | 4 x 8 | number of images, number of classes, where the table begins, where the texts begin |
//! | ... | the images' pixels, RGB, row after row, one image after the other |
//! | 24 for each image | where its pixels begin (8), width (4), height (4), label (4), length of its name (4) |
//! | ... | the description (three lines: dataset, where it was, which split), then the classes, each after its length (4); then the names of the images |
//!
//! Numbers are little-endian. An image that could not be read has width and height 0. Images are read with one call each
//! from wherever they lie. A memory map would be no faster, since the pages come from the same cache, but would end the
//! program if the file became shorter.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::decode::check_size;
use crate::files::{io_error, malformed, open_file};
use crate::source::describe;
use crate::split::{choose, unnamed};
use crate::{Bands, Error, Image, Permit, Source};

const MAGIC: &[u8; 16] = b"vitfreeze-cache1";
const HEAD: u64 = 48;
const ROW: u64 = 24;

/// Writes what `images` yields, the images of `source` in order, to `out`; returns how many could not be read.
///
/// The file is complete only when this returns: write to a temporary name, then rename.
///
/// `origin` and `split` say what `source` was opened from; they are part of what the cache says of itself, and a cache is
/// then that split alone.
pub fn write_cache<W: Write + Seek>(
    out: W,
    source: &dyn Source,
    (origin, split): (&str, &str),
    images: impl Iterator<Item = Result<Image, Error>>,
) -> io::Result<usize> {
    let mut out = BufWriter::new(out);
    out.seek(SeekFrom::Start(HEAD))?;
    let (mut at, mut bad, mut count) = (HEAD, 0, 0);
    let (mut table, mut names) = (Vec::new(), Vec::new());
    for (index, image) in images.enumerate() {
        let (width, height, rgb) = match &image {
            Ok(image) => (image.width, image.height, image.rgb.as_slice()),
            Err(_) => (0, 0, &[][..]),
        };
        bad += usize::from(image.is_err());
        count += 1;
        out.write_all(rgb)?;
        let name = source.name(index);
        table.extend(at.to_le_bytes());
        for number in [width, height, source.label(index), name.len()] {
            table.extend(number32(number)?.to_le_bytes());
        }
        names.extend(name.as_bytes());
        at += rgb.len() as u64;
    }
    if count != source.len() {
        let what = format!("{count} of {} images", source.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    out.write_all(&table)?;
    let description = [&source.describe(), origin, split].map(one_line).join("\n");
    for text in std::iter::once(&description).chain(source.classes()) {
        out.write_all(&number32(text.len())?.to_le_bytes())?;
        out.write_all(text.as_bytes())?;
    }
    out.write_all(&names)?;
    out.seek(SeekFrom::Start(0))?;
    out.write_all(MAGIC)?;
    let numbers = [
        count as u64,
        source.classes().len() as u64,
        at,
        at + table.len() as u64,
    ];
    for number in numbers {
        out.write_all(&number.to_le_bytes())?;
    }
    out.flush()?;
    Ok(bad)
}

/// Without line ends and other control characters.
fn one_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

fn number32(n: usize) -> io::Result<u32> {
    u32::try_from(n).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

/// A cache made by [`write_cache`]: the images, labels, classes and names of the dataset it was made of.
#[derive(Debug)]
pub struct CacheFile {
    file: File,
    /// What it was made of: the dataset's description, its place and its split. Older caches have only the first.
    kind: String,
    origin: String,
    max_pixels: u64,
    classes: Vec<String>,
    rows: Vec<Row>,
    names: String,
}

#[derive(Debug)]
struct Row {
    offset: u64,
    width: u32,
    height: u32,
    label: u32,
    /// Where in `names` its own ends.
    name_end: usize,
}

/// Whether the file at `path` begins as a cache does.
pub(crate) fn is_cache(path: &Path) -> bool {
    let mut magic = [0; 16];
    open_file(path).is_ok_and(|mut f| f.read_exact(&mut magic).is_ok()) && &magic == MAGIC
}

impl CacheFile {
    /// Opens a cache. Everything but the pixels is read and checked.
    ///
    /// # Errors
    /// A damaged file, or a cache of another split.
    pub fn open(path: &Path, split: &str) -> Result<Self, Error> {
        let file = open_file(path).map_err(io_error(path))?;
        let len = file.metadata().map_err(io_error(path))?.len();
        let (mut cache, of) = Self::read(file, len)
            .map_err(|e| malformed(path, format!("not a whole cache ({e}); make it again")))?;
        let mut lines = of.lines().map(one_line);
        let mut next = || lines.next().unwrap_or_default();
        let (description, origin, own) = (next(), next(), next());
        match own.as_str() {
            "" => unnamed(path, split)?,
            own => drop(choose(path, split, &[own])?),
        }
        cache.kind = description.split(',').next().unwrap_or_default().to_owned();
        if !own.is_empty() {
            cache.origin = format!(", from {origin} ({own})");
        }
        Ok(cache)
    }

    /// Refuses images of more pixels than this instead of [`MAX_PIXELS`](crate::MAX_PIXELS).
    pub fn with_max_pixels(mut self, max_pixels: u64) -> Self {
        self.max_pixels = max_pixels;
        self
    }

    fn read(file: File, len: u64) -> io::Result<(Self, String)> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut reader = BufReader::new(&file);
        let mut magic = [0; 16];
        reader.read_exact(&mut magic)?;
        let mut head = [0u64; 4];
        for number in &mut head {
            *number = u64::from_le_bytes(bytes(&mut reader)?);
        }
        let [images, classes, table, texts] = head;
        let fits = images.checked_mul(ROW).and_then(|n| n.checked_add(table)) == Some(texts)
            && texts <= len
            && table >= HEAD
            && classes <= len - texts;
        if &magic != MAGIC || !fits {
            return Err(wrong("its head does not fit its length"));
        }
        reader.seek(SeekFrom::Start(table))?;
        let (mut rows, mut name_end) = (Vec::with_capacity(images as usize), 0);
        for _ in 0..images {
            let offset = u64::from_le_bytes(bytes(&mut reader)?);
            let mut numbers = [0u32; 4];
            for number in &mut numbers {
                *number = u32::from_le_bytes(bytes(&mut reader)?);
            }
            let [width, height, label, name] = numbers;
            let pixels = u64::from(width) * u64::from(height);
            let end = pixels.checked_mul(3).and_then(|n| n.checked_add(offset));
            let inside = offset >= HEAD && end.is_some_and(|end| end <= table);
            if !inside || u64::from(label) >= classes.max(1) {
                return Err(wrong("an image lies outside it"));
            }
            name_end += name as usize;
            rows.push(Row {
                offset,
                width,
                height,
                label,
                name_end,
            });
        }
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest)?;
        let mut rest = String::from_utf8(rest).map_err(|_| wrong("a name is not UTF-8"))?;
        let mut names = Vec::new();
        let mut at = 0;
        for _ in 0..=classes {
            let text = rest
                .as_bytes()
                .get(at..at + 4)
                .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)
                .and_then(|len| rest.get(at + 4..at + 4 + len));
            let text = text.ok_or_else(|| wrong("a class has no name"))?;
            names.push(text.to_owned());
            at += 4 + text.len();
        }
        if rest.len() - at != name_end {
            return Err(wrong("names are missing"));
        }
        rest.drain(..at);
        let of = names.remove(0);
        let cache = Self {
            file,
            kind: String::new(),
            origin: String::new(),
            max_pixels: crate::MAX_PIXELS,
            classes: names,
            rows,
            names: rest,
        };
        Ok((cache, of))
    }

    fn pixels(&self, row: &Row, permit: &mut Permit) -> Result<Image, String> {
        let (width, height) = (row.width as usize, row.height as usize);
        if width == 0 || height == 0 {
            return Err("could not be read when the cache was made".into());
        }
        // The bytes are there, but a file may have holes, which take no room on disk.
        check_size(row.width.into(), row.height.into(), self.max_pixels)
            .map_err(|e| e.to_string())?;
        permit.take(3 * u64::from(row.width) * u64::from(row.height));
        let mut rgb = vec![0; 3 * width * height];
        read_at(&self.file, &mut rgb, row.offset)
            .map_err(|e| format!("cannot be read from the cache: {e}"))?;
        Ok(Image { width, height, rgb })
    }
}

fn bytes<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        let read = std::os::windows::fs::FileExt::seek_read(file, buffer, offset)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer = &mut buffer[read..];
        offset += read as u64;
    }
    Ok(())
}

impl Source for CacheFile {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, index: usize) -> usize {
        self.rows.get(index).map_or(0, |row| row.label as usize)
    }

    fn read(&self, index: usize, permit: &mut Permit) -> Result<Image, Error> {
        let image = match self.rows.get(index) {
            Some(row) => self.pixels(row, permit),
            None => Err(format!("there are only {} images", self.rows.len())),
        };
        image.map_err(|reason| Error::Image {
            name: self.name(index),
            reason,
        })
    }

    /// What the files had before they were made RGB of 8 bits, nobody can say.
    fn bands(&self, index: usize, _: usize, _: &mut Permit) -> Result<Bands, Error> {
        Err(Error::Image {
            name: self.name(index),
            reason: "a cache holds RGB of 8 bits, not what images of other channels had; read the images themselves".into(),
        })
    }

    fn name(&self, index: usize) -> String {
        let end = |i: usize| self.rows.get(i).map_or(0, |row| row.name_end);
        let start = index.checked_sub(1).map_or(0, end);
        let name = self.names.get(start..end(index));
        name.unwrap_or_default().to_owned()
    }

    fn describe(&self) -> String {
        let cache = describe(&format!("cache of {}", self.kind), self);
        format!("{cache}{}", self.origin)
    }
}
