//! Plots as SVG text. Colours and fonts are the page's: a plot only says which series it draws.

use plotters::coord::Shift;
use plotters::prelude::*;

const SIZE: (u32, u32) = (560, 250);
const TEXT: RGBColor = RGBColor(90, 98, 112);
const GRID: RGBColor = RGBColor(228, 231, 236);
/// Told apart by people who see colours differently, too.
const COLOURS: [RGBColor; 5] = [
    RGBColor(31, 111, 235),
    RGBColor(217, 95, 2),
    RGBColor(27, 143, 106),
    RGBColor(150, 80, 190),
    RGBColor(130, 130, 130),
];

type Fault = DrawingAreaErrorKind<std::io::Error>;

/// One line of a plot.
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// What the horizontal axis is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Seconds since the run began.
    Seconds,
    /// Quantiles, each further nine as far from the last as that from the one before.
    Nines,
}

/// The place of a quantile on an axis of nines. The last place is that of the maximum.
pub fn nines(quantile: f64, last: f64) -> f64 {
    if quantile >= 1.0 { last } else { (-(1.0 - quantile).log10()).min(last) }
}

/// Draws the series that have points; none when there are none.
pub fn draw(axis: Axis, unit: &str, series: &[Series]) -> Option<String> {
    let series: Vec<&Series> = series.iter().filter(|series| !series.points.is_empty()).collect();
    if series.is_empty() {
        return None;
    }
    let mut svg = String::new();
    let drawn = draw_onto(&SVGBackend::with_string(&mut svg, SIZE).into_drawing_area(), axis, unit, &series);
    drawn.ok()?;
    Some(svg)
}

fn draw_onto(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    axis: Axis,
    unit: &str,
    series: &[&Series],
) -> Result<(), Fault> {
    let points = || series.iter().flat_map(|series| &series.points);
    let x_max = points().map(|point| point.0).fold(0.0, f64::max).max(1e-9);
    let y_max = points().map(|point| point.1).fold(0.0, f64::max).max(1e-9) * 1.08;
    let text = |size: u32| ("sans-serif", size).into_font().color(&TEXT);
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .margin_right(24)
        .x_label_area_size(38)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..x_max, 0.0..y_max)?;
    let label = |x: &f64| match axis {
        Axis::Seconds => format!("{x:.0}"),
        Axis::Nines => percent(*x, x_max),
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .x_labels(if axis == Axis::Nines { x_max.floor() as usize + 1 } else { 10 })
        .y_labels(6)
        .x_label_formatter(&label)
        .y_label_formatter(&|y| number(*y))
        .x_desc(if axis == Axis::Nines { "share of all, in percent" } else { "seconds" })
        .y_desc(unit)
        .label_style(text(13))
        .axis_desc_style(text(13))
        .draw()?;
    for (position, series) in series.iter().enumerate() {
        let colour = COLOURS[position % COLOURS.len()];
        // Only the first series is filled: fills on fills hide what they should show.
        if position == 0 && axis == Axis::Seconds {
            let fill = colour.mix(0.10);
            chart.draw_series(AreaSeries::new(series.points.iter().copied(), 0.0, fill))?;
        }
        let line = LineSeries::new(series.points.iter().copied(), colour.stroke_width(2));
        chart.draw_series(line)?;
    }
    area.present()
}

/// The names of the series with their colours, as HTML: a legend within the plot would lie over its lines.
pub fn legend(series: &[Series]) -> String {
    let drawn = series.iter().filter(|series| !series.points.is_empty()).enumerate();
    let item = |(position, series): (usize, &Series)| {
        let RGBColor(red, green, blue) = COLOURS[position % COLOURS.len()];
        format!("<span><i style=\"background:rgb({red},{green},{blue})\"></i>{}</span>", series.name)
    };
    drawn.map(item).collect()
}

fn percent(place: f64, last: f64) -> String {
    if place > last - 0.02 {
        return "max".to_owned();
    }
    let percent = 100.0 * (1.0 - 10f64.powf(-place));
    let digits = (place.round() as usize).saturating_sub(2);
    format!("{percent:.digits$}")
}

/// A number as short as its axis allows.
fn number(value: f64) -> String {
    match value {
        _ if value >= 1e6 => format!("{:.1} M", value / 1e6),
        _ if value >= 1e4 => format!("{:.0} k", value / 1e3),
        _ if value >= 10.0 || value == 0.0 => format!("{value:.0}"),
        _ if value >= 1.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_nine_is_as_wide_as_the_one_before() {
        assert!((nines(0.9, 5.0) - 1.0).abs() < 1e-9);
        assert!((nines(0.999, 5.0) - 3.0).abs() < 1e-9);
        assert!((nines(1.0, 5.0) - 5.0).abs() < 1e-9);
        assert_eq!(percent(0.0, 5.0), "0");
        assert_eq!(percent(2.0, 5.0), "99");
        assert_eq!(percent(4.0, 5.0), "99.99");
        assert_eq!(percent(5.0, 5.0), "max");
    }

    #[test]
    fn a_plot_holds_a_line_for_each_series_that_has_points() {
        let series = |name: &str, points: &[(f64, f64)]| Series { name: name.to_owned(), points: points.to_vec() };
        let all =
            [series("one", &[(0.0, 1.0), (1.0, 2.0)]), series("empty", &[]), series("two", &[(0.0, 3.0), (1.0, 1.0)])];
        let svg = draw(Axis::Seconds, "things", &all).unwrap();
        // RGB of the first two colours, as the lines have them.
        assert!(["#1F6FEB", "#D95F02"].iter().all(|colour| svg.contains(&format!("stroke=\"{colour}\""))));
        assert!(!svg.contains("#1B8F6A"));
        assert!(svg.contains("things"));
        let legend = legend(&all);
        assert!(legend.contains("one") && legend.contains("two") && !legend.contains("empty"));
        assert_eq!(draw(Axis::Seconds, "things", &all[1..2]), None);
    }
}
