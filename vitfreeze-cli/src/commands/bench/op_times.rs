//! `vitfreeze bench --profile`: where a step's time goes, op by op.
use serde::Serialize;
use vit::ops::profile::OpTime;

/// Lines of the table.
const SHOWN: usize = 10;

/// One kind of op in one step, mean over the steps; what ops inside it took is in their rows.
#[derive(Debug, Serialize)]
pub struct Row {
    op: &'static str,
    seconds: f64,
    /// Of the step's time, 0 to 1.
    share: f64,
    calls: u64,
}

/// The times of `steps` steps, whose rows sum to the whole, by step.
pub fn rows(times: &[OpTime], steps: usize) -> Vec<Row> {
    let whole: f64 = times.iter().map(|op| op.seconds).sum();
    let row = |op: &OpTime| Row {
        op: op.name,
        seconds: op.seconds / steps as f64,
        share: op.seconds / whole,
        calls: op.calls / steps as u64,
    };
    times.iter().map(row).collect()
}

/// The dearest ops, and how much of the step is matrix products.
pub fn table(frozen: usize, rows: &[Row]) -> String {
    let sum = |kinds: &[&str]| -> f64 {
        let counts = |row: &&Row| kinds.iter().any(|kind| row.op.starts_with(kind));
        // The sum of none is -0.
        0.0 + 100.0 * rows.iter().filter(counts).map(|row| row.share).sum::<f64>()
    };
    let whole: f64 = rows.iter().map(|row| row.seconds).sum();
    let mut out = format!("\n{frozen} frozen, {whole:.3} s a step, mean\n");
    out += "   seconds     share   calls  op\n";
    for row in rows.iter().take(SHOWN) {
        let (share, op) = (100.0 * row.share, row.op);
        out += &format!(
            "{:>10.4}{share:>8.1} %{:>8}  {op}\n",
            row.seconds, row.calls
        );
    }
    out += &format!(
        "matrix products {:.1} %; together with attention, whose products are inside it, {:.1} %",
        sum(&["matmul", "bf16 tiles"]),
        sum(&["matmul", "bf16 tiles", "attention"])
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_whole_and_ten_ops_are_shown() {
        let op = |name, seconds| OpTime {
            name,
            seconds,
            calls: 4,
        };
        let mut times = vec![op("matmul dW", 5.0), op("attention", 2.0), op("rest", 1.0)];
        times.resize(11, op("gelu", 0.25));
        let rows = rows(&times, 2);
        assert_eq!(
            (rows[0].seconds, rows[0].share, rows[0].calls),
            (2.5, 0.5, 2)
        );
        assert_eq!(rows.iter().map(|row| row.seconds).sum::<f64>(), 5.0);
        let table = table(3, &rows);
        assert_eq!(table.lines().filter(|l| l.ends_with("gelu")).count(), 7);
        assert!(table.ends_with(
            "matrix products 50.0 %; together with attention, whose products are inside it, 70.0 %"
        ));
    }
}
