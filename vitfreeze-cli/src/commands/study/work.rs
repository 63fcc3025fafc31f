//! Doing a run: as a child process of this program's own file. A run that crashes, or for which memory does not suffice, then
//! ends itself and not the study; ctrl-C reaches the study alone, which asks the run to finish its step.
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::lab::{done_text, Job, Lab, DONE};
use super::plan::{Derived, Judge};
use crate::commands::pretrain::config::Config;
use crate::console::{duration, note};
use crate::machine::interrupt;
use crate::run::checkpoint::Checkpoint;
use crate::run::folder::checkpoint_path;
use crate::run::metrics::Metrics;
use crate::settings::Settings as _;

const LOOK_EVERY: Duration = Duration::from_millis(20);
const LINE_EVERY: Duration = Duration::from_secs(120);
/// How long a process that an earlier study has left may take to notice that.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of a log, to find what went wrong.
const TAIL: u64 = 1 << 14;

/// How a run ended.
pub enum Ended {
    Done,
    Failed(String),
    /// Someone has asked the study to stop.
    Asked,
}

impl Lab {
    /// Does it, or goes on with it; `left` tells how many seconds all takes yet.
    pub fn work(&self, job: &Job, left: &dyn Fn() -> f64) -> Result<Ended> {
        let Some(dir) = self.dir_of(job)? else {
            return Ok(Ended::Failed(
                "the policy from whose time it follows has not run".into(),
            ));
        };
        let ended = match job.after {
            None => self.pretrain(job, &dir, left)?,
            Some(after) => {
                let after = &self.plan.afters[after];
                let pretraining = Job {
                    after: None,
                    ..*job
                };
                let of = self.dir_of(&pretraining)?.context("no pretraining")?;
                let mut args = vec![
                    OsString::from("--checkpoint"),
                    of.join("encoder.safetensors").into(),
                ];
                args.extend(after.flags.iter().map(OsString::from));
                if after.judge != Judge::Knn {
                    args.push(format!("--seed={}", job.seed).into());
                }
                self.run(after.judge.command(), &args, &[], &dir, left)?
            }
        };
        if let Ended::Done = ended {
            vit::write_atomic(&dir.join(DONE), done_text().as_bytes())?;
        }
        Ok(ended)
    }

    /// Pretraining. On its way it leaves the baselines that are a part of it, stopped early.
    fn pretrain(&self, job: &Job, dir: &Path, left: &dyn Fn() -> f64) -> Result<Ended> {
        let wanted = self.wanted(job.arm, job.seed)?.context("not known yet")?;
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let config = self.dir.join("logs").join(format!("{name}.toml"));
        vit::write_atomic(&config, wanted.config.to_toml()?.as_bytes())?;
        let args = [OsString::from("--config"), config.into()];
        let run = |until: Option<usize>| {
            let until: Vec<OsString> = until
                .map(|n| format!("--max-steps={n}").into())
                .into_iter()
                .collect();
            self.run("pretrain", &args, &until, dir, left)
        };
        let arm = self.arms[job.arm];
        if arm.derived.is_none() {
            let mut stops = Vec::new();
            for (other, parts) in self.arms.iter().enumerate() {
                let follows = parts.derived == Some(Derived::StopEarly)
                    && self.plan.variants[parts.variant].against == arm.variant;
                let part = Job {
                    arm: other,
                    seed: job.seed,
                    after: None,
                };
                if !follows || self.is_done(&part)? {
                    continue;
                }
                let stop = self.wanted(other, job.seed)?.and_then(|wanted| wanted.stop);
                stops.extend(stop.map(|stop| (stop, part)));
            }
            stops.sort_by_key(|(stop, _)| *stop);
            for (stop, part) in stops {
                // Beyond it already, in a session whose plan was another one: it becomes a run of its own.
                if steps_done(dir)? > stop || self.is_done(&part)? {
                    continue;
                }
                match run(Some(stop))? {
                    Ended::Done => self.keep(dir, &part)?,
                    other => return Ok(other),
                }
                if interrupt::asked() {
                    return Ok(Ended::Asked);
                }
            }
        }
        run(wanted.stop)
    }

    /// Copies what judges need of a run, as it is now, into the folder of the baseline that is a part of it.
    fn keep(&self, dir: &Path, part: &Job) -> Result<()> {
        let to = self.dir_of(part)?.context("not known yet")?;
        let new = to.with_file_name(".new");
        let _ = std::fs::remove_dir_all(&new);
        let copy = || -> std::io::Result<()> {
            std::fs::create_dir(&new)?;
            for file in [
                "encoder.safetensors",
                "config.toml",
                "result.json",
                "metrics.jsonl",
            ] {
                std::fs::copy(dir.join(file), new.join(file))?;
            }
            std::fs::write(new.join(DONE), done_text())?;
            let _ = std::fs::remove_dir_all(&to);
            std::fs::rename(&new, &to)
        };
        copy().with_context(|| format!("cannot keep {}", to.display()))
    }

    /// `vitfreeze COMMAND`, new or gone on with: `start` are a new one's arguments, `both` those of either.
    fn run(
        &self,
        command: &str,
        start: &[OsString],
        both: &[OsString],
        dir: &Path,
        left: &dyn Fn() -> f64,
    ) -> Result<Ended> {
        wait_for_others(dir)?;
        let mut args: Vec<OsString> = vec![command.into()];
        if checkpoint_path(dir).is_file() {
            args.extend(["--resume".into(), dir.into()]);
        } else {
            // What was killed before there was anything to go on from.
            if dir.exists() {
                std::fs::remove_dir_all(dir)
                    .with_context(|| format!("cannot remove {}", dir.display()))?;
            }
            args.extend(start.iter().cloned());
            args.extend(["--out".into(), dir.into()]);
        }
        args.extend(both.iter().cloned());
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let log = self.dir.join("logs").join(format!("{name}.log"));
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let before = out.metadata()?.len();
        let mut child = Command::new(own_program()?);
        child
            .args(&args)
            .env(interrupt::LED, "1")
            .stdin(Stdio::piped())
            .stderr(out.try_clone()?)
            .stdout(out);
        // Out of the terminal's reach: what ctrl-C means is the study's to say, once.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut child, 0);
        let mut child = child.spawn().context("cannot start a run")?;
        let mut says = child.stdin.take();
        let (started, mut asked) = (Instant::now(), false);
        let mut line = started;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if interrupt::asked() && !asked {
                asked = true;
                if let Some(says) = &mut says {
                    let _ = says.write_all(b".").and_then(|()| says.flush());
                }
            }
            if line.elapsed() >= LINE_EVERY {
                // This run is among those that are left.
                let left = left() - started.elapsed().as_secs_f64();
                note(format!("    the study's ETA: about {}", duration(left)));
                line = Instant::now();
            }
            sleep(LOOK_EVERY);
        };
        Ok(match status.success() {
            true => Ended::Done,
            false if interrupt::asked() => Ended::Asked,
            false => Ended::Failed(format!(
                "{} ({})",
                said(&log, before, status),
                log.display()
            )),
        })
    }
}

/// This program's file, where the system tells it by a name that stays: it may be built anew during a study of hours, whose
/// runs are then still those of the program that began it.
fn own_program() -> Result<PathBuf> {
    let stays = Path::new("/proc/self/exe");
    match stays.exists() {
        true => Ok(stays.to_owned()),
        false => Ok(std::env::current_exe()?),
    }
}

/// Steps of the checkpoint in this folder.
fn steps_done(dir: &Path) -> Result<usize> {
    let path = checkpoint_path(dir);
    match path.is_file() {
        true => Ok(Checkpoint::<Config>::load(&path)?.header.step),
        false => Ok(0),
    }
}

/// Waits while a run of an earlier study, which was killed, still notices that and ends.
fn wait_for_others(dir: &Path) -> Result<()> {
    let metrics = dir.join("metrics.jsonl");
    let start = Instant::now();
    while metrics.is_file() {
        match Metrics::lock(&metrics) {
            Ok(_) => break,
            Err(e) if start.elapsed() > PATIENCE => return Err(e),
            Err(_) => sleep(LOOK_EVERY),
        }
    }
    Ok(())
}

/// The last error in a log from here on, or how the process ended.
fn said(log: &Path, from: u64, status: std::process::ExitStatus) -> String {
    let tail = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL).max(from)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let tail = tail().unwrap_or_default();
    let error = tail
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("error: "));
    vit::printable(error.unwrap_or(&format!("it ended with {status}")))
}
