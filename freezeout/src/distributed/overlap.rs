//! Sums that run while the backward pass still computes.
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};

use candle_core::backprop::GradStore;
use candle_core::{Tensor, TensorId};

use super::reduce::{append, mean, receive};
use super::{agree, Begun, Communicator, Reduced, BUCKET_BYTES};
use crate::{Error, FreezeOut, Gradients};

/// What a backward pass shows each gradient to as soon as it is finished: the variable, the gradient.
pub type Seen = Box<dyn FnMut(&Tensor, &Tensor)>;

impl FreezeOut {
    /// [`FreezeOut::backward_by`], [`Gradients::add`] to the sum `before` of earlier micro-steps, and
    /// [`Gradients::all_reduce`] in one: gradients that `backward` shows (candle-vit's `ops::backward_seen` does) are on their
    /// way to the other ranks while it computes those of the layers before. What it did not show, or shows in parts (a weight
    /// that is used twice), is reduced afterwards. [`Reduced::seconds`] counts only what this thread did and waited for.
    ///
    /// A policy needs [`FreezeOut::with_reduced_gradients`], and [`FreezeOut::observe`] afterwards. Until it returns, all gradients are in memory twice.
    ///
    /// # Errors
    /// As those three.
    pub fn backward_reduced(
        &mut self,
        loss: &Tensor,
        before: Option<Gradients>,
        ranks: &Rc<dyn Communicator>,
        backward: impl FnOnce(&Tensor, Seen) -> candle_core::Result<GradStore>,
    ) -> Result<(Gradients, Reduced), Error> {
        self.reduced_alone()?;
        let before = before.unwrap_or_default();
        if ranks.size() == 1 {
            let grads = self.backward_by(loss, |loss| backward(loss, Box::new(|_, _| {})))?;
            return Ok((before.plus(grads)?, Reduced::default()));
        }
        let start = Instant::now();
        let live = self.live().map(|(name, _, var)| (name, var.elem_count()));
        agree("live variables", live, ranks.as_ref())?;
        let agreed = start.elapsed();
        let names = self
            .live()
            .map(|(name, _, var)| (var.id(), name.to_owned()));
        let on_way = Rc::new(RefCell::new(OnWay {
            ranks: ranks.clone(),
            names: names.collect(),
            before,
            filling: Bucket::default(),
            sent: Vec::new(),
            error: None,
            spent: agreed,
        }));
        let seen = on_way.clone();
        let see = move |var: &Tensor, grad: &Tensor| seen.borrow_mut().see(var, grad);
        let grads = self.backward_by(loss, |loss| backward(loss, Box::new(see)));
        // A GPU computes on when the backward pass returns: that is no communication.
        let grads = grads.and_then(|grads| {
            loss.device().synchronize()?;
            Ok(grads)
        });
        let start = Instant::now();
        let mut on_way = on_way.replace(OnWay::nothing(ranks.clone()));
        let spent = on_way.spent;
        let grads = match (grads, on_way.error.take()) {
            (Ok(grads), None) => grads,
            (Err(error), _) | (_, Some(error)) => return Err(on_way.give_up(error)),
        };
        let (grads, bytes) = on_way.finish(grads)?;
        let seconds = (spent + start.elapsed()).as_secs_f64();
        Ok((grads, Reduced { bytes, seconds }))
    }
}

/// The values of some gradients, and what is to become of them.
#[derive(Default)]
struct Bucket {
    values: Vec<f32>,
    /// The variable, and the gradient as it was shown.
    of: Vec<(String, Tensor)>,
}

struct OnWay {
    ranks: Rc<dyn Communicator>,
    names: HashMap<TensorId, String>,
    before: Gradients,
    filling: Bucket,
    sent: Vec<(Begun, Vec<(String, Tensor)>)>,
    /// What went wrong when a gradient was shown.
    error: Option<Error>,
    spent: Duration,
}

impl OnWay {
    fn nothing(ranks: Rc<dyn Communicator>) -> Self {
        Self {
            ranks,
            names: HashMap::new(),
            before: Gradients::default(),
            filling: Bucket::default(),
            sent: Vec::new(),
            error: None,
            spent: Duration::ZERO,
        }
    }

    fn see(&mut self, var: &Tensor, grad: &Tensor) {
        let start = Instant::now();
        if self.error.is_none() {
            self.error = self.take(var, grad).err();
        }
        self.spent += start.elapsed();
    }

    fn take(&mut self, var: &Tensor, grad: &Tensor) -> Result<(), Error> {
        // Those on a GPU go there, all together, afterwards.
        if !grad.device().is_cpu() {
            return Ok(());
        }
        // A second part of the same gradient: too late, see `finish`.
        let Some(name) = self.names.remove(&var.id()) else {
            return Ok(());
        };
        let held = 4 * (self.filling.values.len() + grad.elem_count());
        if held > BUCKET_BYTES {
            self.send()?;
        }
        match self.before.get(&name) {
            Some(before) => append(&mut self.filling.values, &(before + grad)?)?,
            None => append(&mut self.filling.values, grad)?,
        }
        self.filling.of.push((name, grad.clone()));
        Ok(())
    }

    fn send(&mut self) -> Result<(), Error> {
        let Bucket { values, of } = std::mem::take(&mut self.filling);
        if !of.is_empty() {
            self.sent.push((self.ranks.begin(values)?, of));
        }
        Ok(())
    }

    /// Takes back what was sent, so that nobody gets it instead of something else.
    fn give_up(self, error: Error) -> Error {
        for (begun, _) in self.sent {
            if self.ranks.finish(begun).is_err() {
                break;
            }
        }
        error
    }

    /// The means, and how many bytes went.
    fn finish(mut self, mut grads: Gradients) -> Result<(Gradients, usize), Error> {
        self.send()?;
        let (mut means, mut bytes) = (BTreeMap::new(), 0);
        let ranks = self.ranks.as_ref();
        for (begun, of) in std::mem::take(&mut self.sent) {
            let count = of.iter().map(|(_, grad)| grad.elem_count()).sum();
            let sums = receive(begun, count, ranks)?;
            bytes += size_of_val(&sums[..]);
            let mut rest = &sums[..];
            for (name, seen) in of {
                let (sum, after) = rest.split_at(seen.elem_count());
                rest = after;
                // Another tensor: more was added to the gradient after it was shown.
                if grads.get(&name).is_some_and(|grad| grad.id() == seen.id()) {
                    means.insert(name, mean(sum, ranks, &seen)?);
                }
            }
        }
        grads.retain(|name| !means.contains_key(name));
        self.before.retain(|name| !means.contains_key(name));
        let mut grads = self.before.plus(grads)?;
        bytes += grads.all_reduce(ranks)?.bytes;
        grads.extend(means);
        Ok((grads, bytes))
    }
}
