//! What the model makes of a few images while it trains, for the report and TensorBoard.
use anyhow::Result;
use candle_core::DType;
use candle_nn::VarBuilder;

use super::Run;
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
        if let Err(error) = self.draw_look(done) {
            let text = format!("note: the model's predictions are not drawn: {error:#}");
            report.pause(|| note(vit::printable(&text)));
        }
    }

    fn draw_look(&mut self, epochs: usize) -> Result<()> {
        // Plain tensors: no graph, and nothing of what trains is touched.
        let weights = freezeout::checkpoint::weights(&self.freeze);
        let weights = weights.into_iter().collect();
        let device = &self.machine.device;
        let model = self
            .task
            .model(VarBuilder::from_tensors(weights, DType::F32, device))?;
        let pictures = self.task.look(&model, epochs, self.freeze.frozen())?;
        for (name, picture) in pictures {
            let dir = self.dir.join(SEEN);
            std::fs::create_dir_all(&dir)?;
            let path = dir.join(format!("{name}.png"));
            draw::save(&path, &picture)?;
        }
        Ok(())
    }
}
