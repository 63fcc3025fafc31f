//! The frame of a chart: axes, a grid, names of lines where they end.
use super::axis::{times_ten_to, Axis};
use super::color::{Color, GRID, MUTED};
use super::svg::{Stroke, Svg, Text};
use super::{font, BODY};

/// Where a chart lies in its picture, and what its sides mean.
pub struct Frame {
    /// Left, top, width, height without names and ticks.
    pub area: [f64; 4],
    pub x: Axis,
    pub y: Axis,
}

/// The name of a line.
pub struct EndLabel {
    /// Where the line ends, in the picture.
    pub at: (f64, f64),
    pub text: String,
    pub color: Color,
}

impl Frame {
    /// Where a value lies in the picture.
    pub fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let [left, top, width, height] = self.area;
        (
            left + width * self.x.place(x),
            top + height * (1.0 - self.y.place(y)),
        )
    }

    pub fn right(&self) -> f64 {
        self.area[0] + self.area[2]
    }

    pub fn bottom(&self) -> f64 {
        self.area[1] + self.area[3]
    }

    /// The horizontal axis; without a name only the grid.
    pub fn x_axis(&self, svg: &mut Svg, name: Option<&str>) {
        let [left, top, width, _] = self.area;
        let bottom = self.bottom();
        let ticks = self.x.ticks((width / 90.0) as usize);
        let (labels, power) = self.x.labels(&ticks);
        for (tick, label) in ticks.iter().zip(&labels) {
            let x = self.at((*tick, self.y.low)).0;
            svg.line(&[(x, top), (x, bottom)], Stroke::new(GRID, 1.0));
            if name.is_some() {
                svg.line(&[(x, bottom), (x, bottom + 4.0)], Stroke::new(MUTED, 1.0));
                svg.text((x, bottom + 14.0), label, Text::muted().middle());
            }
        }
        if let Some(name) = name {
            let name = format!("{name}{}", times_ten_to(power));
            let middle = left + width / 2.0;
            svg.text((middle, bottom + 34.0), &name, Text::body().middle());
        }
    }

    /// The vertical axis, its name above it, where it is read without turning one's head.
    pub fn y_axis(&self, svg: &mut Svg, name: &str) {
        let [left, top, _, height] = self.area;
        let ticks = self.y.ticks((height / 50.0) as usize);
        let (labels, power) = self.y.labels(&ticks);
        for (tick, label) in ticks.iter().zip(&labels) {
            let y = self.at((self.x.low, *tick)).1;
            svg.line(&[(left, y), (self.right(), y)], Stroke::new(GRID, 1.0));
            svg.text((left - 8.0, y), label, Text::muted().end());
        }
        let name = format!("{name}{}", times_ten_to(power));
        let widest = labels.iter().map(|l| font::width(l, BODY));
        let start = left - 8.0 - widest.fold(0.0, f64::max);
        svg.text((start, top - 16.0), &name, Text::body());
    }

    /// The axis itself, over the grid.
    pub fn base(&self, svg: &mut Svg) {
        let (left, right, bottom) = (self.area[0], self.right(), self.bottom());
        svg.line(&[(left, bottom), (right, bottom)], Stroke::new(MUTED, 1.0));
    }

    /// Names right of the frame, each near the end of its line and none over another; a thin line leads to those that had to
    /// move or whose line ends earlier.
    pub fn end_labels(&self, svg: &mut Svg, mut labels: Vec<EndLabel>, room: f64) {
        const LINE: f64 = BODY + 5.0;
        labels.sort_by(|a, b| a.at.1.total_cmp(&b.at.1));
        let wanted: Vec<f64> = labels.iter().map(|l| l.at.1).collect();
        let places = apart(&wanted, LINE, self.area[1], self.bottom());
        let left = self.right() + 16.0;
        for (label, y) in labels.iter().zip(places) {
            let (x, own) = label.at;
            if (own - y).abs() > 2.0 || self.right() - x > 4.0 {
                let turn = self.right().max(x + 4.0);
                let points = [(x, own), (turn, y), (left - 4.0, y)];
                svg.line(&points, Stroke::new(label.color, 0.8).faint(0.55));
            }
            let text = font::fit(&label.text, BODY, room - 20.0);
            svg.text((left, y), &text, Text::body().color(label.color));
        }
    }
}

/// Ascending places at least `gap` from each other, as near to the wanted ones as that goes, between `low` and `high` while
/// there is room.
fn apart(wanted: &[f64], gap: f64, low: f64, high: f64) -> Vec<f64> {
    // Groups of labels that touch: (sum of wanted tops, members). Each group lies around the mean of what it wants.
    let mut groups: Vec<(f64, usize)> = Vec::new();
    let top = |(sum, count): (f64, usize)| {
        let count = count as f64;
        (sum / count - gap * (count - 1.0) / 2.0)
            .min(high - gap * (count - 1.0))
            .max(low)
    };
    for &y in wanted {
        groups.push((y, 1));
        while let [.., before, last] = groups[..] {
            if top(before) + gap * before.1 as f64 <= top(last) {
                break;
            }
            groups.pop();
            groups.pop();
            groups.push((before.0 + last.0, before.1 + last.1));
        }
    }
    groups
        .into_iter()
        .flat_map(|group| (0..group.1).map(move |i| top(group) + gap * i as f64))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::apart;

    #[test]
    fn labels_do_not_touch() {
        assert_eq!(apart(&[10.0, 50.0], 10.0, 0.0, 100.0), [10.0, 50.0]);
        assert_eq!(apart(&[50.0, 50.0], 10.0, 0.0, 100.0), [45.0, 55.0]);
        let many = apart(&[99.0, 99.0, 100.0, 100.0], 10.0, 0.0, 100.0);
        assert_eq!(many, [70.0, 80.0, 90.0, 100.0]);
        let crowded = apart(&[1.0, 2.0, 3.0], 10.0, 0.0, 100.0);
        assert_eq!(crowded, [0.0, 10.0, 20.0]);
    }
}
