//! The rules of the house as a test: who may use whom, and what is written nowhere.
//!
//! The table of modules here is the one that docs/ARCHITECTURE.md explains. Each rule names file, line and remedy when
//! it is broken, and has a planted violation below that it must find.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

/// What the files under `src/` that begin with `path` may use; the longest match counts. A module may always use
/// itself and std.
struct Row {
    path: &'static str,
    modules: &'static [&'static str],
    outside: &'static [&'static str],
}

const ANY: &[&str] = &["*"];
/// Each module and those above it that it may use, then the crates that it may use.
#[rustfmt::skip]
const TABLE: &[Row] = &[
    row("time", &[], &[]), row("clock", &["time"], &["humantime"]),
    row("network", &[], &[]),
    row("slot", &[], &["slab"]),
    row("wire", &[], &[]),
    row("whole_file", &[], &["rustix"]),
    row("image", &["wire", "codec"], &["bytes"]),
    row("config", &["time", "network", "codec", "whole_file"], &["serde", "toml", "humantime", "zeroize"]),
    row("metrics", &[], &[]),
    row("devices", &["slot"], &["hashbrown"]),
    row("wheel", &["time", "slot"], &[]),
    row("pool", &[], &[]),
    row("link", &["time", "slot", "wire", "codec", "network", "pool", "image"], &["crossbeam_channel", "bytes", "rustix", "siphasher", "tracing", "zeroize"]),
    row("codec", &["wire"], &[]),
    row("tls", &["whole_file"], &["rustls", "aws_lc_rs", "x509_parser", "zeroize", "arc_swap", "base64"]),
    row("tls/certs", &["whole_file"], &["rustls", "aws_lc_rs", "x509_parser", "zeroize", "rcgen"]),
    row("broker", &["time", "slot", "config", "devices", "metrics", "wheel", "pool", "link", "image", "codec"], &["slab", "hashbrown", "siphasher"]),
    row("connection", &["time", "slot", "network", "wire", "config", "metrics", "pool", "link", "tls", "codec", "broker"], &["bytes", "zeroize"]),
    row("shard", &["time", "slot", "network", "wire", "config", "devices", "metrics", "wheel", "pool", "link", "image", "tls", "codec", "broker", "connection"],
        &["slab", "bytes", "fastrand", "tracing"]),
    // Its tests drive it by the turn, as everybody does.
    row("shard/tests", &["slot", "turn"], &["crossbeam_channel"]),
    row("commands", &["link"], &["tokio", "bytes", "serde", "serde_json", "base64", "fastrand", "tracing"]),
    row("turn", &["time", "slot", "network", "config", "metrics", "wheel", "link", "tls", "codec", "broker", "connection", "shard"], &[]),
    row("store", &["time", "clock", "image", "link", "pool", "commands"], &["rusqlite", "tokio", "bytes", "rustix", "tracing"]),
    row("worker", &["time", "slot", "wire", "config", "metrics", "wheel", "link", "image", "tls", "codec", "broker", "connection", "shard", "turn",
        "store"],
        &["bytes", "mio", "socket2", "rustix", "crossbeam_channel", "tracing", "zeroize"]),
    row("worker/descriptors.rs", &[], &["mio", "socket2", "rustix", "libc", "tracing"]),
    row("sink", &["clock", "whole_file", "config", "link", "codec", "store"],
        &["tokio", "bytes", "ureq", "rumqttc", "async_nats", "nkeys", "rustls", "rustls_native_certs", "aws_lc_rs", "serde", "serde_json", "base64",
          "humantime", "fastrand", "tracing", "zeroize"]),
    row("backbone", &["time", "config", "link"], &["tokio"]),
    row("fleet", &["whole_file", "config", "link", "image", "commands", "sink"],
        &["tokio", "bytes", "async_nats", "futures_util", "serde", "serde_json", "base64", "humantime", "fastrand", "tracing"]), row("fleet/serving/tests", &["broker", "codec", "metrics", "slot", "time"], &[]),
    row("control", &["whole_file", "network", "pool", "link", "image", "config", "metrics", "time", "clock", "codec", "commands", "store", "sink", "backbone", "fleet"],
        &["tokio", "axum", "serde", "serde_json", "prometheus_client", "argon2", "aws_lc_rs", "tikv_jemalloc_ctl",
          "humantime", "tracing", "bytes", "crossbeam_channel", "rustix", "futures_util", "base64", "http_body", "socket2"]),
    row("control/api_tls.rs", &["config"], &["rustls", "aws_lc_rs", "tokio", "tokio_rustls", "tracing"]),
    row("control/auth", &["whole_file", "link", "config", "time", "codec"],
        &["serde", "serde_json", "argon2", "aws_lc_rs", "tracing", "bytes", "crossbeam_channel", "rustix", "base64", "jsonwebtoken"]),
    row("control/auth/http.rs", &["whole_file", "config"], &["ureq", "rustls"]), row("control/sessions/tests", &["broker", "slot"], &[]),
    row("gateway", &["whole_file", "network", "link", "config", "metrics", "time", "clock", "codec", "tls", "image", "broker", "connection", "worker", "control", "store", "sink", "fleet"],
        &["aws_lc_rs", "crossbeam_channel", "rustix", "humantime", "serde", "serde_json", "tracing", "zeroize"]),
    row("lib.rs", ANY, &[]),
    row("main.rs", ANY, ANY),
    row("cli", ANY, ANY),
];

const fn row(path: &'static str, modules: &'static [&'static str], outside: &'static [&'static str]) -> Row {
    Row { path, modules, outside }
}

/// The only files in which the word `unsafe` may stand.
const UNSAFE_FILES: &[&str] = &["src/worker/descriptors.rs", "src/cli/allocator.rs"];

/// Modules of the data plane: no hidden allocation, no hidden control flow, no shared state.
const DATA_PLANE: &[&str] = &[
    "time",
    "network",
    "slot",
    "wire",
    "image",
    "devices",
    "metrics",
    "wheel",
    "pool",
    "link",
    "codec",
    "tls",
    "broker",
    "connection",
    "shard",
    "turn",
    "worker",
];

/// What the data plane does without, and where (under `src/`) it may stand nevertheless, and why.
const DATA_PLANE_WITHOUT: &[(&str, Option<&str>)] = &[
    // rustls takes its verifiers, resolvers and key logs as trait objects.
    ("dyn ", Some("tls/")),
    ("async ", None),
    ("Rc<", None),
    // The key log hands over the traffic secrets of the one handshake that the thread is in.
    ("thread_local!", Some("tls/handshake")),
];

const LINES_MAX: usize = 800;
/// A function fits a screen.
const FUNCTION_LINES_MAX: usize = 60;
/// A test may be one table, or one life from its beginning to its end.
const TEST_LINES_MAX: usize = 100;
/// Those that do not yet, with the lines that they have: each may shrink and none may grow, and one that fits leaves the
/// list.
#[rustfmt::skip]
const LONG_FUNCTIONS: &[(&str, &str, usize)] = &[
    ("src/worker/start.rs", "build", 91),
    ("src/worker/start.rs", "start", 88),
    ("bench/src/memory.rs", "causes", 81),
    ("loadtest/src/scenario/uplink.rs", "run", 76),
    ("loadtest/src/scenario/dark.rs", "run", 73),
    ("loadtest/src/scenario/slow.rs", "run", 71),
    ("loadtest/src/scenario/fan.rs", "run_either", 65),
    ("loadtest/src/scenario/downlink.rs", "run", 63),
];
const UNFINISHED_MACROS: &[&str] = &["todo!", "unimplemented!", "dbg!"];
// Taken apart, so that they do not find themselves.
const UNFINISHED_WORDS: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME")];
const PRINTING: &[&str] = &["println!", "print!"];
const HOMES: &[&str] = &[concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/")];

struct Violation {
    file: String,
    line: usize,
    rule: String,
    remedy: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}\n    {}", self.file, self.line, self.rule, self.remedy)
    }
}

/// One Rust file, its comments and literals blanked out.
struct Source {
    /// Relative to the repository, with `/`.
    file: String,
    text: String,
    code: String,
    /// Where in `code` the tests begin: 0 for a file of tests, its length for a file without.
    tests: usize,
}

impl Source {
    fn new(file: &str, text: &str, is_test: bool) -> Self {
        let code = blank_comments_and_literals(text);
        let tests = if is_test { 0 } else { inline_tests(&code).unwrap_or(code.len()) };
        Self { file: file.into(), text: text.into(), code, tests }
    }

    /// The path under `src/`, for the library and the program.
    fn in_src(&self) -> Option<&str> {
        self.file.strip_prefix("src/")
    }

    /// Whether the program may talk to its terminal here.
    fn may_print(&self) -> bool {
        self.in_src().is_none_or(|path| path == "main.rs" || path.starts_with("cli"))
    }

    fn is_data_plane(&self) -> bool {
        self.in_src().is_some_and(|path| DATA_PLANE.contains(&module_of(path)))
    }

    fn violation(&self, offset: usize, rule: String, remedy: &'static str) -> Violation {
        let line = 1 + self.code[..offset].matches('\n').count();
        Violation { file: self.file.clone(), line, rule, remedy }
    }
}

/// Blanks comments and the insides of literals, character by character, so that offsets and lines stay.
/// The result is ASCII: an offset in it counts characters of the text.
fn blank_comments_and_literals(text: &str) -> String {
    let text: Vec<char> = text.chars().collect();
    let mut code: String = text.iter().map(|&c| if c.is_ascii() { c } else { ' ' }).collect();
    let starts = |at: usize, what: &str| what.chars().enumerate().all(|(n, c)| text.get(at + n) == Some(&c));
    let mut at = 0;
    while at < text.len() {
        let end = match text[at] {
            '/' if starts(at, "//") => (at..text.len()).find(|&end| text[end] == '\n').unwrap_or(text.len()),
            '/' if starts(at, "/*") => {
                (at + 2..text.len()).find(|&end| starts(end, "*/")).map_or(text.len(), |end| end + 2)
            }
            'r' if starts(at, "r\"") || starts(at, "r#") => {
                let hashes = (at + 1..text.len()).take_while(|&end| text[end] == '#').count();
                let close = format!("\"{}", "#".repeat(hashes));
                let open = at + 1 + hashes;
                if text.get(open) == Some(&'"') {
                    (open + 1..text.len()).find(|&end| starts(end, &close)).map_or(text.len(), |end| end + 1 + hashes)
                } else {
                    at + 1
                }
            }
            '"' => {
                let mut end = at + 1;
                while end < text.len() && text[end] != '"' {
                    end += 1 + usize::from(text[end] == '\\');
                }
                end + 1
            }
            // A character, unless it is a lifetime.
            '\'' if starts(at + 1, "\\") => {
                (at + 3..text.len()).find(|&end| text[end] == '\'').map_or(text.len(), |end| end + 1)
            }
            '\'' if text.get(at + 2) == Some(&'\'') => at + 3,
            _ => {
                at += 1;
                continue;
            }
        };
        let end = end.min(text.len());
        let blank: String = text[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }).collect();
        code.replace_range(at..end, &blank);
        at = end;
    }
    code
}

/// What follows each `#[cfg(test)]`, from behind it.
fn test_items(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.match_indices("#[cfg(test)]").map(|(at, attribute)| (at, code[at + attribute.len()..].trim_start()))
}

/// Where a `#[cfg(test)] mod x {` begins; by habit it is the last thing in a file.
fn inline_tests(code: &str) -> Option<usize> {
    let opens = |item: &str| item.find(['{', ';']).is_some_and(|at| item[at..].starts_with('{'));
    test_items(code).find(|(_, item)| item.starts_with("mod ") && opens(item)).map(|(at, _)| at)
}

/// The modules that a file declares as `#[cfg(test)] mod x;`, as paths without `.rs`.
fn declared_tests(file: &str, code: &str) -> Vec<String> {
    let directory =
        file.strip_suffix("/mod.rs").or_else(|| file.strip_suffix("/lib.rs")).or_else(|| file.strip_suffix(".rs"));
    test_items(code)
        .filter_map(|(_, item)| item.strip_prefix("mod ")?.split_once(';'))
        .filter(|(name, _)| name.chars().all(is_word))
        .map(|(name, _)| format!("{}/{name}", directory.unwrap_or(file)))
        .collect()
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Where `what` stands as a whole word: not within a longer one, and not as a later segment of a path.
fn words<'a>(code: &'a str, what: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(what).map(|(at, _)| at).filter(move |&at| {
        let before = code[..at].strip_suffix("::").unwrap_or(&code[..at]);
        let goes_on = what.ends_with(is_word) && code[at + what.len()..].starts_with(is_word);
        !before.ends_with(is_word) && !goes_on
    })
}

/// The first segments that a path or a group such as `{a::b, c::{d, e}}` names.
fn first_segments(tail: &str) -> Vec<&str> {
    let Some(group) = tail.strip_prefix('{') else { return vec![tail.split(|c| !is_word(c)).next().unwrap()] };
    let (mut depth, mut begin, mut segments) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                segments.push(group[begin..at].trim().split(|c| !is_word(c)).next().unwrap());
                begin = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    segments.retain(|segment| !segment.is_empty());
    segments
}

fn module_of(path: &str) -> &str {
    path.split(['/', '.']).next().unwrap()
}

fn allows(list: &[&str], name: &str) -> bool {
    list == ANY || list.contains(&name)
}

/// (a) Who uses whom.
fn check_table(source: &Source, outside: &BTreeSet<String>, found: &mut Vec<Violation>) {
    const REMEDY: &str =
        "move the code to where it may be, or change the table in tests/tidy.rs and docs/ARCHITECTURE.md";
    let Some(path) = source.in_src() else { return };
    let module = module_of(path);
    let longest = |path: &str| TABLE.iter().filter(|row| path.starts_with(row.path)).max_by_key(|row| row.path.len());
    let (Some(own), Some(whole)) = (longest(path), TABLE.iter().find(|row| module_of(row.path) == module)) else {
        found.push(source.violation(
            0,
            format!("module {module} is not in the table"),
            "give it a row in tests/tidy.rs",
        ));
        return;
    };
    for at in words(&source.code, "crate::") {
        for used in first_segments(&source.code[at + "crate::".len()..]) {
            if used != module && !allows(whole.modules, used) && !allows(own.modules, used) {
                found.push(source.violation(at, format!("{module} may not use {used}"), REMEDY));
            }
        }
    }
    for name in outside {
        let uses = words(&source.code, name).filter(|&at| {
            let used =
                source.code[..at].trim_end().ends_with("use") || source.code[at + name.len()..].starts_with("::");
            used && at < source.tests
        });
        if !allows(own.outside, name) {
            found.extend(uses.map(|at| source.violation(at, format!("{path} may not use the crate {name}"), REMEDY)));
        }
    }
    // So deep lies the file's own module; in its tests one deeper.
    let depth = path.trim_end_matches("/mod.rs").split('/').count();
    for at in words(&source.code, "super::") {
        let supers = source.code[at..].split("::").take_while(|&segment| segment == "super").count();
        if supers >= depth + usize::from(0 < source.tests && at >= source.tests)
            && !["lib.rs", "main.rs"].contains(&path)
        {
            found.push(source.violation(at, "super reaches the root, past the table".into(), "write crate::"));
        }
    }
}

/// (b), (c) How a file looks.
fn check_shape(source: &Source, found: &mut Vec<Violation>) {
    let lines = source.text.lines().count();
    if lines > LINES_MAX {
        let rule = format!("{lines} lines, at most {LINES_MAX}");
        found.push(source.violation(0, rule, "split it into a directory, tests into tests.rs"));
    }
    if !source.text.starts_with("//!") {
        found.push(source.violation(
            0,
            "no `//!` at its head".into(),
            "say what the file is and what it must never do",
        ));
    }
}

/// Where each function with a body begins (behind the word `fn`), its name and its lines, from there to its last brace.
fn functions(code: &str) -> impl Iterator<Item = (usize, &str, usize)> {
    words(code, "fn").filter_map(|at| {
        let tail = &code[at + "fn".len()..];
        let name = tail.trim_start().split(|c| !is_word(c)).next()?;
        let open = tail.find(['{', ';']).filter(|&open| tail[open..].starts_with('{') && !name.is_empty())?;
        let mut depth = 0;
        let length = tail[open..].find(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth == 0
        })?;
        Some((at, name, 1 + tail[..open + length].matches('\n').count()))
    })
}

/// (h) Functions fit a screen, but for those that are listed.
fn check_functions(source: &Source, listed: &[(&str, &str, usize)], found: &mut Vec<Violation>) {
    let mut gone: Vec<_> = listed.iter().filter(|(file, ..)| *file == source.file).collect();
    for (at, name, lines) in functions(&source.code) {
        let most = if at < source.tests { FUNCTION_LINES_MAX } else { TEST_LINES_MAX };
        if lines <= most {
            continue;
        }
        let known = gone.iter().position(|(_, function, most)| *function == name && lines <= *most);
        match known {
            Some(known) => drop(gone.swap_remove(known)),
            None => found.push(source.violation(
                at,
                format!("{name} has {lines} lines, at most {most}"),
                "branch in the parent, and take the leaves out as functions",
            )),
        }
    }
    for (_, name, _) in gone {
        let remedy = "take it out of LONG_FUNCTIONS in tests/tidy.rs";
        found.push(source.violation(0, format!("{name} is no long function any more"), remedy));
    }
}

/// (d), (e), (f) Words that stand nowhere, or only where they are named.
fn check_words(source: &Source, found: &mut Vec<Violation>) {
    let mut ban = |word: &str, end: usize, remedy: &'static str| {
        for at in words(&source.code, word).filter(|&at| at < end) {
            found.push(source.violation(at, format!("`{}` may not stand here", word.trim()), remedy));
        }
    };
    let everywhere = source.code.len();
    if !UNSAFE_FILES.contains(&&*source.file) {
        ban("unsafe", everywhere, "put the call into the module that is named in UNSAFE_FILES");
    }
    for word in UNFINISHED_MACROS {
        ban(word, everywhere, "finish it");
    }
    if !source.may_print() {
        for word in PRINTING {
            ban(word, source.tests, "use tracing, or return what there is to say");
        }
    }
    if source.is_data_plane() {
        for (word, exception) in DATA_PLANE_WITHOUT {
            if !exception.is_some_and(|path| source.in_src().unwrap().starts_with(path)) {
                ban(word, source.tests, "the data plane does without; see docs/ARCHITECTURE.md");
            }
        }
    }
    for (line, text) in (1..).zip(source.text.lines()) {
        for word in UNFINISHED_WORDS.iter().filter(|&word| text.contains(word)) {
            found.push(Violation { file: source.file.clone(), line, rule: format!("{word} left"), remedy: "do it" });
        }
    }
}

/// (g) What documents do not say.
fn check_document(file: &str, text: &str, found: &mut Vec<Violation>) {
    let mut add = |line, rule, remedy| found.push(Violation { file: file.into(), line, rule, remedy });
    for (number, line) in (1..).zip(text.lines()) {
        let lower = line.to_lowercase();
        let cited = ["line ", "lines ", ".rs:", ".rs#l"].iter().any(|word| {
            lower.match_indices(word).any(|(at, _)| lower[at + word.len()..].starts_with(|c: char| c.is_ascii_digit()))
        });
        if cited {
            add(number, "cites a line number".to_string(), "name the item: line numbers rot");
        }
        if let Some(home) = HOMES.iter().find(|&home| line.contains(home)) {
            add(number, format!("names somebody's directory under {home}"), "write a path that every reader has");
        }
    }
}

/// The decisions that a text cites, `decision D5` or `decision 0005`, with the lines.
fn decisions(text: &str) -> impl Iterator<Item = (usize, u32)> {
    const WORD: &str = "decision ";
    (1..).zip(text.lines()).flat_map(|(number, line)| {
        let cited = line.to_lowercase();
        let numbers: Vec<u32> = cited
            .match_indices(WORD)
            .filter_map(|(at, _)| {
                let what = &cited[at + WORD.len()..];
                what.strip_prefix('d').unwrap_or(what).split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
            })
            .collect();
        numbers.into_iter().map(move |decision| (number, decision))
    })
}

/// (i) A decision that is cited has a page, `pages` being their file names.
fn check_decisions(file: &str, text: &str, pages: &[String], found: &mut Vec<Violation>) {
    for (line, decision) in decisions(text) {
        if !pages.iter().any(|page| page.starts_with(&format!("{decision:04}-"))) {
            let rule = format!("decision D{decision} has no page");
            found.push(Violation { file: file.into(), line, rule, remedy: "write it, under docs/decisions" });
        }
    }
}

/// The targets of the links of a document, with their lines, that are files of the repository.
fn links(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines()).flat_map(|(number, line)| {
        let targets =
            line.match_indices("](").filter_map(|(at, open)| line[at + open.len()..].split([')', '#']).next());
        targets.filter(|target| !target.is_empty() && !target.contains(':')).map(move |target| (number, target))
    })
}

/// The Rust files and directories of modules that a document names in backquotes, with their lines: `shard/tests`, `x/y.rs`.
fn named_paths(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines()).flat_map(|(number, line)| {
        let quoted = line.split('`').skip(1).step_by(2);
        let is_path = |name: &&str| {
            let plain = name.chars().all(|c| is_word(c) || "/.-".contains(c)) && !name.ends_with('/');
            let in_module =
                TABLE.iter().any(|row| name.strip_prefix(row.path).is_some_and(|rest| rest.starts_with('/')));
            let is_file = Path::new(name).extension().is_some_and(|extension| extension == "rs") && name.contains('/');
            plain && (is_file || in_module)
        };
        quoted.filter(is_path).map(move |name| (number, name))
    })
}

/// (k) What a document names is there: seen from the root, or from where its module would be.
fn check_named_paths(file: &str, text: &str, exists: impl Fn(&Path) -> bool, found: &mut Vec<Violation>) {
    for (line, name) in named_paths(text) {
        let file_of = |directory: &str| exists(&Path::new(directory).join(name));
        let module_of = |directory: &str| exists(&Path::new(directory).join(format!("{name}.rs")));
        if !["", "src", "tests"].into_iter().any(|directory| file_of(directory) || module_of(directory)) {
            let rule = format!("`{name}` is not there");
            found.push(Violation { file: file.into(), line, rule, remedy: "name the module as it is called today" });
        }
    }
}

/// (l) Whoever opens the map finds every module, and whoever opens the indexes every decision and every page, once.
fn check_indexes(documents: &[(String, String)], pages: &[String], found: &mut Vec<Violation>) {
    let mut require = |file: &str, what: &str, remedy| {
        let text = documents.iter().find(|(name, _)| name == file).map_or("", |(_, text)| text);
        let rule = match text.matches(what).count() {
            0 => format!("lacks {what}"),
            1 => return,
            _ => format!("has {what} more than once"),
        };
        found.push(Violation { file: file.into(), line: 1, rule, remedy });
    };
    for row in TABLE.iter().filter(|row| !row.path.contains(['/', '.'])) {
        require("docs/ARCHITECTURE.md", &format!("| `{}`", row.path), "give the module a row in Where things live");
    }
    for page in pages.iter().filter(|page| page.as_str() != "README.md") {
        require("docs/decisions/README.md", &format!("({page})"), "give the decision a row in the index");
        require("docs/SUMMARY.md", &format!("(decisions/{page})"), "give the decision a line in the book");
    }
    for (file, _) in documents {
        if let Some(page) = file.strip_prefix("docs/").filter(|page| *page != "SUMMARY.md") {
            require("docs/SUMMARY.md", &format!("]({page})"), "give the page a line in the book");
        }
    }
}

/// (j) A link leads somewhere: what it names is there, seen from the document's directory.
fn check_links(file: &str, text: &str, exists: impl Fn(&Path) -> bool, found: &mut Vec<Violation>) {
    let directory = Path::new(file).parent().unwrap();
    for (line, target) in links(text) {
        if !exists(&directory.join(target)) {
            let rule = format!("the link to {target} leads nowhere");
            found.push(Violation { file: file.into(), line, rule, remedy: "mend it: paths are seen from the page" });
        }
    }
}

/// The names under which the dependencies of Cargo.toml appear in code.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let lines = manifest.lines().skip_while(|line| line.trim() != "[dependencies]").skip(1);
    lines
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| Some(line.split_once('=')?.0.trim().replace('-', "_")))
        .collect()
}

fn files(directory: &Path, extension: &str, into: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && !["target", "corpus", "artifacts"].contains(&name) {
            files(&path, extension, into);
        } else if path.extension().is_some_and(|found| found == extension) {
            into.push(path);
        }
    }
}

/// The text of every file with this extension in these directories, by its path from the root.
fn read_all(directories: &[&str], extension: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    for directory in directories {
        files(&root.join(directory), extension, &mut paths);
    }
    paths.sort();
    let name = |path: &Path| path.strip_prefix(root).unwrap().to_str().unwrap().to_string();
    paths.iter().map(|path| (name(path), std::fs::read_to_string(path).unwrap())).collect()
}

fn check_source(source: &Source, outside: &BTreeSet<String>) -> Vec<Violation> {
    let mut found = Vec::new();
    check_table(source, outside, &mut found);
    check_shape(source, &mut found);
    check_words(source, &mut found);
    check_functions(source, LONG_FUNCTIONS, &mut found);
    found
}

#[test]
fn the_house_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let outside = dependencies(&std::fs::read_to_string(root.join("Cargo.toml")).unwrap());
    let texts = read_all(&["src", "bench", "loadtest", "tests", "examples", "fuzz"], "rs");
    let declared: Vec<String> =
        texts.iter().flat_map(|(file, text)| declared_tests(file, &blank_comments_and_literals(text))).collect();
    let is_test = |file: &str| {
        declared
            .iter()
            .any(|test| file.strip_prefix(test.as_str()).is_some_and(|rest| rest == ".rs" || rest.starts_with('/')))
    };
    let mut found = Vec::new();
    let pages: Vec<String> = std::fs::read_dir(root.join("docs/decisions"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for (file, text) in &texts {
        let is_test =
            is_test(file) || ["tests/", "loadtest/tests/", "bench/tests/"].iter().any(|at| file.starts_with(at));
        found.extend(check_source(&Source::new(file, text, is_test), &outside));
        if file != "tests/tidy.rs" {
            check_decisions(file, text, &pages, &mut found);
        }
    }
    for (file, function, _) in LONG_FUNCTIONS {
        assert!(
            texts.iter().any(|(found, _)| found == file),
            "{file} with {function} is gone: take it out of the list"
        );
    }
    let root_documents = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let mut documents = read_all(&["docs", "examples", "deploy"], "md");
    for path in root_documents.filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        documents.push((path.file_name().unwrap().to_str().unwrap().into(), std::fs::read_to_string(path).unwrap()));
    }
    for (file, text) in &documents {
        check_document(file, text, &mut found);
        check_links(file, text, |path| root.join(path).exists(), &mut found);
        if file != "CHANGELOG.md" {
            check_named_paths(file, text, |path| root.join(path).exists(), &mut found);
        }
    }
    check_indexes(&documents, &pages, &mut found);
    assert!(texts.len() > 20 && !documents.is_empty() && outside.contains("rustls"), "the walk lost its way");
    let report: Vec<String> = found.iter().map(Violation::to_string).collect();
    assert!(report.is_empty(), "{} violations\n{}", report.len(), report.join("\n"));
}

/// The rules that `text`, as the file at `path`, breaks, with their lines.
fn broken(path: &str, text: &str) -> Vec<String> {
    let outside = ["bytes", "libc", "rustls", "rcgen", "tokio"].map(String::from).into();
    let source = Source::new(path, &format!("//! Head.\n{text}"), false);
    check_source(&source, &outside).into_iter().map(|found| format!("{}: {}", found.line, found.rule)).collect()
}

/// What a module of the table may use, whatever that may use, and so on.
fn reach(module: &'static str) -> BTreeSet<&'static str> {
    let mut all = BTreeSet::from([module]);
    let mut next = vec![module];
    while let Some(module) = next.pop() {
        let rows = TABLE.iter().filter(|row| row.path == module);
        next.extend(rows.flat_map(|row| row.modules).filter(|used| all.insert(used)));
    }
    all
}

/// The fuzzer takes the turn and whatever that needs by its path. What it lacks or has beyond that, and crates that it lacks.
fn unlike_the_fuzzer(library: &str, manifest: &str) -> Vec<String> {
    let modules = reach("turn");
    let declared: BTreeSet<&str> =
        library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let crates = dependencies(manifest);
    let used = TABLE.iter().filter(|row| modules.contains(module_of(row.path)) && row.path != "shard/tests");
    let lacking = used.flat_map(|row| row.outside).filter(|name| !crates.contains(**name));
    modules
        .symmetric_difference(&declared)
        .map(|module| format!("fuzz/lib.rs and the table disagree about {module}"))
        .chain(lacking.map(|name| format!("fuzz/Cargo.toml lacks {name}")))
        .collect()
}

#[test]
fn fuzzer_has_the_modules_of_the_turn_and_their_crates() {
    let read = |file| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let (library, manifest) = (read("fuzz/lib.rs"), read("fuzz/Cargo.toml"));
    assert_eq!(unlike_the_fuzzer(&library, &manifest), Vec::<String>::new());
    let (less, poorer) =
        (library.replace("pub mod pool;", "pub mod control;"), manifest.replace("\nslab = ", "\nx = "));
    assert!(unlike_the_fuzzer(&less, &poorer).len() >= 3, "pool is lacking, control is too much, and slab is lacking");
}

#[test]
fn the_table_is_held() {
    assert_eq!(broken("src/codec/raw.rs", "use crate::tls::record;"), ["2: codec may not use tls"]);
    assert_eq!(broken("src/worker/mod.rs", "\nfn f() { crate::control::x() }"), ["3: worker may not use control"]);
    let group = "use crate::{time::Tick, wheel::{Wheel, Work}, worker,\n shard};";
    assert_eq!(broken("src/shard.rs", group), ["2: shard may not use worker"]);
    assert_eq!(broken("src/wheel/mod.rs", "use bytes::Bytes;"), ["2: wheel/mod.rs may not use the crate bytes"]);
    assert_eq!(broken("src/codec/x.rs", "fn f() { ::tokio::x() }"), ["2: codec/x.rs may not use the crate tokio"]);
    assert_eq!(broken("src/codec/x.rs", "fn f() { tokio::spawn(1) }"), ["2: codec/x.rs may not use the crate tokio"]);
    assert_eq!(broken("src/tls/handshake.rs", "use rcgen;"), ["2: tls/handshake.rs may not use the crate rcgen"]);
    assert_eq!(broken("src/tls/record.rs", "use super::super::codec;"), ["2: super reaches the root, past the table"]);
    assert_eq!(broken("src/new.rs", ""), ["1: module new is not in the table"]);
}

#[test]
fn what_the_table_allows_is_not_found() {
    for (path, text) in [
        ("src/worker/descriptors.rs", "use libc::c_int; use crate::shard::Shard; unsafe fn f() {}"),
        ("src/tls/certs.rs", "use rcgen::KeyPair; use crate::tls::record; use super::handshake;"),
        (
            "src/codec/raw.rs",
            "// crate::tls\nconst A: &str = \"tokio::x\"; const B: char = '\"'; fn f<'a>(x: &'a bytes) {}",
        ),
        ("src/codec/raw.rs", "#[cfg(test)]\nmod tests { use super::*; use bytes::Bytes; fn f() { println!() } }"),
        ("src/main.rs", "use tokio::x; use pulsegate::worker; fn f() { println!() }"),
        ("src/link/x.rs", "use std::sync::Arc; fn f(a: Arc<str>, s: my::bytes::B) { dynamic(); unsafe_code() }"),
        ("src/tls/handshake.rs", "thread_local! {} fn f(v: Box<dyn V>) {}"),
    ] {
        assert_eq!(broken(path, text), Vec::<String>::new(), "{path}: {text}");
    }
}

#[test]
fn words_are_found_where_they_may_not_stand() {
    let one = |path: &str, text: &str| assert_eq!(broken(path, text).len(), 1, "{path}: {text}");
    one("src/shard.rs", "fn f() { unsafe { g() } }");
    one("src/control/mod.rs", "fn f() { todo!() }");
    one("tests/x.rs", "fn f() { dbg!(1); }");
    one("src/worker/mod.rs", "fn f() { println!(\"x\") }");
    one("src/connection.rs", "fn f(x: &dyn Fn()) {}");
    one("src/tls/record.rs", "thread_local! {}");
    one("src/shard.rs", "use std::rc::Rc; type T = Rc<u8>;");
    one("src/wheel/mod.rs", "async fn f() {}");
    one("bench/src/main.rs", concat!("// TO", "DO: later"));
    one("loadtest/src/main.rs", &"\n".repeat(LINES_MAX));
    assert_eq!(check_source(&Source::new("tests/x.rs", "fn f() {}", false), &BTreeSet::new()).len(), 1);
}

#[test]
fn tests_are_known_by_their_declaration() {
    let code = "#[cfg(test)]\nmod tests;\nfn f() {}\n#[cfg(test)]\nmod more {\n}";
    assert_eq!(declared_tests("src/wheel/mod.rs", code), ["src/wheel/tests"]);
    assert_eq!(declared_tests("src/shard.rs", code), ["src/shard/tests"]);
    assert_eq!(inline_tests(code), code.rfind("#[cfg"));
}

#[test]
fn documents_are_read_too() {
    let find = |text: &str| {
        let mut found = Vec::new();
        check_document("docs/X.md", text, &mut found);
        found.len()
    };
    assert_eq!(find("see shard.rs, line 12"), 1);
    assert_eq!(find("see src/shard.rs:12"), 1);
    assert_eq!(find(&format!("put it under {}me", HOMES[0])), 1);
    assert_eq!(find("one line of 12; deadlines are kept"), 0);
}

#[test]
fn functions_fit_a_screen() {
    let long = format!("fn f() {{{}}}\n", "\n".repeat(FUNCTION_LINES_MAX));
    let text = format!("//! Head.\nfn g();\nfn h() {{ if a {{ b }} }}\n{long}");
    let source = Source::new("src/x.rs", &text, false);
    let sizes: Vec<_> = functions(&source.code).map(|(_, name, lines)| (name, lines)).collect();
    assert_eq!(sizes, [("h", 1), ("f", FUNCTION_LINES_MAX + 1)]);
    let find = |listed: &[(&str, &str, usize)]| {
        let mut found = Vec::new();
        check_functions(&source, listed, &mut found);
        found.into_iter().map(|found| format!("{}: {}", found.line, found.rule)).collect::<Vec<_>>()
    };
    assert_eq!(find(&[]), ["4: f has 61 lines, at most 60"]);
    assert_eq!(find(&[("src/x.rs", "f", 61), ("src/y.rs", "g", 70)]), Vec::<String>::new());
    assert_eq!(find(&[("src/x.rs", "f", 61), ("src/x.rs", "h", 70)]), ["1: h is no long function any more"]);
    assert_eq!(find(&[("src/x.rs", "f", 60)]).len(), 2);
    let mut found = Vec::new();
    check_functions(&Source::new("src/x.rs", &text, true), &[], &mut found);
    assert!(found.is_empty(), "a test may be longer");
}

#[test]
fn citations_and_links_lead_somewhere() {
    let pages = ["README.md".to_string(), "0005-unheard.md".to_string()];
    let mut found = Vec::new();
    let text = "// Decision D5: x\n// see decision D6, decision 0005\n// decision D: none";
    check_decisions("src/x.rs", text, &pages, &mut found);
    check_links(
        "docs/X.md",
        "[a](b.md) [c](../d.md#e)\n[f](https://x) [g](#h) [i](j.md)",
        |path| [Path::new("docs/b.md"), Path::new("docs/../d.md")].contains(&path),
        &mut found,
    );
    let rules: Vec<String> = found.iter().map(|found| format!("{}: {}", found.line, found.rule)).collect();
    assert_eq!(rules, ["2: decision D6 has no page", "2: the link to j.md leads nowhere"]);
}

#[test]
fn documents_name_what_is_there() {
    let exists = |path: &Path| ["src/shard/tests.rs", "tests/e2e", "src/x/y.rs"].map(Path::new).contains(&path);
    let mut found = Vec::new();
    let text = "`shard/tests` `x/y.rs` `src/x/y.rs` `cargo x/y` `shard` `Up::x`\n`shard/mqtt`, `worker/gone.rs`";
    check_named_paths("docs/X.md", text, exists, &mut found);
    let rules: Vec<String> = found.iter().map(|found| format!("{}: {}", found.line, found.rule)).collect();
    assert_eq!(rules, ["2: `shard/mqtt` is not there", "2: `worker/gone.rs` is not there"]);

    let mut found = Vec::new();
    check_indexes(&[], &["README.md".into(), "0001-x.md".into()], &mut found);
    assert!(found.iter().any(|found| found.rule == "lacks (0001-x.md)"));
    assert!(found.iter().any(|found| found.rule == "lacks | `shard`"));
    let mut found = Vec::new();
    let book = ("docs/SUMMARY.md".to_owned(), "[x](X.md) [x](X.md)".to_owned());
    check_indexes(&[book, ("docs/X.md".into(), String::new())], &["0001-x.md".into()], &mut found);
    assert!(found.iter().any(|found| found.rule == "has ](X.md) more than once"));
    assert!(found.iter().any(|found| found.rule == "lacks (decisions/0001-x.md)"));
}
