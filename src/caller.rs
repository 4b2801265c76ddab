//! Who is asking: what the kernel noted about the peer when it connected.
//!
//! uid, gid and supplementary groups are fixed at `connect(2)`. A process that connected and then
//! changed its uid, or passed the descriptor on, is still the one that connected.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use tokio::net::UnixStream;

/// The process at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Its pid; `None` when it lives in a pid namespace that we cannot see.
    pub pid: Option<i32>,
    /// Its effective uid at connect.
    pub uid: u32,
    /// Its effective gid at connect.
    pub gid: u32,
    /// Its supplementary groups at connect.
    pub groups: Arc<[u32]>,
    /// Becomes readable when the process exits (Linux 6.5 and later).
    pub pidfd: Option<Arc<OwnedFd>>,
}

impl Caller {
    /// Asks the kernel.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let cred = stream.peer_cred()?;
        let groups = peer_groups(stream)?;
        // Absent before Linux 6.5, and for a peer that is already gone on some kernels: only the
        // end of streams at process exit depends on it.
        let pidfd = nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerPidfd).ok();
        Ok(Self {
            pid: cred.pid().filter(|pid| *pid > 0),
            uid: cred.uid(),
            gid: cred.gid(),
            groups: groups.into(),
            pidfd: pidfd.map(Arc::new),
        })
    }

    /// Whether `gid` is its own group or one of the supplementary ones.
    pub fn has_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

/// The peer's supplementary groups (SO_PEERGROUPS), which no crate wraps.
#[allow(
    unsafe_code,
    reason = "the one getsockopt that no crate wraps; see docs/adr"
)]
fn peer_groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
    // Enough for nearly everybody; the kernel says ERANGE and the length needed otherwise.
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut bytes = libc::socklen_t::try_from(groups.len() * size_of::<libc::gid_t>())
            .map_err(io::Error::other)?;
        // SAFETY: the pointer and the length describe `groups`, which outlives the call; the kernel
        // writes at most `bytes` bytes of plain integers and stores the length it wrote or needs.
        let status = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let count = usize::try_from(bytes).map_err(io::Error::other)? / size_of::<libc::gid_t>();
        if status == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn our_own_end_is_us() {
        let (a, _b) = UnixStream::pair().unwrap();
        let caller = Caller::of(&a).unwrap();
        assert_eq!(caller.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(caller.pid, Some(nix::unistd::getpid().as_raw()));
        let ours: Vec<u32> = nix::unistd::getgroups()
            .unwrap()
            .iter()
            .map(|g| g.as_raw())
            .collect();
        assert_eq!(caller.groups.to_vec(), ours);
        assert!(caller.has_group(nix::unistd::getegid().as_raw()));
    }
}
