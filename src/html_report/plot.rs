//! Lines over layers, as SVG within the page. The style sheet gives them colors that are readable on light and dark.

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::escape::escape;
use crate::error::{Error, Result};

/// Pixels, which the page scales.
const SIZE: (u32, u32) = (820, 260);
/// How many times the smallest value the largest is, at least, for powers of ten.
const WIDE: f64 = 30.0;
/// Series that can be told apart by color.
pub(super) const SERIES: usize = 4;

/// Values by layer.
pub(super) struct Line {
    pub(super) name: String,
    /// Places and values.
    pub(super) points: Vec<(f64, f64)>,
}

/// What a plot says.
pub(super) struct Plot<'a> {
    /// For readers who do not see it.
    pub(super) about: &'a str,
    /// What lies below the axis.
    pub(super) across: &'a str,
    /// Names of the places, where they are no numbers.
    pub(super) places: &'a [&'a str],
    /// What is behind a value: ` %`.
    pub(super) unit: &'a str,
    /// Whether the axis of values begins at zero, if it is no logarithmic one.
    pub(super) from_zero: bool,
    pub(super) lines: Vec<Line>,
}

impl Plot<'_> {
    /// The figure, with a key where there are several lines; nothing when there is no value.
    ///
    /// # Errors
    /// When it cannot be drawn.
    pub(super) fn figure(&self) -> Result<String> {
        let finite = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
            points.iter().copied().filter(|(_, value)| value.is_finite()).collect()
        };
        let lines: Vec<(&str, Vec<(f64, f64)>)> = self
            .lines
            .iter()
            .take(SERIES)
            .map(|line| (line.name.as_str(), finite(&line.points)))
            .filter(|(_, points)| !points.is_empty())
            .collect();
        let values = || lines.iter().flat_map(|(_, points)| points).map(|(_, value)| *value);
        let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
        if lines.is_empty() {
            return Ok(String::new());
        }
        let mut svg = String::new();
        let is_wide = low > 0.0 && high > WIDE * low;
        let drawn = if is_wide {
            self.draw(&mut svg, &lines, &short, ((low / 1.5)..(high * 1.5)).log_scale())
        } else {
            let low = if self.from_zero { 0.0 } else { (low - 0.1 * (high - low)).max(0.0) };
            let high = if high > low { high + 0.05 * (high - low) } else { low + 1.0 };
            let places = (1.0 - (high - low).log10().floor()).clamp(0.0, 9.0) as usize;
            self.draw(&mut svg, &lines, &|value| trimmed(&format!("{value:.places$}")), low..high)
        };
        drawn.map_err(|why| Error::Request(format!("the report cannot be drawn: {why}")))?;
        let label = format!("<svg role=\"img\" aria-label=\"{}\" ", escape(self.about));
        let svg = svg.replacen("<svg ", &label, 1);
        let keys: String = lines
            .iter()
            .enumerate()
            .map(|(number, (name, _))| format!("<li><i class=\"k{}\"></i>{}</li>", number + 1, escape(name)))
            .collect();
        let keys = if lines.len() > 1 { format!("<ul class=\"keys\">{keys}</ul>\n") } else { String::new() };
        Ok(format!("<figure>\n{keys}{svg}</figure>\n"))
    }

    fn draw<Y>(
        &self,
        svg: &mut String,
        lines: &[(&str, Vec<(f64, f64)>)],
        written: &dyn Fn(f64) -> String,
        range: impl AsRangedCoord<CoordDescType = Y, Value = f64>,
    ) -> std::result::Result<(), String>
    where
        Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let failed = |error: &dyn std::fmt::Display| error.to_string();
        let places = || lines.iter().flat_map(|(_, points)| points).map(|(place, _)| *place);
        let (first, last) = (places().fold(f64::INFINITY, f64::min), places().fold(0.0, f64::max));
        let last = if last > first { last } else { first + 1.0 };
        let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        let mut chart: ChartContext<'_, _, Cartesian2d<RangedCoordf64, Y>> = ChartBuilder::on(&area)
            .margin(10)
            .margin_right(24)
            .x_label_area_size(44)
            .y_label_area_size(76)
            .build_cartesian_2d(first..last, range)
            .map_err(|error| failed(&error))?;
        let of_place = |place: &f64| match self.places {
            // Sums of steps are near to whole numbers.
            [] if (place - place.round()).abs() < 1e-6 => format!("{}", place.round()),
            [] => String::new(),
            names => names.get(*place as usize).map_or(String::new(), |name| (*name).to_owned()),
        };
        let of_value = |value: &f64| format!("{}{}", written(*value), self.unit);
        let font = || ("sans-serif", 15).into_font();
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.25))
            .x_labels((last - first + 1.0).min(12.0) as usize)
            .y_labels(6)
            .x_label_style(font())
            .y_label_style(font())
            .axis_desc_style(font())
            .x_desc(self.across)
            .x_label_formatter(&of_place)
            .y_label_formatter(&of_value)
            .draw()
            .map_err(|error| failed(&error))?;
        for (number, (_, points)) in lines.iter().enumerate() {
            // Stands for a color of the style sheet.
            let color = RGBColor(0, 0, number as u8 + 1);
            let line = LineSeries::new(points.iter().copied(), color.stroke_width(2));
            chart.draw_series(line).map_err(|error| failed(&error))?;
            let dots = points.iter().map(|&point| Circle::new(point, 3, color.filled()));
            chart.draw_series(dots).map_err(|error| failed(&error))?;
        }
        area.present().map_err(|error| failed(&error))
    }
}

/// A number in few characters.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 {
        "0".to_owned()
    } else if !(1e-3..1e6).contains(&size) {
        format!("{value:.1e}").replace(".0e", "e")
    } else {
        let places = (2 - size.log10().floor() as i32).clamp(0, 5) as usize;
        trimmed(&format!("{value:.places$}"))
    }
}

/// Without zeros that say nothing.
fn trimmed(number: &str) -> String {
    let is_fraction = number.contains('.');
    if is_fraction {
        number.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        number.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (0.0123456, "0.0123"),
            (12.5, "12.5"),
            (123.4, "123"),
            (1e-5, "1e-5"),
            (2.5e7, "2.5e7"),
            (-0.5, "-0.5"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    fn plot(lines: Vec<Line>) -> String {
        Plot { about: "x < y", across: "layer", places: &[], unit: " %", from_zero: true, lines }
            .figure()
            .unwrap()
    }

    #[test]
    fn lines_and_what_is_no_number() {
        let line = |name: &str, values: &[f64]| Line {
            name: name.into(),
            points: values.iter().enumerate().map(|(at, value)| (at as f64, *value)).collect(),
        };
        let two = plot(vec![line("a<b", &[1.0, f64::NAN, 3.0]), line("c", &[2.0, 2.0])]);
        assert!(two.contains("aria-label=\"x &lt; y\"") && two.contains("a&lt;b</li>"), "{two}");
        assert_eq!(two.matches("<circle").count(), 4);
        assert!(two.contains("stroke=\"#000001\"") && two.contains("stroke=\"#000002\""));
        // One value, the same values, none; powers of ten.
        assert!(plot(vec![line("a", &[0.0])]).contains("<circle"));
        assert!(plot(vec![line("a", &[5.0, 5.0])]).contains("<circle"));
        assert_eq!(plot(vec![line("a", &[f64::NAN])]), "");
        // Near to each other, and still told apart.
        let lines = vec![line("a", &[94.51, 94.56])];
        let near =
            Plot { about: "", across: "", places: &[], unit: "", from_zero: false, lines }.figure().unwrap();
        assert!(near.contains("94.52") && near.contains("94.54"), "{near}");
        let wide = plot(vec![line("a", &[1e-6, 1e-3, 1.0])]);
        assert!(wide.contains("1e-5 %") && wide.contains("0.01 %"), "{wide}");
    }
}
