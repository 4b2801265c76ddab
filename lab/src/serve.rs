//! The accept loops: HTTPS on TCP and HTTP/2 on a Unix socket, both stoppable and restartable on
//! the same address, because servers that come and go are what the product must live with.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::error::{Error, Result};
use crate::sync::lock;

/// An HTTPS server on one address. Dropping it stops it.
pub(crate) struct HttpsServer {
    address: SocketAddr,
    tls: Arc<ServerConfig>,
    router: Router,
    running: Mutex<Option<Running>>,
}

impl HttpsServer {
    pub(crate) async fn bind(
        address: SocketAddr,
        tls: Arc<ServerConfig>,
        router: impl FnOnce(SocketAddr) -> Router,
    ) -> Result<Self> {
        let listener = listen(address).await?;
        let address = listener.local_addr().map_err(Error::io("local address"))?;
        let server = Self {
            address,
            tls,
            router: router(address),
            running: Mutex::default(),
        };
        server.run(listener);
        Ok(server)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the listener and every connection.
    pub(crate) async fn stop(&self) {
        let running = lock(&self.running).take();
        if let Some(running) = running {
            running.stop().await;
        }
    }

    /// Listens on the same address again.
    pub(crate) async fn start(&self) -> Result<()> {
        self.stop().await;
        let listener = listen(self.address).await?;
        self.run(listener);
        Ok(())
    }

    fn run(&self, listener: TcpListener) {
        let running = Running::default();
        let (tls, router) = (
            TlsAcceptor::from(Arc::clone(&self.tls)),
            self.router.clone(),
        );
        let (cancel, tasks) = (running.cancel.clone(), running.tasks.clone());
        running.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Answers are small and latency is measured: no waiting for more to send.
                let _ = stream.set_nodelay(true);
                let Ok(twin) = stream.as_fd().try_clone_to_owned() else {
                    continue;
                };
                let wire = Wire {
                    cancel: cancel.child_token(),
                    socket: Arc::new(twin),
                };
                let (tls, router) = (tls.clone(), router.clone());
                tasks.spawn(async move {
                    let cancel = wire.cancel.clone();
                    let connection = async {
                        if let Ok(stream) = tls.accept(stream).await {
                            serve(stream, router, wire).await;
                        }
                    };
                    let _ = cancel.run_until_cancelled(connection).await;
                });
            }
        });
        *lock(&self.running) = Some(running);
    }
}

/// A server on a Unix socket, as SPIRE's agent has it. Dropping it stops it.
pub(crate) struct UnixServer {
    path: PathBuf,
    router: Router,
    running: Mutex<Option<Running>>,
}

impl UnixServer {
    pub(crate) fn bind(path: &Path, router: Router) -> Result<Self> {
        let server = Self {
            path: path.to_owned(),
            router,
            running: Mutex::default(),
        };
        server.listen()?;
        Ok(server)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Closes the listener and every connection. A clean stop takes the socket file along, a
    /// crash leaves it behind.
    pub(crate) async fn stop(&self, clean: bool) {
        let running = lock(&self.running).take();
        if let Some(running) = running {
            running.stop().await;
        }
        if clean {
            // It may be gone already: that is what was wanted.
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Listens on the same path again: the old file is removed, a new one is bound.
    pub(crate) async fn start(&self) -> Result<()> {
        self.stop(true).await;
        self.listen()
    }

    fn listen(&self) -> Result<()> {
        let path = &self.path;
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(format!("remove {}", path.display()))(error));
            }
            _ => {}
        }
        let listener =
            UnixListener::bind(path).map_err(Error::io(format!("listen on {}", path.display())))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o777))
            .map_err(Error::io(format!("chmod {}", path.display())))?;
        let running = Running::default();
        let (cancel, tasks) = (running.cancel.clone(), running.tasks.clone());
        let router = self.router.clone();
        running.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(credentials) = stream.peer_cred() else {
                    continue;
                };
                let peer = Peer {
                    uid: credentials.uid(),
                };
                let (cancel, router) = (cancel.child_token(), router.clone());
                tasks.spawn(async move {
                    let _ = cancel
                        .run_until_cancelled(serve(stream, router, peer))
                        .await;
                });
            }
        });
        *lock(&self.running) = Some(running);
        Ok(())
    }
}

/// Who connected to the Unix socket (SO_PEERCRED).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) uid: u32,
}

/// The TCP connection a request came on, to break it.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    cancel: CancellationToken,
    /// A second descriptor of the connection: the first is inside TLS inside hyper.
    socket: Arc<OwnedFd>,
}

impl Wire {
    /// Ends the connection with a TCP reset.
    pub(crate) fn reset(&self) {
        // Without lingering, closing throws away what was not sent and answers RST.
        let _ = setsockopt(
            &self.socket,
            sockopt::Linger,
            &linger {
                l_onoff: 1,
                l_linger: 0,
            },
        );
        self.cancel.cancel();
    }
}

/// One listener's tasks.
#[derive(Default)]
struct Running {
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Running {
    fn spawn(&self, accept: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            let _ = cancel.run_until_cancelled(accept).await;
        });
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(Error::io(format!("listen on {address}")))
}

async fn serve<S, E>(stream: S, router: Router, extension: E)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    E: Clone + Send + Sync + 'static,
{
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(extension.clone());
        router.clone().oneshot(request.map(Body::new))
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    if let Err(error) = builder
        .serve_connection(TokioIo::new(stream), service)
        .await
    {
        tracing::debug!(%error, "connection ended");
    }
}
