//! The charts' numbers as a table, for everyone who cannot see the charts or wants exact values.
use super::read::RunRead;
use crate::console::counted;
use crate::run::metrics::{median, Row};

/// Lines of the table: so many stretches of steps.
const LINES: usize = 12;

/// HTML; empty for a run without steps.
pub fn table(run: &RunRead) -> String {
    if run.steps.is_empty() {
        return String::new();
    }
    let stages = run.steps.iter().map(|row| row.stage_losses.len()).max();
    let stages = stages.unwrap_or(0);
    let mut heads = vec!["steps".to_owned(), "frozen".into()];
    let grows = run.steps.iter().any(|row| row.image_size.is_some());
    if grows {
        heads.push("px".into());
    }
    heads.extend(["s/step".into(), "images/s".into()]);
    match stages {
        0 => heads.push("loss".into()),
        _ => heads.extend((0..stages).map(|k| format!("loss {k}"))),
    }
    if !run.evaluations.is_empty() {
        heads.push("top-1 %".into());
    }
    let mut out = format!(
        "<details><summary>The same as numbers: medians over {}</summary>\n<div class=\"wide\"><table>\n<thead><tr>",
        counted(run.steps.len().div_ceil(LINES), "step")
    );
    for head in heads {
        out += &format!("<th scope=\"col\">{head}</th>");
    }
    out += "</tr></thead>\n<tbody>\n";
    for rows in run.steps.chunks(run.steps.len().div_ceil(LINES)) {
        let (first, last) = (&rows[0], &rows[rows.len() - 1]);
        let of = |value: &dyn Fn(&Row) -> Option<f64>| median(rows.iter().filter_map(value));
        let number = |x: Option<f64>, digits: usize| match x {
            Some(x) => format!("{x:.digits$}"),
            None => "\u{2013}".into(),
        };
        let range = |from: usize, to: usize| match from == to {
            true => to.to_string(),
            false => format!("{from}\u{2013}{to}"),
        };
        let mut cells = vec![
            format!("{}\u{2013}{}", first.step + 1, last.step + 1),
            range(first.frozen, last.frozen),
        ];
        if grows {
            let size = |row: &Row| row.image_size.unwrap_or_default();
            cells.push(range(size(first), size(last)));
        }
        cells.push(number(of(&|row| Some(row.seconds.total)), 3));
        cells.push(number(of(&|row| Some(row.images_per_second)), 1));
        match stages {
            0 => cells.push(number(of(&|row| Some(row.loss)), 4)),
            _ => cells.extend((0..stages).map(|k| {
                let loss = |row: &Row| row.stage_losses.get(k).copied().flatten();
                number(of(&loss), 4)
            })),
        }
        if !run.evaluations.is_empty() {
            let within = |e: &&(usize, f64)| (first.step + 1..=last.step + 1).contains(&e.0);
            let latest = run.evaluations.iter().rfind(within);
            cells.push(number(latest.map(|e| e.1), 2));
        }
        out += "<tr>";
        for cell in cells {
            out += &format!("<td>{cell}</td>");
        }
        out += "</tr>\n";
    }
    out + "</tbody></table></div></details>\n"
}
