//! Well-known files that are no weights that can be read here, told by their first bytes: what it is and what to do.
use super::table::Source;

/// What a file is that is neither safetensors nor written by torch.save.
pub(super) fn told(source: &Source) -> Option<&'static str> {
    let mut start = vec![0; usize::try_from(source.length.min(512)).unwrap_or(512)];
    source.read_at(&mut start, 0).ok()?;
    let mut end = [0; 8];
    let _ = source.read_at(&mut end, source.length.saturating_sub(8));
    let name = source.path.file_name()?.to_string_lossy().to_lowercase();
    of_start(&start).or_else(|| of_place(&name, &start, end))
}

fn of_start(start: &[u8]) -> Option<&'static str> {
    let is = |magic: &[u8]| start.starts_with(magic);
    let text = start.trim_ascii_start().to_ascii_lowercase();
    Some(match () {
        () if start.is_empty() => "is empty; the download may have failed: fetch it again",
        () if is(b"version https://git-lfs") => {
            "a Git LFS pointer, not the weights themselves; fetch these with 'git lfs pull', or download the file from its page"
        }
        () if text.starts_with(b"<!doctype html") || text.starts_with(b"<html") => {
            "an HTML page, not weights: a login or an error page was saved; open the address in a browser and download the file itself"
        }
        () if is(b"\x1f\x8b") => "compressed with gzip; unpack it first (gunzip, or tar -xzf)",
        () if is(b"BZh") => "compressed with bzip2; unpack it first (bunzip2, or tar -xjf)",
        () if is(b"\xfd7zXZ\0") => "compressed with xz; unpack it first (unxz, or tar -xJf)",
        () if is(b"\x28\xb5\x2f\xfd") => "compressed with zstd; unpack it first (unzstd)",
        () if is(b"7z\xbc\xaf\x27\x1c") || is(b"Rar!") => {
            "a 7z or RAR archive; unpack it first and give the file inside"
        }
        () if start.get(257..262) == Some(b"ustar") => {
            "a tar archive; unpack it first (tar -xf) and give the file inside"
        }
        () if is(b"GGUF") || is(b"GGML") => {
            "GGUF, a format of llama.cpp, which is not read; take the model's safetensors or PyTorch file"
        }
        () if is(b"\x89HDF\r\n\x1a\n") => {
            "HDF5, weights of Keras or TensorFlow, which are not read; take the model's safetensors or PyTorch file"
        }
        () if is(b"\x93NUMPY") => {
            "a NumPy array; save tensors by their names with safetensors.numpy.save_file"
        }
        () => return None,
    })
}

/// Formats whose first bytes alone say too little.
fn of_place(name: &str, start: &[u8], end: [u8; 8]) -> Option<&'static str> {
    let first = start.first().copied().unwrap_or_default();
    let onnx = first == 8 && start.get(2) == Some(&0x12);
    // The end of the table that TensorFlow writes.
    let table = end == 0xdb47_7524_8b80_fb57_u64.to_le_bytes();
    Some(match () {
        () if table || name.contains(".data-0000") || name.ends_with("saved_model.pb") => {
            "a TensorFlow checkpoint, which is not read; take the model's safetensors or PyTorch file"
        }
        () if onnx || name.ends_with(".onnx") => {
            "ONNX, which is not read; take the model's safetensors or PyTorch file"
        }
        () if name.ends_with(".msgpack")
            || (!name.ends_with(".safetensors") && matches!(first, 0x81..=0x8f | 0xde | 0xdf)) =>
        {
            "msgpack, weights of Flax, which are not read; take the model's safetensors or PyTorch file"
        }
        () if start.starts_with(b"\x80\x02}") || start.starts_with(b"\x80\x02c") || name == "data.pkl" => {
            "a plain pickle without the numbers of its tensors; if it is the data.pkl of a .pth file that was unpacked, download that again and leave it packed"
        }
        () if first == b'{' || first == b'[' => {
            "a text in JSON, not weights; give the weights beside it, or its folder"
        }
        () if start.iter().all(|&byte| byte == 0) => {
            "begins with zeros: a download that was not finished; fetch it again"
        }
        () if is_text(start) => {
            "a text, not weights; if it is a server's answer, such as an error, download the file again"
        }
        () => return None,
    })
}

/// Whether these bytes can be read; a character may be cut off at their end.
fn is_text(start: &[u8]) -> bool {
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(e) if e.error_len().is_some() => return false,
        Err(e) => std::str::from_utf8(&start[..e.valid_up_to()]).unwrap_or_default(),
    };
    text.chars().all(|c| !c.is_control() || c.is_whitespace())
}

/// What a zip archive with these files in it is, where torch.save did not write it.
pub(super) fn of_archive(names: &[String]) -> Option<&'static str> {
    let last = |name: &str| name.rsplit('/').next().map(str::to_owned);
    let has = |file: &str| names.iter().any(|name| last(name).as_deref() == Some(file));
    if has("constants.pkl") {
        return Some("a TorchScript archive, a program with its weights; save these alone: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')");
    }
    if has("model.weights.h5") {
        return Some(
            "an archive of Keras, which is not read; take the model's safetensors or PyTorch file",
        );
    }
    if has("data.pkl") {
        return None;
    }
    if has("model.safetensors") || has("pytorch_model.bin") {
        return Some("a zip archive with weights in it; unpack it and give the folder");
    }
    let arrays = names.iter().any(|name| name.ends_with(".npy"));
    arrays.then_some(
        "NumPy's .npz (weights of JAX, such as Google's), which is not read; load it with timm and save the state_dict: torch.save(model.state_dict(), 'weights.pth')",
    )
}
