//! The loadtest.
fn main() {}
