//! A model's variables, each with the layer that it belongs to.
use std::collections::{BTreeMap, HashMap};

use candle_core::{TensorId, Var};
use candle_nn::VarMap;

use crate::names::{block_of, heads, is_buffer, natural};
use crate::Error;

/// By name.
pub(crate) type Entries = BTreeMap<String, Entry>;

pub(crate) struct Entry {
    pub var: Var,
    pub layer: Option<usize>,
    /// Updated by the forward pass itself, not by gradients.
    pub buffer: bool,
}

impl Entry {
    pub fn is_frozen(&self, frozen: usize) -> bool {
        self.layer.is_some_and(|layer| layer < frozen)
    }
}

/// Those of `vars`, in so many layers.
///
/// # Errors
/// A layer beyond them or without any variable; one variable under two names.
pub(crate) fn entries(
    vars: &VarMap,
    layers: usize,
    layer_of: impl Fn(&str) -> Option<usize>,
) -> Result<Entries, Error> {
    let mut entries = BTreeMap::new();
    let mut seen = vec![false; layers];
    let mut unknown: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    let map = vars.data().lock().unwrap_or_else(|e| e.into_inner());
    for (name, var) in map.iter() {
        let buffer = is_buffer(name);
        let layer = if buffer { None } else { layer_of(name) };
        if let Some(layer) = layer {
            match seen.get_mut(layer) {
                Some(seen) => *seen = true,
                None => unknown.entry(layer).or_default().push(name.clone()),
            }
        }
        let var = var.clone();
        entries.insert(name.clone(), Entry { var, layer, buffer });
    }
    drop(map);
    let mut ids: HashMap<TensorId, &str> = HashMap::new();
    for (name, entry) in &entries {
        if let Some(other) = ids.insert(entry.var.id(), name) {
            return Err(Error::Layers(format!(
                "'{other}' and '{name}' are one and the same variable; keep one of the names in the VarMap"
            )));
        }
    }
    if let Some((layer, mut names)) = unknown.pop_first() {
        names.sort_by(|a, b| natural(a, b));
        let last = layers - 1;
        return Err(Error::UnknownLayer { names, layer, last });
    }
    let layers: Vec<usize> = (0..seen.len()).filter(|&layer| !seen[layer]).collect();
    if !layers.is_empty() {
        let names = heads(entries.keys());
        return Err(Error::EmptyLayers { layers, names });
    }
    Ok(entries)
}

/// Variables and layers of numbered blocks, in order of the numbers.
type Blocks<'a> = BTreeMap<usize, Vec<(&'a str, usize)>>;

/// Numbered blocks of one container must have rising layers.
pub(crate) fn in_order(entries: &Entries) -> Result<(), Error> {
    let mut containers: BTreeMap<&str, Blocks> = BTreeMap::new();
    for (name, entry) in entries {
        let (Some(block), Some(layer)) = (block_of(name), entry.layer) else {
            continue;
        };
        let digits = block.len() - block.rfind('.').map_or(0, |dot| dot + 1);
        let container = &name[..block.len() - digits];
        let Ok(number) = block[container.len()..].parse() else {
            continue;
        };
        let blocks = containers.entry(container).or_default();
        blocks.entry(number).or_default().push((name, layer));
    }
    for blocks in containers.values() {
        let mut highest: Option<(&str, usize)> = None;
        for variables in blocks.values() {
            for &(later, later_layer) in variables {
                if let Some((earlier, earlier_layer)) = highest.filter(|h| h.1 > later_layer) {
                    return Err(Error::OutOfOrder {
                        earlier: earlier.to_owned(),
                        earlier_layer,
                        later: later.to_owned(),
                        later_layer,
                    });
                }
            }
            let last = variables.iter().copied().max_by_key(|(_, layer)| *layer);
            highest = last.or(highest);
        }
    }
    Ok(())
}
