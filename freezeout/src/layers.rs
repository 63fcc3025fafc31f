//! Which layer a variable belongs to, from its name.
use std::collections::BTreeMap;
use std::fmt;

use candle_nn::VarMap;

use crate::error::list;
use crate::names::{
    block_of, heads, is_buffer, is_stem, is_under, natural, numbered_word_of, numbers, pattern,
};
use crate::Error;

/// The layers of a model, from input to output, made from the names of its variables. Every variable is in one layer, or
/// explicitly in none.
///
/// Print it and look before you train:
///
/// ```
/// # use candle_core::{DType, Device};
/// # use candle_nn::{linear, VarBuilder, VarMap};
/// # use freezeout::{FreezeOut, Layers, Schedule};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let vars = VarMap::new();
/// # let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// # for name in ["embed", "blocks.0.fc", "blocks.1.fc", "blocks.2.fc", "norm", "head"] { linear(2, 2, vb.pp(name))?; }
/// let layers = Layers::of(&vars)
///     .layer(&["embed"])        // layer 0: everything whose name starts with the component `embed`
///     .blocks("blocks.{i}")     // layers 1, 2, 3
///     .leave_out(&["norm", "head"]) // in no layer: trains to the end
///     .build()?;
/// println!("{layers}");
/// let freeze = FreezeOut::with_layers(&vars, Schedule::cubic(0.8, layers.len(), 1000), &layers)?;
/// # assert_eq!(layers.len(), 4);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Layers {
    labels: Vec<String>,
    /// Name -> (layer, number of elements).
    variables: BTreeMap<String, (Option<usize>, usize)>,
}

impl Layers {
    /// Starts a description of the layers, from input to output.
    pub fn of(vars: &VarMap) -> LayersBuilder {
        LayersBuilder {
            names: names(vars),
            groups: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// Guesses the layers from the names: the numbered blocks with the most weights (`blocks.{i}`, `encoder.layer.{i}`,
    /// `layer1.{i}` to `layer4.{i}`, `fc{i}`, ...) in numeric order, before them one layer of everything that looks like an
    /// embedding or a stem. The rest (norms, heads, decoders) is in no layer. A guess: print it and review it. Networks that
    /// have other numbered modules between the blocks (the downsampling layers of ConvNeXt, the transitions of DenseNet) must be
    /// described with [`Layers::of`].
    ///
    /// # Errors
    /// [`Error::Layers`] if no name is numbered, or if two kinds of blocks could be the trunk (encoder and decoder, two towers).
    pub fn infer(vars: &VarMap) -> Result<Self, Error> {
        let mut names = names(vars);
        names.retain(|name, _| !is_buffer(name));
        // Pattern of a block (its name with # for numbers) -> elements in it.
        let mut patterns: BTreeMap<String, usize> = BTreeMap::new();
        for numbered in [block_of, numbered_word_of] as [fn(&str) -> Option<String>; 2] {
            for (name, elements) in &names {
                if let Some(block) = numbered(name) {
                    *patterns.entry(pattern(&block)).or_default() += elements;
                }
            }
            let largest = patterns.iter().max_by_key(|(_, elements)| **elements);
            let Some((trunk, _)) = largest else {
                continue;
            };
            for (other, elements) in &patterns {
                let rival = 4 * elements >= patterns[trunk] && !other.contains("decoder");
                let encoder = trunk.contains("decoder") && other.contains("encoder");
                if other != trunk && (rival || encoder) {
                    return Err(Error::Layers(format!(
                        "both '{trunk}' and '{other}' could be the trunk (# = a number); describe the layers with Layers::of"
                    )));
                }
            }
            let mut blocks: Vec<String> = names.keys().filter_map(|n| numbered(n)).collect();
            blocks.retain(|block| pattern(block) == *trunk);
            blocks.sort_by(|a, b| natural(a, b));
            blocks.dedup();
            let decoder = trunk.contains("decoder");
            let is_stem = |name: &str| is_stem(name) && (decoder || !name.contains("decoder"));
            let in_trunk = |n: &str| numbered(n).is_some_and(|b| pattern(&b) == *trunk);
            let module = |name: &String| {
                let cut = [".weight", ".bias"]
                    .iter()
                    .find_map(|end| name.strip_suffix(end));
                cut.unwrap_or(name).to_owned()
            };
            let mut stem: Vec<String> = (names.keys().filter(|n| !in_trunk(n) && is_stem(n)))
                .map(module)
                .collect();
            stem.dedup();
            let rest: Vec<String> = (names.keys().filter(|n| !in_trunk(n) && !is_stem(n)))
                .cloned()
                .collect();
            let mut builder = Self::of(vars);
            if !stem.is_empty() {
                builder.groups.push(Group::Prefixes(stem));
            }
            for block in blocks {
                builder.groups.push(Group::Prefixes(vec![block]));
            }
            builder.left_out = rest;
            return builder.build();
        }
        let names: Vec<String> = names.into_keys().collect();
        Err(Error::Layers(format!(
            "none of the {} variables ({}) has a numbered name; describe the layers with Layers::of",
            names.len(),
            list(&names)
        )))
    }

    /// Number of layers.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// What a layer holds, in short: its prefixes.
    pub fn label(&self, layer: usize) -> Option<&str> {
        self.labels.get(layer).map(String::as_str)
    }

    /// The layer of a variable; `None` if it is in none.
    pub fn layer_of(&self, name: &str) -> Option<usize> {
        self.variables.get(name)?.0
    }

    pub(crate) fn knows(&self, name: &str) -> bool {
        self.variables.contains_key(name)
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: Vec<(String, &str, usize, usize)> = Vec::new();
        for (layer, label) in self.labels.iter().enumerate() {
            rows.push((layer.to_string(), label, 0, 0));
        }
        let mut outside = Vec::new();
        let last = rows.len();
        rows.push(("-".into(), "", 0, 0));
        for (name, (layer, elements)) in &self.variables {
            let row = &mut rows[layer.unwrap_or(last)];
            row.2 += 1;
            row.3 += elements;
            if layer.is_none() {
                outside.push(name.clone());
            }
        }
        let outside = list(&outside);
        rows[last].1 = &outside;
        writeln!(f, "layer  variables    elements  names")?;
        for (layer, label, variables, elements) in &rows {
            if *variables > 0 {
                writeln!(f, "{layer:>5}  {variables:>9}  {elements:>10}  {label}")?;
            }
        }
        if rows[last].2 > 0 {
            writeln!(f, "    -  in no layer: trains to the end")?;
        }
        Ok(())
    }
}

/// Describes layers from input to output; made by [`Layers::of`].
#[derive(Debug)]
#[must_use = "call build()"]
pub struct LayersBuilder {
    names: BTreeMap<String, usize>,
    groups: Vec<Group>,
    left_out: Vec<String>,
}

#[derive(Debug)]
enum Group {
    Prefixes(Vec<String>),
    /// Text before and after `{i}`.
    Blocks(String, String),
    Malformed(String),
}

impl LayersBuilder {
    /// The next layer: all variables under one of these prefixes. `blocks.1` does not take `blocks.10.weight`.
    pub fn layer(mut self, prefixes: &[&str]) -> Self {
        let prefixes = prefixes.iter().map(|p| (*p).to_owned()).collect();
        self.groups.push(Group::Prefixes(prefixes));
        self
    }

    /// One layer for each number that stands instead of `{i}`, in numeric order: `blocks.{i}`, `encoder.layer.{i}`.
    pub fn blocks(mut self, pattern: &str) -> Self {
        self.groups.push(match pattern.split_once("{i}") {
            Some((before, after)) => Group::Blocks(before.into(), after.into()),
            None => Group::Malformed(pattern.into()),
        });
        self
    }

    /// Variables under these prefixes belong to no layer: they train to the end.
    pub fn leave_out(mut self, prefixes: &[&str]) -> Self {
        let prefixes = prefixes.iter().map(|p| (*p).to_owned());
        self.left_out.extend(prefixes);
        self
    }

    /// Assigns every variable.
    ///
    /// # Errors
    /// [`Error::Layers`]: a prefix or pattern that fits no variable, a variable that fits none or two; all are named.
    pub fn build(self) -> Result<Layers, Error> {
        let fail = |message: String| Err(Error::Layers(message));
        // (prefix, layer), in order of the layers.
        let mut rules: Vec<(String, Option<usize>)> = Vec::new();
        let mut labels = Vec::new();
        for group in &self.groups {
            match group {
                Group::Prefixes(prefixes) => {
                    let layer = labels.len();
                    rules.extend(prefixes.iter().map(|p| (p.clone(), Some(layer))));
                    labels.push(list(prefixes));
                }
                Group::Blocks(before, after) => {
                    let numbers = numbers(self.names.keys(), before, after);
                    if numbers.is_empty() {
                        return fail(format!(
                            "pattern '{before}{{i}}{after}' fits no variable; there are {}",
                            list(&heads(self.names.keys()))
                        ));
                    }
                    for number in numbers {
                        let prefix = format!("{before}{number}{after}");
                        rules.push((prefix.clone(), Some(labels.len())));
                        labels.push(prefix);
                    }
                }
                Group::Malformed(pattern) => {
                    return fail(format!(
                        "pattern '{pattern}' has no {{i}} where the block's number belongs"
                    ));
                }
            }
        }
        rules.extend(self.left_out.iter().map(|p| (p.clone(), None)));
        let mut used = vec![false; rules.len()];
        let (mut variables, mut uncovered) = (BTreeMap::new(), Vec::new());
        for (name, elements) in self.names.iter().filter(|(name, _)| !is_buffer(name)) {
            let fits = |(prefix, _): &&(String, Option<usize>)| is_under(name, prefix);
            let mut layer: Option<(Option<usize>, usize)> = None;
            for (i, rule) in rules.iter().enumerate().filter(|(_, rule)| fits(rule)) {
                used[i] = true;
                match layer {
                    Some((other, by)) if other != rule.1 => {
                        let (one, two) = (&rules[by].0, &rule.0);
                        return fail(format!("variable '{name}' fits both '{one}' and '{two}'"));
                    }
                    Some(_) => {}
                    None => layer = Some((rule.1, i)),
                }
            }
            match layer {
                Some((layer, _)) => {
                    variables.insert(name.clone(), (layer, *elements));
                }
                None => uncovered.push(name.clone()),
            }
        }
        if let Some(i) = used.iter().position(|used| !used) {
            return fail(format!(
                "prefix '{}' fits no variable; there are {}",
                rules[i].0,
                list(&heads(self.names.keys()))
            ));
        }
        if !uncovered.is_empty() {
            return fail(format!(
                "{} variable(s) in no layer: {}; put them into one, or leave_out() those that train to the end",
                uncovered.len(),
                list(&uncovered)
            ));
        }
        Ok(Layers { labels, variables })
    }
}

fn names(vars: &VarMap) -> BTreeMap<String, usize> {
    let map = vars.data().lock().unwrap_or_else(|e| e.into_inner());
    map.iter()
        .map(|(name, var)| (name.clone(), var.elem_count()))
        .collect()
}
