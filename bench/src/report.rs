//! Tables of figures, for people and as JSON. In each row the ratios come first.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::arguments::Arguments;
use crate::machine::Machine;

/// One table.
pub struct Table {
    /// What all of it is about.
    pub title: String,
    /// What a row stands for.
    pub of: &'static str,
    /// Columns, left to right.
    pub columns: Vec<Column>,
    /// Rows, top to bottom: a name, and a figure for each column, if there is one.
    pub rows: Vec<(String, Vec<Option<f64>>)>,
    /// What is to be known about it.
    pub notes: Vec<String>,
}

/// One column.
pub struct Column {
    pub name: &'static str,
    pub unit: Unit,
}

/// In what a column is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// So many times as much.
    Ratio,
    Nanoseconds,
    Microseconds,
    Milliseconds,
    Bytes,
    Count,
}

impl Unit {
    const fn label(self) -> &'static str {
        match self {
            Unit::Ratio => "ratio",
            Unit::Nanoseconds => "ns",
            Unit::Microseconds => "us",
            Unit::Milliseconds => "ms",
            Unit::Bytes => "bytes",
            Unit::Count => "count",
        }
    }
}

/// A column of ratios.
pub const fn ratio(name: &'static str) -> Column {
    Column { name, unit: Unit::Ratio }
}

/// A column of nanoseconds.
pub const fn ns(name: &'static str) -> Column {
    Column { name, unit: Unit::Nanoseconds }
}

impl Table {
    /// A figure by the names of its row and column; it must be there.
    #[cfg(test)]
    pub fn figure(&self, row: &str, column: &str) -> f64 {
        let place = self.columns.iter().position(|found| found.name == column).expect("the column");
        let (_, figures) = self.rows.iter().find(|(name, _)| name == row).expect("the row");
        figures[place].expect("the figure")
    }

    /// Every figure that is there is a number above zero: the bench has measured something.
    #[cfg(test)]
    pub fn assert_measured(&self) {
        assert!(!self.rows.is_empty());
        for (name, figures) in &self.rows {
            assert_eq!(figures.len(), self.columns.len(), "{name}");
            assert!(figures.iter().flatten().all(|figure| figure.is_finite() && *figure > 0.0), "{name}: {figures:?}");
        }
    }

    fn json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(|(name, figures)| self.json_row(name, figures)).collect();
        let units: Map<String, Value> =
            self.columns.iter().map(|column| (column.name.to_owned(), json!(column.unit.label()))).collect();
        json!({ "title": self.title, "units": units, "rows": rows, "notes": self.notes })
    }

    fn json_row(&self, name: &str, figures: &[Option<f64>]) -> Value {
        let mut row = Map::new();
        row.insert(self.of.to_owned(), json!(name));
        for (column, figure) in self.columns.iter().zip(figures) {
            row.insert(column.name.to_owned(), json!(figure));
        }
        Value::Object(row)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads: Vec<String> = self.columns.iter().map(Column::head).collect();
        let names = self.rows.iter().map(|(name, _)| name.chars().count());
        let first = names.chain([self.of.len()]).max().unwrap_or(0);
        writeln!(f, "{}", self.title)?;
        write!(f, "  {:<first$}", self.of)?;
        for head in &heads {
            write!(f, "  {head:>8}")?;
        }
        for (name, figures) in &self.rows {
            write!(f, "\n  {name:<first$}")?;
            for ((column, head), figure) in self.columns.iter().zip(&heads).zip(figures) {
                let width = head.chars().count().max(8);
                write!(f, "  {:>width$}", figure.map_or("-".to_owned(), |figure| column.write(figure)))?;
            }
        }
        for note in &self.notes {
            write!(f, "\n  {note}")?;
        }
        Ok(())
    }
}

impl Column {
    fn head(&self) -> String {
        match self.unit {
            Unit::Ratio | Unit::Count => self.name.to_owned(),
            unit => format!("{}, {}", self.name, unit.label()),
        }
    }

    fn write(&self, figure: f64) -> String {
        let decimals = match (self.unit, figure.abs()) {
            (Unit::Count, _) => 0,
            (_, figure) if figure < 10.0 => 2,
            (_, figure) if figure < 100.0 => 1,
            _ => 0,
        };
        let sign = if self.unit == Unit::Ratio { " x" } else { "" };
        format!("{figure:.decimals$}{sign}")
    }
}

/// One bench that has run.
pub struct Finished {
    pub name: String,
    pub seconds: f64,
    pub tables: Vec<Table>,
}

/// The whole run as one JSON object.
pub fn json(machine: &Machine, arguments: &Arguments, finished: &[Finished]) -> String {
    let benches: Vec<Value> = finished
        .iter()
        .map(|bench| {
            let tables: Vec<Value> = bench.tables.iter().map(Table::json).collect();
            json!({ "name": bench.name, "seconds": bench.seconds, "tables": tables })
        })
        .collect();
    let run = json!({ "machine": machine.json(), "rounds": arguments.rounds, "benches": benches });
    format!("{run:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_the_same_for_people_and_programs() {
        let table = Table {
            title: "Things".to_owned(),
            of: "thing",
            columns: vec![ratio("to a stone"), ns("fall")],
            rows: vec![("feather".to_owned(), vec![Some(3.25), Some(1234.6)]), ("cloud".to_owned(), vec![None, None])],
            notes: vec!["In air.".to_owned()],
        };
        let expected = [
            "Things",
            "  thing    to a stone  fall, ns",
            "  feather      3.25 x      1235",
            "  cloud             -         -",
            "  In air.",
        ];
        assert_eq!(table.to_string().lines().collect::<Vec<_>>(), expected);
        assert_eq!(table.json()["rows"][0], json!({ "thing": "feather", "to a stone": 3.25, "fall": 1234.6 }));
        assert_eq!(table.json()["units"]["fall"], "ns");
    }
}
