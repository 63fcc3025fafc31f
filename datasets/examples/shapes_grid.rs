//! Draws a grid of shapes, one row per class, at 32 and at 224 pixels.
//!
//! `cargo run --release -p vitfreeze-datasets --example shapes_grid -- [folder]`

use datasets::{Shapes, Source};
use image::{imageops::replace, RgbImage};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    for (size, columns) in [(32, 20), (224, 6)] {
        let shapes = Shapes::new(0, size, usize::MAX);
        let (rows, step) = (shapes.classes().len(), size + 2);
        let mut grid = RgbImage::new((columns * step) as u32, (rows * step) as u32);
        for index in 0..rows * columns {
            let drawn = shapes.image(index)?;
            let tile =
                RgbImage::from_raw(size as u32, size as u32, drawn.rgb).ok_or("wrong size")?;
            replace(
                &mut grid,
                &tile,
                (index / rows * step) as i64,
                (index % rows * step) as i64,
            );
        }
        let path = format!("{folder}/shapes{size}.png");
        grid.save(&path)?;
        println!("{path}: {}", shapes.classes().join(", "));
    }
    Ok(())
}
