use std::io::Write as _;
use std::path::Path;

use ratatui::backend::TestBackend;
use ratatui::Terminal;

use super::*;

fn row(step: usize, frozen: usize) -> String {
    let rates = vec!["0.001"; 13].join(",");
    format!(
        "{{\"step\":{step},\"epoch\":0,\"loss\":{},\"stage_losses\":[null,0.2],\"lr\":[{rates}],\"frozen\":{frozen},\"graph_nodes\":9,\"images\":8,\"images_per_second\":40.0,\"seconds\":{{\"data\":0.1,\"forward\":0.3,\"backward\":0.5,\"optimizer\":0.1,\"total\":{}}}}}\n",
        1.0 / (step + 1) as f64,
        if frozen > 0 { 0.5 } else { 1.0 }
    )
}

fn folder(lines: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("metrics.jsonl"), lines).unwrap();
    dir
}

fn drawn(run: &Followed, look: &Look, size: (u16, u16)) -> String {
    let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
    terminal.draw(|frame| draw(frame, run, look)).unwrap();
    let buffer = terminal.backend().buffer();
    let rows = buffer.content().chunks(usize::from(size.0).max(1));
    let rows = rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>());
    rows.collect::<Vec<_>>().join("\n")
}

fn append(dir: &Path, text: &str) {
    let file = std::fs::File::options()
        .append(true)
        .open(dir.join("metrics.jsonl"));
    file.unwrap().write_all(text.as_bytes()).unwrap();
}

#[test]
fn all_sizes_show_what_fits() {
    let lines: String = (0..40)
        .map(|i| row(i, if i < 20 { 0 } else { 5 }))
        .collect();
    let dir = folder(&(lines + "{\"step\":39,\"top1\":61.25}\n"));
    let run = Followed::new(dir.path()).unwrap();
    for size in [(80, 24), (200, 50), (100, 30)] {
        let text = drawn(&run, &Look::default(), size);
        for part in [
            "running",
            "step 40",
            "frozen 5/13",
            "backward 50.0 %",
            "top-1 in %",
        ] {
            assert!(text.contains(part), "{size:?} {part}\n{text}");
        }
        assert!(text.contains("50.0 % less than unfrozen"), "{text}");
        assert!(text.contains("images per second") && text.contains("q leave"));
        assert!(text.contains("the time left is unknown"), "{text}");
    }
    for size in [(1, 1), (39, 11), (40, 12), (3, 60), (500, 2)] {
        let look = Look {
            log: true,
            recent: true,
            help: true,
            ..Look::default()
        };
        drawn(&run, &look, size);
    }
    let help = Look {
        help: true,
        ..Look::default()
    };
    assert!(drawn(&run, &help, (80, 24)).contains("logarithmic scale"));
    assert!(lines_of(&run).contains("frozen 5/13"));
}

fn lines_of(run: &Followed) -> String {
    lines(run).join("\n")
}

#[test]
fn only_what_is_new_is_read_and_half_a_line_waits() {
    let first = row(0, 0);
    let (half, other) = first.split_at(30);
    let dir = folder(&format!("{first}{}", row(1, 0)));
    let mut run = Followed::new(dir.path()).unwrap();
    assert_eq!(run.done(), 2);
    append(dir.path(), &row(2, 0).replace('\n', ""));
    run.refresh().unwrap();
    assert_eq!((run.done(), run.unreadable), (2, 0));
    append(dir.path(), "\n");
    run.refresh().unwrap();
    assert_eq!((run.done(), run.unreadable), (3, 0));
    append(dir.path(), "what\n");
    run.refresh().unwrap();
    assert_eq!(run.unreadable, 1);
    assert!(lines_of(&run).contains("1 unreadable line in metrics.jsonl"));
    // Gone on with from its first step: what was cut off is gone.
    std::fs::write(dir.path().join("metrics.jsonl"), format!("{half}{other}")).unwrap();
    run.refresh().unwrap();
    assert_eq!((run.done(), run.unreadable), (1, 0));
    std::fs::write(dir.path().join("result.json"), "{}").unwrap();
    run.refresh().unwrap();
    assert_eq!(run.state, State::Ended);
}
