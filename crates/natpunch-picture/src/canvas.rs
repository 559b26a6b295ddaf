//! The shapes of a picture, and their SVG.

use std::fmt::Write as _;

use serde::Serialize;

use crate::text::{escaped, width, wrapped};
use crate::{Kind, Links, Mesh, cut, printable};

/// The style of the shapes' classes, light and dark, as CSS. All are below the class `np`.
pub const STYLE: &str = include_str!("picture.css");

/// A picture: its size in pixels, and what is in it, the hindmost first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Picture {
    /// What it shows.
    pub title: String,
    /// Its width.
    pub width: f64,
    /// Its height.
    pub height: f64,
    /// What is in it.
    pub shapes: Vec<Shape>,
}

/// An element of SVG.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shape {
    /// Its name: `path`, `rect`, `text`.
    pub element: &'static str,
    /// Classes of [`STYLE`].
    pub class: String,
    /// Its attributes, which hold numbers and words of this crate alone.
    pub attributes: Vec<(&'static str, String)>,
    /// The text in it. It is of others, and not escaped.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// What is shown while one points at it. It is of others, and not escaped.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub about: String,
    /// The name of the peer that it shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
}

impl Picture {
    /// The picture as a file of its own.
    pub fn svg(&self) -> String {
        let (width, height) = (self.width.ceil(), self.height.ceil());
        let mut to = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"np\" width=\"{width}\" \
             height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
             aria-label=\"{}\">\n<style>\n{STYLE}</style>\n\
             <rect class=\"bg\" width=\"100%\" height=\"100%\"/>\n",
            escaped(&self.title)
        );
        for shape in &self.shapes {
            shape.write(&mut to);
        }
        to.push_str("</svg>\n");
        to
    }
}

impl Shape {
    fn write(&self, to: &mut String) {
        let _ = write!(to, "<{} class=\"{}\"", self.element, escaped(&self.class));
        for (name, value) in &self.attributes {
            let _ = write!(to, " {name}=\"{}\"", escaped(value));
        }
        if self.text.is_empty() && self.about.is_empty() {
            to.push_str("/>\n");
            return;
        }
        to.push('>');
        if !self.about.is_empty() {
            let _ = write!(to, "<title>{}</title>", escaped(&self.about));
        }
        let _ = writeln!(to, "{}</{}>", escaped(&self.text), self.element);
    }
}

/// A point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct At {
    pub(crate) x: f64,
    pub(crate) y: f64,
}

impl At {
    pub(crate) fn towards(self, other: Self, part: f64) -> Self {
        Self {
            x: self.x + (other.x - self.x) * part,
            y: self.y + (other.y - self.y) * part,
        }
    }
}

/// A number as SVG has it: a tenth of a pixel is enough.
pub(crate) fn n(number: f64) -> String {
    let text = format!("{number:.1}");
    match text.strip_suffix(".0") {
        Some("-0") => "0".to_owned(),
        Some(whole) => whole.to_owned(),
        None => text,
    }
}

/// Straight lines from point to point, as the `d` of a path.
pub(crate) fn polyline(points: &[At]) -> String {
    let at = |at: &At| format!("{} {}", n(at.x), n(at.y));
    let points: Vec<String> = points.iter().map(at).collect();
    format!("M{}", points.join("L"))
}

/// A picture that is being drawn.
#[derive(Debug, Default)]
pub(crate) struct Canvas {
    pub(crate) shapes: Vec<Shape>,
}

impl Canvas {
    /// Draws something, and gives it back for more to be said of it.
    pub(crate) fn add(
        &mut self,
        element: &'static str,
        class: impl Into<String>,
        attributes: Vec<(&'static str, String)>,
    ) -> Option<&mut Shape> {
        self.shapes.push(Shape {
            element,
            class: class.into(),
            attributes,
            text: String::new(),
            about: String::new(),
            peer: None,
        });
        self.shapes.last_mut()
    }

    pub(crate) fn path(&mut self, class: impl Into<String>, d: String) -> Option<&mut Shape> {
        self.add("path", class, vec![("d", d)])
    }

    /// Text from this point on, or around it, or up to it: `anchor` is the word of SVG.
    pub(crate) fn text(
        &mut self,
        class: &str,
        at: At,
        anchor: &'static str,
        text: &str,
    ) -> Option<&mut Shape> {
        let mut attributes = vec![("x", n(at.x)), ("y", n(at.y))];
        if anchor != "start" {
            attributes.push(("text-anchor", anchor.to_owned()));
        }
        let shape = self.add("text", class, attributes)?;
        shape.text = printable(text);
        Some(shape)
    }

    pub(crate) fn rect(
        &mut self,
        class: impl Into<String>,
        middle: At,
        (width, height): (f64, f64),
    ) -> Option<&mut Shape> {
        let attributes = vec![
            ("x", n(middle.x - width / 2.0)),
            ("y", n(middle.y - height / 2.0)),
            ("width", n(width)),
            ("height", n(height)),
            ("rx", "8".to_owned()),
        ];
        self.add("rect", class, attributes)
    }

    /// The mark of a kind: each has a form of its own, for those who don't see its colour.
    pub(crate) fn spot(&mut self, kind: Kind, at: At, r: f64) -> Option<&mut Shape> {
        let At { x, y } = at;
        let polygon = |points: &[(f64, f64)]| {
            let points = points.iter().enumerate().map(|(index, (dx, dy))| {
                let word = if index == 0 { "M" } else { "L" };
                format!("{word}{} {}", n(x + dx * r), n(y + dy * r))
            });
            points.collect::<String>() + "Z"
        };
        let circle = format!(
            "M{} {}a{r} {r} 0 1 0 {} 0a{r} {r} 0 1 0 -{} 0Z",
            n(x - r),
            n(y),
            n(2.0 * r),
            n(2.0 * r)
        );
        let (d, is_full) = match kind {
            Kind::Endpoint | Kind::Direct | Kind::Pinned => (circle, true),
            Kind::Discovery | Kind::Resting | Kind::Searching => (circle, false),
            Kind::Lan => (
                polygon(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
                true,
            ),
            Kind::Relayed => (
                polygon(&[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)]),
                true,
            ),
            Kind::Down => {
                let (l, r_) = (x - r, x + r);
                let (t, b) = (y - r, y + r);
                let (l, r_, t, b) = (n(l), n(r_), n(t), n(b));
                (format!("M{l} {t}L{r_} {b}M{r_} {t}L{l} {b}"), false)
            }
        };
        let full = if is_full { " full" } else { "" };
        self.path(format!("spot {}{full}", kind.word()), d)
    }
}

/// Height of a line of the head.
const LINE: f64 = 20.0;
/// Around the picture.
pub(crate) const MARGIN: f64 = 24.0;

/// What stands above the picture: title, legend, and what is not drawn. Gives its height.
pub(crate) fn head(canvas: &mut Canvas, mesh: &Mesh, links: &Links, width_: f64) -> f64 {
    let most = width_ - 2.0 * MARGIN;
    let mut y = MARGIN + 14.0;
    let at = |y: f64| At { x: MARGIN, y };
    let characters = (most / 11.0).max(8.0) as usize;
    let title = cut(&mesh.title, characters);
    if let Some(shape) = canvas.text("title", at(y), "start", &title) {
        shape.about = printable(&mesh.title);
    }
    for line in wrapped(&printable(&mesh.subtitle), 12.0, most) {
        y += LINE;
        canvas.text("muted", at(y), "start", &line);
    }
    y += LINE + 4.0;
    let mut x = MARGIN;
    for (kind, count) in &links.counts {
        let text = format!("{} {}", crate::links::thousands(*count), kind.in_words());
        let wide = 44.0 + width(&text, 12.0) + 18.0;
        if x > MARGIN && x + wide > width_ - MARGIN {
            x = MARGIN;
            y += LINE;
        }
        let (from, to, middle) = (n(x), n(x + 36.0), n(y - 4.0));
        canvas.path(
            format!("line {}", kind.word()),
            format!("M{from} {middle}H{to}"),
        );
        let mark = At {
            x: x + 18.0,
            y: y - 4.0,
        };
        canvas.spot(*kind, mark, 4.0);
        canvas.text("muted", At { x: x + 44.0, y }, "start", &text);
        x += wide;
    }
    for line in wrapped(&links.notes.join(" "), 12.0, most) {
        if !line.is_empty() {
            y += LINE;
            canvas.text("muted", at(y), "start", &line);
        }
    }
    y + LINE
}
