//! A document as Markdown and as one HTML page with its pictures in it, nothing to fetch.
use crate::commands::report::page::{begin, rows_of, END};
use crate::draw::svg::escaped;
use crate::draw::Svg;

pub struct Document {
    pub title: String,
    pub blocks: Vec<Block>,
}

pub enum Block {
    Heading(String),
    Text(String),
    Table(Table),
    /// On the page alone.
    Picture(Svg),
    /// On the page alone, behind its name.
    Folded(String, Svg),
}

pub struct Table {
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// Text and tables.
pub fn markdown(document: &Document) -> String {
    let cell = |text: &String| text.replace('|', "\\|");
    let row = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(cell).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let mut out = format!("# {}\n", document.title);
    for block in &document.blocks {
        match block {
            Block::Heading(text) => out += &format!("\n## {text}\n"),
            Block::Text(text) => out += &format!("\n{text}\n"),
            Block::Table(table) => {
                out += &format!("\n{}", row(&table.head));
                out += &format!("|{}\n", "---|".repeat(table.head.len()));
                table.rows.iter().for_each(|cells| out += &row(cells));
            }
            Block::Picture(_) | Block::Folded(..) => {}
        }
    }
    out
}

/// All of it.
pub fn html(document: &Document) -> String {
    let mut out = begin(&document.title);
    for block in &document.blocks {
        match block {
            Block::Heading(text) => out += &format!("<h2>{}</h2>\n", escaped(text)),
            Block::Text(text) => out += &format!("<p>{}</p>\n", escaped(text)),
            Block::Table(table) => out += &rows_of(&table.head, &table.rows),
            Block::Picture(svg) => out += &svg.document(),
            Block::Folded(name, svg) => {
                let (name, svg) = (escaped(name), svg.document());
                out += &format!("<details><summary>{name}</summary>\n{svg}</details>\n");
            }
        }
    }
    out + END
}
