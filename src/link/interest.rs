//! What is wanted of what others publish: few filters that together match whatever the filters of many subscribers match, and perhaps
//! more.
//!
//! ```text
//!   devices/1/set, devices/2/set, … devices/65/set, site/#      ──▶      devices/+/set, site/#
//! ```
//!
//! What is covered too much costs a message that nobody here gets; what is covered too little would cost a subscriber a message. So
//! where there are more filters than may be, those are made one first that differ in one level only: of what each device subscribes to
//! for itself, one filter is left, however many devices there are.

use std::collections::HashMap;

use crate::codec::mqtt::topic;

/// Filters of one cover: four subjects each make 256 in one consumer of the fleet's stream.
pub const COVER_FILTERS: usize = 64;
/// A longer filter is covered by its first levels.
const FILTER_BYTES: usize = 256;
/// So are levels behind so many.
const FILTER_LEVELS: usize = 8;

/// See the head of this file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cover {
    /// None matches all that another one does.
    filters: Vec<Box<str>>,
    /// Everything is wanted, names that begin with `$` too.
    is_all: bool,
}

impl Cover {
    /// The filters, at most [`COVER_FILTERS`]. Where everything is wanted: `#` alone, which then stands for names that begin with `$`
    /// too.
    #[must_use]
    pub fn filters(&self) -> &[Box<str>] {
        &self.filters
    }

    /// Whether nothing is wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    /// Whether everything that a valid filter (not a shared one) matches is covered.
    #[must_use]
    pub fn covers(&self, filter: &str) -> bool {
        self.is_all || self.filters.iter().any(|rule| topic::covers(rule, filter))
    }

    /// Whether the same is covered.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.is_all == other.is_all
            && self.filters.len() == other.filters.len()
            && self.filters.iter().all(|filter| other.filters.contains(filter))
    }

    /// A valid filter, not a shared one, is wanted too. `true`: that was not covered.
    pub fn add(&mut self, filter: &str) -> bool {
        if self.covers(filter) {
            return false;
        }
        self.put(shortened(filter));
        while self.filters.len() > COVER_FILTERS {
            self.widen();
        }
        true
    }

    /// All that another one covers is wanted too.
    pub fn add_all(&mut self, other: &Self) {
        if other.is_all {
            self.want_all();
        }
        for filter in &other.filters {
            self.add(filter);
        }
    }

    fn want_all(&mut self) {
        (self.filters, self.is_all) = (vec!["#".into()], true);
    }

    /// A filter, in place of all that it covers.
    fn put(&mut self, filter: Box<str>) {
        self.filters.retain(|known| !topic::covers(&filter, known));
        self.filters.push(filter);
    }

    /// Two or more become one.
    fn widen(&mut self) {
        let mut alike: HashMap<String, usize> = HashMap::new();
        for filter in &self.filters {
            for wider in one_level_wider(filter) {
                *alike.entry(wider).or_default() += 1;
            }
        }
        // The one that is most of use; of several always the same.
        let best = alike.into_iter().filter(|&(_, count)| count > 1).max_by(|one, other| {
            let by_count = one.1.cmp(&other.1);
            by_count.then_with(|| one.0.cmp(&other.0))
        });
        if let Some((wider, _)) = best {
            return self.put(wider.into());
        }
        self.cut();
    }

    /// None differ in one level only: those that begin alike become one, or all do.
    fn cut(&mut self) {
        let mut begins: HashMap<&str, usize> = HashMap::new();
        for filter in &self.filters {
            *begins.entry(first_level(filter)).or_default() += 1;
        }
        let best = begins.into_iter().max_by(|one, other| one.1.cmp(&other.1).then_with(|| one.0.cmp(other.0)));
        match best {
            Some((first, count)) if count > 1 && first != "#" => {
                let wider = format!("{first}/#");
                self.put(wider.into());
            }
            _ if self.filters.iter().any(|filter| &**filter == "#" || &**filter == "+/#") => self.want_all(),
            _ => self.put("#".into()),
        }
    }
}

fn first_level(filter: &str) -> &str {
    filter.split('/').next().unwrap_or(filter)
}

/// The filter itself, or its first levels where it is long.
fn shortened(filter: &str) -> Box<str> {
    let mut end = 0;
    for (number, level) in filter.split('/').enumerate() {
        let next = if number == 0 { level.len() } else { end + 1 + level.len() };
        if number == FILTER_LEVELS || next > FILTER_BYTES {
            // A first level that is too long, of a name that begins with `$` perhaps, is kept: it has no shorter form.
            return if number == 0 { long_first(filter, level) } else { format!("{}/#", &filter[..end]).into() };
        }
        end = next;
    }
    filter.into()
}

fn long_first(filter: &str, first: &str) -> Box<str> {
    if filter.starts_with('$') { format!("{first}/#").into() } else { "#".into() }
}

/// The filter with one of its levels as `+`, for each that can be: the first level of a name that begins with `$` cannot.
fn one_level_wider(filter: &str) -> impl Iterator<Item = String> + '_ {
    let mut at = 0;
    filter.split('/').filter_map(move |level| {
        let begin = at;
        at += level.len() + 1;
        let is_of_dollar = begin == 0 && level.starts_with('$');
        let is_fixed = is_of_dollar || matches!(level, "+" | "#");
        (!is_fixed).then(|| format!("{}+{}", &filter[..begin], &filter[begin + level.len()..]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cover(filters: &[&str]) -> Cover {
        let mut cover = Cover::default();
        for filter in filters {
            cover.add(filter);
        }
        cover
    }

    #[test]
    fn what_is_covered_is_not_held_twice() {
        let mut cover = cover(&["a/b", "a/+", "a/c", "x"]);
        assert_eq!(cover.filters(), ["a/+".into(), "x".into()]);
        assert!(!cover.add("a/d") && !cover.add("x") && cover.add("a/#"));
        assert_eq!(cover.filters(), ["x".into(), "a/#".into()]);
        assert!(cover.add("$SYS/x") && cover.add("#") && !cover.add("y"));
        assert_eq!(cover.filters(), ["$SYS/x".into(), "#".into()]);
    }

    /// Each device subscribes to its own: one filter is left, and what else is wanted stays as it is.
    #[test]
    fn what_differs_in_one_level_becomes_one() {
        let mut all = cover(&["site/#", "alarms/+/fire"]);
        for device in 0..100_000 {
            all.add(&format!("devices/{device}/set"));
        }
        assert_eq!(all.filters(), ["site/#".into(), "alarms/+/fire".into(), "devices/+/set".into()]);
        assert!(!all.covers("devices/1/up"));
        // Up to the bound nothing is covered too much.
        let exact: Vec<_> = (0..COVER_FILTERS).map(|device| format!("devices/{device}/set")).collect();
        let all = cover(&exact.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(all.filters().len(), COVER_FILTERS);
        assert!(!all.covers("devices/x/set"));
    }

    #[test]
    fn what_has_nothing_alike_ends_as_everything() {
        let mut all = Cover::default();
        for number in 0..1_000 {
            all.add(&format!("{number}/{number}"));
        }
        assert_eq!(all.filters(), ["#".into()]);
        assert!(!all.covers("$x/1"), "a filter that begins with a wildcard matches no such name");
        for number in 0..1_000 {
            all.add(&format!("${number}/{number}"));
        }
        assert!(all.filters() == ["#".into()] && all.covers("$x/1") && all.covers("$1/1"));
        let mut other = cover(&["a"]);
        other.add_all(&all);
        assert!(other.is_same(&all) && other.covers("$y"));
    }

    #[test]
    fn long_filters_are_covered_by_how_they_begin() {
        let deep = vec!["l"; 100].join("/");
        let long = format!("a/{}", "x".repeat(1_000));
        let all = cover(&[&deep, &long]);
        assert_eq!(all.filters(), ["l/l/l/l/l/l/l/l/#".into(), "a/#".into()]);
        assert!(all.covers(&deep) && all.covers(&long));
        let first = "x".repeat(1_000);
        assert!(cover(&[&first]).covers(&first));
        let of_server = format!("${first}");
        assert!(cover(&[&of_server]).covers(&of_server));
    }

    /// Whatever filters come: a name that one of them matches is matched by the cover, which stays within its bound.
    #[test]
    fn whatever_is_wanted_is_covered() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let width = random.usize(2..40);
            let level = |random: &mut fastrand::Rng| match random.u8(..12) {
                0 => "+".to_owned(),
                1 => String::new(),
                2 => format!("${}", random.usize(..width)),
                _ => random.usize(..width).to_string(),
            };
            let (mut all, mut wanted) = (Cover::default(), Vec::new());
            for _ in 0..400 {
                let mut levels: Vec<_> = (0..random.usize(1..5)).map(|_| level(&mut random)).collect();
                if random.u8(..10) == 0 {
                    levels.push("#".to_owned());
                }
                let filter = levels.join("/");
                if filter.is_empty() {
                    continue;
                }
                let was_covered = all.covers(&filter);
                assert_eq!(all.add(&filter), !was_covered);
                assert!(all.covers(&filter) && all.filters().len() <= COVER_FILTERS, "seed {seed}: {filter}");
                wanted.push(filter);
            }
            for _ in 0..400 {
                let levels: Vec<_> = (0..random.usize(1..6)).map(|_| level(&mut random)).collect();
                let name = levels.join("/").replace('+', "p");
                if name.is_empty() || !wanted.iter().any(|filter| topic::matches(filter, &name)) {
                    continue;
                }
                let is_covered = all.is_all || all.filters().iter().any(|filter| topic::matches(filter, &name));
                assert!(is_covered, "seed {seed}: {name:?} {:?}", all.filters());
            }
        }
    }
}
