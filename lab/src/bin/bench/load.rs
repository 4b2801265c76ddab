//! The load: kept-alive connections on one thread, each asking again as soon as it has its answer.
//!
//! It is as lean as it can be (epoll, one write and one read a request), so that it is the server
//! that is measured; [`Load::generator`] tells whether it was. Every answer is looked at.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::time::{ClockId, clock_gettime};

use super::proc;

/// What is asked, and by how many.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) request: Vec<u8>,
    /// How long each body must be.
    pub(crate) body: usize,
    pub(crate) connections: usize,
}

/// What has been seen so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Load {
    pub(crate) answers: u64,
    /// How long the load lasted.
    pub(crate) wall: Duration,
    /// Processor time that the server has used.
    pub(crate) server: Duration,
    /// Processor time that the generator has used.
    pub(crate) generator: Duration,
    /// How long each answer took, in nanoseconds.
    pub(crate) times: Vec<u64>,
}

impl Load {
    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        self.answers as f64 / self.wall.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Processor time of the server for each answer, in microseconds.
    pub(crate) fn cost(&self) -> f64 {
        self.server.as_secs_f64() * 1e6 / (self.answers as f64).max(1.0)
    }

    /// What a part of the answers took no longer than, in microseconds.
    pub(crate) fn percentile(&self, part: f64) -> f64 {
        let mut times = self.times.clone();
        times.sort_unstable();
        let index = (times.len() as f64 * part) as usize;
        times.get(index).map_or(0.0, |nanos| *nanos as f64 / 1e3)
    }
}

/// Connections to one server.
pub(crate) struct Generator {
    plan: Plan,
    /// The server's process.
    pid: u32,
    epoll: Epoll,
    clients: Vec<Client>,
    events: Vec<EpollEvent>,
}

struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
    filled: usize,
    asked: Instant,
}

impl Generator {
    /// Connects.
    pub(crate) fn connect(socket: &Path, pid: u32, plan: &Plan) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut clients = Vec::with_capacity(plan.connections);
        for index in 0..plan.connections as u64 {
            let stream = UnixStream::connect(socket)?;
            stream.set_nonblocking(true)?;
            // By edges: nothing has to be asked for again after each answer.
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
            epoll.add(&stream, EpollEvent::new(flags, index))?;
            let (buffer, asked) = (vec![0; BUFFER], Instant::now());
            clients.push(Client {
                stream,
                buffer,
                filled: 0,
                asked,
            });
        }
        let events = vec![EpollEvent::empty(); clients.len().min(256)];
        Ok(Self {
            plan: plan.clone(),
            pid,
            epoll,
            clients,
            events,
        })
    }

    /// Loads the server for a while and adds what was seen.
    pub(crate) fn run(&mut self, time: Duration, load: &mut Load) -> io::Result<()> {
        let (server, generator) = (proc::cpu_time(self.pid)?, thread_time()?);
        let began = Instant::now();
        for client in &mut self.clients {
            client.asked = Instant::now();
            client.send(&self.plan.request)?;
        }
        let deadline = began + time;
        let mut under_way = self.clients.len();
        let mut last = began;
        while under_way > 0 {
            let ready = match self
                .epoll
                .wait(&mut self.events, EpollTimeout::from(SILENCE))
            {
                Ok(0) => return Err(ErrorKind::TimedOut.into()),
                Err(nix::errno::Errno::EINTR) => continue,
                ready => ready?,
            };
            for event in &self.events[..ready] {
                let client = &mut self.clients[event.data() as usize];
                if !client.read(self.plan.body)? {
                    continue;
                }
                last = Instant::now();
                load.answers += 1;
                load.times.push((last - client.asked).as_nanos() as u64);
                if last < deadline {
                    client.asked = last;
                    client.send(&self.plan.request)?;
                } else {
                    under_way -= 1;
                }
            }
        }
        load.wall += last - began;
        load.generator += thread_time()?.saturating_sub(generator);
        // Now that it waits, the kernel knows all that it has used.
        load.server += proc::cpu_time(self.pid)?.saturating_sub(server);
        Ok(())
    }
}

impl Client {
    fn send(&mut self, request: &[u8]) -> io::Result<()> {
        // A request is far smaller than a socket's buffer, and none is under way.
        self.stream.write_all(request)
    }

    /// Reads what there is; whether it was the rest of an answer.
    fn read(&mut self, body: usize) -> io::Result<bool> {
        loop {
            match self.stream.read(&mut self.buffer[self.filled..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
            match length(&self.buffer[..self.filled], body)? {
                // The next edge comes with the next answer: there is nothing left now.
                Some(expected) if self.filled == expected => {
                    self.filled = 0;
                    return Ok(true);
                }
                Some(expected) if self.filled > expected => {
                    return Err(io::Error::other("more was answered than was asked"));
                }
                _ => {}
            }
        }
    }
}

/// How long the answer is that begins so, once its head is there: a 200 with a body of `body` bytes.
fn length(start: &[u8], body: usize) -> io::Result<Option<usize>> {
    let Some(end) = start.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&start[..end]).map_err(io::Error::other)?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.parse().ok())?
    });
    if !status.starts_with("HTTP/1.1 200") || length != Some(body) {
        return Err(io::Error::other(format!(
            "answered {status} with {length:?} bytes"
        )));
    }
    Ok(Some(end + 4 + body))
}

fn thread_time() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// An answer fits with room to spare.
const BUFFER: usize = 16 << 10;
/// How long no answer at all is a failure, in milliseconds.
const SILENCE: u16 = 5000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_as_long_as_it_says_and_must_be_a_success() {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\ndate: x\r\n\r\n";
        assert_eq!(length(&head.as_bytes()[..20], 5).unwrap(), None);
        assert_eq!(length(head.as_bytes(), 5).unwrap(), Some(head.len() + 5));
        assert!(length(head.as_bytes(), 6).is_err());
        assert!(length(head.replace("200", "503").as_bytes(), 5).is_err());
    }

    #[test]
    fn sums_are_made_of_what_was_seen() {
        let load = Load {
            answers: 1000,
            wall: Duration::from_millis(500),
            server: Duration::from_millis(10),
            generator: Duration::ZERO,
            times: (0..1000).rev().map(|n| n * 1000).collect(),
        };
        assert!((load.rate() - 2000.0).abs() < 1e-6);
        assert!((load.cost() - 10.0).abs() < 1e-6);
        assert!((load.percentile(0.99) - 990.0).abs() < 1e-6);
    }
}
