//! What the `image` crate does not read of TIFF files: palettes are looked up here, floating-point pixels refused.

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
            "floating-point pixels, whose range the file does not say; convert them to 8 bits"
                .into(),
        );
    }
    let Some(kind) = directory.entry(KIND) else {
        return Ok(None);
    };
    if directory.number(kind + 8) != Some(PALETTE) {
        return Ok(None);
    }
    let bits = directory.first(BITS).unwrap_or(1);
    if bits != 8 {
        return Err(format!(
            "a palette for {bits} bits a pixel; only those for 8 are read"
        ));
    }
    let table = directory.entry(COLOURS).and_then(|at| directory.values(at));
    let (at, count) = table.ok_or("a palette without colours")?;
    let mut colours = [[0; 3]; 256];
    let many = count / 3;
    for (i, colour) in colours.iter_mut().enumerate().take(many) {
        for (c, value) in colour.iter_mut().enumerate() {
            let value16 = directory.number(at + 2 * (c * many + i));
            *value = (value16.ok_or("a palette that is cut off")? >> 8) as u8;
        }
    }
    let mut file = bytes.to_vec();
    let grey = match directory.big_endian {
        true => GREY.to_be_bytes(),
        false => GREY.to_le_bytes(),
    };
    file[kind + 8..kind + 10].copy_from_slice(&grey);
    Ok(Some(Palette { file, colours }))
}

/// The directory of the first image.
struct Directory<'a> {
    bytes: &'a [u8],
    big_endian: bool,
    /// Where its entries begin, of twelve bytes each, and how many they are.
    start: usize,
    count: usize,
}

impl<'a> Directory<'a> {
    /// None in files of other kinds, such as those for more than 4 GB, and damaged ones.
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let mut directory = Self {
            bytes,
            big_endian: bytes.starts_with(b"MM"),
            start: 0,
            count: 0,
        };
        if directory.number(2)? != 42 {
            return None;
        }
        let at = directory.long(4)?;
        directory.count = directory.number(at)?.into();
        directory.start = at + 2;
        Some(directory)
    }

    fn number(&self, at: usize) -> Option<u16> {
        let bytes = self.bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(match self.big_endian {
            true => u16::from_be_bytes(bytes),
            false => u16::from_le_bytes(bytes),
        })
    }

    fn long(&self, at: usize) -> Option<usize> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        let value = match self.big_endian {
            true => u32::from_be_bytes(bytes),
            false => u32::from_le_bytes(bytes),
        };
        usize::try_from(value).ok()
    }

    /// Where the entry of a tag with 16-bit values begins: after its tag (2 bytes) and type (2) come their number (4) and
    /// the values, or where they are (4).
    fn entry(&self, tag: u16) -> Option<usize> {
        const SHORT: u16 = 3;
        let places = (0..self.count).map(|i| self.start + 12 * i);
        let mut tagged = places.filter(|&at| self.number(at) == Some(tag));
        tagged.find(|&at| self.number(at + 2) == Some(SHORT) && self.long(at + 8).is_some())
    }

    /// Where the values of an entry begin, and how many they are.
    fn values(&self, entry: usize) -> Option<(usize, usize)> {
        let count = self.long(entry + 4)?;
        match count {
            0..=2 => Some((entry + 8, count)),
            _ => Some((self.long(entry + 8)?, count)),
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
}
