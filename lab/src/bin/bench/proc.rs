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

/// The processor time that a process has used.
pub(crate) fn cpu_time(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold anything but a closing parenthesis after which the fields begin.
    let fields = stat
        .rsplit_once(')')
        .map(|(_, fields)| fields)
        .unwrap_or_default();
    let number = |index| {
        fields
            .split_whitespace()
            .nth(index)
            .and_then(|text| text.parse().ok())
    };
    let (user, system): (u64, u64) = number(11)
        .zip(number(12))
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat cannot be read")))?;
    // In ticks, of which Linux shows a hundred a second whatever its own clock does.
    Ok(Duration::from_millis((user + system) * 10))
}
