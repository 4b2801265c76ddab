//! The server in this process, over a real socket, between scripted stand-ins for SPIRE and Entra.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code; not every test file uses everything"
)]

#[path = "../support/skip.rs"]
mod skip;

#[allow(unused_imports, reason = "each test binary uses a part of it")]
pub use skip::left_out;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use spiffe_entra::{
    assertion::{Assertion, AssertionSource, AssertionSpec, Fetch},
    config::{CallerRule, Identity, Limits, Listener, Plan, Resources, Trust},
    exchange::{
        Class, Exchange, ExchangeError, ExchangeRequest, IssuedToken, Target, TokenExchange,
    },
    id::SpiffeId,
    metrics::Metrics,
    policy::Policy,
    report::Report,
    secret::Secret,
    server::{Live, Parts, Server, bind},
    time::Clock,
    tokens::Tokens,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{Semaphore, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// The resource that tests ask for.
pub const VAULT: &str = "resource=https%3A%2F%2Fvault.azure.net";

/// A server that runs.
pub struct World {
    pub socket: PathBuf,
    pub entra: Arc<Entra>,
    pub spire: Arc<Spire>,
    /// Whether the Workload API is said to be reachable.
    pub reachable: Arc<AtomicBool>,
    pub stop: CancellationToken,
    pub server: Server,
    tokens: Tokens,
    live: watch::Sender<Arc<Live>>,
    pub plan: Mutex<Plan>,
    serving: Option<JoinHandle<std::io::Result<()>>>,
    _folder: tempfile::TempDir,
}

/// Gives every workload a JWT-SVID.
pub struct Spire {
    pub fails: Mutex<Option<Report>>,
}

/// Gives every workload a token, one after the other.
pub struct Entra {
    /// Taken for every exchange: without permits, exchanges wait.
    pub gate: Semaphore,
    pub exchanges: AtomicUsize,
    pub claims: Mutex<Vec<String>>,
    pub fails: Mutex<Option<Report>>,
}

impl World {
    pub fn start() -> Self {
        Self::with(|_plan| {})
    }

    /// With a plan of the test's own making: at first it has one socket and the identities
    /// `payments` (for us) and `orders` (for uid 4242).
    pub fn with(change: impl FnOnce(&mut Plan)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s.sock");
        open_to_all(folder.path());
        let mut plan = plan(&socket);
        change(&mut plan);

        let (metrics, registry) = Metrics::registered();
        let clock = Clock::system();
        let spire = Arc::new(Spire {
            fails: Mutex::default(),
        });
        let entra = Arc::new(Entra {
            gate: Semaphore::new(1_000_000),
            exchanges: AtomicUsize::new(0),
            claims: Mutex::default(),
            fails: Mutex::default(),
        });
        let tokens = Tokens::new(
            clock.clone(),
            Arc::<Spire>::clone(&spire),
            Arc::<Entra>::clone(&entra),
            plan.limits,
            metrics.clone(),
        );
        let (live, receiver) = watch::channel(Arc::new(in_force(&plan, &tokens, 1)));
        let reachable = Arc::new(AtomicBool::new(true));
        let probe = Arc::clone(&reachable);
        let server = Server::new(Parts {
            live: receiver,
            metrics,
            registry,
            clock,
            workload_api: Arc::new(move || {
                let reachable = probe.load(SeqCst);
                Box::pin(async move {
                    reachable.then_some(()).ok_or_else(|| {
                        Report::transient("agent-away", "away", "no agent", "start it")
                    })
                })
            }),
        });
        let stop = CancellationToken::new();
        let bound = bind::bind(&plan.listeners[0]).unwrap();
        let serving = tokio::spawn({
            let (server, stop) = (server.clone(), stop.clone());
            async move { server.serve(bound, stop).await }
        });
        Self {
            socket,
            entra,
            spire,
            reachable,
            stop,
            server,
            tokens,
            live,
            plan: Mutex::new(plan),
            serving: Some(serving),
            _folder: folder,
        }
    }

    /// Puts a changed plan in force, as a reload does.
    pub fn reload(&self, change: impl FnOnce(&mut Plan)) {
        let mut plan = self.plan.lock().unwrap();
        change(&mut plan);
        let generation = self.live.borrow().generation + 1;
        self.live
            .send_replace(Arc::new(in_force(&plan, &self.tokens, generation)));
        let kept: HashSet<&Trust> = plan.identities.iter().map(|i| &i.trust).collect();
        self.tokens.reload(&kept, plan.limits);
    }

    pub async fn connect(&self) -> Http1 {
        Http1(UnixStream::connect(&self.socket).await.unwrap())
    }

    /// One request on a connection of its own.
    pub async fn get(&self, target: &str) -> Answer {
        self.connect().await.get(target).await
    }

    pub async fn send(&self, request: &str) -> Answer {
        let mut connection = self.connect().await;
        connection.write(request).await;
        connection.answer().await
    }

    pub async fn token(&self, query: &str) -> Answer {
        self.get(&format!("/v1/token?{query}")).await
    }

    /// A gRPC channel on one connection.
    pub async fn channel(&self) -> tonic::transport::Channel {
        channel(UnixStream::connect(&self.socket).await.unwrap()).await
    }

    pub fn exchanges(&self) -> usize {
        self.entra.exchanges.load(SeqCst)
    }

    /// Waits until so many exchanges were begun.
    pub async fn until_exchanges(&self, count: usize) {
        while self.exchanges() < count {
            tokio::task::yield_now().await;
        }
    }

    /// Tells the server to stop, and waits until it has.
    pub async fn stopped(mut self) {
        self.stop.cancel();
        self.serving.take().unwrap().await.unwrap().unwrap();
    }

    pub fn serving(&mut self) -> JoinHandle<std::io::Result<()>> {
        self.serving.take().unwrap()
    }
}

/// An HTTP/1.1 connection, by hand.
pub struct Http1(pub UnixStream);

/// An answer, read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Http1 {
    pub async fn write(&mut self, bytes: &str) {
        self.0.write_all(bytes.as_bytes()).await.unwrap();
    }

    pub async fn get(&mut self, target: &str) -> Answer {
        self.write(&format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n"))
            .await;
        self.answer().await
    }

    pub async fn answer(&mut self) -> Answer {
        self.try_answer()
            .await
            .expect("the server closed the connection")
    }

    /// The next answer; `None` when the connection is at its end.
    pub async fn try_answer(&mut self) -> Option<Answer> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match self.0.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) if head.is_empty() => return None,
                Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&head)),
            }
        }
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let headers: Vec<(String, String)> = lines
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap();
                (name.to_lowercase(), value.trim().to_owned())
            })
            .filter(|(name, _)| name != "date")
            .collect();
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let mut body = vec![0; length.map_or(0, |(_, value)| value.parse().unwrap())];
        self.0.read_exact(&mut body).await.unwrap();
        Some(Answer {
            status,
            headers,
            body: String::from_utf8(body).unwrap(),
        })
    }

    /// Whether the server has closed its side.
    pub async fn ended(&mut self) -> bool {
        matches!(self.0.read(&mut [0]).await, Ok(0) | Err(_))
    }
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().find(|(known, _)| known == name);
        header.map(|(_, value)| value.as_str())
    }

    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl AssertionSource for Spire {
    fn fetch<'a>(&'a self, _spec: &'a AssertionSpec) -> Fetch<'a> {
        let outcome = match self.fails.lock().unwrap().clone() {
            Some(report) => Err(spiffe_entra::assertion::AssertionError {
                kind: spiffe_entra::assertion::AssertionErrorKind::Denied,
                report: Box::new(report),
            }),
            None => {
                let now = Clock::system().now();
                Ok(Assertion {
                    token: Secret::new("svid.svid.svid".into()),
                    issuer: "https://oidc.example.org".into(),
                    key_id: "key-1".into(),
                    algorithm: "RS256".into(),
                    issued_at: Some(now.unix_seconds()),
                    expires_at: now.unix_seconds() + 300,
                    fetched: now,
                })
            }
        };
        Box::pin(async move { outcome })
    }
}

impl TokenExchange for Entra {
    fn exchange<'a>(&'a self, request: ExchangeRequest<'a>) -> Exchange<'a> {
        let number = self.exchanges.fetch_add(1, SeqCst) + 1;
        self.claims
            .lock()
            .unwrap()
            .extend(request.claims.map(str::to_owned));
        Box::pin(async move {
            self.gate.acquire().await.unwrap().forget();
            if let Some(report) = self.fails.lock().unwrap().clone() {
                return Err(ExchangeError {
                    class: if report.retryable {
                        Class::Transient
                    } else {
                        Class::Misconfigured
                    },
                    revokes: false,
                    throttled: false,
                    stale_assertion: false,
                    report: Box::new(report),
                });
            }
            Ok(IssuedToken {
                access_token: Secret::new(format!("token-{number}.{}", "x".repeat(1500))),
                lifetime: Duration::from_secs(3600),
                refresh_in: None,
                correlation_id: Some("c0ffee".into()),
                uti: Some("uti-1".into()),
            })
        })
    }
}

/// Another process that connected, and handed its connection to us.
pub struct Other {
    /// Its connection. The server sees the other process at its end, whoever uses it.
    pub connection: Http1,
    process: std::process::Child,
    /// The other process ends when this does.
    leash: Option<std::os::unix::net::UnixStream>,
}

impl Other {
    /// Starts one, as another uid where one is given (only root can).
    pub fn connect(socket: &Path, uid: Option<u32>) -> Self {
        use std::os::unix::process::CommandExt;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command
            .args([
                "--exact",
                "served::as_another_process",
                "--nocapture",
                "--quiet",
            ])
            .env(SOCKET_VARIABLE, socket)
            .stdin(std::os::fd::OwnedFd::from(theirs))
            .stdout(std::process::Stdio::null());
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        let process = command.spawn().unwrap();
        let stream = receive_fd(&ours);
        stream.set_nonblocking(true).unwrap();
        Self {
            connection: Http1(UnixStream::from_std(stream).unwrap()),
            process,
            leash: Some(ours),
        }
    }

    /// Lets the process end, and waits until it has. The connection stays open: we hold it too.
    pub fn end(&mut self) {
        drop(self.leash.take());
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        if self.leash.is_some() {
            self.end();
        }
    }
}

/// The other side of [`Other`]: connects, hands the connection over and waits for the end. Does
/// nothing in an ordinary run.
#[test]
fn as_another_process() {
    use std::{io::Read, os::fd::AsFd};
    let Some(socket) = std::env::var_os(SOCKET_VARIABLE) else {
        return;
    };
    let connection = std::os::unix::net::UnixStream::connect(socket).unwrap();
    let leash = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let mut leash = std::os::unix::net::UnixStream::from(leash);
    send_fd(&leash, &connection);
    // Its end is the signal; an error is one too.
    let _end = leash.read(&mut [0]);
    // Nothing that the test harness still holds may keep us.
    std::process::exit(0);
}

fn send_fd(over: &std::os::unix::net::UnixStream, fd: &impl std::os::fd::AsRawFd) {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::os::fd::AsRawFd;
    let fds = [fd.as_raw_fd()];
    let message = [std::io::IoSlice::new(b"x")];
    let control = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(
        over.as_raw_fd(),
        &message,
        &control,
        MsgFlags::empty(),
        None,
    )
    .unwrap();
}

#[allow(unsafe_code, reason = "a received descriptor has no owner yet")]
fn receive_fd(over: &std::os::unix::net::UnixStream) -> std::os::unix::net::UnixStream {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use std::os::fd::{AsRawFd, FromRawFd};
    let mut byte = [0];
    let mut message = [std::io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let received = recvmsg::<()>(
        over.as_raw_fd(),
        &mut message,
        Some(&mut space),
        MsgFlags::empty(),
    )
    .unwrap();
    let Some(ControlMessageOwned::ScmRights(fds)) = received.cmsgs().unwrap().next() else {
        panic!("the other process did not connect");
    };
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    unsafe { std::os::unix::net::UnixStream::from_raw_fd(fds[0]) }
}

/// Whether tests can act as another uid.
pub fn is_root() -> bool {
    us() == 0
}

const SOCKET_VARIABLE: &str = "SERVED_SOCKET";

/// A gRPC channel on a connection that is there already.
pub async fn channel(stream: UnixStream) -> tonic::transport::Channel {
    let mut stream = Some(TokioIo::new(stream));
    tonic::transport::Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_: http::Uri| {
            let stream = stream.take();
            async move { stream.ok_or_else(|| std::io::Error::other("one connection only")) }
        }))
        .await
        .unwrap()
}

/// A caller rule for one uid.
pub fn uid(uid: u32) -> CallerRule {
    CallerRule {
        uid: Some(uid),
        gids: Vec::new(),
        resources: None,
        written: format!("{{ uid = {uid} }}"),
    }
}

/// Our own.
pub fn us() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn in_force(plan: &Plan, tokens: &Tokens, generation: u64) -> Live {
    Live {
        policy: Policy::new(plan),
        accounts: plan
            .identities
            .iter()
            .map(|i| tokens.account(&i.trust))
            .collect(),
        plan: Arc::new(plan.clone()),
        generation,
    }
}

fn plan(socket: &Path) -> Plan {
    use spiffe_entra::config::{Endpoint, Entra, Federation, Mistakes, WorkloadApi};
    Plan {
        workload_api: WorkloadApi {
            endpoint: Endpoint::Unix("/run/spire/api.sock".into()),
            timeout: WorkloadApi::DEFAULT_TIMEOUT,
        },
        entra: Entra {
            ca_file: None,
            ca_only: false,
            proxy: None,
            allow_http_loopback: false,
        },
        listeners: vec![Listener {
            socket: socket.to_owned(),
            mode: 0o666,
            owner: None,
            group: None,
            identities: None,
            max_connections: 64,
        }],
        admins: Vec::new(),
        metrics: None,
        limits: Limits {
            drain: Duration::from_secs(20),
            ..Limits::default()
        },
        identities: vec![
            Arc::new(identity(
                "payments",
                "0f8fad5b-d9cb-469f-a165-70867728950e",
                us(),
            )),
            Arc::new(identity(
                "orders",
                "1f8fad5b-d9cb-469f-a165-70867728950e",
                OTHER,
            )),
        ],
        quarantined: Vec::new(),
        federation: Federation {
            issuer: None,
            owner: None,
            sign_in: None,
            graph_endpoint: "https://graph.microsoft.com".parse().unwrap(),
            arm_endpoint: "https://management.azure.com".parse().unwrap(),
        },
        daemon_uid: Some(us()),
        warnings: Vec::new(),
        mistakes: Mistakes::default(),
    }
}

pub fn identity(name: &str, client_id: &str, caller: u32) -> Identity {
    Identity {
        name: name.into(),
        trust: Trust {
            target: Target {
                authority: "https://login.microsoftonline.com".parse().unwrap(),
                tenant: "72f988bf-86f1-41af-91ab-2d7cd011db47".into(),
                client_id: client_id.into(),
            },
            assertion: AssertionSpec {
                subject: SpiffeId::parse(&format!("spiffe://example.org/{name}")).unwrap(),
                audience: "api://AzureADTokenExchange".into(),
                issuer: None,
            },
        },
        object_id: None,
        resource_id: None,
        resources: Resources::Only(
            ["https://vault.azure.net", "https://storage.azure.com"]
                .map(String::from)
                .into(),
        ),
        callers: vec![uid(caller)],
        expose_assertion: false,
        federate: None,
    }
}

/// A uid that is not ours.
pub const OTHER: u32 = 4242;

/// Lets other uids reach what is below.
fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Where log lines go.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl tracing_subscriber::fmt::MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
