//! Whole studies: killed and gone on with, what they derive, what they refuse.
#![cfg(unix)]
mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use common::*;

const BASE: &str = r#"
[base]
data = "shapes"
samples = 24
model = "vit-tiny"
image-size = 16
patch-size = 4
decoder-dim = 16
decoder-heads = 2
epochs = 2
warmup-epochs = 0
batch-size = 8
accum = 1
lr = 1e-3
"#;

const VARIANTS: &str = r#"
[[variant]]
name = "none"
freeze = "none"
[[variant]]
name = "plan"
freeze = "at:3=8"
baselines = ["train-less", "stop-early"]
[[variant]]
name = "policy"
policy = "autofreeze:interval=2"
baselines = ["stop-early"]
[after.knn]
"#;

/// Writes a plan.
fn plan(dir: &Path, name: &str, parts: &[&str]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, parts.concat()).unwrap();
    path
}

fn study(plan: &Path, out: &Path) -> Command {
    let mut command = vitfreeze(["study"]);
    command.arg(plan).arg("--out").arg(out);
    command
}

/// The cells of a line of CSV. No cell of these plans has a quote in it.
fn cells(line: &str) -> Vec<String> {
    let mut cells = vec![String::new()];
    for (i, part) in line.split('"').enumerate() {
        let mut pieces = part
            .split(',')
            .take(if i % 2 == 0 { usize::MAX } else { 0 });
        let first = pieces.next().unwrap_or(part);
        cells.last_mut().unwrap().push_str(first);
        cells.extend(pieces.map(str::to_owned));
    }
    cells
}

/// The rows of results.csv by column.
fn results(out: &Path) -> Vec<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(out.join("results.csv")).unwrap();
    let mut lines = text.lines().map(cells);
    let head = lines.next().unwrap();
    lines
        .map(|cells| head.iter().cloned().zip(cells).collect())
        .collect()
}

fn without_seconds(out: &Path) -> Vec<BTreeMap<String, String>> {
    let mut rows = results(out);
    rows.iter_mut()
        .for_each(|row| row.retain(|key, _| !key.contains("seconds")));
    rows
}

fn row<'a>(
    rows: &'a [BTreeMap<String, String>],
    variant: &str,
    baseline: &str,
    seed: &str,
) -> &'a BTreeMap<String, String> {
    let fits = |row: &&BTreeMap<String, String>| {
        row["variant"] == variant && row["baseline"] == baseline && row["seed"] == seed
    };
    rows.iter().find(fits).unwrap()
}

/// Each size of the images has a pace of its own, which a variant that always has it shares.
#[test]
fn growing_images_beside_training_less() {
    let dir = tempfile::tempdir().unwrap();
    let variants = r#"
[[variant]]
name = "none"
freeze = "none"
[[variant]]
name = "grow"
image-size = "8:50%,16"
freeze = "none"
baselines = ["train-less", "stop-early"]
[[variant]]
name = "both"
image-size = "8:1,16"
freeze = "at:4=8"
against = "grow"
baselines = ["train-less"]
[after.knn]
"#;
    let file = plan(dir.path(), "plan.toml", &["seeds = [0]\n", BASE, variants]);
    let out = dir.path().join("out");
    ok(study(&file, &out));
    let rows = results(&out);
    assert_eq!(rows.len(), 6, "{rows:?}");
    assert!(rows.iter().all(|row| row["status"] == "done"), "{rows:?}");
    let paces = std::fs::read_to_string(out.join("steps.json")).unwrap();
    let paces: BTreeMap<String, serde_json::Value> = serde_json::from_str(&paces).unwrap();
    // At 8 px nothing freezes; at 16 px steps with 0 and 8 frozen layers.
    assert_eq!(paces.len(), 2);
    let pace = |counts: usize| -> Vec<f64> {
        let seconds = paces
            .values()
            .map(|pace| pace["seconds"].as_array().unwrap());
        let mut of = seconds.filter(|seconds| seconds.len() == counts);
        let seconds = of.next().unwrap().iter();
        seconds.map(|s| s.as_f64().unwrap()).collect()
    };
    let (small, large) = (pace(1)[0], pace(2));
    let close = |variant: &str, baseline: &str, want: f64| {
        let told = &row(&rows, variant, baseline, "0")["seconds_measured"];
        let told: f64 = told.parse().unwrap();
        assert!((told - want).abs() < 0.0051, "{variant} {told} {want}");
    };
    close("none", "", 6.0 * large[0]);
    close("grow", "", 3.0 * small + 3.0 * large[0]);
    close("both", "", 3.0 * small + large[0] + 2.0 * large[1]);
    // One epoch of the growing run: half of its three steps, to the nearest one, are small.
    let less = row(&rows, "both", "train less", "0");
    let shorter = match &less["epochs"][..] {
        "1" => 2.0 * small + large[0],
        _ => 3.0 * small + 3.0 * large[0],
    };
    close("both", "train less", shorter);
    let refused = VARIANTS.replace("freeze = \"at:3=8\"", "freeze = \"none\"");
    let file = plan(dir.path(), "bad.toml", &["seeds = [0]\n", BASE, &refused]);
    let line = fails(study(&file, &dir.path().join("bad")), 2);
    assert!(line.contains("that freeze, or whose images grow"), "{line}");
}

#[test]
fn killed_at_any_moment_it_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let plan_file = plan(
        dir.path(),
        "plan.toml",
        &["seeds = [0, 1]\n", BASE, VARIANTS],
    );
    let (straight, killed) = (dir.path().join("straight"), dir.path().join("killed"));
    let said = ok(study(&plan_file, &straight));
    assert!(said.contains("plan beside none, knn"), "{said}");
    let rows = results(&straight);
    assert_eq!(rows.len(), 2 * 6, "{rows:?}");
    assert!(rows.iter().all(|row| row["status"] == "done"), "{rows:?}");

    // What follows from measured time: a step without freezing takes the time of `seconds[0]`.
    let paces = std::fs::read_to_string(straight.join("steps.json")).unwrap();
    let paces: BTreeMap<String, serde_json::Value> = serde_json::from_str(&paces).unwrap();
    let pace = paces.values().next().unwrap();
    let step = |frozen: usize| {
        let counts: Vec<u64> = pace["frozen"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n.as_u64().unwrap())
            .collect();
        let at = counts.iter().position(|&n| n == frozen as u64).unwrap();
        pace["seconds"][at].as_f64().unwrap()
    };
    let seconds = 3.0 * (step(0) + step(8));
    let close = |text: &str, want: f64| {
        assert!(
            (text.parse::<f64>().unwrap() - want).abs() < 0.0051,
            "{text} {want}"
        )
    };
    close(&row(&rows, "plan", "", "0")["seconds_measured"], seconds);
    let less = row(&rows, "plan", "train less", "0");
    let epochs = (seconds / (3.0 * step(0))).round().max(1.0);
    assert_eq!(less["epochs"], epochs.to_string());
    assert_eq!(less["steps"], (3.0 * epochs).to_string());
    close(&less["seconds_measured"], 3.0 * epochs * step(0));
    let early = row(&rows, "plan", "stop early", "0");
    let steps = (seconds / step(0)).round().clamp(1.0, 6.0);
    assert_eq!(
        (&early["epochs"][..], early["steps"].clone()),
        ("2", steps.to_string())
    );
    // It is a part of the run without freezing, as one stopped there.
    let stopped = dir.path().join("stopped");
    let mut command = vitfreeze(["pretrain", "--config"]);
    let runs = straight.join("runs");
    command.arg(runs.join(&early["folder"]).join("config.toml"));
    command
        .arg("--out")
        .arg(&stopped)
        .arg(format!("--max-steps={steps}"));
    ok(command);
    let encoder = |dir: &Path| tensors(&dir.join("encoder.safetensors"));
    assert!(encoder(&stopped) == encoder(&runs.join(&early["folder"])));

    // Killed again and again, with the same measured steps.
    std::fs::create_dir(&killed).unwrap();
    std::fs::write(killed.join("study.lock"), "").unwrap();
    std::fs::copy(straight.join("steps.json"), killed.join("steps.json")).unwrap();
    let mut kills = 0;
    for wait in [150, 700, 400, 1100, 250, 900, 550, 1300] {
        let mut child = study(&plan_file, &killed)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(wait));
        if child.try_wait().unwrap().is_some() {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    assert!(kills >= 3, "killed {kills} times only");
    // Asked to stop, it has the run at hand save, and ends.
    let child = study(&plan_file, &killed)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    sleep(Duration::from_millis(800));
    let id = child.id().to_string();
    Command::new("kill").args(["-INT", &id]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let said = text(&output);
    match output.status.code() {
        Some(130) => assert!(said.contains("the same command continues"), "{said}"),
        code => assert_eq!(code, Some(0), "{said}"),
    }
    ok(study(&plan_file, &killed));
    assert_eq!(without_seconds(&straight), without_seconds(&killed));
    // One seed twice is the same, two seeds differ.
    let folder = |seed: &str| row(&rows, "policy", "", seed)["folder"].clone();
    let of = |out: &Path, seed: &str| encoder(&out.join("runs").join(folder(seed)));
    assert!(of(&straight, "0") == of(&killed, "0"));
    assert!(of(&straight, "0") != of(&straight, "1"));

    // All is done, also under another name; one that is new is done alone.
    let renamed = VARIANTS.replace("\"plan\"", "\"other\"");
    let more = "[[variant]]\nname = \"new\"\nfreeze = \"at:2=4\"\nbaselines = []\n";
    let renamed = plan(
        dir.path(),
        "renamed.toml",
        &["seeds = [0]\n", BASE, &renamed, more],
    );
    let said = ok(study(&renamed, &straight));
    let begun: Vec<&str> = said.lines().filter(|line| line.contains("ETA")).collect();
    assert!(
        begun.iter().all(|line| line.contains("new seed 0")),
        "{said}"
    );
    assert_eq!(begun.len(), 2, "{said}");
    let page = std::fs::read_to_string(straight.join("report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("other-train-less"));
    assert!(
        !page.contains("http://")
            || page
                .matches("http://")
                .all(|_| page.contains("http://www.w3.org"))
    );
    for word in ["src=", "href=\"http", "<script"] {
        assert!(!page.contains(word), "{word}");
    }
}

#[test]
fn what_fails_is_told_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let variants = "[[variant]]\nname = \"none\"\nfreeze = \"none\"\n[[variant]]\nname = \"wild\"\nlr = 1e30\n\
        freeze = \"none\"\n[[variant]]\nname = \"last\"\nfreeze = \"at:2=4\"\n[after.knn]\nof = [\"none\", \"last\"]\n";
    let base = BASE.replace("epochs = 2", "epochs = 1");
    let file = plan(dir.path(), "plan.toml", &["seeds = [0]\n", &base, variants]);
    let out = dir.path().join("out");
    let output = study(&file, &out).output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("error: wild seed 0: pretrain: ") && said.contains("the loss is"),
        "{said}"
    );
    let rows = results(&out);
    let status = |name: &str| row(&rows, name, "", "0")["status"].clone();
    assert_eq!(
        (status("none"), status("last")),
        ("done".into(), "done".into())
    );
    assert!(status("wild").starts_with("failed: "), "{rows:?}");
    let report = std::fs::read_to_string(out.join("report.md")).unwrap();
    assert!(report.contains("one seed: not decidable"), "{report}");

    // What a plan is refused for, before anything runs.
    let refused = |base: &str, variants: &str, code: i32, what: &str| {
        let file = plan(dir.path(), "refused.toml", &[base, variants]);
        let line = fails(study(&file, &dir.path().join("none")), code);
        assert!(line.contains(what), "{line}");
    };
    let with_base = format!("seeds = [0]\n{base}");
    let variant = "[[variant]]\nname = \"a\"\n";
    for (more, what) in [
        ("frezee = \"none\"\n[after.knn]\n", "[[variant]] \"a\": unknown key 'frezee'; did you mean 'freeze'?"),
        ("t0 = 3\n[after.knn]\n", "[[variant]] \"a\": schedule: t0 is 3"),
        ("freeze = \"at:99=99\"\n[after.knn]\n", "[[variant]] \"a\": "),
        ("against = \"b\"\n[after.knn]\n", "there is no variant \"b\", but a"),
        ("seed = 4\n[after.knn]\n", "the seeds are those of seeds"),
        ("[[variant]]\nname = \"a\"\n[after.knn]\n", "there are two of this name"),
        ("[[variant]]\nname = \"../b\"\n[after.knn]\n", "a name is 1 to 60 letters"),
        ("[after.knn]\nk = 3\n", "[after.knn]: unexpected argument '--k'"),
        ("[after.linprobe]\nepochs = 0\n", "[after.linprobe]: "),
        ("[after.knn]\ncheckpoint = \"x\"\n", "'checkpoint' is the study's to say"),
        ("[after.eval]\n", "unknown field `eval`"),
        ("freeze = \"cubic\"\n[[variant]]\nname = \"b\"\nfreeze = \"cubic\"\nbaselines = [\"train-less\"]\n[after.knn]\n", "freezes too"),
        ("", "evaluates nothing"),
    ] {
        refused(&with_base, &format!("{variant}{more}"), 2, what);
    }
    refused(&format!("seeds = []\n{base}"), variants, 2, "at least one");
    refused(
        &format!("seed = 1\nseeds = [0]\n{base}"),
        variants,
        2,
        "unknown field `seed`",
    );
    let mut command = study(&file, &dir.path().join("short"));
    command.arg("--budget=0.01s");
    assert!(fails(command, 2).contains("--budget is 0.0 s"));
    let line = fails(study(&file, dir.path()), 2);
    assert!(line.contains("is not empty and holds no study"), "{line}");
}

/// Steps of variants that compute otherwise are measured one after the other; here what they predict and what they begin with.
#[test]
fn variants_whose_steps_differ_are_measured() {
    let dir = tempfile::tempdir().unwrap();
    let encoder = format!(
        "init = \"{}\"\nstages = \"0:2,1:1\"",
        checkpoint("hf_dinov2").display()
    );
    let model = "model = \"vit-tiny\"\nimage-size = 16\npatch-size = 4";
    let base = BASE.replace(model, &encoder);
    let variants = r#"
[[variant]]
name = "hog"
[[variant]]
name = "pixel"
target = "pixel"
norm-pix = true
[after.knn]
"#;
    let plan = plan(dir.path(), "plan.toml", &["seeds = [0]\n", &base, variants]);
    let mut command = study(&plan, &dir.path().join("out"));
    command.arg("--budget=0.01s");
    assert!(fails(command, 2).contains("--budget is 0.0 s"));
    // A key that does not fit is that variant's.
    let text = std::fs::read_to_string(&plan).unwrap();
    std::fs::write(&plan, text.replace("target = \"pixel\"\n", "")).unwrap();
    let line = fails(study(&plan, &dir.path().join("out")), 2);
    assert!(line.contains("\"pixel\": norm-pix is for pixels"), "{line}");
}
