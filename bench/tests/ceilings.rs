//! Instruction counts of the hot paths, held below `ceilings.toml`.
//!
//! `bench count` does fixed work; callgrind counts the instructions within functions whose names begin with
//! `counted_`. Nothing else that the machine does can change the count, so that a regression of a few per
//! cent is seen on the busiest CI machine, where no clock would show it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Subjects of `bench count`, and for each the `counted_` functions that it goes through.
const SUBJECTS: [(&str, &[&str]); 3] =
    [("wheel", &["insert", "rearm", "expire"]), ("record", &["seal", "open"]), ("turn", &["probe", "hear"])];
/// Where a ceiling is set above what was measured.
const HEADROOM: f64 = 1.12;
/// A ceiling this far above what is measured holds nothing any more.
const SLACK_MAX: f64 = 1.5;

#[test]
fn no_operation_takes_more_instructions_than_its_ceiling() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        // Past the capture of test output: that nothing was counted must be seen.
        let _ = writeln!(std::io::stderr(), "ceilings: NOT CHECKED, valgrind is not installed (Debian: valgrind)");
        return;
    }
    let ceilings = parse(&fs::read_to_string(root().join("ceilings.toml")).expect("bench/ceilings.toml is there"));
    let program = build();
    let mut faults = Vec::new();
    let mut known = 0;
    for (subject, functions) in SUBJECTS {
        for function in functions {
            let name = format!("{subject}.{function}");
            let measured = count(&program, subject, function);
            let _ = writeln!(std::io::stderr(), "ceilings: {name} {measured:.1} instructions");
            known += usize::from(ceilings.contains_key(&name));
            faults.extend(compare(&name, measured, ceilings.get(&name).copied()));
        }
    }
    assert_eq!(known, ceilings.len(), "bench/ceilings.toml names something that is not counted");
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// What is wrong with a figure, and what to do about it.
fn compare(name: &str, measured: f64, ceiling: Option<f64>) -> Option<String> {
    let fresh = (measured * HEADROOM).ceil();
    let Some(ceiling) = ceiling else {
        return Some(format!("{name}: no ceiling; write {fresh} into bench/ceilings.toml"));
    };
    if measured > ceiling {
        return Some(format!(
            "{name}: {measured:.1} instructions each, the ceiling is {ceiling}. Find what made it dearer (`perf record`, \
             or callgrind_annotate). If that is worth it, raise the ceiling to {fresh} in bench/ceilings.toml, in the \
             same commit, and say why in its message."
        ));
    }
    (measured * SLACK_MAX < ceiling).then(|| {
        format!("{name}: {measured:.1} instructions each, far below its ceiling of {ceiling}: lower that to {fresh}.")
    })
}

/// Instructions of one operation.
fn count(program: &Path, subject: &str, function: &str) -> f64 {
    let out = std::env::temp_dir().join(format!("pulsegate-callgrind-{}-{subject}-{function}", std::process::id()));
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no"])
        .arg(format!("--toggle-collect=*counted_{function}*"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(["count", subject])
        .output()
        .expect("valgrind runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let profile = fs::read_to_string(&out).expect("callgrind has written its profile");
    let _ = fs::remove_file(&out);
    let operations = number_after(&said, &format!("counted_{function} "));
    let total = number_after(&profile, "totals: ");
    assert!(total > 0.0 && operations > 0.0, "counted_{function} was not entered: was it inlined or merged?");
    total / operations
}

fn number_after(text: &str, prefix: &str) -> f64 {
    let found = text.lines().find_map(|line| line.strip_prefix(prefix)).and_then(|number| number.trim().parse().ok());
    found.unwrap_or_else(|| panic!("no line {prefix:?} with a number in\n{text}"))
}

/// The release build of the bench: what a debug build takes says nothing.
fn build() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--release", "--locked", "--package", "bench", "--bin", "bench"])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let executable = messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    executable.expect("cargo names the program that it has built")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Sections of `name = number`: as much of TOML as the file uses, and nothing else is taken.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let (mut section, mut ceilings) = (String::new(), BTreeMap::new());
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    for line in lines {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            name.clone_into(&mut section);
            continue;
        }
        let (name, number) = line.split_once('=').unwrap_or_else(|| panic!("ceilings.toml: {line:?}"));
        let number = number.trim().parse().unwrap_or_else(|_| panic!("ceilings.toml: {line:?} has no number"));
        let previous = ceilings.insert(format!("{section}.{}", name.trim()), number);
        assert!(previous.is_none(), "ceilings.toml: {section}.{name} stands there twice");
    }
    ceilings
}

#[test]
fn what_is_above_its_ceiling_or_far_below_is_found() {
    let ceilings = parse("# words\n[wheel]\ninsert = 40\n\n[turn]\nhear = 1000.5\n");
    assert_eq!(ceilings.get("wheel.insert"), Some(&40.0));
    assert_eq!(ceilings.get("turn.hear"), Some(&1000.5));
    assert_eq!(compare("x", 40.0, Some(40.0)), None);
    assert!(compare("x", 40.5, Some(40.0)).unwrap().contains("raise the ceiling to 46"));
    assert!(compare("x", 20.0, Some(40.0)).unwrap().contains("lower that to 23"));
    assert!(compare("x", 20.0, None).unwrap().contains("write 23"));
}
