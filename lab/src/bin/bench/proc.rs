//! What the kernel knows about a process.

use std::fs;
use std::io;
use std::time::Duration;

/// The memory of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// All that is resident, in KiB: `VmRSS`.
    pub(crate) rss: u64,
    /// What of it is not a file's, in KiB: `RssAnon`.
    pub(crate) anon: u64,
}

pub(crate) fn memory(pid: u32) -> io::Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.ok_or_else(|| io::Error::other(format!("no {name} in /proc/{pid}/status")))
    };
    Ok(Memory {
        rss: field("VmRSS")?,
        anon: field("RssAnon")?,
    })
}

/// The processor time that a process' threads have used.
pub(crate) fn cpu_time(pid: u32) -> io::Result<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // Of one that ends just now there is nothing to be read.
        let stat = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        let used = stat.split(' ').next().and_then(|text| text.parse().ok());
        nanos += used.unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanos))
}
