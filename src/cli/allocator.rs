//! The allocator: jemalloc, told to give memory back within seconds of a mass disconnect instead of keeping it.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// What jemalloc reads before `main`: freed pages go back to the system after one second, by its own thread, so that
/// an event loop never does that work; no second stage that keeps them for later. A thread caches small objects only:
/// what handshakes allocate would stay with a worker that has long been idle.
#[cfg(not(target_env = "musl"))]
const OPTIONS: &[u8; 80] = b"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0,tcache_max:512\0\0\0\0\0\0";

/// The same without that thread, which jemalloc has not with musl, and ends the process where it is asked for: pages go back when
/// a thread next allocates.
#[cfg(target_env = "musl")]
const OPTIONS: &[u8; 80] =
    b"dirty_decay_ms:1000,muzzy_decay_ms:0,tcache_max:512\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

// SAFETY: jemalloc declares `const char *malloc_conf` as a weak symbol for programs to define, and no other definition
// is linked. A reference to an array is one thin pointer, it is never null or written to, and the text it points to is
// static and ends with a zero byte.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "the name is jemalloc's")]
pub static malloc_conf: &[u8; 80] = OPTIONS;

#[cfg(test)]
mod tests {
    use tikv_jemalloc_ctl::raw;

    /// Reads an option back from the running allocator.
    fn option<T: Copy>(name: &'static [u8]) -> T {
        // SAFETY: each caller names an option with its terminating zero and the type that jemalloc documents for it.
        unsafe { raw::read(name) }.expect("jemalloc knows the option")
    }

    #[test]
    fn the_options_take_effect() {
        assert_eq!(option::<bool>(b"opt.background_thread\0"), cfg!(not(target_env = "musl")));
        assert_eq!(option::<isize>(b"opt.dirty_decay_ms\0"), 1_000);
        assert_eq!(option::<isize>(b"opt.muzzy_decay_ms\0"), 0);
        assert_eq!(option::<usize>(b"opt.tcache_max\0"), 512);
    }
}
