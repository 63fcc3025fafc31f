//! The page: HTML with its pictures in it, nothing to fetch.
use super::read::RunRead;
use super::{charts, numbers};
use crate::console::{counted, duration, memory, percent};
use crate::draw::svg::escaped;
use crate::draw::Svg;
use crate::run::folder::quoted;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --muted: #5f6368; --line: #dadce0; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 900px; padding: 24px 16px 64px; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 4px; } h2 { font-size: 1.25rem; margin: 48px 0 4px; }
h3 { font-size: 1rem; margin: 32px 0 8px; } p { margin: 8px 0; } .muted { color: var(--muted); } .lack { font-weight: 600; }
.wide { overflow-x: auto; margin: 8px 0; } .wide > svg, .wide > img { min-width: 600px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; white-space: normal; overflow-wrap: normal; vertical-align: bottom; }
pre { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px; font-size: 0.85rem; }
summary { cursor: pointer; padding: 4px 0; }
svg, img { display: block; width: 100%; height: auto; border-radius: 6px; }
.strip { display: flex; background: #fff; border-radius: 6px; padding: 4px; }
.strip img { flex: 1 1 0; width: 0; min-width: 84px; border-radius: 0; }
.strip img.three { flex: 3 1 0; min-width: 252px; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --paper: #17181a; --muted: #a8adb4; --line: #3c4043; }
  svg { filter: invert(0.9) hue-rotate(180deg) brightness(1.3); } }
@page { margin: 12mm; }
@media print { body { max-width: none; padding: 0; font-size: 12px; } pre { white-space: pre-wrap; }
  .wide > svg, .wide > img, .strip img, .strip img.three { min-width: 0; } section + section { break-before: page; }
  h3 { break-after: avoid; } svg, img, tr { break-inside: avoid; } }
";

/// The beginning of a page: all up to its title.
pub fn begin(title: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>{title}</h1>\n",
        title = escaped(title),
    )
}

/// Its end.
pub const END: &str = "</main>\n</body>\n</html>\n";

/// A table, which a narrow screen scrolls through.
pub fn rows_of(heads: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String], open: &str, close: &str| {
        let one = |cell: &String| format!("<{open}>{}</{close}>", escaped(cell));
        let cells: String = cells.iter().map(one).collect();
        format!("<tr>{cells}</tr>")
    };
    let head = line(heads, "th scope=\"col\"", "th");
    let mut out = format!("<div class=\"wide\"><table>\n<thead>{head}</thead>\n<tbody>\n");
    for cells in rows {
        out += &(line(cells, "td", "td") + "\n");
    }
    out + "</tbody></table></div>\n"
}

/// All runs on one page.
pub fn page(runs: &[RunRead]) -> String {
    let title = match runs {
        [run] => format!("{}: a run of vitfreeze {}", run.name, run.kind()),
        _ => format!("{} of vitfreeze", counted(runs.len(), "run")),
    };
    let version = env!("CARGO_PKG_VERSION");
    let mut out = begin(&title) + &format!("<p class=\"muted\">vitfreeze {version}</p>\n");
    out += &table(runs);
    let together: String = charts::together(runs).iter().map(chart).collect();
    if !together.is_empty() {
        out += &format!("<section>\n<h2>Side by side</h2>\n{together}</section>\n");
    }
    for run in runs {
        out += &section(run);
    }
    out + END
}

/// A line for each run.
fn table(runs: &[RunRead]) -> String {
    let heads = [
        "run",
        "command",
        "steps",
        "frozen",
        "loss",
        "top-1 %",
        "time",
        "peak memory",
        "saved by freezing",
    ];
    let mut rows = Vec::new();
    let none = || "\u{2013}".to_owned();
    for run in runs {
        let result = run.result.as_ref();
        let last = run.steps.last();
        let loss = result.and_then(|r| r.loss).or(last.map(|row| row.loss));
        let frozen = last.map(|row| format!("{} of {}", row.frozen, row.lr.len()));
        let cells = [
            run.name.clone(),
            run.kind(),
            last.map_or_else(none, |row| (row.step + 1).to_string()),
            frozen.unwrap_or_else(none),
            loss.map_or_else(none, |loss| format!("{loss:.4}")),
            result
                .and_then(|r| r.top1)
                .map_or_else(none, |x| format!("{x:.2}")),
            duration(run.seconds()),
            result.and_then(|r| r.peak_bytes).map_or_else(none, told),
            result
                .and_then(|r| r.saved)
                .map_or_else(none, |s| percent(s / 100.0)),
        ];
        rows.push(cells.into());
    }
    rows_of(&heads.map(str::to_owned), &rows)
}

fn told(bytes: u64) -> String {
    let (number, unit) = memory(bytes as f64);
    format!("{number} {unit}")
}

/// A chart; a narrow screen scrolls through it.
fn chart(svg: &Svg) -> String {
    format!(
        "<div class=\"wide\" tabindex=\"0\">{}</div>\n",
        svg.document()
    )
}

fn picture(title: &str, alt: &str, url: Option<&String>) -> String {
    let Some(url) = url else {
        return String::new();
    };
    let alt = escaped(alt);
    format!(
        "<h3>{title}</h3>\n<div class=\"wide\" tabindex=\"0\"><img alt=\"{alt}\" src=\"{url}\"></div>\n"
    )
}

fn section(run: &RunRead) -> String {
    let mut out = format!("<section>\n<h2>{}</h2>\n", escaped(&run.name));
    let dir = run.dir.display().to_string();
    out += &format!("<p class=\"muted\">{}", escaped(&dir));
    if run.result.is_none() {
        out += "; not at its end";
    }
    out += "</p>\n";
    for line in &run.lacks {
        out += &format!("<p class=\"lack\">{}</p>\n", escaped(line));
    }
    if let Some(config) = &run.config {
        let (kind, file) = (run.kind(), quoted(&run.dir.join("config.toml")));
        let again = format!("vitfreeze {kind} --config {file}");
        out += &format!(
            "<h3>To run it again</h3>\n<pre>{}</pre>\n<details><summary>All its settings</summary>\n<pre>{}</pre></details>\n",
            escaped(&again),
            lines_escaped(config)
        );
    }
    if let Some(svg) = charts::training(run) {
        out += &format!("<h3>Training</h3>\n{}", chart(&svg));
        out += &numbers::table(run);
    }
    if let Some(svg) = charts::phases(run) {
        out += &format!("<h3>Where the time went</h3>\n{}", chart(&svg));
    }
    out += &predictions(run);
    let name = &run.name;
    let alt = format!("Confusion matrix of {name}: which class was taken for which; confusion.csv has its numbers");
    out += &picture("Confusion", &alt, run.confusion.as_ref());
    let alt = format!("Images that {name} took for another class, with both classes and the probability that it gave");
    out += &picture("Wrong predictions", &alt, run.mistakes.as_ref());
    if let Some(result) = &run.result {
        let versions = result.versions.iter();
        let versions: Vec<String> = versions.map(|(name, v)| format!("{name} {v}")).collect();
        out += &format!("<p class=\"muted\">{}</p>\n", escaped(&versions.join(", ")));
    }
    out + "</section>\n"
}

/// What a pretraining run made of a few images, epoch by epoch.
fn predictions(run: &RunRead) -> String {
    let (Some(targets), false) = (&run.targets, run.seen.is_empty()) else {
        return String::new();
    };
    let mut out = format!(
        "<h3>What it predicted</h3>\n<p class=\"muted\">The same images and masks each time. A line is an edge: its direction, and by its length how much of it. In targets and predictions grey lines are what the encoder saw.</p>\n\
         <div class=\"wide\" tabindex=\"0\"><div class=\"strip\">\n\
         <img class=\"three\" alt=\"Images, what the encoder sees of them, and the targets of each stage\" src=\"{targets}\">\n"
    );
    for (epochs, url) in &run.seen {
        out += &format!("<img alt=\"Predictions after epoch {epochs}\" src=\"{url}\">\n");
    }
    out + "</div></div>\n"
}

/// Text whose lines stay lines.
fn lines_escaped(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(escaped).collect();
    lines.join("\n")
}
