//! Hugging Face datasets as Parquet files: images as bytes in one column, labels as numbers in another.

use std::fs::File;
use std::io::{BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use ::parquet::basic::Type;
use ::parquet::column::reader::ColumnReader;
use ::parquet::errors::{ParquetError, Result as ParquetResult};
use ::parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use ::parquet::schema::types::SchemaDescriptor;
use bytes::Bytes;

use crate::error::first_ten;
use crate::files::{io_error, malformed, mistaken, open_file, read_range, MAX_FILE_BYTES};
use crate::listing::{count_beside, Others};
use crate::panics::caught;
use crate::source::{decode_bands_named, decode_named, describe};
use crate::{Bands, DecodeMemory, Error, Image, Permit, Source};

mod labels;
mod pages;

use labels::{class_names, Column, Kind, Names, LABELS};

/// Images in Parquet files.
///
/// The image column is the one of bytes (`image.bytes` in Hugging Face's schema), the label column the one called
/// `label`, `labels`, `fine_label`, `cls` or `class`; without one, or where it holds -1 or nothing, images have no labels. Its
/// values are numbers of classes, names of classes (then sorted) or booleans; anything else is no label, and a warning says so.
/// Names of numbers come from the metadata that the library `datasets` writes. A row is read by itself: its page is found by
/// page headers alone.
#[derive(Debug)]
pub struct ParquetImages {
    files: Vec<PathBuf>,
    readers: Vec<Reader>,
    groups: Vec<Group>,
    classes: Vec<String>,
    labels: Vec<u32>,
    labelled: bool,
    others: Vec<(String, usize)>,
    warnings: Vec<String>,
    max_pixels: u64,
}

/// Stands for a label that is missing until all files are read; no class has so large a number.
const NO_LABEL: u32 = u32::MAX;

/// What the files say of the labels.
#[derive(Default)]
struct Told {
    /// The names of the classes in the metadata, once a file has told.
    classes: Option<Vec<String>>,
    /// The column in the files before.
    column: Option<Column>,
    names: Names,
    /// Why the first labels that are none are not.
    unfit: Option<String>,
}

struct Reader(SerializedFileReader<Shard>);

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("Reader")
    }
}

/// A row group.
#[derive(Debug)]
struct Group {
    file: usize,
    /// Its number in the file.
    number: usize,
    /// The index after its last image, and that of its first.
    end: usize,
    start: usize,
    /// The column of images.
    column: usize,
}

/// A file of which the footer is read; its handle is not kept, thousands of files are too many handles.
struct Shard {
    path: PathBuf,
    len: u64,
}

impl Length for Shard {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for Shard {
    type T = BufReader<File>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        let mut file = open_file(&self.path)?;
        file.seek(SeekFrom::Start(start))?;
        Ok(BufReader::new(file))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let bytes = read_range(&self.path, start, length as u64);
        Ok(bytes.map_err(ParquetError::General)?.into())
    }
}

fn begins_as_parquet(path: &Path) -> bool {
    read_range(path, 0, 4).is_ok_and(|head| head == b"PAR1")
}

impl ParquetImages {
    /// Opens files of one schema, in this order.
    pub fn open(files: Vec<PathBuf>) -> Result<Self, Error> {
        let mut images = Self {
            files: vec![],
            readers: vec![],
            groups: vec![],
            classes: vec![],
            labels: vec![],
            labelled: true,
            others: vec![],
            warnings: vec![],
            max_pixels: crate::MAX_PIXELS,
        };
        let mut told = Told::default();
        for path in files {
            // Damaged files have made this crate panic.
            caught(|| images.add(&path, &mut told))
                .unwrap_or_else(|panic| Err(malformed(&path, panic)))?;
        }
        images.classes = told.classes.take().unwrap_or_default();
        images.check_missing(told.unfit.take());
        images.name_classes(told);
        let most = images.labels.iter().max().map_or(0, |m| *m as usize + 1);
        if images.classes.is_empty() && images.labelled {
            images.classes = (0..most).map(|n| n.to_string()).collect();
        }
        let path = images.files.first().cloned().unwrap_or_default();
        if images.labels.is_empty() {
            return Err(malformed(&path, "no rows in it"));
        }
        if images.labelled && most > images.classes.len() {
            let (label, names) = (most - 1, images.classes.len());
            return Err(malformed(
                &path,
                format!("label {label}, but {names} class names"),
            ));
        }
        Ok(images)
    }

    /// Refuses images of more pixels than this instead of [`MAX_PIXELS`](crate::MAX_PIXELS).
    pub fn with_max_pixels(mut self, max_pixels: u64) -> Self {
        self.max_pixels = max_pixels;
        self
    }

    /// Notes what else lies in `folder`, and what is odd about the choice of files.
    pub(crate) fn with_others(
        mut self,
        folder: &Path,
        warning: Option<String>,
    ) -> Result<Self, Error> {
        let mut others = Others::default();
        count_beside(folder, &self.files, &mut others)?;
        self.warnings.extend(warning);
        self.warnings.extend(others.warnings());
        self.others = others.counts();
        Ok(self)
    }

    fn add(&mut self, path: &Path, told: &mut Told) -> Result<(), Error> {
        let file = open_file(path).map_err(io_error(path))?;
        let len = file.metadata().map_err(io_error(path))?.len();
        let shard = Shard {
            path: path.to_owned(),
            len,
        };
        // The cause as the library names it: a codec, a column.
        let wrong = |e: ParquetError| malformed(path, e.to_string());
        let reader = SerializedFileReader::new(shard).map_err(|e| match mistaken(path) {
            Some(what) => malformed(path, what),
            None if !begins_as_parquet(path) => {
                malformed(path, "no Parquet file: it does not begin with PAR1")
            }
            None => malformed(path, format!("not a whole Parquet file: {e}")),
        })?;
        let schema = reader.metadata().file_metadata().schema_descr();
        let image = image_column(schema).map_err(|e| malformed(path, e))?;
        let label = match labels::find(schema) {
            Ok(Some(column)) => {
                self.read_names(path, &reader, &column, told)?;
                Some(column)
            }
            Ok(None) => {
                self.note_unlabelled(path, &reader);
                None
            }
            Err(unfit) => {
                let (path, name, what) = (path.display(), unfit.name, unfit.what);
                let expected = "whole numbers, text and booleans can be, one a row";
                (told.unfit).get_or_insert(format!(
                    "{path}: column '{name}' holds {what}, which are no labels ({expected})"
                ));
                None
            }
        };
        // A row holds an image: no file has more rows than bytes. What the footer says decides what is allocated.
        let rows = reader.metadata().row_groups().iter().map(|g| g.num_rows());
        let rows = rows.fold(0, i64::saturating_add);
        if u64::try_from(rows).map_or(true, |rows| rows > len) {
            let reason = format!("{rows} rows in {len} bytes; not a whole Parquet file");
            return Err(malformed(path, reason));
        }
        for number in 0..reader.num_row_groups() {
            let group = reader.get_row_group(number).map_err(wrong)?;
            let start = self.labels.len();
            let rows = group.metadata().num_rows();
            let rows = usize::try_from(rows)
                .ok()
                .filter(|rows| *rows as u64 <= len);
            let rows =
                rows.ok_or_else(|| malformed(path, "a row group of an impossible length"))?;
            let read = match &label {
                Some(label) => {
                    let metadata = group.metadata();
                    let levels = (metadata.column(label.number).column_descr()).max_def_level();
                    let permit = DecodeMemory::default().permit();
                    let column =
                        pages::column(path, metadata, label.number, permit).map_err(wrong)?;
                    labels::read(column, rows, levels, &mut told.names).map_err(wrong)?
                }
                None => Ok(vec![None; rows]),
            };
            let labels = read.unwrap_or_else(|why| {
                let name = label.as_ref().map_or("", |label| &label.name);
                (told.unfit).get_or_insert(format!(
                    "{}: column '{name}', row group {number}: {why}; these are no labels",
                    path.display()
                ));
                vec![None; rows]
            });
            for (row, label) in labels.iter().enumerate() {
                let label = match *label {
                    // What the library `datasets` writes where there is no label.
                    None | Some(-1) => Some(NO_LABEL),
                    Some(label) => u32::try_from(label).ok().filter(|l| *l < 1 << 24),
                };
                let label = label.ok_or_else(|| {
                    let label = labels[row].unwrap_or_default();
                    let row = start + row;
                    malformed(path, format!("row {row}: label {label} is no class"))
                })?;
                self.labels.push(label);
            }
            if labels.len() != rows {
                let reason = format!(
                    "row group {number}: {} labels for {rows} rows",
                    labels.len()
                );
                return Err(malformed(path, reason));
            }
            self.groups.push(Group {
                file: self.files.len(),
                number,
                start,
                end: self.labels.len(),
                column: image,
            });
        }
        self.files.push(path.to_owned());
        self.readers.push(Reader(reader));
        Ok(())
    }

    /// Notes which classes the metadata names; they are the same in all files, and so is the kind of labels.
    fn read_names(
        &mut self,
        path: &Path,
        reader: &SerializedFileReader<Shard>,
        column: &Column,
        told: &mut Told,
    ) -> Result<(), Error> {
        if let Some(before) = told.column.as_ref().filter(|c| c.kind != column.kind) {
            let (name, kind, before) = (&column.name, column.kind, before.kind);
            let reason = format!("column '{name}' holds {kind}, in the files before it {before}");
            return Err(malformed(path, reason));
        }
        told.column = Some(column.clone());
        // Text is its own name.
        if column.kind == Kind::Text || column.kind == Kind::Bool {
            return Ok(());
        }
        let pairs = reader.metadata().file_metadata().key_value_metadata();
        match class_names(pairs, &column.name) {
            Err(why) => self.warnings.push(format!(
                "{}: the metadata 'huggingface' {why}; no names of classes are taken from it",
                path.display()
            )),
            Ok(names) => {
                let names = names.unwrap_or_default();
                if told.classes.get_or_insert_with(|| names.clone()) != &names {
                    let reason = "other class names than in the files before it";
                    return Err(malformed(path, reason));
                }
            }
        }
        Ok(())
    }

    /// Classes that the values of the column name.
    fn name_classes(&mut self, told: Told) {
        let Some(column) = told.column.filter(|_| self.labelled) else {
            return;
        };
        match column.kind {
            Kind::Whole | Kind::Float => {}
            Kind::Bool => self.classes = ["false", "true"].map(str::to_owned).into(),
            Kind::Text => {
                let (classes, places) = told.names.sorted();
                for label in &mut self.labels {
                    *label = places[*label as usize];
                }
                self.classes = classes;
            }
        }
        let path = self.files.first().cloned().unwrap_or_default();
        let note = column.note(self.classes.len());
        let note = note.map(|note| format!("{}: {note}", path.display()));
        self.warnings.extend(note);
    }

    /// Says which columns might hold the labels that were not found.
    fn note_unlabelled(&mut self, path: &Path, reader: &SerializedFileReader<Shard>) {
        let schema = reader.metadata().file_metadata().schema_descr();
        let integers = schema.columns().iter().filter(|column| {
            column.max_rep_level() == 0
                && matches!(column.physical_type(), Type::INT32 | Type::INT64)
        });
        let integers: Vec<String> = integers.map(|column| column.path().string()).collect();
        if self.files.is_empty() && !integers.is_empty() {
            self.warnings.push(format!(
                "{}: no column of labels ({}), so the images have none; other columns of integers: {}",
                path.display(),
                LABELS.join(", "),
                first_ten(&integers, ", ").escape_debug()
            ));
        }
    }

    /// Images have labels all together, or none has.
    fn check_missing(&mut self, unfit: Option<String>) {
        let (all, row) = (
            self.labels.len(),
            self.labels.iter().position(|l| *l == NO_LABEL),
        );
        let missing = self.labels.iter().filter(|l| **l == NO_LABEL).count();
        self.labelled = missing == 0;
        if let Some(row) = row {
            if let Some(why) = unfit {
                let warning = format!("{why}; all images are taken as images without labels");
                self.warnings.push(warning);
            } else if missing < all {
                let warning = format!(
                    "{missing} of {all} images have no label, such as {}; all are taken as images without labels",
                    self.name(row)
                );
                self.warnings.push(warning);
            }
            self.classes.clear();
            self.labels.fill(0);
        }
    }

    fn bytes(&self, index: usize, permit: &mut Permit) -> Result<Vec<u8>, String> {
        let group = self.groups.partition_point(|g| g.end <= index);
        let group = self
            .groups
            .get(group)
            .ok_or_else(|| format!("there are only {} images", self.labels.len()))?;
        // The pages' own permit is returned before the image takes its.
        permit.keep(0);
        let read = || {
            let metadata = self.readers[group.file].0.metadata();
            let metadata = metadata.row_group(group.number);
            let path = &self.files[group.file];
            let ColumnReader::ByteArrayColumnReader(mut column) =
                pages::column(path, metadata, group.column, permit.memory().permit())?
            else {
                return Ok(None);
            };
            column.skip_records(index - group.start)?;
            let (mut defined, mut values) = (Vec::new(), Vec::new());
            column.read_records(1, Some(&mut defined), None, &mut values)?;
            Ok(values.pop())
        };
        let read = caught(read).unwrap_or_else(|panic| Err(ParquetError::General(panic)));
        let value = read.map_err(|e: ParquetError| format!("cannot be read: {e}"))?;
        let value = value.ok_or("no image in this row")?;
        if value.len() as u64 > MAX_FILE_BYTES {
            return Err(format!("larger than {MAX_FILE_BYTES} bytes"));
        }
        Ok(value.data().to_vec())
    }
}

/// The column of images.
fn image_column(schema: &SchemaDescriptor) -> Result<usize, String> {
    let (mut bytes, mut all) = (Vec::new(), Vec::new());
    for (i, column) in schema.columns().iter().enumerate() {
        all.push(format!(
            "{} ({})",
            column.path().string(),
            column.physical_type()
        ));
        let text = column.logical_type_ref().is_some()
            || column.converted_type() == ::parquet::basic::ConvertedType::UTF8;
        // Nothing repeated: a row is one value.
        let plain = column.max_rep_level() == 0 && !text && !labels::is_label(column);
        if plain && column.physical_type() == Type::BYTE_ARRAY {
            bytes.push(i);
        }
    }
    match bytes[..] {
        [image] => Ok(image),
        _ => Err(format!(
            "{} columns of bytes; expected one, the images. Columns: {}",
            bytes.len(),
            all.join(", ")
        )),
    }
}

impl Source for ParquetImages {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, index: usize) -> usize {
        self.labels.get(index).map_or(0, |&l| l as usize)
    }

    fn read(&self, index: usize, permit: &mut Permit) -> Result<Image, Error> {
        let bytes = self.bytes(index, permit);
        decode_named(bytes, self.max_pixels, permit, || self.name(index))
    }

    fn bands(&self, index: usize, channels: usize, permit: &mut Permit) -> Result<Bands, Error> {
        let (bytes, most) = (self.bytes(index, permit), self.max_pixels);
        decode_bands_named(bytes, channels, most, permit, || self.name(index))
    }

    fn name(&self, index: usize) -> String {
        let group = self.groups.partition_point(|g| g.end <= index);
        let Some(group) = self.groups.get(group) else {
            return format!("#{index}");
        };
        let file = self.groups.partition_point(|g| g.file < group.file);
        let row = index - self.groups[file].start;
        format!("{}#{row}", self.files[group.file].display())
    }

    fn describe(&self) -> String {
        describe("Parquet", self)
    }

    fn other_files(&self) -> &[(String, usize)] {
        &self.others
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
