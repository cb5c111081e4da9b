//! A disk that can be filled.

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

/// A small file system, unmounted when it goes. None where one may not be mounted.
pub struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    /// Mounts one of so many KiB. Only root may: whoever is not says so and is spared the test.
    pub fn mount(at: &'a Path, kib: u32) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let options = format!("size={kib}k");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).output().unwrap();
        if !mounted.status.success() {
            eprintln!("not run: only root may mount a small file system");
            return None;
        }
        Some(Self(at))
    }

    /// Fills it to the last block.
    #[track_caller]
    pub fn fill(&self) {
        let full = std::fs::write(self.0.join("filler"), vec![0; 64 << 20]).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::StorageFull);
    }

    /// Gives back what [`SmallDisk::fill`] took.
    #[track_caller]
    pub fn make_room(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }

    /// From now on nothing can be written to it.
    #[track_caller]
    pub fn make_read_only(&self) {
        let status = Command::new("mount").args(["-o", "remount,ro"]).arg(self.0).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // Lazily: the gateway may still have it open when a test fails.
        drop(Command::new("umount").arg("-l").arg(self.0).status());
    }
}
