//! The load: kept-alive connections on one thread, each asking again as soon as it has its answer.
//!
//! It is as lean as it can be (epoll, one write and one read a request), so that it is the server
//! that is measured; [`Load::busy`] tells whether it was. Every answer is looked at.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use lab::daemon::pin;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::time::{ClockId, clock_gettime};

/// What one round has shown.
#[derive(Debug)]
pub(crate) struct Load {
    /// Answers a second.
    pub(crate) rate: f64,
    /// The median of the times to an answer.
    pub(crate) p50: Duration,
    /// What one in a hundred is slower than.
    pub(crate) p99: Duration,
    /// Which part of its core the generator has used: near one, it is the generator that was
    /// measured.
    pub(crate) busy: f64,
}

/// What is asked, and how.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) request: Vec<u8>,
    /// How long each body must be.
    pub(crate) body: usize,
    pub(crate) connections: usize,
    pub(crate) time: Duration,
    /// The core that the generator has for itself.
    pub(crate) core: usize,
}

/// When the measured time begins and ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Edge {
    Begin,
    End,
}

/// Loads the server behind a socket; `at` is called at both ends of the measured time.
pub(crate) fn run(
    socket: &Path,
    plan: &Plan,
    at: impl FnMut(Edge) -> io::Result<()> + Send,
) -> io::Result<Load> {
    // A thread of its own: the core is for this alone.
    thread::scope(|scope| {
        let generator = scope.spawn(move || {
            pin(plan.core)?;
            Generator::connect(socket, plan)?.measure(at)
        });
        generator
            .join()
            .unwrap_or_else(|_panic| Err(io::Error::other("the generator panicked")))
    })
}

struct Generator<'a> {
    plan: &'a Plan,
    epoll: Epoll,
    clients: Vec<Client>,
}

struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
    filled: usize,
    asked: Instant,
}

impl<'a> Generator<'a> {
    fn connect(socket: &Path, plan: &'a Plan) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut clients = Vec::with_capacity(plan.connections);
        for index in 0..plan.connections as u64 {
            let stream = UnixStream::connect(socket)?;
            stream.set_nonblocking(true)?;
            // By edges: nothing has to be asked for again after each answer.
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
            epoll.add(&stream, EpollEvent::new(flags, index))?;
            let buffer = vec![0; BUFFER];
            clients.push(Client {
                stream,
                buffer,
                filled: 0,
                asked: Instant::now(),
            });
        }
        Ok(Self {
            plan,
            epoll,
            clients,
        })
    }

    fn measure(mut self, mut edge: impl FnMut(Edge) -> io::Result<()>) -> io::Result<Load> {
        for client in &mut self.clients {
            client.ask(&self.plan.request)?;
        }
        self.answers(WARM_UP, |_| {})?;
        let mut times = Vec::with_capacity(1 << 20);
        edge(Edge::Begin)?;
        let (began, cpu) = (Instant::now(), thread_time()?);
        self.answers(self.plan.time, |time| times.push(time))?;
        let (wall, cpu) = (began.elapsed(), thread_time()?.saturating_sub(cpu));
        edge(Edge::End)?;
        times.sort_unstable();
        let at = |part: f64| {
            let index = (times.len() as f64 * part) as usize;
            times
                .get(index)
                .copied()
                .map(Duration::from_nanos)
                .unwrap_or_default()
        };
        Ok(Load {
            rate: times.len() as f64 / wall.as_secs_f64(),
            p50: at(0.5),
            p99: at(0.99),
            busy: cpu.as_secs_f64() / wall.as_secs_f64(),
        })
    }

    /// Takes answers, and asks again for each, until the time is over.
    fn answers(&mut self, time: Duration, mut took: impl FnMut(u64)) -> io::Result<()> {
        let deadline = Instant::now() + time;
        let mut last = Instant::now();
        let mut events = vec![EpollEvent::empty(); self.clients.len().min(256)];
        while last < deadline {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::from(SILENCE)) {
                Ok(0) => return Err(ErrorKind::TimedOut.into()),
                Err(nix::errno::Errno::EINTR) => continue,
                ready => ready?,
            };
            for event in &events[..ready] {
                let client = &mut self.clients[event.data() as usize];
                if client.read(self.plan.body)? {
                    last = Instant::now();
                    took((last - client.asked).as_nanos() as u64);
                    client.asked = last;
                    client.send(&self.plan.request)?;
                }
            }
        }
        Ok(())
    }
}

impl Client {
    fn ask(&mut self, request: &[u8]) -> io::Result<()> {
        self.asked = Instant::now();
        self.send(request)
    }

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
            if let Some(expected) = length(&self.buffer[..self.filled], body)? {
                match self.filled {
                    filled if filled == expected => {
                        self.filled = 0;
                        // The next edge comes with the next answer: there is nothing left now.
                        return Ok(true);
                    }
                    filled if filled > expected => {
                        return Err(io::Error::other("more was answered than was asked"));
                    }
                    _ => {}
                }
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
/// How long the load lasts before it is measured.
const WARM_UP: Duration = Duration::from_millis(300);
/// How long no answer at all is a failure, in milliseconds.
const SILENCE: u16 = 5000;
