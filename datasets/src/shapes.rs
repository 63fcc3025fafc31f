//! A dataset that the program draws itself: no download, any image size, any number of images.

mod outline;
mod paint;

use rand_chacha::rand_core::Rng;
use rand_chacha::ChaCha8Rng;

use crate::rng::{below, rng, uniform};
use crate::source::thousands;
use crate::{Error, Image, Permit, Source};
use outline::Outline;
use paint::{hash, hsv, Paint};

/// Textured shapes on a textured ground; the class is the shape of the large one in front.
///
/// Behind it lie smaller shapes of other classes, partly covered. Place, size, rotation, stretch, colours, texture,
/// shadow and rim are random, a function of (seed, index) alone: neither the number of images nor their size in
/// pixels changes what is on them. Image `index` is of class `index % 10`.
#[derive(Clone, Debug)]
pub struct Shapes {
    seed: u64,
    size: usize,
    len: usize,
    classes: Vec<String>,
}

impl Shapes {
    /// `len` images of `size` x `size` pixels (at least 1).
    pub fn new(seed: u64, size: usize, len: usize) -> Self {
        let classes = Outline::ALL.iter().map(|o| o.name().to_owned()).collect();
        Self {
            seed,
            size: size.max(1),
            len,
            classes,
        }
    }
}

impl Source for Shapes {
    fn len(&self) -> usize {
        self.len
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, index: usize) -> usize {
        index % Outline::ALL.len()
    }

    fn read(&self, index: usize, _: &mut Permit) -> Result<Image, Error> {
        let mut rng = rng(self.seed, "shapes", 0, index as u64);
        Ok(Scene::draw(Outline::ALL[self.label(index)], &mut rng).render(self.size))
    }

    fn name(&self, index: usize) -> String {
        format!("shapes #{index}")
    }

    fn describe(&self) -> String {
        let (images, classes) = (thousands(self.len), self.classes.len());
        format!(
            "shapes drawn with seed {}, {images} images, {classes} classes",
            self.seed
        )
    }
}

/// What is on an image, before there are pixels. Coordinates run from -1 to 1 over the image.
struct Scene {
    ground: Paint,
    /// From back to front.
    shapes: Vec<Shape>,
    grain: u32,
}

struct Shape {
    outline: Outline,
    center: [f32; 2],
    radius: f32,
    /// Cosine and sine of the rotation.
    turn: [f32; 2],
    /// Width over height, before the rotation.
    stretch: f32,
    paint: Paint,
    /// Colour and width of the rim.
    rim: ([f32; 3], f32),
    /// Offset of the shadow and how dark it is.
    shadow: ([f32; 2], f32),
}

impl Scene {
    fn draw(front: Outline, rng: &mut ChaCha8Rng) -> Self {
        // Shape and ground differ in hue, and most often one is light and the other dark.
        let hue = uniform(rng);
        let light_ground = below(rng, 2) == 0;
        let light_front = if below(rng, 4) == 0 {
            light_ground
        } else {
            !light_ground
        };
        let front_hue = hue + between(rng, 0.3, 0.7);
        let ground_color = hsv(hue, between(rng, 0.15, 0.65), value(rng, light_ground));
        let ground = Paint::draw(rng, ground_color, hue, 1.0);

        let radius = between(rng, 0.5, 0.78);
        let reach = 0.95 - 0.8 * radius;
        let center = [between(rng, -reach, reach), between(rng, -reach, reach)];
        let mut shapes = Vec::new();
        for _ in 0..2 + below(rng, 3) {
            let other = Outline::ALL[below(rng, Outline::ALL.len())];
            let angle = turn(rng);
            let away = radius * between(rng, 0.85, 1.5);
            let place = [center[0] + away * angle[0], center[1] + away * angle[1]];
            let (small, hue) = (radius * between(rng, 0.3, 0.5), uniform(rng));
            let light = below(rng, 2) == 0;
            if other != front {
                shapes.push(Shape::draw(rng, other, place, small, hue, light));
            }
        }
        shapes.push(Shape::draw(
            rng,
            front,
            center,
            radius,
            front_hue,
            light_front,
        ));
        Self {
            ground,
            shapes,
            grain: rng.next_u32(),
        }
    }

    fn render(&self, size: usize) -> Image {
        let pixel = 2.0 / size as f32;
        let at = |i: usize| (i as f32 + 0.5) * pixel - 1.0;
        let mut canvas = Vec::with_capacity(size * size);
        for y in 0..size {
            canvas.extend((0..size).map(|x| self.ground.at(at(x), at(y), pixel)));
        }
        for shape in &self.shapes {
            shape.render(&mut canvas, size, pixel);
        }
        let mut rgb = Vec::with_capacity(3 * canvas.len());
        for (i, color) in canvas.iter().enumerate() {
            let grain = (hash(i as u32, 0, self.grain) - 0.5) * 0.06;
            rgb.extend(color.map(|c| ((c + grain) * 255.0 + 0.5) as u8));
        }
        Image {
            width: size,
            height: size,
            rgb,
        }
    }
}

impl Shape {
    fn draw(
        rng: &mut ChaCha8Rng,
        outline: Outline,
        center: [f32; 2],
        radius: f32,
        hue: f32,
        light: bool,
    ) -> Self {
        let color = hsv(hue, between(rng, 0.55, 1.0), value(rng, light));
        let rim = if below(rng, 3) == 0 {
            between(rng, 0.03, 0.06)
        } else {
            0.0
        };
        let dark = between(rng, 0.0, 0.5);
        let away = turn(rng);
        Self {
            outline,
            center,
            radius,
            turn: turn(rng),
            stretch: between(rng, 0.92, 1.09),
            paint: Paint::draw(rng, color, hue, 1.0 / radius),
            rim: (
                if below(rng, 2) == 0 {
                    [0.05; 3]
                } else {
                    [0.95; 3]
                },
                rim,
            ),
            shadow: ([0.12 * radius * away[0], 0.12 * radius * away[1]], dark),
        }
    }

    /// Signed distance of a point of the image to the outline: negative inside.
    fn distance(&self, x: f32, y: f32) -> f32 {
        let ([cos, sin], scale) = (self.turn, 1.0 / self.radius);
        let (x, y) = ((x - self.center[0]) * scale, (y - self.center[1]) * scale);
        let (x, y) = (x * cos + y * sin, y * cos - x * sin);
        self.radius * self.outline.distance(x / self.stretch, y * self.stretch)
    }

    fn render(&self, canvas: &mut [[f32; 3]], size: usize, pixel: f32) {
        let blur = 0.12 * self.radius;
        // No outline reaches further than 1.15 of its radius; stretch and shadow add to that.
        let reach = 1.15 * 1.09 * self.radius + 2.0 * blur + pixel;
        let range = |center: f32| {
            let index = |v: f32| ((v + 1.0) / pixel).clamp(0.0, size as f32) as usize;
            index(center - reach)..index(center + reach + pixel)
        };
        let ([shadow_x, shadow_y], dark) = self.shadow;
        let (rim, rim_width) = self.rim;
        for row in range(self.center[1]) {
            let y = (row as f32 + 0.5) * pixel - 1.0;
            for column in range(self.center[0]) {
                let x = (column as f32 + 0.5) * pixel - 1.0;
                let color = &mut canvas[row * size + column];
                let distance = self.distance(x, y);
                // The share of the pixel within the outline.
                let inside = (0.5 - distance / pixel).clamp(0.0, 1.0);
                if inside < 1.0 {
                    let shadow = self.distance(x - shadow_x, y - shadow_y);
                    let shade = 1.0 - dark * (0.5 - 0.5 * shadow / blur).clamp(0.0, 1.0);
                    *color = color.map(|c| c * shade);
                }
                if inside > 0.0 {
                    let within = (0.5 - (distance + rim_width) / pixel).clamp(0.0, 1.0);
                    let own = self.paint.at(x - self.center[0], y - self.center[1], pixel);
                    let own = if rim_width > 0.0 {
                        mix(rim, own, within)
                    } else {
                        own
                    };
                    *color = mix(*color, own, inside);
                }
            }
        }
    }
}

fn between(rng: &mut ChaCha8Rng, low: f32, high: f32) -> f32 {
    low + (high - low) * uniform(rng)
}

/// Cosine and sine of a random angle, from a sine that gives the same bits everywhere.
fn turn(rng: &mut ChaCha8Rng) -> [f32; 2] {
    let angle = f64::from(uniform(rng)) * std::f64::consts::TAU;
    [libm::cos(angle) as f32, libm::sin(angle) as f32]
}

fn value(rng: &mut ChaCha8Rng, light: bool) -> f32 {
    if light {
        between(rng, 0.75, 1.0)
    } else {
        between(rng, 0.25, 0.5)
    }
}

fn mix(from: [f32; 3], to: [f32; 3], t: f32) -> [f32; 3] {
    std::array::from_fn(|c| from[c] + (to[c] - from[c]) * t)
}
