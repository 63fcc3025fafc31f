//! What the model makes of a few images while it trains, for the report and TensorBoard.
use std::collections::BTreeMap;

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use candle_nn::VarBuilder;

use super::Run;
use crate::commands::eval::confusion;
use crate::console::note;
use crate::draw;
use crate::run::folder::SEEN;
use crate::run::report::Report;
use crate::train::Task;

/// About so many times in a run, and at its end.
const TIMES: usize = 6;

impl<T: Task> Run<T> {
    /// After some epochs the first worker draws, from the weights as they are; that it fails is told, and stops nothing.
    pub fn look(&mut self, report: &Report) {
        let (done, epochs) = (self.steps.epoch(self.step), self.training().epochs);
        let due = done.is_multiple_of(epochs.div_ceil(TIMES)) || done == epochs;
        if !due || !self.steps.ends_epoch(self.step) || !self.machine.workers.first() {
            return;
        }
        let tell = |what: &str, error| {
            let text = format!("note: {what}: {error:#}");
            report.pause(|| note(vit::printable(&text)));
        };
        if let Err(error) = self.draw_look(done) {
            tell("the model's predictions are not drawn", error);
        }
        if let Err(error) = self.log_weights() {
            tell("no histograms of the weights", error);
        }
    }

    fn draw_look(&mut self, epochs: usize) -> Result<()> {
        // Plain tensors: no graph, and nothing of what trains is touched.
        let weights = freezeout::checkpoint::weights(&self.freeze);
        let weights = weights.into_iter().collect();
        let vars = VarBuilder::from_tensors(weights, DType::F32, &self.machine.device);
        // At the size of the run's end, so that all pictures are of the same images.
        let model = self.task.model(vars, self.steps.total())?;
        let step = self.step.saturating_sub(1);
        let dir = self.dir.join(SEEN);
        for picture in self.task.look(&model, epochs, self.freeze.frozen())? {
            // Of a run's folder that is gone nothing is made anew.
            if !dir.is_dir() {
                let at = || format!("cannot make {}", dir.display());
                std::fs::create_dir(&dir).with_context(at)?;
            }
            let png = draw::png(&picture.svg)?;
            vit::write_atomic(&dir.join(format!("{}.png", picture.file)), &png)?;
            if let Some(events) = &mut self.events {
                events.image(&format!("{SEEN}/{}", picture.tag), step, &png)?;
            }
        }
        Ok(())
    }

    /// Which class was taken for which at the best evaluation; of several workers each has counted a part.
    pub(super) fn draw_confusion(&mut self) {
        let workers = &self.machine.workers;
        let (Some(cells), true) = (self.confused.take(), workers.size() == 1) else {
            return;
        };
        let picture = confusion::draw(&self.task.classes(), &cells);
        if let Err(error) = draw::save(&self.dir.join("confusion.png"), &picture) {
            note(vit::printable(&format!("note: {error:#}")));
        }
    }

    /// The weights of each layer as a histogram, where that was asked for.
    fn log_weights(&mut self) -> Result<()> {
        let wanted = self.training().histograms;
        let Some(events) = self.events.as_mut().filter(|_| wanted) else {
            return Ok(());
        };
        let mut layers: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for (name, tensor) in freezeout::checkpoint::weights(&self.freeze) {
            let layer = match self.task.layer_of(&name) {
                Some(layer) => format!("weights/layer_{layer:02}"),
                None => "weights/in_no_layer".to_owned(),
            };
            let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
            let values = tensor.flatten_all()?.to_vec1::<f32>()?;
            layers.entry(layer).or_default().extend(values);
        }
        for (layer, values) in layers {
            events.histogram(&layer, self.step.saturating_sub(1), &values)?;
        }
        events.flush()
    }
}
