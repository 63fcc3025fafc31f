//! What the `image` crate does not read of TIFF files: palettes are looked up here, floating-point pixels refused.

use std::io::{Read, Seek};

use ::tiff::decoder::{ChunkType, Decoder};
use ::tiff::tags::Tag;

/// Bytes of a tile, for which the decoder makes room however small the image is; 0 of an image in strips.
pub(crate) fn tile_bytes<R: Read + Seek>(decoder: &mut Decoder<R>) -> u64 {
    if decoder.get_chunk_type() != ChunkType::Tile {
        return 0;
    }
    let (width, height) = decoder.chunk_dimensions();
    let samples = decoder.find_tag_unsigned::<u16>(Tag::SamplesPerPixel);
    let bits = decoder.find_tag_unsigned_vec::<u16>(Tag::BitsPerSample);
    let bits = bits.ok().flatten().and_then(|bits| bits.into_iter().max());
    let numbers = [
        height.into(),
        samples.ok().flatten().unwrap_or(1).into(),
        u64::from(bits.unwrap_or(1)).div_ceil(8),
    ];
    (numbers.into_iter()).fold(width.into(), u64::saturating_mul)
}

/// Tags of a TIFF's directory.
const BITS: u16 = 258;
const KIND: u16 = 262;
const COLOURS: u16 = 320;
const FORMAT: u16 = 339;

/// Values of these.
const GREY: u16 = 1;
const PALETTE: u16 = 3;
const FLOAT: u16 = 3;

/// An image of a palette as one of grey pixels, which are places in the palette.
pub(crate) struct Palette {
    pub file: Vec<u8>,
    pub colours: [[u8; 3]; 256],
}

/// The palette of the first image in a TIFF that has one.
///
/// # Errors
/// Why there are pixels that are not read, where it is for us to say.
pub(crate) fn palette(bytes: &[u8]) -> Result<Option<Palette>, String> {
    let Some(directory) = Directory::of(bytes) else {
        return Ok(None);
    };
    // Pillow takes them for 0 to 255, most programs for 0 to 1.
    if directory.first(FORMAT) == Some(FLOAT) {
        return Err(
            "floating-point pixels, whose range the file does not say; convert them to 8 bits, or say how many channels there are \
             (--channels N), which reads them as numbers"
                .into(),
        );
    }
    let Some(kind) = directory.entry(KIND) else {
        return Ok(None);
    };
    let at = kind + directory.widths().value;
    if directory.number(at) != Some(PALETTE) {
        return Ok(None);
    }
    let bits = directory.first(BITS).unwrap_or(1);
    if bits != 8 {
        return Err(format!(
            "a palette for {bits} bits a pixel; only those for 8 are read"
        ));
    }
    let table = directory.entry(COLOURS).and_then(|at| directory.values(at));
    let (table, count) = table.ok_or("a palette without colours")?;
    let mut colours = [[0; 3]; 256];
    let many = count / 3;
    for (i, colour) in colours.iter_mut().enumerate().take(many) {
        for (c, value) in colour.iter_mut().enumerate() {
            let value16 = directory.number(table + 2 * (c * many + i));
            *value = (value16.ok_or("a palette that is cut off")? >> 8) as u8;
        }
    }
    let mut file = bytes.to_vec();
    let grey = match directory.big_endian {
        true => GREY.to_be_bytes(),
        false => GREY.to_le_bytes(),
    };
    file[at..at + 2].copy_from_slice(&grey);
    Ok(Some(Palette { file, colours }))
}

/// The directory of the first image.
struct Directory<'a> {
    bytes: &'a [u8],
    big_endian: bool,
    /// Whether this is a BigTIFF, for files of more than 4 GB, in which places and numbers have eight bytes.
    big: bool,
    /// Where its entries begin, and how many they are.
    start: usize,
    count: usize,
}

/// Of an entry in bytes: after its tag (2) and type (2) come the number of its values and the values, or where they are.
struct Widths {
    entry: usize,
    value: usize,
    /// As many 16-bit values fit into the entry.
    shorts: usize,
}

impl<'a> Directory<'a> {
    /// None in damaged files.
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let mut directory = Self {
            bytes,
            big_endian: bytes.starts_with(b"MM"),
            big: false,
            start: 0,
            count: 0,
        };
        directory.big = match directory.number(2)? {
            42 => false,
            43 => true,
            _ => return None,
        };
        let at = directory.long(if directory.big { 8 } else { 4 })?;
        let (count, width) = match directory.big {
            true => (directory.long(at)?, 8),
            false => (directory.number(at)?.into(), 2),
        };
        directory.start = at + width;
        // A file may say any number.
        directory.count = count.min(bytes.len() / directory.widths().entry);
        Some(directory)
    }

    fn widths(&self) -> Widths {
        let (entry, value, shorts) = if self.big { (20, 12, 4) } else { (12, 8, 2) };
        Widths {
            entry,
            value,
            shorts,
        }
    }

    fn number(&self, at: usize) -> Option<u16> {
        let bytes = self.bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(match self.big_endian {
            true => u16::from_be_bytes(bytes),
            false => u16::from_le_bytes(bytes),
        })
    }

    /// A place or a number of values.
    fn long(&self, at: usize) -> Option<usize> {
        let bytes = self.bytes.get(at..)?;
        let value = match (self.big, self.big_endian) {
            (false, true) => u32::from_be_bytes(*bytes.first_chunk()?).into(),
            (false, false) => u32::from_le_bytes(*bytes.first_chunk()?).into(),
            (true, true) => u64::from_be_bytes(*bytes.first_chunk()?),
            (true, false) => u64::from_le_bytes(*bytes.first_chunk()?),
        };
        // No file is half of what can be addressed, and what is smaller can be added to.
        usize::try_from(value).ok().filter(|&v| v < usize::MAX / 2)
    }

    /// Where the entry of a tag with 16-bit values begins.
    fn entry(&self, tag: u16) -> Option<usize> {
        const SHORT: u16 = 3;
        let Widths { entry, value, .. } = self.widths();
        let places = (0..self.count).map(|i| self.start + entry * i);
        let mut tagged = places.filter(|&at| self.number(at) == Some(tag));
        tagged.find(|&at| self.number(at + 2) == Some(SHORT) && self.long(at + value).is_some())
    }

    /// Where the values of an entry begin, and how many they are.
    fn values(&self, entry: usize) -> Option<(usize, usize)> {
        let Widths { value, shorts, .. } = self.widths();
        let count = self.long(entry + 4)?;
        match count <= shorts {
            true => Some((entry + value, count)),
            false => Some((self.long(entry + value)?, count)),
        }
    }

    /// The first value of a tag.
    fn first(&self, tag: u16) -> Option<u16> {
        let (at, _) = self.values(self.entry(tag)?)?;
        self.number(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_pair_says_the_order_of_bytes() {
        // A palette of two colours in the order of Motorola; the table of colours follows the directory.
        let mut bytes = b"MM\0\x2a\0\0\0\x08\0\x03".to_vec();
        for (tag, count, value) in [(BITS, 1, [0, 8]), (KIND, 1, [0, 3]), (COLOURS, 6, [0, 0])] {
            bytes.extend(tag.to_be_bytes());
            bytes.extend([0, 3, 0, 0, 0, count]);
            bytes.extend(value);
            bytes.extend([0, if count == 6 { 46 } else { 0 }]);
        }
        let mut table = vec![1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0];
        bytes.append(&mut table);
        let found = palette(&bytes).unwrap().unwrap();
        assert_eq!(found.colours[..3], [[1, 3, 5], [2, 4, 6], [0, 0, 0]]);
        let changed = bytes.iter().zip(&found.file).filter(|(a, b)| a != b);
        assert_eq!(changed.collect::<Vec<_>>(), [(&3, &1)]);
        assert!(palette(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn a_big_tiff_has_wider_entries() {
        let mut bytes = b"II\x2b\0\x08\0\0\0".to_vec();
        bytes.extend(16u64.to_le_bytes());
        bytes.extend(3u64.to_le_bytes());
        for (tag, count, value) in [(BITS, 1u64, 8u64), (KIND, 1, 3), (COLOURS, 6, 84)] {
            bytes.extend(tag.to_le_bytes());
            bytes.extend([3, 0]);
            bytes.extend(count.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend([0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6]);
        let found = palette(&bytes).unwrap().unwrap();
        assert_eq!(found.colours[..3], [[1, 3, 5], [2, 4, 6], [0, 0, 0]]);
        let changed = bytes.iter().zip(&found.file).filter(|(a, b)| a != b);
        assert_eq!(changed.collect::<Vec<_>>(), [(&3, &1)]);
        // As many entries as a file can say: the palette is still found, and looking for another tag ends.
        bytes[16..24].fill(0xff);
        assert!(palette(&bytes).is_ok());
        bytes[28..36].fill(0xff);
        bytes[16..24].fill(0x7f);
        assert!(palette(&bytes).is_ok_and(|p| p.is_some()) || palette(&bytes).is_err());
        // A place beyond all files.
        bytes[8..16].fill(0xff);
        assert!(palette(&bytes).unwrap().is_none());
    }
}
