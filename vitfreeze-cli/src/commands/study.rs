//! `vitfreeze study`: whether freezing pays, by variants, seeds and the baselines of equal time that belong to them.
mod lab;
mod page;
mod picture;
mod plan;
mod report;
mod results;
mod statistics;
mod work;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::console::{counted, duration, note, print};
use crate::machine::interrupt;
use crate::run::folder::quoted;
use crate::usage::usage;
use lab::Lab;
use plan::Plan;
use work::Ended;

const EXAMPLES: &str = "\
Examples:
  vitfreeze study configs/studies/tiny.toml --out studies/tiny      three minutes
  vitfreeze study configs/studies/cifar10.toml --data cifar10 --out studies/cifar10 --budget 12h

After ctrl-C, kill -9 or a crash, the same command continues the study. Finished runs are recognised by their \
settings and not done again. After every run, DIR gets results.csv, report.md and report.html. \
docs/study.md says how a plan is written.";

/// Flags of `vitfreeze study`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The plan (TOML): base settings, variants, seeds, evaluations
    #[arg(value_name = "PLAN")]
    plan: PathBuf,
    /// Folder for the study's runs, logs, results and reports: a new one, or that of this study, to continue it
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Dataset; overrides the plan's
    #[arg(long, value_name = "SRC")]
    data: Option<String>,
    /// Time limit, as in 90m, 2h or 1h30m: a longer plan is refused before anything runs
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    budget: Option<f64>,
}

/// `1h30m` in seconds.
fn seconds(text: &str) -> Result<f64, String> {
    let wrong = || format!("'{text}' is no time such as 90m, 2h or 1h30m");
    let (mut sum, mut number) = (0.0, String::new());
    for c in text.chars() {
        let unit = match c {
            'h' => 3600.0,
            'm' => 60.0,
            's' => 1.0,
            c => {
                number.push(c);
                continue;
            }
        };
        let count: f64 = number.parse().map_err(|_| wrong())?;
        sum += unit * count;
        number.clear();
    }
    match number.is_empty() && sum.is_finite() && sum > 0.0 {
        true => Ok(sum),
        false => Err(wrong()),
    }
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    let plan = Plan::read(&args.plan, args.data.as_deref())?;
    let _lock = claim(&args.out)?;
    let mut lab = Lab::open(plan, &args.out)?;
    let jobs = lab.jobs();
    let left = lab.left(&jobs);
    note(format!(
        "{}, {} at equal time, {}: {}, {} of them done; about {} to go",
        counted(lab.plan.variants.len(), "variant"),
        counted(lab.arms.len() - lab.plan.variants.len(), "baseline"),
        counted(lab.plan.seeds.len(), "seed"),
        counted(jobs.len(), "run"),
        jobs.len() - left.len(),
        duration(lab.expected(&left)),
    ));
    if let Some(budget) = args.budget {
        let needed = lab.expected(&left);
        if needed > budget {
            return Err(usage(format!(
                "the study needs about {} more, by the steps just measured; --budget is {}: take fewer seeds or variants, or fewer epochs",
                duration(needed),
                duration(budget)
            )));
        }
    }
    vit::write_atomic(&args.out.join("plan.toml"), lab.plan.text.as_bytes())?;
    interrupt::listen_saying("the run at hand finishes its step and saves")?;
    let mut failed = 0;
    for (i, job) in jobs.iter().enumerate() {
        // Without its pretraining nothing can be judged.
        let orphan = job.after.is_some() && lab.failed.contains_key(&(job.arm, job.seed, None));
        let fits = lab.check(job);
        if orphan || fits.is_ok() && lab.is_done(job)? {
            continue;
        }
        let what = lab.told(job);
        let eta = duration(lab.expected(&lab.left(&jobs)));
        note(format!("[{}/{}] {what}; ETA {eta}", i + 1, jobs.len()));
        let left = || lab.expected(&lab.left(&jobs));
        // What goes wrong with one run is no reason to leave out the others.
        let worked = fits.and_then(|()| lab.work(job, &left));
        match worked.unwrap_or_else(|error| Ended::Failed(format!("{error:#}"))) {
            Ended::Done if interrupt::asked() => {
                results::write(&lab)?;
                note("stopped; the same command continues");
                return Ok(ExitCode::from(interrupt::exit_code()));
            }
            Ended::Done => {}
            Ended::Failed(why) => {
                failed += 1;
                note(format!("error: {what}: {why}"));
                lab.failed.insert((job.arm, job.seed, job.after), why);
            }
            Ended::Asked => {
                results::write(&lab)?;
                note("stopped; the same command continues");
                return Ok(ExitCode::from(interrupt::exit_code()));
            }
        }
        results::write(&lab)?;
    }
    let told = results::write(&lab)?;
    for line in told {
        print(line)?;
    }
    print(format!("Files in {}:", quoted(&args.out)))?;
    for (name, what) in [
        ("report.html", "tables and pictures, to look at"),
        ("report.md", "the same without pictures"),
        ("results.csv", "a row for each run"),
        ("runs/", "the runs themselves"),
        ("logs/", "what they said"),
    ] {
        print(format!("  {name:<12}  {what}"))?;
    }
    if failed > 0 {
        note(format!(
            "error: {} failed; the same command tries again",
            counted(failed, "run")
        ));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the folder, or takes that of a study, for this process alone.
fn claim(dir: &Path) -> Result<File> {
    let holds_a_study = dir.join("study.lock").is_file();
    let empty = match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) => true,
    };
    if !holds_a_study && !empty {
        return Err(usage(format!(
            "--out {} is not empty and holds no study; choose a new folder",
            dir.display()
        )));
    }
    let cannot = |e: std::io::Error| usage(format!("cannot make --out {}: {e}", dir.display()));
    std::fs::create_dir_all(dir.join("runs")).map_err(cannot)?;
    std::fs::create_dir_all(dir.join("logs")).map_err(cannot)?;
    let path = dir.join("study.lock");
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(_) => Err(usage(format!(
            "another process is working on this study ({} is locked)",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn times_as_people_write_them() {
        assert_eq!(seconds("90m"), Ok(5400.0));
        assert_eq!(seconds("1h30m"), Ok(5400.0));
        assert_eq!(seconds("0.5h"), Ok(1800.0));
        for wrong in ["", "90", "m", "-2h", "1d", "infh", "0s"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
