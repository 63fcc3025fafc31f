//! Everything that can go wrong in this crate.
use std::fmt;
use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Sizes that do not fit together.
    #[error("{}", printable(_0))]
    Config(String),
    /// A file could not be written.
    #[error("cannot write {}", printable(&format!("{}: {reason}", path.display())))]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file could not be read.
    #[error("cannot read {}", printable(&format!("{}: {reason}", path.display())))]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor of a file cannot be used.
    #[error("{}", printable(&format!("{}: tensor '{}' {reason}", path.display(), shown(tensor))))]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The tensors of a checkpoint are not those that its architecture needs.
    #[error("{0}")]
    Mismatch(Box<Mismatch>),
    /// A checkpoint whose architecture cannot be told.
    #[error("{}", printable(&format!("{origin}: {reason}")))]
    Unknown {
        /// File, folder or repository.
        origin: String,
        /// What cannot be told, and what to do.
        reason: String,
    },
    /// An architecture that a layout cannot express.
    #[error("cannot be saved in the {layout} layout: {reason}")]
    Layout {
        /// `timm` or `hf`.
        layout: &'static str,
        /// What it lacks.
        reason: String,
    },
    /// Something could not be fetched from the Hub.
    #[error("hf://{}", printable(&format!("{repo}: {reason}")))]
    Hub {
        /// Organisation, name, revision, file.
        repo: String,
        /// What went wrong, and what to do.
        reason: String,
    },
    /// An error of candle.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// All differences between the tensors that an architecture needs and those that a checkpoint has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// File, folder or repository.
    pub origin: String,
    /// Needed, not there (timm's names).
    pub missing: Vec<String>,
    /// There, not needed (the checkpoint's names).
    pub unexpected: Vec<String>,
    /// (name, shape there, shape needed).
    pub misshaped: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl Mismatch {
    pub(crate) fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshaped.is_empty()
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let shapes = self
            .misshaped
            .iter()
            .map(|(name, has, needs)| format!("{name} {has:?} instead of {needs:?}"));
        let lists = [
            ("missing", self.missing.clone()),
            ("unexpected", self.unexpected.clone()),
            ("of another shape", shapes.collect()),
        ];
        write!(f, "{}: the tensors do not fit", printable(&self.origin))?;
        for (what, names) in lists.iter().filter(|(_, names)| !names.is_empty()) {
            write!(f, "; {} {what}: {}", names.len(), printable(&some(names)))?;
        }
        f.write_str(&look_alikes(self.unexpected.iter()))
    }
}

/// A text from outside (names of tensors, classes, files) as one line that is safe to print: characters that steer a
/// terminal or hide others come as escapes.
pub fn printable(text: &str) -> String {
    let hides = |c| {
        matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
    };
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() || hides(c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    out
}

/// Longest name that is shown whole. A table with columns as wide as its names must stay one.
const MAX_SHOWN: usize = 100;

/// A name from outside as [`printable`] has it, and no longer than a line is wide.
pub fn shown(name: &str) -> String {
    let length = name.chars().count();
    if length <= MAX_SHOWN {
        return printable(name);
    }
    let start: String = name.chars().take(MAX_SHOWN / 2).collect();
    printable(&format!("{start}... ({length} characters)"))
}

/// What to say of tensors' names that only look like others. Those of all Vision Transformers are of ASCII without spaces,
/// so that any other character is one that a reader takes for none or for another: invisible, of another alphabet, an
/// accent in either of Unicode's forms.
pub(crate) fn look_alikes<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let strange = |name: &str| name.chars().find(|c| !c.is_ascii_graphic());
    let mut found = names.filter_map(|name| Some((name, strange(name)?)));
    let Some((name, c)) = found.next() else {
        return String::new();
    };
    let more = match found.count() {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    format!(
        "; '{}'{more} has U+{:04X}, a character that no ViT's tensors have, and may only look like a name that is missing: rename it",
        shown(name),
        u32::from(c)
    )
}

/// The first twelve names, and how many more there are.
pub(crate) fn some(names: &[String]) -> String {
    let first: Vec<String> = names.iter().take(12).map(|name| shown(name)).collect();
    let first = first.join(", ");
    match names.len().saturating_sub(12) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}
