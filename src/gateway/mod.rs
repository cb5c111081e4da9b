//! The gateway as a whole: what a program that runs one needs besides its two planes.

pub mod log;
