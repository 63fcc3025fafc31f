//! One way to name any dataset.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cache::is_cache;
use crate::files::{count, holds, io_error, looked_through, malformed, open_file, subfolders};
use crate::formats::{extension, is_image};
use crate::source::counted;
use crate::split::{files_of, split_folders, unnamed, MAX_SHARDS};
use crate::webdataset::open_shards;
use crate::{
    cifar, ilsvrc, open_ilsvrc, open_webdataset, CacheFile, Cifar, Error, ImageFolder, Shapes,
    Source, MAX_PIXELS,
};

/// More digits than the number of a shard has.
const MAX_DIGITS: usize = 20;
/// Bytes of the names that a range of shards stands for.
const MAX_NAMES: usize = 256 << 20;

/// Opens the dataset that `data` names; what it is, is seen from what is there:
///
/// | `data` | source |
/// |---|---|
/// | `shapes` | [`Shapes`]: 4096 images of 32 pixels |
/// | a file made by `vitfreeze data cache` | [`CacheFile`] |
/// | `cifar-10-binary.tar.gz`, `cifar-100-binary.tar.gz`, or the folder with it or its files | [`Cifar`] |
/// | the folder with `ILSVRC2012_img_train.tar`, or `_val.tar` and `ILSVRC2012_devkit_t12.tar.gz` | [`open_ilsvrc`] |
/// | a folder with `*.parquet`, or one such file (feature `parquet`) | `ParquetImages` |
/// | a folder with `*.tar`, one such file, or several as `shard-{0000..0099}.tar` | [`open_webdataset`] |
/// | any other folder, and one with images in several class folders whatever else is in it | [`ImageFolder`]; images alone have no labels |
///
/// `split` is `train`, `val` or what the dataset calls it, in any usual spelling (`Training`, `valid`, `test_set`); `val` also
/// finds test data. Data without splits are the whole of any of these; a split that is not there is an error that lists
/// those that are. So is a folder in which images lie beside a few archives: it does not say which are meant.
pub fn open(data: &str, split: &str) -> Result<Arc<dyn Source>, Error> {
    open_within(data, split, MAX_PIXELS)
}

/// [`open`], and images of more pixels than `max_pixels` are refused, from their header.
pub fn open_within(data: &str, split: &str, max_pixels: u64) -> Result<Arc<dyn Source>, Error> {
    if data == "shapes" {
        unnamed(Path::new(data), split)?;
        return Ok(Arc::new(Shapes::new(0, 32, 4096)));
    }
    let path = Path::new(data);
    if let Some(name) = data.strip_prefix("hf://datasets/") {
        // The program vitfreeze fetches it before it comes here.
        let reason = format!(
            "this program was built without the Hub; fetch it with \
             'hf download {name} --repo-type dataset --local-dir DIR', then name DIR"
        );
        return Err(malformed(path, reason));
    }
    if !path.try_exists().map_err(io_error(path))? {
        let Some(shards) = shards(data) else {
            return Err(Error::NotFound(path.to_owned()));
        };
        let shards = files_of(path.parent().unwrap_or(path), split, shards?)?;
        // Who lists shards means these.
        let source = open_shards(path, shards)?;
        return Ok(Arc::new(source.with_max_pixels(max_pixels)));
    }
    if !path.is_dir() {
        // Neither a pipe nor what may not be read is "not a dataset".
        open_file(path).map_err(io_error(path))?;
    }
    if path.is_dir() && has_class_folders(path, split) {
        let folder = ImageFolder::open(path, split)?.with_max_pixels(max_pixels);
        return Ok(Arc::new(folder));
    }
    if let Some(found) = cifar::detect(path) {
        return Ok(Arc::new(Cifar::open(&found, split)?));
    }
    if path.is_dir() {
        return open_folder(path, split, max_pixels);
    }
    let extension = path.extension().and_then(|e| e.to_str());
    match extension.unwrap_or_default() {
        _ if is_cache(path) => Ok(Arc::new(
            CacheFile::open(path, split)?.with_max_pixels(max_pixels),
        )),
        "tar" => Ok(Arc::new(
            open_webdataset(path, split)?.with_max_pixels(max_pixels),
        )),
        "parquet" => open_parquet(path, path, split, max_pixels),
        _ => Err(Error::NotADataset(path.to_owned())),
    }
}

fn open_folder(path: &Path, split: &str, max_pixels: u64) -> Result<Arc<dyn Source>, Error> {
    // A folder that cannot be listed would otherwise look like an empty one.
    std::fs::read_dir(path).map_err(io_error(path))?;
    if [ilsvrc::TRAIN, ilsvrc::VAL]
        .iter()
        .any(|name| path.join(name).is_file())
    {
        return Ok(Arc::new(
            open_ilsvrc(path, split)?.with_max_pixels(max_pixels),
        ));
    }
    let near = |dir: &Path, extension: &str| {
        holds(dir, |path| path.extension().is_some_and(|x| x == extension))
    };
    let splits = split_folders(path);
    // A tar beside train/ is what that was unpacked from.
    let places = match splits.is_empty() {
        true => vec![path.to_owned(), path.join("data")],
        false => splits.clone(),
    };
    let any = |extension: &str| places.iter().any(|dir| near(dir, extension));
    // img2dataset puts what it knows of 00000.tar into 00000.parquet.
    let is_about_a_tar = |file: &Path| {
        file.extension().is_some_and(|x| x == "parquet") && file.with_extension("tar").is_file()
    };
    let about_tars = splits
        .iter()
        .map(PathBuf::as_path)
        .chain([path, &path.join("data")])
        .any(|dir| holds(dir, is_about_a_tar));
    if any("parquet") && !about_tars {
        side_by_side(&places, "parquet")?;
        return open_parquet(path, path, split, max_pixels);
    }
    if any("tar") {
        side_by_side(&places, "tar")?;
        return Ok(Arc::new(
            open_webdataset(path, split)?.with_max_pixels(max_pixels),
        ));
    }
    // Hugging Face keeps each configuration of a dataset in a folder of its own: plain_text/train-00000-of-00001.parquet.
    let mut configurations = subfolders(path);
    configurations.retain(|dir| near(dir, "parquet"));
    match &configurations[..] {
        [] => {}
        [one] => return open_parquet(path, one, split, max_pixels),
        more => {
            let names: Vec<String> = more.iter().map(|dir| dir.display().to_string()).collect();
            let names = names.join(", ");
            return Err(malformed(
                path,
                format!("Parquet files in several folders, name one of them: {names}"),
            ));
        }
    }
    Ok(Arc::new(
        ImageFolder::open(path, split)?.with_max_pixels(max_pixels),
    ))
}

/// Whether a folder, or its folder of a split, holds class folders with images in them: then it is an [`ImageFolder`],
/// whatever archives lie about in it. A single folder of images beside archives holds pictures about the dataset.
fn has_class_folders(path: &Path, split: &str) -> bool {
    let holds_image = |dir: &PathBuf| holds(dir, is_image);
    let mut splits = split_folders(path);
    splits.push(path.join(split));
    if splits.iter().any(|dir| {
        subfolders(&looked_through(dir.clone()))
            .iter()
            .any(holds_image)
    }) {
        return true;
    }
    let mut folders = subfolders(path);
    folders.retain(|dir| !splits.contains(dir));
    let (classes, rest): (Vec<PathBuf>, Vec<PathBuf>) = folders.into_iter().partition(holds_image);
    classes.len() > 1 && !rest.iter().any(|dir| holds(dir, is_archive))
}

fn is_archive(path: &Path) -> bool {
    matches!(extension(path).as_str(), "tar" | "parquet")
}

/// Refuses to guess where images lie beside fewer archives than they are: one of both is not meant.
fn side_by_side(places: &[PathBuf], kind: &str) -> Result<(), Error> {
    for place in places {
        let archives = count(place, |path| extension(path) == kind);
        let images = count(place, is_image);
        if archives > 0 && images > archives {
            let reason = format!(
                "{} and {} are in one folder, and only one kind is read; move the other kind to another folder",
                counted(images, "image", "images"),
                counted(archives, &format!(".{kind} file"), &format!(".{kind} files"))
            );
            return Err(malformed(place, reason));
        }
    }
    Ok(())
}

/// Opens the files at `path`, in the `folder` that was named.
#[cfg(feature = "parquet")]
fn open_parquet(
    folder: &Path,
    path: &Path,
    split: &str,
    max_pixels: u64,
) -> Result<Arc<dyn Source>, Error> {
    let (files, warning) = files_of(path, split, crate::split::files_at(path, "parquet")?)?;
    let source = crate::ParquetImages::open(files)?.with_others(folder, warning)?;
    Ok(Arc::new(source.with_max_pixels(max_pixels)))
}

#[cfg(not(feature = "parquet"))]
fn open_parquet(_: &Path, path: &Path, _: &str, _: u64) -> Result<Arc<dyn Source>, Error> {
    let found = crate::split::files_at(path, "parquet")?.len();
    Err(malformed(
        path,
        format!("{found} Parquet files, but this program was built without the feature 'parquet'"),
    ))
}

/// The files that `a-{00..12}.tar` stands for; `None` if it has no braces.
fn shards(data: &str) -> Option<Result<Vec<PathBuf>, Error>> {
    let (before, rest) = data.split_once('{')?;
    let (range, after) = rest.split_once('}')?;
    let (first, last) = range.split_once("..")?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !is_number(first) || !is_number(last) {
        return None;
    }
    let number = |text: &str| text.parse().ok().filter(|_| text.len() <= MAX_DIGITS);
    let range: Option<(usize, usize)> = number(first).zip(number(last));
    let most = MAX_SHARDS.min(MAX_NAMES / data.len());
    let range = range.filter(|(from, to)| to.checked_sub(*from).is_some_and(|n| n < most));
    let Some((from, to)) = range else {
        let reason = format!(
            "{{..}} is not a range of shards, such as {{0000..0099}}: from the lower number to the higher, of at most \
             {MAX_DIGITS} digits, {most} shards in all"
        );
        return Some(Err(malformed(Path::new(data), reason)));
    };
    let width = first.len();
    let name = |n| PathBuf::from(format!("{before}{n:0width$}{after}"));
    Some(Ok((from..=to).map(name).collect()))
}
