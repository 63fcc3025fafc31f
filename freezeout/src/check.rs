//! Whether freezing shrank the graph, and if not, which variables keep it alive.
use std::collections::{HashMap, HashSet};

use candle_core::{Tensor, TensorId};

use crate::entries::{Entries, Entry};
use crate::error::list;
use crate::Error;

/// Where warnings go.
pub(crate) type Handler = Box<dyn Fn(&str) + Send>;

/// Looks at the graph at the first backward pass after each change of the frozen set, and at the last before one that the
/// schedule announces; in between it costs nothing.
#[derive(Default)]
pub(crate) struct Check {
    pub off: bool,
    pub handler: Option<Handler>,
    /// The graph when the frozen set last changed.
    last: Option<(usize, Graph)>,
}

/// A graph in few numbers.
struct Graph {
    /// Recorded ops.
    ops: usize,
    /// Ops by the variable that follows next in topological order, which is, as a rule, the one that they belong to.
    ops_of: HashMap<TensorId, usize>,
    variables: HashSet<TensorId>,
}

impl Graph {
    fn of(loss: &Tensor) -> Self {
        let nodes = loss.sorted_nodes();
        let mut graph = Self {
            ops: 0,
            ops_of: HashMap::new(),
            variables: HashSet::new(),
        };
        let mut owner = None;
        for node in nodes.iter().rev() {
            if node.is_variable() {
                owner = Some(node.id());
                graph.variables.insert(node.id());
            } else {
                graph.ops += 1;
                if let Some(owner) = owner {
                    *graph.ops_of.entry(owner).or_default() += 1;
                }
            }
        }
        graph
    }
}

impl Check {
    /// `before_change`: the frozen set will change at the next step, so that this graph is what the next is compared with.
    pub fn graph(
        &mut self,
        loss: &Tensor,
        entries: &Entries,
        frozen: usize,
        before_change: bool,
    ) -> Result<(), Error> {
        let seen = self.last.as_ref().is_some_and(|last| last.0 == frozen);
        if self.off || (seen && !before_change) {
            return Ok(());
        }
        let graph = Graph::of(loss);
        let stale: Vec<String> = entries
            .iter()
            .filter(|(_, e)| e.is_frozen(frozen) && graph.variables.contains(&e.var.id()))
            .map(|(name, _)| name.clone())
            .collect();
        if !stale.is_empty() {
            return Err(Error::NotRebuilt(stale));
        }
        if let Some((before, old)) = &self.last {
            if let Some(warning) = unshrunk(entries, (*before, old), (frozen, &graph)) {
                match &self.handler {
                    Some(handler) => handler(&warning),
                    None => eprintln!("freezeout: warning: {warning}"),
                }
            }
        }
        self.last = Some((frozen, graph));
        Ok(())
    }
}

/// A warning, if much of what belonged to the newly frozen layers is still recorded.
///
/// A layer that is cut off takes all its ops with it. One that something live below keeps in the graph loses only the ops
/// that begin at its weights (a transposition, a broadcast), a minor part.
fn unshrunk(
    entries: &Entries,
    (before, old): (usize, &Graph),
    (now, new): (usize, &Graph),
) -> Option<String> {
    if now <= before {
        return None;
    }
    let is_new = |entry: &Entry| entry.is_frozen(now) && !entry.is_frozen(before);
    let ops = |graph: &Graph, id: TensorId| graph.ops_of.get(&id).copied().unwrap_or(0);
    let newly = entries.values().filter(|entry| is_new(entry));
    let expected: usize = newly.map(|entry| ops(old, entry.var.id())).sum();
    let gone = old.ops.saturating_sub(new.ops);
    if 10 * gone >= 7 * expected {
        return None;
    }
    // What remains of the frozen layers now belongs to what keeps it alive.
    let gained = |id: TensorId| ops(new, id) > ops(old, id);
    let mut ids: Vec<TensorId> = new
        .ops_of
        .keys()
        .copied()
        .filter(|&id| gained(id))
        .collect();
    let mut names = Vec::new();
    for (name, entry) in entries {
        let known = ids.len();
        ids.retain(|&id| id != entry.var.id());
        if ids.len() < known {
            names.push(name.clone());
        }
    }
    let culprit = match (names.is_empty(), ids.len()) {
        (false, _) => format!(
            "'{}' below the boundary still train(s): put it into the first layer, or detach its use",
            list(&names).replace(", ", "', '")
        ),
        (true, 0) => "layer_of does not follow the order from input to output".to_owned(),
        (true, n) => format!(
            "{n} variable(s) that FreezeOut does not know train below the boundary: make them before FreezeOut::new"
        ),
    };
    Some(format!(
        "freezing layers {before} to {} took {gone} of about {expected} ops out of the graph, so it saves next to nothing; {culprit}",
        now - 1
    ))
}
