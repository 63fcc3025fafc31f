//! Parquet files, written here and by pyarrow.
#![cfg(feature = "parquet")]

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::{all, error, image, last, opened, put};
use datasets::{open, Error, Image};
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int32Type, Int64Type,
};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use tempfile::tempdir;

/// Rows of (image, label) in groups of three; missing where `None`.
fn write(schema: &str, rows: &[(Option<Vec<u8>>, Option<i64>)]) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder()
        .set_data_page_row_count_limit(2)
        .set_write_batch_size(1)
        .build();
    let mut bytes = Vec::new();
    let mut file =
        SerializedFileWriter::new(&mut bytes, schema.clone(), Arc::new(properties)).unwrap();
    // Levels of what is there: 2 below an optional group, else 1.
    let there = if schema.get_fields()[0].is_group() {
        2
    } else {
        1
    };
    for rows in rows.chunks(3) {
        let mut group = file.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let levels: Vec<i16> = rows
            .iter()
            .map(|r| if r.0.is_some() { there } else { 0 })
            .collect();
        let values: Vec<ByteArray> = rows
            .iter()
            .filter_map(|r| Some(r.0.clone()?.into()))
            .collect();
        column
            .typed::<ByteArrayType>()
            .write_batch(&values, Some(&levels), None)
            .unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let levels: Vec<i16> = rows.iter().map(|r| i16::from(r.1.is_some())).collect();
        let values: Vec<i64> = rows.iter().filter_map(|r| r.1).collect();
        column
            .typed::<Int64Type>()
            .write_batch(&values, Some(&levels), None)
            .unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    file.close().unwrap();
    bytes
}

const NESTED: &str =
    "message m { optional group img { optional binary bytes; } optional int64 label; }";

fn rows(n: u8) -> Vec<(Option<Vec<u8>>, Option<i64>)> {
    (0..n)
        .map(|i| (Some(image(i)), Some(i64::from(i) % 4)))
        .collect()
}

#[test]
fn shards_in_order() {
    let dir = tempdir().unwrap();
    put(
        &dir,
        "data/train-00001-of-00002.parquet",
        &write(NESTED, &rows(2)),
    );
    put(
        &dir,
        "data/train-00000-of-00002.parquet",
        &write(NESTED, &rows(8)),
    );
    put(
        &dir,
        "data/validation-00000-of-00001.parquet",
        &write(NESTED, &rows(1)),
    );
    let train = opened(dir.path(), "train");
    assert_eq!(train.describe(), "Parquet, 10 images, 4 classes");
    let expected: Vec<(usize, u8)> = (0..8).chain(0..2).map(|i| (i % 4, i as u8)).collect();
    assert_eq!(all(&*train), expected);
    assert_eq!(last(&*train, 9), "train-00001-of-00002.parquet#1");
    assert_eq!(opened(dir.path(), "val").len(), 1);
    let flat = "message m { required binary image; required int64 label; }";
    let path = put(&dir, "flat.parquet", &write(flat, &rows(4)));
    assert_eq!(opened(&path, "train").len(), 4);
}

/// Copies that an editor or a system made are not read a second time.
#[test]
fn hidden_copies_are_not_read() {
    for copy in [
        ".ipynb_checkpoints/train-0.parquet",
        "__MACOSX/data/._train-0.parquet",
        "data/.train-1.parquet",
    ] {
        let dir = tempdir().unwrap();
        for file in ["data/train-0.parquet", copy] {
            put(&dir, file, &write(NESTED, &rows(4)));
        }
        assert_eq!(opened(dir.path(), "train").len(), 4, "{copy}");
        // Who names it means it.
        assert_eq!(opened(&dir.path().join(copy), "train").len(), 4, "{copy}");
    }
}

#[test]
fn what_pyarrow_writes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sources/pyarrow.parquet");
    let source = opened(&path, "train");
    assert_eq!(source.classes(), ["ant", "bee", "cat"]);
    let expected: Vec<(usize, u8)> = (0..12).map(|i| (i % 3, 10 * i as u8)).collect();
    assert_eq!(all(&*source), expected);
    assert_eq!(source.image(0).unwrap().width, 4);
}

#[test]
fn other_columns_are_explained() {
    let dir = tempdir().unwrap();
    let with = |schema: &str| error(&put(&dir, "0.parquet", &write(schema, &rows(2))), "train");
    let message = with("message m { required binary text (UTF8); required int64 label; }");
    assert!(
        message
            .contains("0 columns of bytes; expected one, the images. Columns: text (BYTE_ARRAY)"),
        "{message}"
    );
    // The only column of integers is not the labels because it is the only one.
    let width = "message m { required binary image; required int64 width; }";
    let source = opened(&put(&dir, "0.parquet", &write(width, &rows(2))), "train");
    assert_eq!(source.describe(), "Parquet, 2 images, no labels");
    let [warning] = source.warnings() else {
        panic!("{:?}", source.warnings())
    };
    assert!(
        warning.contains("no column of labels (label, ") && warning.ends_with("integers: width"),
        "{warning}"
    );
    let mut missing = rows(4);
    missing[1] = (None, Some(-2));
    let path = put(&dir, "1.parquet", &write(NESTED, &missing));
    assert!(error(&path, "train").contains("row 1: label -2 is no class"));
    missing[1].1 = Some(1);
    let path = put(&dir, "1.parquet", &write(NESTED, &missing));
    let source = opened(&path, "train");
    let message = source.image(1).unwrap_err().to_string();
    assert!(
        message.ends_with("1.parquet#1: no image in this row"),
        "{message}"
    );
    assert_eq!(source.image(2).unwrap().rgb[0], 2);
}

/// -1 and nothing at all stand for no label.
#[test]
fn rows_without_labels() {
    let dir = tempdir().unwrap();
    for (labels, missing) in [
        ([Some(-1); 4], 4),
        ([None; 4], 4),
        ([Some(-1), None, None, Some(-1)], 4),
        ([Some(3), None, Some(1), Some(2)], 1),
        ([Some(3), Some(0), Some(-1), Some(-1)], 2),
        ([Some(3), Some(0), Some(1), Some(2)], 0),
    ] {
        let rows: Vec<_> = (0..4)
            .map(|i| (Some(image(i)), labels[i as usize]))
            .collect();
        let source = opened(&put(&dir, "0.parquet", &write(NESTED, &rows)), "train");
        assert_eq!(source.labelled(), missing == 0, "{labels:?}");
        let expected = if missing == 0 { [3, 0, 1, 2] } else { [0; 4] };
        let expected: Vec<(usize, u8)> = expected.into_iter().zip(0..).collect();
        assert_eq!(all(&*source), expected);
        let told = source
            .warnings()
            .iter()
            .any(|w| w.starts_with(&format!("{missing} of 4 images have no label, ")));
        assert_eq!(told, (1..4).contains(&missing), "{labels:?}");
    }
}

/// As a dataset of the Hub is cloned: pictures, cards and scripts beside the files, which may have a folder of their own.
#[test]
fn what_lies_beside_the_files() {
    for place in ["", "data/", "plain_text/"] {
        let dir = tempdir().unwrap();
        put(
            &dir,
            &format!("{place}train-0.parquet"),
            &write(NESTED, &rows(4)),
        );
        put(&dir, "README.md", b"");
        put(&dir, ".gitattributes", b"");
        for picture in ["assets/1.png", "assets/2.png", "figures/1.jpg"] {
            put(&dir, picture, &image(1));
        }
        if place.is_empty() {
            // Beside files in the folder itself, two folders of images are classes.
            fs::remove_file(dir.path().join("figures/1.jpg")).unwrap();
        }
        let source = opened(dir.path(), "train");
        assert_eq!(source.describe(), "Parquet, 4 images, 4 classes", "{place}");
        let others: usize = source.other_files().iter().map(|(_, n)| n).sum();
        assert_eq!(others, if place.is_empty() { 4 } else { 5 }, "{place}");
        let warnings = source.warnings().join("\n");
        assert!(
            warnings.contains("named as images, beside the archives"),
            "{warnings}"
        );
    }
    // The labels of images are no dataset.
    let dir = tempdir().unwrap();
    put(&dir, "metadata.parquet", &write(NESTED, &rows(4)));
    for i in 0..3 {
        put(&dir, &format!("{i}.png"), &image(1));
    }
    let error = error(dir.path(), "train");
    assert!(
        error.contains("3 images and 1 .parquet file are in one folder"),
        "{error}"
    );
}

/// Images, and a further column with these values, repeated where `levels` say so; metadata of the library `datasets`.
fn with_column<T: DataType>(
    column: &str,
    values: &[T::T],
    levels: Option<(&[i16], &[i16])>,
    metadata: Option<&str>,
) -> Vec<u8> {
    let schema = format!("message m {{ required binary image; {column} }}");
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let pair = metadata.map(|text| KeyValue::new("huggingface".into(), text.to_owned()));
    let properties = WriterProperties::builder().set_key_value_metadata(pair.map(|p| vec![p]));
    let mut bytes = Vec::new();
    let mut file =
        SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties.build())).unwrap();
    let mut group = file.next_row_group().unwrap();
    let rows = levels.map_or(values.len(), |(defined, _)| defined.len());
    let images: Vec<ByteArray> = (0..rows as u8).map(|i| image(i).into()).collect();
    let mut writer = group.next_column().unwrap().unwrap();
    let typed = writer.typed::<ByteArrayType>();
    typed.write_batch(&images, None, None).unwrap();
    writer.close().unwrap();
    let mut writer = group.next_column().unwrap().unwrap();
    let (defined, repeated) = levels.unzip();
    let repeated = repeated.filter(|r| !r.is_empty());
    let typed = writer.typed::<T>();
    typed.write_batch(values, defined, repeated).unwrap();
    writer.close().unwrap();
    group.close().unwrap();
    file.close().unwrap();
    bytes
}

fn texts(texts: &[&str]) -> Vec<ByteArray> {
    texts.iter().map(|text| (*text).into()).collect()
}

/// Text, booleans and whole floating-point numbers are classes, and a warning says how.
#[test]
fn labels_of_other_types() {
    let dir = tempdir().unwrap();
    let owls = texts(&["owl", "ant", "owl", "bee"]);
    let numbers = ["2", "10", "2"];
    for (bytes, classes, labels, told) in [
        (
            with_column::<ByteArrayType>("required binary label (UTF8);", &owls, None, None),
            &["ant", "bee", "owl"][..],
            &[2, 0, 2, 1][..],
            "column 'label' holds text; its 3 different values, sorted, are the classes",
        ),
        (
            with_column::<ByteArrayType>("required binary cls;", &texts(&numbers), None, None),
            &["10", "2"],
            &[1, 0, 1],
            "column 'cls' holds text; its 2 ",
        ),
        (
            with_column::<BoolType>("required boolean labels;", &[true, true, false], None, None),
            &["false", "true"],
            &[1, 1, 0],
            "column 'labels' holds booleans; the classes are false and true",
        ),
        (
            with_column::<DoubleType>("required double class;", &[0.0, 2.0, 1.0], None, None),
            &["0", "1", "2"],
            &[0, 2, 1],
            "column 'class' holds floating-point numbers; as all are whole, ",
        ),
        (
            with_column::<FloatType>("required float label;", &[1.0, 0.0], None, None),
            &["0", "1"],
            &[1, 0],
            "holds floating-point numbers",
        ),
    ] {
        let source = opened(&put(&dir, "0.parquet", &bytes), "train");
        assert_eq!(source.classes(), classes);
        let found: Vec<usize> = (0..source.len()).map(|i| source.label(i)).collect();
        assert_eq!(found, labels);
        let warnings = source.warnings().join("\n");
        assert!(warnings.contains(told), "{warnings}");
    }
    // Missing text is a missing label; an empty one too.
    for (defined, values) in [
        (&[1, 0, 1][..], &["a", "b"][..]),
        (&[1, 1, 1], &["a", "", "b"]),
    ] {
        let column = "optional binary label (UTF8);";
        let levels = Some((defined, &[][..]));
        let bytes = with_column::<ByteArrayType>(column, &texts(values), levels, None);
        let source = opened(&put(&dir, "0.parquet", &bytes), "train");
        assert!(!source.labelled());
        let warnings = source.warnings().join("\n");
        assert!(
            warnings.contains("1 of 3 images have no label"),
            "{warnings}"
        );
    }
    // The classes of several files are sorted together, and all are of one kind.
    let dir = tempdir().unwrap();
    for (file, names) in [("0.parquet", ["owl", "ant"]), ("1.parquet", ["bee", "owl"])] {
        let column = "required binary label (STRING);";
        put(
            &dir,
            file,
            &with_column::<ByteArrayType>(column, &texts(&names), None, None),
        );
    }
    let expected = [(2, 0), (0, 1), (1, 0), (2, 1)];
    assert_eq!(all(&*opened(dir.path(), "train")), expected);
    let other = with_column::<BoolType>("required boolean label;", &[true], None, None);
    put(&dir, "2.parquet", &other);
    let message = error(dir.path(), "train");
    let told = "2.parquet: column 'label' holds booleans, in the files before it text";
    assert!(message.ends_with(told), "{message}");
}

/// What cannot be labels is named with its type; the images are read without.
#[test]
fn columns_that_are_no_labels() {
    let dir = tempdir().unwrap();
    let long = "x".repeat(1001);
    let list = "required group labels (LIST) { repeated group list { required int64 element; } }";
    let pair = "required group label { required int32 id; }";
    for (bytes, told) in [
        (
            with_column::<Int64Type>(list, &[1, 2, 3], Some((&[1, 1, 1], &[0, 0, 0])), None),
            "column 'labels' holds lists of INT64, which are no labels (whole numbers, text",
        ),
        (
            with_column::<Int32Type>(pair, &[1, 2], None, None),
            "column 'label' holds structures of INT32, ",
        ),
        (
            with_column::<Int32Type>("required int32 class (DATE);", &[1, 2], None, None),
            "column 'class' holds INT32 (DATE), ",
        ),
        (
            with_column::<DoubleType>("required double label;", &[0.0, 0.5], None, None),
            "column 'label', row group 0: row 1 holds 0.5, which is no whole number; these are no",
        ),
        (
            with_column::<FloatType>("required float cls;", &[f32::INFINITY], None, None),
            "row 0 holds inf, which is no whole number",
        ),
        (
            with_column::<ByteArrayType>(
                "required binary label;",
                &[vec![0xff].into()],
                None,
                None,
            ),
            "row 0 holds text that is not UTF-8",
        ),
        (
            with_column::<ByteArrayType>(
                "required binary label;",
                &texts(&["a", &long]),
                None,
                None,
            ),
            "row 1 holds too long a text for the name of a class",
        ),
    ] {
        let source = opened(&put(&dir, "0.parquet", &bytes), "train");
        assert!(!source.labelled() && source.image(0).is_ok());
        let [warning] = source.warnings() else {
            panic!("{:?}", source.warnings())
        };
        assert!(warning.contains(told), "{warning}");
        assert!(
            warning.ends_with("; all images are taken as images without labels"),
            "{warning}"
        );
    }
}

/// Names of classes in the metadata: read, absent, or broken, and then there is a warning.
#[test]
fn broken_names_of_classes_are_told() {
    let dir = tempdir().unwrap();
    let names =
        |names: &str| format!(r#"{{"info": {{"features": {{"label": {{"names": {names}}}}}}}}}"#);
    let (whole, numbers) = (names(r#"["ant", "bee"]"#), names("[1, 2]"));
    for (metadata, classes, told) in [
        (whole.as_str(), ["ant", "bee"], None),
        ("{}", ["0", "1"], None),
        (r#"{"info": {"features": null}}"#, ["0", "1"], None),
        (&whole[..40], ["0", "1"], Some("'huggingface' is no JSON: ")),
        ("", ["0", "1"], Some("'huggingface' is no JSON: ")),
        (
            &numbers,
            ["0", "1"],
            Some("has names of 'label' that are no list of texts"),
        ),
        (
            &names("{}"),
            ["0", "1"],
            Some("has names of 'label' that are no list of texts"),
        ),
        (
            r#"{"info": {"features": 3}}"#,
            ["0", "1"],
            Some("has features that are no table"),
        ),
    ] {
        let column = "required int64 label;";
        let bytes = with_column::<Int64Type>(column, &[0, 1], None, Some(metadata));
        let source = opened(&put(&dir, "0.parquet", &bytes), "train");
        assert_eq!(source.classes(), classes, "{metadata}");
        let warnings = source.warnings().join("\n");
        match told {
            None => assert_eq!(warnings, ""),
            Some(told) => assert!(warnings.contains(told), "{warnings}"),
        }
    }
}

#[test]
fn missing_shards_are_named() {
    let dir = tempdir().unwrap();
    for n in [0, 3] {
        put(
            &dir,
            &format!("data/train-{n:05}-of-00004-0a1b.parquet"),
            &write(NESTED, &rows(1)),
        );
    }
    let message = error(dir.path(), "train");
    assert!(
        message.ends_with(
            "2 of 4 files are missing: data/train-00001-of-00004, data/train-00002-of-00004; fetch them"
        ),
        "{message}"
    );
    let one = dir.path().join("data/train-00003-of-00004-0a1b.parquet");
    assert!(error(&one, "val").contains("no split 'val' here, only train"));
    assert_eq!(opened(&one, "train").len(), 1);
}

/// A footer that states a billion rows is not believed.
#[test]
fn row_counts_are_bounded_by_the_file() {
    let dir = tempdir().unwrap();
    let path = put(&dir, "0.parquet", &write(NESTED, &rows(3)));
    let whole = fs::read(&path).unwrap();
    let footer = whole.len()
        - 8
        - u32::from_le_bytes(whole[whole.len() - 8..][..4].try_into().unwrap()) as usize;
    // Each number that is the row count, 3, as Thrift writes it (6), becomes a larger one of five bytes.
    let mut refused = 0;
    for at in (footer..whole.len() - 8).filter(|at| whole[*at] == 6) {
        let mut damaged = whole.clone();
        damaged.splice(at..=at, [0xfe, 0xff, 0xff, 0xff, 0x7f]);
        let end = damaged.len() - 8;
        let len = (end - footer) as u32;
        damaged[end..end + 4].copy_from_slice(&len.to_le_bytes());
        fs::write(&path, &damaged).unwrap();
        if let Err(e) = open(path.to_str().unwrap(), "train") {
            refused += usize::from(e.to_string().contains(" rows in "));
        }
    }
    assert_eq!(refused, 1);
}

#[test]
fn damaged_files_do_not_panic() {
    let dir = tempdir().unwrap();
    let whole = write(NESTED, &rows(5));
    for cut in (0..whole.len()).step_by(13) {
        let path = put(&dir, "0.parquet", &whole[..cut]);
        assert!(error(&path, "train").contains("0.parquet: "));
    }
    let r = &mut datasets::rng::rng(0, "fuzz", 0, 0);
    for _ in 0..300 {
        let mut damaged = whole.clone();
        let at = datasets::rng::below(r, damaged.len());
        damaged[at] = datasets::rng::below(r, 256) as u8;
        let path = put(&dir, "0.parquet", &damaged);
        if let Ok(source) = open(path.to_str().unwrap(), "train") {
            for i in 0..source.len() {
                let _: Result<Image, Error> = source.image(i);
            }
        }
    }
}

/// One column of images, compressed, with or without a dictionary, pages of so many rows.
fn packed(images: &[Vec<u8>], dictionary: bool, snappy: bool) -> Vec<u8> {
    use parquet::basic::{Compression, ZstdLevel};
    let text = "message m { required binary image; required int64 label; }";
    let schema = Arc::new(parse_message_type(text).unwrap());
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(dictionary)
        .set_dictionary_page_size_limit(1 << 30)
        .set_data_page_size_limit(1 << 30)
        .set_statistics_enabled(parquet::file::properties::EnabledStatistics::None)
        .set_compression(match snappy {
            true => Compression::SNAPPY,
            false => Compression::ZSTD(ZstdLevel::default()),
        })
        .build();
    let mut bytes = Vec::new();
    let mut file = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
    let mut group = file.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let values: Vec<ByteArray> = images.iter().map(|i| i.clone().into()).collect();
    let typed = column.typed::<ByteArrayType>();
    typed.write_batch(&values, None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let labels = vec![0; images.len()];
    let typed = column.typed::<Int64Type>();
    typed.write_batch(&labels, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    file.close().unwrap();
    bytes
}

#[test]
fn pages_of_all_kinds_are_read() {
    let dir = tempdir().unwrap();
    // The second image again: a dictionary has it once.
    let images: Vec<Vec<u8>> = [0, 1, 2, 1].map(image).into();
    for (dictionary, snappy) in [(true, true), (true, false), (false, true), (false, false)] {
        let path = put(&dir, "0.parquet", &packed(&images, dictionary, snappy));
        let reds: Vec<u8> = all(&*opened(&path, "train")).iter().map(|i| i.1).collect();
        assert_eq!(reds, [0, 1, 2, 1], "{dictionary} {snappy}");
    }
}

#[test]
fn a_small_file_cannot_take_much_memory() {
    let dir = tempdir().unwrap();
    let dark = |mib: usize| vec![0; mib << 20];
    let last_error = |bytes: &[u8]| {
        let source = opened(&put(&dir, "0.parquet", bytes), "train");
        source.image(0).unwrap_err().to_string()
    };
    // A dictionary, and a value that is no image file in size.
    let message = last_error(&packed(
        &[dark(33), image(1), vec![1; 33 << 20]],
        true,
        false,
    ));
    assert!(
        message.contains("0.parquet#0: cannot be read") && message.contains("67108864"),
        "{message}"
    );
    let message = last_error(&packed(&[dark(257)], false, true));
    assert!(
        message.ends_with("larger than 268435456 bytes"),
        "{message}"
    );
    // A page whose header states 1.5 GiB: a number of five bytes instead of another.
    let mut file = packed(&[dark(150)], false, false);
    let header = file[..16].to_vec();
    let at = header.windows(2).position(|w| w[0] == 0x15 && w[1] >= 0x80);
    let number = &mut file[at.unwrap() + 1..][..5];
    assert!(number[3] >= 0x80 && number[4] < 0x80);
    for (i, byte) in number.iter_mut().enumerate() {
        let seven = ((3u32 << 30) >> (7 * i)) as u8 & 0x7f;
        *byte = seven | if i < 4 { 0x80 } else { 0 };
    }
    let message = last_error(&file);
    assert!(message.contains("more than 1073741824"), "{message}");
}
