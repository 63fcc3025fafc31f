//! Pages of a column, within bounds: 49 kB of a Parquet file can hold gigabytes.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::column::reader::{get_column_reader, ColumnReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;

use crate::files::open_file;
use crate::Permit;

/// A dictionary stays in memory beside the page that needs it. Writers end one at about a megabyte.
const MAX_DICTIONARY: u64 = 64 << 20;

/// So much of a page's header is kept: its first three fields say what is bounded here.
const HEAD: usize = 16;

/// A reader of this column that never takes more memory than allowed.
pub(super) fn column(
    path: &Path,
    group: &RowGroupMetaData,
    column: usize,
    permit: Permit,
) -> Result<ColumnReader> {
    let file = open_file(path)?;
    let column = group.column(column);
    let pages = Pages {
        len: file.metadata()?.len(),
        file,
        seen: Arc::default(),
        most: permit.memory().bytes(),
        permit: Mutex::new(permit),
    };
    let rows = usize::try_from(group.num_rows())?;
    let reader = SerializedPageReader::new(Arc::new(pages), column, rows, None)?;
    Ok(get_column_reader(
        column.column_descr_ptr(),
        Box::new(reader),
    ))
}

/// A file as one reader of pages uses it: a header is read, then its page is asked for and decompressed.
struct Pages {
    file: File,
    len: u64,
    /// The header read last; before it that of a dictionary, which may be asked for later.
    seen: Arc<Mutex<Vec<Seen>>>,
    /// For the page that is in memory.
    permit: Mutex<Permit>,
    /// Larger pages are refused.
    most: u64,
}

/// A header.
struct Seen {
    /// Where it ends and its page begins.
    end: u64,
    /// Its first bytes.
    head: Vec<u8>,
}

impl Length for Pages {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for Pages {
    type T = Header;

    fn get_read(&self, start: u64) -> Result<Header> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(start))?;
        Ok(Header {
            inner: BufReader::with_capacity(512, file),
            start: Some(start),
            seen: Arc::clone(&self.seen),
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let header = seen.iter().rev().find(|s| s.end == start);
        let head = header.and_then(|s| Head::parse(&s.head));
        let head = head.ok_or_else(|| general("a page whose header is not understood"))?;
        drop(seen);
        let (bytes, most) = (
            head.bytes.saturating_add(length as u64),
            match head.dictionary {
                true => MAX_DICTIONARY,
                false => self.most,
            },
        );
        if bytes > most {
            return Err(general(format!(
                "a page of {} bytes takes {bytes} to decode, more than {most}; write the file with smaller pages",
                length
            )));
        }
        if !head.dictionary {
            // The page before is done with: what it took is returned first.
            let permit = self.permit.lock();
            permit.unwrap_or_else(PoisonError::into_inner).take(bytes);
        }
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(start))?;
        let mut buffer = Vec::new();
        file.take(length as u64).read_to_end(&mut buffer)?;
        if buffer.len() != length {
            return Err(ParquetError::EOF("the file has become shorter".into()));
        }
        Ok(buffer.into())
    }
}

fn general(text: impl Into<String>) -> ParquetError {
    ParquetError::General(text.into())
}

/// Reads a header and remembers how it begins.
struct Header {
    inner: BufReader<File>,
    /// Where it begins, until its first byte is read.
    start: Option<u64>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Read for Header {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(end) = self.start.take() {
            // Of pages that are skipped only a dictionary is asked for later.
            seen.retain(|s| Head::parse(&s.head).is_some_and(|h| h.dictionary));
            seen.truncate(1);
            let head = Vec::with_capacity(HEAD);
            seen.push(Seen { end, head });
        }
        if let Some(header) = seen.last_mut() {
            header.end += read as u64;
            let room = HEAD - header.head.len();
            header.head.extend(&buffer[..read.min(room)]);
        }
        Ok(read)
    }
}

/// What the start of a page's header says.
struct Head {
    dictionary: bool,
    /// Bytes of the page when it is decompressed.
    bytes: u64,
}

impl Head {
    /// In Thrift's compact form the fields 1 (kind of page) and 2 (bytes), both i32, come first.
    fn parse(head: &[u8]) -> Option<Self> {
        let mut rest = head;
        let mut number = || {
            let (&0x15, after) = rest.split_first()? else {
                return None;
            };
            let (value, after) = varint(after)?;
            rest = after;
            // Zigzag: the lowest bit is the sign.
            (value & 1 == 0).then_some(value >> 1)
        };
        let (kind, bytes) = (number()?, number()?);
        Some(Self {
            dictionary: kind == 2,
            bytes,
        })
    }
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let end = bytes.iter().take(5).position(|b| b & 0x80 == 0)?;
    let (number, rest) = bytes.split_at(end + 1);
    let value = number
        .iter()
        .rev()
        .fold(0, |value, b| value << 7 | u64::from(b & 0x7f));
    Some((value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_say_what_a_page_takes() {
        let head = Head::parse(&[0x15, 0x04, 0x15, 0x80, 0x80, 0x80, 0x02, 0x15]).unwrap();
        assert!(head.dictionary);
        assert_eq!(head.bytes, 2 << 20);
        // Another order of fields, a negative number, an end too early.
        assert!(Head::parse(&[0x25, 0x04, 0x05, 0x00]).is_none());
        assert!(Head::parse(&[0x15, 0x00, 0x15, 0x01]).is_none());
        assert!(Head::parse(&[0x15, 0x00, 0x15, 0x80]).is_none());
    }
}
