//! One operand for many: candle's `CustomOp`s take at most three tensors.
//!
//! A bundle is a tree of nodes without content, each the result of an op on up to three parameters or smaller bundles. An op
//! that takes its root as an operand is thereby connected to all parameters. It computes their gradients itself and leaves them
//! in the bundle; candle's backward, which visits the nodes afterwards, fetches them there and hands them to the parameters.
use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

thread_local! {
    /// What [`backward`] has found on this thread, while it runs.
    static DIRECT: RefCell<Option<Direct>> = const { RefCell::new(None) };
}

/// What [`backward_seen`] shows variables and their gradients to.
pub type Seen = Box<dyn FnMut(&Tensor, &Tensor)>;

/// Gradients that do not go through candle.
struct Direct {
    /// Variables with their gradients.
    found: Vec<(Tensor, Tensor)>,
    /// Who is shown each at once.
    seen: Option<Seen>,
}

/// Candle's backward pass of `loss`; the gradients of a block's weights go straight into the result. Candle would first fill a
/// tensor with zeros for each of them and then add, on one thread: some 5 % of a training step. The gradients are candle's,
/// but for a zero's sign, and for the order of the sum where a variable is used more than twice.
///
/// # Errors
/// Those of candle's own.
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    run(loss, None)
}

/// The same, and shows `seen` each variable of a block with its gradient as soon as the block's backward pass is done, before
/// those of the blocks nearer to the input: to send it to other processes meanwhile. A variable that is used several times is
/// shown with the gradient of each use, and may have more in the result. `seen` must not run a backward pass.
///
/// # Errors
/// Those of candle's own.
pub fn backward_seen(loss: &Tensor, seen: Seen) -> Result<GradStore> {
    run(loss, Some(seen))
}

fn run(loss: &Tensor, seen: Option<Seen>) -> Result<GradStore> {
    // An outer pass that this one runs inside of gets its own back, also after a panic.
    struct Outer(Option<Direct>);
    impl Drop for Outer {
        fn drop(&mut self) {
            DIRECT.set(self.0.take());
        }
    }
    let found = Vec::new();
    let outer = Outer(DIRECT.replace(Some(Direct { found, seen })));
    let mut store = loss.backward()?;
    let direct = DIRECT.take().map_or_else(Vec::new, |direct| direct.found);
    drop(outer);
    for (variable, gradient) in direct {
        // It may have been used elsewhere too.
        let gradient = match store.remove(&variable) {
            Some(other) => (other + gradient)?,
            None => gradient,
        };
        store.insert(&variable, gradient);
    }
    Ok(store)
}

/// Gradients on their way, by the parameter's number.
#[derive(Clone, Default)]
pub(super) struct Gradients(Arc<Mutex<Vec<Option<Tensor>>>>);

impl Gradients {
    /// Leaves one for each parameter, `None` for those that are no variables.
    pub fn put(&self, gradients: Vec<Option<Tensor>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = gradients;
    }

    fn take(&self, number: usize) -> Option<Tensor> {
        let mut gradients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gradients.get_mut(number)?.take()
    }
}

/// The bundle of these parameters: (1), of value 0.
///
/// # Errors
/// An error of candle.
pub(super) fn bundle(parameters: &[&Tensor], gradients: &Gradients) -> Result<Tensor> {
    let mut nodes: Vec<Tensor> = Vec::with_capacity(parameters.len());
    for (i, parameter) in parameters.iter().enumerate() {
        // A parameter that is no variable needs no place in the tree.
        if parameter.track_op() {
            let leaf = Leaf {
                number: i,
                gradients: gradients.clone(),
            };
            nodes.push(parameter.apply_op1(leaf)?);
        }
    }
    while nodes.len() > 1 {
        nodes = nodes
            .chunks(3)
            .map(|nodes| match nodes {
                [a, b, c] => a.apply_op3(b, c, Knot),
                [a, b] => a.apply_op2(b, Knot),
                _ => Ok(nodes[0].clone()),
            })
            .collect::<Result<_>>()?;
    }
    match nodes.pop() {
        Some(root) => Ok(root),
        None => Tensor::zeros(1, candle_core::DType::F32, &candle_core::Device::Cpu),
    }
}

fn nothing() -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(vec![0.0]), Shape::from(1)))
}

/// From one parameter; its backward fetches the gradient.
struct Leaf {
    number: usize,
    gradients: Gradients,
}

impl CustomOp1 for Leaf {
    fn name(&self) -> &'static str {
        "parameter"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        nothing()
    }

    fn bwd(&self, parameter: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        let Some(gradient) = self.gradients.take(self.number) else {
            return Ok(None);
        };
        // What a parameter was computed from is candle's to find; a variable is the end of the way.
        Ok(DIRECT.with_borrow_mut(|direct| match direct {
            Some(direct) if parameter.is_variable() => {
                if let Some(seen) = &mut direct.seen {
                    seen(parameter, &gradient);
                }
                direct.found.push((parameter.clone(), gradient));
                None
            }
            _ => Some(gradient),
        }))
    }
}

/// From nodes to a node; its backward passes the visit on.
struct Knot;

impl CustomOp2 for Knot {
    fn name(&self) -> &'static str {
        "parameters"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        nothing()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        visit: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(visit.clone()), Some(visit.clone())))
    }
}

impl CustomOp3 for Knot {
    fn name(&self) -> &'static str {
        "parameters"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        nothing()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        visit: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let visit = || Some(visit.clone());
        Ok((visit(), visit(), visit()))
    }
}
