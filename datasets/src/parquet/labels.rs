//! The column of labels: which one it is, and its values as numbers of classes.

use std::collections::BTreeMap;

use parquet::basic::{ConvertedType, LogicalType, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::DataType;
use parquet::errors::Result as ParquetResult;
use parquet::file::metadata::KeyValue;
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};

/// Labels that go by this name are taken before others.
pub(super) const LABELS: [&str; 5] = ["label", "labels", "fine_label", "cls", "class"];

/// Longer text is no name of a class but a caption.
const MAX_NAME: usize = 1000;
/// Bytes of all names together.
const MAX_NAMES: usize = 64 << 20;
/// So many numbers are read at a time, and one text: each may keep a page of its own in memory.
const NUMBERS: usize = 1 << 16;

/// What a label is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The number of a class.
    Whole,
    /// The same as a floating-point number, as pandas makes of whole ones where some are missing.
    Float,
    /// False or true.
    Bool,
    /// The name of a class.
    Text,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Whole => "whole numbers",
            Kind::Float => "floating-point numbers",
            Kind::Bool => "booleans",
            Kind::Text => "text",
        })
    }
}

/// The column of labels.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub number: usize,
    pub name: String,
    pub kind: Kind,
}

impl Column {
    /// How the values become classes, where that is not plain; of text there are `names` different ones.
    pub fn note(&self, names: usize) -> Option<String> {
        let how = match self.kind {
            Kind::Whole => return None,
            Kind::Float => "as all are whole, they are the numbers of the classes".to_owned(),
            Kind::Bool => "the classes are false and true".to_owned(),
            Kind::Text => format!("its {names} different values, sorted, are the classes"),
        };
        let (name, kind) = (&self.name, self.kind);
        Some(format!("column '{name}' holds {kind}; {how}"))
    }
}

/// A column that is called as one of labels is, and cannot be read as such.
pub(super) struct Unfit {
    pub name: String,
    /// Its type.
    pub what: String,
}

/// Whether a column's name is one of labels.
pub(super) fn is_label(column: &ColumnDescriptor) -> bool {
    LABELS.contains(&column.path().string().as_str())
}

/// The column of labels, or one that is called so and holds something else.
///
/// A column of any other name, even if it is the only one, may hold anything: ids, widths, years.
pub(super) fn find(schema: &SchemaDescriptor) -> Result<Option<Column>, Unfit> {
    let columns = || schema.columns().iter().enumerate();
    let found = |whole: bool| {
        LABELS.iter().find_map(|name| {
            columns().find_map(|(number, column)| {
                let kind = kind(column).filter(|kind| (*kind == Kind::Whole) == whole)?;
                let name = (column.path().string() == *name).then(|| (*name).to_owned())?;
                Some(Column { number, name, kind })
            })
        })
    };
    // Numbers under a later name are plainer than anything else under an earlier one.
    if let Some(column) = found(true).or_else(|| found(false)) {
        return Ok(Some(column));
    }
    let first = |column: &ColumnDescriptor| column.path().parts().first().cloned();
    let unfit = LABELS.iter().find_map(|name| {
        let (_, column) = columns().find(|(_, c)| first(c).as_deref() == Some(name))?;
        let nested = match (column.max_rep_level() > 0, column.path().parts().len() > 1) {
            (true, _) => "lists of ",
            (_, true) => "structures of ",
            _ => "",
        };
        Some(Unfit {
            name: (*name).to_owned(),
            what: format!("{nested}{}", type_of(column)),
        })
    });
    unfit.map_or(Ok(None), Err)
}

fn kind(column: &ColumnDescriptor) -> Option<Kind> {
    let (logical, converted) = (column.logical_type_ref(), column.converted_type());
    let plain = match logical {
        None => !matches!(
            converted,
            ConvertedType::DECIMAL
                | ConvertedType::DATE
                | ConvertedType::TIME_MILLIS
                | ConvertedType::TIME_MICROS
                | ConvertedType::TIMESTAMP_MILLIS
                | ConvertedType::TIMESTAMP_MICROS
        ),
        Some(logical) => matches!(
            logical,
            // A column in which every value is missing has no known type.
            LogicalType::Unknown
                | LogicalType::Integer { .. }
                | LogicalType::String
                | LogicalType::Enum
        ),
    };
    if column.max_rep_level() > 0 || !plain {
        return None;
    }
    match column.physical_type() {
        Type::INT32 | Type::INT64 => Some(Kind::Whole),
        Type::FLOAT | Type::DOUBLE => Some(Kind::Float),
        Type::BOOLEAN => Some(Kind::Bool),
        Type::BYTE_ARRAY => Some(Kind::Text),
        _ => None,
    }
}

fn type_of(column: &ColumnDescriptor) -> String {
    let logical = match column.converted_type() {
        ConvertedType::NONE => String::new(),
        converted => format!(" ({converted})"),
    };
    format!("{}{logical}", column.physical_type())
}

/// The names of classes in a column of text, numbered as they come.
#[derive(Debug, Default)]
pub(super) struct Names {
    numbers: BTreeMap<String, u32>,
    bytes: usize,
}

impl Names {
    fn number(&mut self, text: &[u8]) -> Result<Option<i64>, String> {
        let name = std::str::from_utf8(text).map_err(|_| "text that is not UTF-8")?;
        if name.is_empty() {
            return Ok(None);
        }
        if let Some(number) = self.numbers.get(name) {
            return Ok(Some(i64::from(*number)));
        }
        self.bytes += name.len();
        if name.len() > MAX_NAME || self.bytes > MAX_NAMES {
            return Err("too long a text for the name of a class".into());
        }
        let number = self.numbers.len() as u32;
        self.numbers.insert(name.to_owned(), number);
        Ok(Some(i64::from(number)))
    }

    /// The names in order, and by number the place of each among them.
    pub fn sorted(self) -> (Vec<String>, Vec<u32>) {
        let mut places = vec![0; self.numbers.len()];
        for (place, number) in self.numbers.values().enumerate() {
            places[*number as usize] = place as u32;
        }
        (self.numbers.into_keys().collect(), places)
    }
}

/// The labels of a row group, nothing where there is none; one is there where its level is `max_level`. The inner error
/// says which value is none and why.
pub(super) fn read(
    column: ColumnReader,
    rows: usize,
    max_level: i16,
    names: &mut Names,
) -> ParquetResult<Result<Vec<Option<i64>>, String>> {
    match column {
        ColumnReader::Int64ColumnReader(column) => {
            each(column, rows, NUMBERS, max_level, |value| Ok(Some(*value)))
        }
        ColumnReader::Int32ColumnReader(column) => {
            each(column, rows, NUMBERS, max_level, |value| {
                Ok(Some(i64::from(*value)))
            })
        }
        ColumnReader::BoolColumnReader(column) => each(column, rows, NUMBERS, max_level, |value| {
            Ok(Some(i64::from(*value)))
        }),
        ColumnReader::FloatColumnReader(column) => {
            each(column, rows, NUMBERS, max_level, |value| {
                whole(f64::from(*value))
            })
        }
        ColumnReader::DoubleColumnReader(column) => {
            each(column, rows, NUMBERS, max_level, |value| whole(*value))
        }
        ColumnReader::ByteArrayColumnReader(column) => each(column, rows, 1, max_level, |value| {
            names.number(value.data())
        }),
        _ => Ok(Ok(vec![])),
    }
}

/// pandas writes NaN where a number is missing.
fn whole(value: f64) -> Result<Option<i64>, String> {
    match value {
        _ if value.is_nan() => Ok(None),
        // Beyond this a float does not tell one number from the next.
        _ if value.fract() == 0.0 && value.abs() < 1e15 => Ok(Some(value as i64)),
        _ => Err(format!("{value}, which is no whole number")),
    }
}

fn each<T: DataType>(
    mut column: ColumnReaderImpl<T>,
    rows: usize,
    at_once: usize,
    max_level: i16,
    mut number: impl FnMut(&T::T) -> Result<Option<i64>, String>,
) -> ParquetResult<Result<Vec<Option<i64>>, String>> {
    let mut labels = Vec::new();
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    while labels.len() < rows {
        levels.clear();
        values.clear();
        let most = at_once.min(rows - labels.len());
        let (read, _, _) = column.read_records(most, Some(&mut levels), None, &mut values)?;
        if read == 0 {
            break;
        }
        // A column in which nothing can be missing has no levels.
        if values.len() == read {
            levels = vec![max_level; read];
        }
        let mut values = values.iter();
        for level in &levels {
            let value = (*level == max_level).then(|| values.next()).flatten();
            match value.map_or(Ok(None), &mut number) {
                Ok(label) => labels.push(label),
                Err(why) => return Ok(Err(format!("row {} holds {why}", labels.len()))),
            }
        }
    }
    Ok(Ok(labels))
}

/// The names of the classes in the metadata of the library `datasets`, if it has any; an error says what is wrong with it.
pub(super) fn class_names(
    pairs: Option<&Vec<KeyValue>>,
    label: &str,
) -> Result<Option<Vec<String>>, String> {
    let pair = pairs.and_then(|pairs| pairs.iter().find(|p| p.key == "huggingface"));
    let Some(text) = pair.and_then(|pair| pair.value.as_ref()) else {
        return Ok(None);
    };
    let json: serde_json::Value =
        serde_json::from_str(text).map_err(|e| format!("is no JSON: {e}"))?;
    let features = json.get("info").and_then(|info| info.get("features"));
    let Some(features) = features.filter(|f| !f.is_null()) else {
        return Ok(None);
    };
    if !features.is_object() {
        return Err("has features that are no table".into());
    }
    let names = features.get(label).and_then(|feature| feature.get("names"));
    let Some(names) = names.filter(|names| !names.is_null()) else {
        return Ok(None);
    };
    let texts = names.as_array().and_then(|names| {
        let texts = names.iter().map(|name| name.as_str().map(str::to_owned));
        texts.collect()
    });
    match texts {
        Some(texts) => Ok(Some(texts)),
        None => Err(format!("has names of '{label}' that are no list of texts")),
    }
}
