//! What the names of variables tell: numbered blocks, prefixes, an order.
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// Whether a variable of this name is one that the forward pass updates itself: the running statistics of a BatchNorm.
pub fn is_buffer(name: &str) -> bool {
    name.ends_with("running_mean") || name.ends_with("running_var")
}

/// Whether `prefix` is the name or a whole-component beginning of it.
pub fn is_under(name: &str, prefix: &str) -> bool {
    let rest = name.strip_prefix(prefix.trim_end_matches('.'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The numbers instead of `{i}`, ascending.
pub fn numbers<'a>(
    names: impl Iterator<Item = &'a String>,
    before: &str,
    after: &str,
) -> BTreeSet<usize> {
    let number = |name: &String| -> Option<usize> {
        let rest = name.strip_prefix(before)?;
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: usize = rest[..digits].parse().ok()?;
        is_under(name, &format!("{before}{number}{after}")).then_some(number)
    };
    names.filter_map(number).collect()
}

/// First two components of the names, once each: what there is to choose from.
pub fn heads<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let head = |name: &String| {
        let parts: Vec<&str> = name.splitn(3, '.').take(2).collect();
        parts.join(".")
    };
    let heads: BTreeSet<String> = names.map(head).collect();
    heads.into_iter().collect()
}

/// `encoder.layer.3` of `encoder.layer.3.attention.weight`: up to the first component that is a number.
pub fn block_of(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let at = (parts.iter()).position(|p| p.bytes().all(|b| b.is_ascii_digit()))?;
    (at + 1 < parts.len()).then(|| parts[..=at].join("."))
}

/// `fc2` of `fc2.weight`: up to the first component that ends in a number.
pub fn numbered_word_of(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let numbered = |part: &&str| part.ends_with(|c: char| c.is_ascii_digit());
    let at = parts.iter().position(numbered)?;
    (at + 1 < parts.len()).then(|| parts[..=at].join("."))
}

/// The name with # for every run of digits.
pub fn pattern(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        match c.is_ascii_digit() {
            true if out.ends_with('#') => {}
            true => out.push('#'),
            false => out.push(c),
        }
    }
    out
}

/// Orders names with their numbers as numbers: `fc2` before `fc10`.
pub fn natural(a: &str, b: &str) -> Ordering {
    let key = |name: &str| -> Vec<(String, u64)> {
        let mut parts = vec![(String::new(), 0u64)];
        let mut in_number = false;
        for c in name.chars() {
            if let Some(digit) = c.to_digit(10) {
                let Some(last) = parts.last_mut() else {
                    continue;
                };
                last.1 = last.1.saturating_mul(10).saturating_add(u64::from(digit));
                in_number = true;
            } else {
                if in_number {
                    parts.push((String::new(), 0));
                    in_number = false;
                }
                if let Some(last) = parts.last_mut() {
                    last.0.push(c);
                }
            }
        }
        parts
    };
    key(a).cmp(&key(b))
}

/// Whether a name outside the blocks looks like something before them.
pub fn is_stem(name: &str) -> bool {
    name.split('.').any(|part| {
        (part.contains("embed") || part.ends_with("_token") || part.contains("pre_layernorm"))
            && !part.contains("mask")
            || [
                "stem",
                "conv_stem",
                "wte",
                "wpe",
                "norm_pre",
                "pre_layrnorm",
            ]
            .contains(&part)
            || ["conv1", "bn1", "conv0", "norm0"].contains(&part)
    })
}
