//! The page: HTML with its pictures in it, nothing to fetch.
use super::charts;
use super::read::RunRead;
use crate::console::{counted, duration, percent};
use crate::draw::svg::escaped;
use crate::run::folder::quoted;

pub const STYLE: &str = "
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --muted: #5f6368; --line: #dadce0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --paper: #16181b; --muted: #a8adb4; --line: #3c4043; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 820px; padding: 24px 16px 64px; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 4px; } h2 { font-size: 1.2rem; margin: 40px 0 8px; } h3 { font-size: 1rem; margin: 24px 0 8px; }
p { margin: 8px 0; } .muted { color: var(--muted); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
pre { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px; font-size: 0.85rem; }
summary { cursor: pointer; }
svg, img { display: block; width: 100%; height: auto; background: #fff; border-radius: 6px; }
@media print { body { max-width: none; padding: 0; } pre { white-space: pre-wrap; } section { break-before: page; } svg, img { break-inside: avoid; } }
";

/// All runs on one page.
pub fn page(runs: &[RunRead]) -> String {
    let title = match runs {
        [run] => format!("{}: a run of vitfreeze {}", run.name, run.kind()),
        _ => format!("{} of vitfreeze", counted(runs.len(), "run")),
    };
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>{title}</h1>\n<p class=\"muted\">vitfreeze {}</p>\n",
        env!("CARGO_PKG_VERSION"),
        title = escaped(&title),
    );
    out += &table(runs);
    for run in runs {
        out += &section(run);
    }
    out + "</main>\n</body>\n</html>\n"
}

/// A line for each run.
fn table(runs: &[RunRead]) -> String {
    let heads = [
        "run",
        "command",
        "steps",
        "frozen at the end",
        "loss",
        "top-1 %",
        "time",
        "saved by freezing",
    ];
    let mut out = String::from("<div class=\"wide\"><table>\n<thead><tr>");
    for head in heads {
        out += &format!("<th scope=\"col\">{head}</th>");
    }
    out += "</tr></thead>\n<tbody>\n";
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
            result
                .and_then(|r| r.saved)
                .map_or_else(none, |s| percent(s / 100.0)),
        ];
        out += "<tr>";
        for cell in cells {
            out += &format!("<td>{}</td>", escaped(&cell));
        }
        out += "</tr>\n";
    }
    out + "</tbody></table></div>\n"
}

fn section(run: &RunRead) -> String {
    let mut out = format!("<section>\n<h2>{}</h2>\n", escaped(&run.name));
    let dir = run.dir.display().to_string();
    out += &format!("<p class=\"muted\">{}", escaped(&dir));
    if run.result.is_none() {
        out += "; not at its end";
    }
    out += "</p>\n";
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
        out += &format!("<h3>Training</h3>\n{}", svg.document());
    }
    if let Some(svg) = charts::phases(run) {
        out += &format!("<h3>Where the time went</h3>\n{}", svg.document());
    }
    if let Some(url) = &run.confusion {
        out += &format!(
            "<h3>Confusion</h3>\n<img alt=\"Confusion matrix of {}: which class was taken for which\" src=\"{url}\">\n",
            escaped(&run.name)
        );
    }
    if let Some(result) = &run.result {
        let versions = result.versions.iter();
        let versions: Vec<String> = versions.map(|(name, v)| format!("{name} {v}")).collect();
        out += &format!("<p class=\"muted\">{}</p>\n", escaped(&versions.join(", ")));
    }
    out + "</section>\n"
}

/// Text whose lines stay lines.
fn lines_escaped(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(escaped).collect();
    lines.join("\n")
}
