//! What is drawn of a run.
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Clear, Dataset, Gauge, GraphType, Paragraph};
use ratatui::Frame;

use super::follow::{Followed, State, Step};
use crate::console::{duration, percent};
use crate::draw::color::{self, series};
use crate::run::metrics::median;

/// Lines of what the run says, in its own view.
pub const SAID: usize = 4;
/// Steps of `r`.
const RECENT: usize = 200;
/// Narrower and lower than this there is nothing to see.
const LEAST: (u16, u16) = (40, 12);

const HELP: &str = "\
q      leave (of 'pretrain --watch': back to plain lines)
l      loss on a logarithmic scale, or a linear one
r      the last 200 steps, or all
?      this help
ctrl-C leave; of 'pretrain --watch': finish the step, save, stop";

/// How it is looked at.
#[derive(Default)]
pub struct Look {
    pub log: bool,
    pub recent: bool,
    pub help: bool,
    /// Whether the run is this process.
    pub inside: bool,
    /// The latest that it said.
    pub said: Vec<String>,
}

fn rgb([r, g, b]: color::Color) -> Color {
    Color::Rgb(r, g, b)
}

/// Colours that light and dark terminals both show.
fn line_color(i: usize) -> Color {
    rgb(series([0, 5, 2, 3, 4, 1][i % 6]))
}

fn muted() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

/// Draws everything.
pub fn draw(frame: &mut Frame, run: &Followed, look: &Look) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let text = format!("{}\nmake the terminal larger", status(run));
        return frame.render_widget(Paragraph::new(text), area);
    }
    let warnings = run.warnings();
    let below = warnings.len().min(3) + look.said.len().min(SAID);
    let rows = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(5),
        Constraint::Length(3),
        Constraint::Length(below as u16),
        Constraint::Length(1),
    ]);
    let [title, progress, charts, facts, said, keys] = rows.areas(area);
    head(frame, title, run);
    gauge(frame, progress, run);
    draw_charts(frame, charts, run, look);
    let lines = [
        frozen_line(run, facts.width),
        phases_line(run),
        numbers_line(run),
    ];
    frame.render_widget(Paragraph::new(lines.to_vec()), facts);
    let alarm = Style::new().fg(line_color(1)).add_modifier(Modifier::BOLD);
    let warnings = warnings.iter().take(3);
    let mut lines: Vec<Line> = warnings
        .map(|text| Line::styled(format!("! {text}"), alarm))
        .collect();
    lines.extend(
        look.said
            .iter()
            .map(|text| Line::styled(text.as_str(), muted())),
    );
    frame.render_widget(Paragraph::new(lines), said);
    let hint = "q leave   l log/linear   r recent/all   ? help";
    frame.render_widget(Paragraph::new(Line::styled(hint, muted())), keys);
    if look.help {
        help(frame, area);
    }
}

/// What a run does, as plain lines.
pub fn lines(run: &Followed) -> Vec<String> {
    let plain = |line: Line| -> String {
        let all: Vec<&str> = line.spans.iter().map(|s| s.content.as_ref()).collect();
        all.concat().trim_end().to_owned()
    };
    let mut all = vec![format!("{}: {}", run.name, status(run)), progress_text(run)];
    if !run.steps.is_empty() {
        all.extend([frozen_line(run, 80), phases_line(run), numbers_line(run)].map(plain));
    }
    all.extend(run.warnings().into_iter().map(|text| format!("! {text}")));
    all
}

fn status(run: &Followed) -> String {
    match run.state {
        State::Starting => "starting".into(),
        State::Running => "running".into(),
        State::Silent(quiet) => format!("silent for {}", duration(quiet.as_secs_f64())),
        State::Gone => "its folder is gone".into(),
        State::Ended => match run.total() {
            Some(total) if run.done() < total => "ended before its end".into(),
            _ => "ended".into(),
        },
    }
}

fn head(frame: &mut Frame, area: Rect, run: &Followed) {
    let about = run
        .planned
        .as_ref()
        .map_or(String::new(), |p| format!("  {} {}", p.command, p.model));
    let color = match run.state {
        State::Silent(_) | State::Gone => line_color(1),
        _ => line_color(2),
    };
    let line = Line::from(vec![
        Span::styled(run.name.clone(), Modifier::BOLD),
        Span::styled(about, muted()),
        Span::raw("  "),
        Span::styled(
            status(run),
            Style::new().fg(color).add_modifier(Modifier::BOLD),
        ),
    ]);
    frame.render_widget(Paragraph::new(line), area);
}

fn progress_text(run: &Followed) -> String {
    let done = run.done();
    let Some(planned) = &run.planned else {
        return format!("step {done}");
    };
    let total = planned.steps.total();
    let epoch = run.steps.last().map_or(0, |s| s.epoch + 1);
    let rest = match (run.state, run.left()) {
        (State::Running | State::Starting, Some(left)) if done < total => {
            format!("  ETA {}", duration(left))
        }
        _ => String::new(),
    };
    format!(
        "step {done}/{total}  epoch {epoch}/{}{rest}",
        planned.epochs
    )
}

fn gauge(frame: &mut Frame, area: Rect, run: &Followed) {
    let total = run.total().unwrap_or(0).max(1);
    let ratio = (run.done() as f64 / total as f64).clamp(0.0, 1.0);
    let style = Style::new().fg(line_color(0)).bg(Color::DarkGray);
    let text = Span::styled(
        progress_text(run),
        Style::new().fg(Color::White).add_modifier(Modifier::BOLD),
    );
    let gauge = Gauge::default().gauge_style(style).label(text).ratio(ratio);
    frame.render_widget(gauge, area);
}

fn draw_charts(frame: &mut Frame, area: Rect, run: &Followed, look: &Look) {
    let steps = match look.recent {
        true => &run.steps[run.steps.len().saturating_sub(RECENT)..],
        false => &run.steps[..],
    };
    let from = steps.first().map_or(0, |s| s.step);
    let shown = |e: &&(usize, f64)| e.0 >= from;
    let accuracies: Vec<(f64, f64)> = run
        .evaluations
        .iter()
        .filter(shown)
        .map(|e| (e.0 as f64, e.1))
        .collect();
    let count = if accuracies.is_empty() { 2 } else { 3 };
    let parts = vec![Constraint::Ratio(1, count); count as usize];
    // On a narrow screen below each other where there is the height, else side by side.
    let below = area.width < 100 && area.height >= 10 * count as u16;
    let parts = match below {
        true => Layout::vertical(parts).split(area),
        false => Layout::horizontal(parts).split(area),
    };
    let wide = usize::from(area.width).max(40) * 2;
    let losses = loss_lines(steps, wide);
    let scale = if look.log { "loss, log" } else { "loss" };
    let log = |y: f64| if look.log { y.max(1e-12).log10() } else { y };
    chart(frame, parts[0], scale, &losses, &log, look.log);
    let speed = points(steps, wide, |s| Some(s.images_per_second));
    let plain = |y: f64| y;
    chart(
        frame,
        parts[1],
        "images per second",
        &[(String::new(), speed)],
        &plain,
        false,
    );
    if let Some(&part) = parts.get(2) {
        let lines = [(String::new(), accuracies)];
        chart(frame, part, "top-1 in %", &lines, &plain, false);
    }
}

/// The loss; in pretraining each stage's.
fn loss_lines(steps: &[Step], most: usize) -> Vec<(String, Vec<(f64, f64)>)> {
    let stages = steps.iter().map(|s| s.stages.len()).max().unwrap_or(0);
    if stages == 0 {
        let points = points(steps, most, |s| Some(s.loss));
        return vec![(String::new(), points)];
    }
    let one = |k: usize| {
        let loss = |s: &Step| s.stages.get(k).copied().flatten();
        (format!("stage {k}"), points(steps, most, loss))
    };
    (0..stages).map(one).collect()
}

/// Medians of at most so many stretches of steps.
fn points(steps: &[Step], most: usize, value: impl Fn(&Step) -> Option<f64>) -> Vec<(f64, f64)> {
    let stretch = steps.len().div_ceil(most).max(1);
    let one = |steps: &[Step]| {
        let values = steps.iter().filter_map(&value).filter(|x| x.is_finite());
        Some((steps[steps.len() / 2].step as f64, median(values)?))
    };
    steps.chunks(stretch).filter_map(one).collect()
}

fn chart(
    frame: &mut Frame,
    area: Rect,
    title: &str,
    lines: &[(String, Vec<(f64, f64)>)],
    place: &dyn Fn(f64) -> f64,
    log: bool,
) {
    let placed: Vec<Vec<(f64, f64)>> = lines
        .iter()
        .map(|line| line.1.iter().map(|p| (p.0, place(p.1))).collect())
        .collect();
    let range = |of: fn(&(f64, f64)) -> f64| {
        let all = placed.iter().flatten().map(of);
        let low = all.clone().fold(f64::INFINITY, f64::min);
        let high = all.fold(f64::NEG_INFINITY, f64::max);
        match low < high {
            true => [low, high],
            false if low.is_finite() => [low - 0.5, low + 0.5],
            false => [0.0, 1.0],
        }
    };
    let (x, mut y) = (range(|p| p.0), range(|p| p.1));
    let room = 0.05 * (y[1] - y[0]);
    y = [y[0] - room, y[1] + room];
    let back = |y: f64| if log { 10f64.powf(y) } else { y };
    let said: Vec<String> = [y[0], (y[0] + y[1]) / 2.0, y[1]]
        .iter()
        .map(|&y| short(back(y)))
        .collect();
    let steps = x.map(|x| format!("{x:.0}"));
    let colored = placed.iter().enumerate().map(|(i, points)| {
        let set = Dataset::default().marker(Marker::Braille);
        let set = set.graph_type(GraphType::Line).data(points);
        set.style(Style::new().fg(line_color(i)))
    });
    let mut title = vec![Span::styled(title.to_owned(), Modifier::BOLD)];
    // The last stage first, which a narrow title keeps.
    for (i, (name, points)) in lines.iter().enumerate().rev() {
        if let (false, Some(last)) = (name.is_empty(), points.last()) {
            let text = format!("  {} {}", name.trim_start_matches("stage "), short(last.1));
            title.push(Span::styled(text, Style::new().fg(line_color(i))));
        }
    }
    let axis = |bounds: [f64; 2]| Axis::default().bounds(bounds).style(muted());
    let chart = Chart::new(colored.collect())
        .block(
            Block::bordered()
                .title(Line::from(title))
                .border_style(muted()),
        )
        .x_axis(axis(x).labels(steps).labels_alignment(Alignment::Right))
        .y_axis(axis(y).labels(said))
        .legend_position(None);
    frame.render_widget(chart, area);
}

/// A number in about four digits.
fn short(x: f64) -> String {
    match x.abs() {
        size if size >= 1e6 => format!("{x:.1e}"),
        size if size >= 100.0 => format!("{x:.0}"),
        size if size >= 10.0 => format!("{x:.1}"),
        size if size >= 1.0 => format!("{x:.2}"),
        size if size >= 0.001 || size == 0.0 => format!("{x:.4}"),
        _ => format!("{x:.1e}"),
    }
}

/// A box a layer, and what freezes next.
fn frozen_line(run: &Followed, width: u16) -> Line<'static> {
    let Some(last) = run.steps.last() else {
        return Line::raw("no step yet");
    };
    if last.layers < 2 {
        return Line::raw("no layers that freeze");
    }
    let mut line = vec![Span::raw(format!(
        "frozen {}/{} ",
        last.frozen, last.layers
    ))];
    if last.layers + 46 <= usize::from(width) {
        let (frozen, live) = (
            "█".repeat(last.frozen),
            "░".repeat(last.layers - last.frozen),
        );
        line.push(Span::styled(frozen, Style::new().fg(line_color(0))));
        line.push(Span::styled(live, muted()));
    }
    if let (State::Running, Some((step, frozen))) = (run.state, run.next_change()) {
        let away = step.saturating_sub(run.done()) as f64;
        let time = run.seconds_per_step().map(|s| duration(away * s));
        let time = time.map_or(String::new(), |time| format!(", in {time}"));
        line.push(Span::raw(format!("  next: {frozen} at step {step}{time}")));
    }
    Line::from(line)
}

fn phases_line(run: &Followed) -> Line<'static> {
    let recent = run.recent();
    let sum = |part: fn(&Step) -> f64| -> f64 { recent.iter().map(part).sum() };
    let all = [
        ("data", sum(|s| s.seconds.data)),
        ("forward", sum(|s| s.seconds.forward)),
        ("backward", sum(|s| s.seconds.backward)),
        ("optimiser", sum(|s| s.seconds.optimizer)),
        ("communication", sum(|s| s.seconds.communication)),
    ];
    let total = all.iter().map(|p| p.1).sum::<f64>().max(1e-9);
    let mut line = vec![Span::raw("phases ")];
    for (i, (name, seconds)) in all.iter().enumerate() {
        if *seconds > 0.0 {
            let part = percent(seconds / total);
            line.push(Span::styled("■ ", Style::new().fg(line_color(i))));
            line.push(Span::raw(format!("{name} {part}  ")));
        }
    }
    Line::from(line)
}

fn numbers_line(run: &Followed) -> Line<'static> {
    let (Some(last), Some(now)) = (run.steps.last(), run.seconds_per_step()) else {
        return Line::raw("");
    };
    let size = last.image_size;
    let size = size.map_or(String::new(), |size| format!("{size} px  "));
    let mut text = format!("{size}loss {}  {} s/step", short(last.loss), short(now));
    if let (Some(was), true) = (run.unfrozen_step(), last.frozen > 0) {
        let less = 1.0 - now / was;
        text += &match less >= 0.0 {
            true => format!(" ({} less than unfrozen)", percent(less)),
            false => format!(" ({} more than unfrozen)", percent(-less)),
        };
    }
    text += &format!(
        "  {:.0} images/s  lr {:.1e}",
        last.images_per_second, last.lr
    );
    if let Some(top1) = run.evaluations.last() {
        text += &format!("  top-1 {:.2} %", top1.1);
    }
    Line::raw(text)
}

fn help(frame: &mut Frame, area: Rect) {
    let lines = HELP.lines().count() as u16;
    let width = HELP.lines().map(|l| l.chars().count()).max().unwrap_or(0) as u16;
    let (width, height) = ((width + 4).min(area.width), (lines + 2).min(area.height));
    let at = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    let text = Paragraph::new(HELP).block(Block::bordered().title("keys"));
    frame.render_widget(Clear, at);
    frame.render_widget(text, at);
}

#[cfg(test)]
mod tests;
