//! The README's table names every example, and nothing else.
use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn the_readme_lists_the_examples_that_there_are() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let there: BTreeSet<String> = std::fs::read_dir(here.join("examples"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let text = std::fs::read_to_string(here.join("README.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| ["));
    let listed: Vec<&str> = rows.map(|row| row.split_once(']').unwrap().0).collect();
    assert_eq!(listed.len(), there.len());
    let listed: BTreeSet<String> = listed.into_iter().map(str::to_owned).collect();
    assert_eq!(listed, there);
    // A command that is to be copied names one of them.
    for command in text
        .lines()
        .filter(|line| line.starts_with("    cargo run"))
    {
        let words: Vec<&str> = command.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "--example").unwrap();
        assert!(there.contains(words[at + 1]), "{command}");
    }
}
