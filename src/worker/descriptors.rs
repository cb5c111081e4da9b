//! Descriptor tables. The descriptor limit holds per table, so each worker has its own; and calls are cheaper on a
//! table that nobody shares. This is the one module that speaks to the kernel without a safe wrapper.

use std::io;
use std::os::fd::RawFd;

/// Leaves the process's shared descriptor table: from here on this thread has a table of its own, which holds standard
/// input, output and error, and the descriptors of `keep` under the numbers that they had.
///
/// The numbers of `keep` must be open. Everything else is closed *in this table only*; the shared table is untouched, so
/// owners of descriptors in other threads notice nothing.
///
/// # Errors
/// What close_range(2) says: kernels before 5.9 have no such call.
pub fn leave_shared_table(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().map(|&number| number as u32).filter(|&number| number > 2).collect();
    keep.sort_unstable();
    keep.dedup();
    // The highest gap first: it also makes the table ours, and does not even copy what it would close.
    close_range(keep.last().map_or(3, |last| last + 1), u32::MAX, libc::CLOSE_RANGE_UNSHARE)?;
    let mut first = 3;
    for number in keep {
        if first < number {
            close_range(first, number - 1, 0)?;
        }
        first = number + 1;
    }
    Ok(())
}

/// Closes descriptors in the calling thread's table whose owners have taken them along into a table of their own.
///
/// Such a number is owned by nobody here any more: its `OwnedFd` lives in the thread that left, and will close it there.
pub(super) fn close_left_behind(numbers: &[RawFd]) -> io::Result<()> {
    for &number in numbers {
        close_range(number as u32, number as u32, 0)?;
    }
    Ok(())
}

#[expect(unsafe_code, reason = "the system call has no safe wrapper")]
fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: the call takes numbers and touches no memory. That no `OwnedFd` of this table is closed under its owner is
    // the callers' part: a worker names all that it owns in `keep`, and the main thread closes only what has left.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_thread_that_left_keeps_what_it_named_and_nothing_of_others() {
        let kept = File::open("/dev/null").unwrap();
        let other = File::open("/dev/null").unwrap();
        let (kept_number, other_number) = (kept.as_raw_fd(), other.as_raw_fd());
        let seen = std::thread::spawn(move || {
            leave_shared_table(&[kept_number]).unwrap();
            let is_open = |number| std::fs::metadata(format!("/proc/thread-self/fd/{number}")).is_ok();
            let seen = (is_open(kept_number), is_open(other_number));
            drop(kept);
            seen
        })
        .join()
        .unwrap();
        assert_eq!(seen, (true, false));
        // In the shared table both are still there.
        assert!(other.metadata().is_ok());
        assert!(std::fs::metadata(format!("/proc/self/fd/{kept_number}")).is_ok());
        close_left_behind(&[kept_number]).unwrap();
    }
}
