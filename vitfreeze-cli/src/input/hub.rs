//! `--data hf://datasets/org/name[@revision][/folder]`: Parquet shards from the Hugging Face Hub.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{anyhow, Result};

use crate::console::{note, Progress, Unit};
use crate::usage::usage;

/// Fetches the shards of `split` and returns the folder to open.
pub fn fetch(origin: &str, split: &str) -> Result<String> {
    let (repo, within) = parse(origin);
    let progress = Arc::new(Progress::new(0, Unit::Bytes));
    let told = progress.clone();
    let on_progress = Arc::new(move |file: &str, done, total| told.at(file, done, total));
    let mut folder = PathBuf::new();
    let choose = |files: &[String]| {
        let shards;
        (folder, shards) = shards_of(origin, within, split, files)?;
        Ok::<_, anyhow::Error>(shards)
    };
    let fetched = vit::Hub::from_env()?.fetch_dataset(repo, choose, on_progress);
    progress.close();
    let folder = fetched?.join(folder);
    let folder = folder.into_os_string().into_string();
    folder.map_err(|path| anyhow!("{}: the cache's path is not valid UTF-8", path.display()))
}

/// The dataset with its revision, and the folder in it. A revision has no slash but for those in `refs/`.
fn parse(origin: &str) -> (&str, &str) {
    let start = "hf://datasets/".len();
    let rest = origin.get(start..).unwrap_or_default();
    let special = ["@refs/convert/", "@refs/pr/"]
        .iter()
        .any(|r| rest.contains(r));
    let parts = if special { 4 } else { 2 };
    let mut slashes = rest.match_indices('/').map(|(at, _)| start + at);
    match slashes.nth(parts - 1) {
        Some(at) => (&origin[..at], origin[at..].trim_matches('/')),
        None => (origin, ""),
    }
}

/// The shards of `split` and the folder that they, or the folders of the splits, are in.
fn shards_of(
    origin: &str,
    within: &str,
    split: &str,
    files: &[String],
) -> Result<(PathBuf, Vec<String>)> {
    let below = |file: &&String| Path::new(file).starts_with(within);
    let parquet = files.iter().filter(|file| file.ends_with(".parquet"));
    let mut parquet: Vec<&String> = parquet.filter(below).collect();
    parquet.sort();
    if parquet.is_empty() {
        let repo = parse(origin).0.trim_start_matches("hf://datasets/");
        let repo = repo.split('@').next().unwrap_or_default();
        return Err(usage(format!(
            "{origin}: no Parquet files there; for WebDataset shards or a folder of images \
             'hf download {repo} --repo-type dataset --local-dir DIR', then name DIR"
        )));
    }
    // Each configuration of a dataset has a folder of its own, which may have one for each split.
    let home = |file: &str| {
        let folder = Path::new(file).parent().unwrap_or(Path::new(""));
        let name = folder
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        let is_split = datasets::is_split(name);
        let folder = folder.parent().filter(|_| is_split).unwrap_or(folder);
        folder.to_owned()
    };
    let mut homes: Vec<PathBuf> = parquet.iter().map(|file| home(file)).collect();
    homes.sort();
    homes.dedup();
    let [home] = &homes[..] else {
        let repo = parse(origin).0;
        let names = homes
            .iter()
            .map(|home| format!("{repo}/{}", home.display()));
        let names: Vec<String> = names.collect();
        return Err(usage(format!(
            "{origin}: Parquet files in several folders, name one of them: {}",
            names.join(", ")
        )));
    };
    let root = Path::new(parse(origin).0);
    let paths = parquet.iter().map(|file| root.join(file)).collect();
    let (chosen, warning) =
        datasets::files_of_split(&root.join(home), split, paths).map_err(usage)?;
    if let Some(warning) = warning {
        note(format!("warning: {warning}"));
    }
    let chosen = chosen
        .iter()
        .filter_map(|path| path.strip_prefix(root).ok()?.to_str());
    Ok((home.clone(), chosen.map(str::to_owned).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(origin: &str, split: &str, files: &[&str]) -> Result<(String, Vec<String>), String> {
        let files: Vec<String> = files.iter().map(|f| (*f).to_owned()).collect();
        let (_, within) = parse(origin);
        let shards = shards_of(origin, within, split, &files).map_err(|e| e.to_string());
        shards.map(|(home, shards)| (home.display().to_string(), shards))
    }

    #[test]
    fn revisions_and_folders() {
        for (origin, repo, within) in [
            ("hf://datasets/a/b", "hf://datasets/a/b", ""),
            ("hf://datasets/a/b@v1", "hf://datasets/a/b@v1", ""),
            ("hf://datasets/a/b@v1/c/d/", "hf://datasets/a/b@v1", "c/d"),
            (
                "hf://datasets/a/b@refs/convert/parquet/c",
                "hf://datasets/a/b@refs/convert/parquet",
                "c",
            ),
        ] {
            assert_eq!(parse(origin), (repo, within));
        }
    }

    #[test]
    fn layouts_of_the_hub() {
        let origin = "hf://datasets/a/b";
        let imagenet = [
            "README.md",
            "data/test-00000-of-00001.parquet",
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "data/validation-00000-of-00001.parquet",
        ];
        let got = |split, files: &[&str]| chosen(origin, split, files).unwrap();
        let (home, shards) = got("train", &imagenet);
        assert_eq!(home, "data");
        assert_eq!(shards, imagenet[2..4]);
        assert_eq!(got("val", &imagenet).1, [imagenet[4]]);
        assert_eq!(got("test", &imagenet).1, [imagenet[1]]);
        let cifar = [
            "plain_text/test-00000-of-00001.parquet",
            "plain_text/train-00000-of-00001.parquet",
        ];
        assert_eq!(
            got("val", &cifar),
            ("plain_text".into(), vec![cifar[0].into()])
        );
        let converted = ["default/test/0000.parquet", "default/train/0000.parquet"];
        assert_eq!(
            got("train", &converted),
            ("default".into(), vec![converted[1].into()])
        );

        let wrong = |origin: &str, split, files: &[&str]| chosen(origin, split, files).unwrap_err();
        let message = wrong(origin, "extra", &imagenet);
        assert!(
            message.ends_with(
                "no split 'extra' here, only train, validation, test; name one of these"
            ),
            "{message}"
        );
        let message = wrong(origin, "train", &[imagenet[2]]);
        assert!(
            message.ends_with("1 of 2 files are missing: train-00001-of-00002; fetch them"),
            "{message}"
        );
        let message = wrong(origin, "train", &["a.jpg"]);
        assert!(message.contains("no Parquet files there") && message.contains("hf download a/b "));
        let two = [
            "one/train-00000-of-00001.parquet",
            "two/train-00000-of-00001.parquet",
        ];
        let message = wrong(origin, "train", &two);
        assert!(
            message.ends_with("name one of them: hf://datasets/a/b/one, hf://datasets/a/b/two"),
            "{message}"
        );
        let one = chosen("hf://datasets/a/b/two", "train", &two).unwrap();
        assert_eq!(one, ("two".into(), vec![two[1].into()]));
    }
}
