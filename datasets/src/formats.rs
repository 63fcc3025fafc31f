//! Which files are taken for images, by their names. What they really hold is seen when they are decoded.

use std::path::Path;

/// What images end in that can be read.
pub(crate) const READ: [&str; 14] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "gif",
    "pnm",
];

/// What images end in that cannot be read; whoever has some should know that they are left out.
const NOT_READ: [&str; 23] = [
    "avif", "heic", "heif", "jp2", "j2k", "jpf", "jxl", "jxr", "svg", "psd", "ico", "tga", "exr",
    "hdr", "dcm", "dng", "cr2", "cr3", "nef", "arw", "raf", "orf", "rw2",
];

/// The last part of a file name, in small letters.
pub(crate) fn extension(path: &Path) -> String {
    let extension = path.extension().unwrap_or_default();
    extension.to_string_lossy().to_ascii_lowercase()
}

/// Whether this is what images end in.
pub(crate) fn is_image_ending(ending: &str) -> bool {
    READ.iter().any(|known| known.eq_ignore_ascii_case(ending))
}

/// Whether a file is an image, by its name.
pub(crate) fn is_image(path: &Path) -> bool {
    is_image_ending(&extension(path))
}

/// Whether a file is a NumPy array, by its name. It may be an image; beside images it is something else.
pub(crate) fn is_array(path: &Path) -> bool {
    extension(path) == "npy"
}

/// Whether a file is an image of a format that is not read, by its name.
pub(crate) fn is_unread_image(path: &Path) -> bool {
    NOT_READ.contains(&extension(path).as_str())
}

/// For messages: `.jpg, .png`.
pub(crate) fn listed() -> String {
    READ.map(|x| format!(".{x}")).join(", ")
}
