//! The commands' side of the socket: one HTTP/1.1 request to the daemon, and its answer.
//!
//! Whatever goes wrong becomes one line that says what to do about it.

use std::{
    borrow::Cow,
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use nix::unistd::{Gid, Group, Uid, User};
use tokio::net::UnixStream;
use url::form_urlencoded;

use crate::server::Problem;

/// Talks to one daemon.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    deadline: Duration,
}

impl Client {
    /// For the daemon at `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            deadline: DEADLINE,
        }
    }

    /// `GET path?query`; the body of a 2xx answer.
    pub async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Bytes, ClientError> {
        self.request(Method::GET, path, query).await
    }

    /// `POST path?query`; the body of a 2xx answer.
    pub async fn post(&self, path: &str, query: &[(&str, &str)]) -> Result<Bytes, ClientError> {
        self.request(Method::POST, path, query).await
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<Bytes, ClientError> {
        tokio::time::timeout(self.deadline, self.exchange(method, path, query))
            .await
            .unwrap_or_else(|_elapsed| {
                Err(ClientError::Silent {
                    socket: self.socket.clone(),
                    deadline: self.deadline,
                })
            })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<Bytes, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| ClientError::connect(&self.socket, error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.garbled(&error))?;
        let answer = async {
            let request = Request::builder()
                .method(method)
                .uri(target(path, query))
                .header(header::HOST, "localhost")
                .header(header::ACCEPT, "application/json")
                .body(Empty::<Bytes>::new())
                .map_err(|error| self.garbled(&error))?;
            let answer = sender
                .send_request(request)
                .await
                .map_err(|error| self.garbled(&error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), BODY_LIMIT)
                .collect()
                .await
                .map_err(|error| match error.downcast_ref::<LengthLimitError>() {
                    Some(_) => ClientError::Garbled {
                        socket: self.socket.clone(),
                        detail: format!("the answer is longer than {BODY_LIMIT} bytes"),
                    },
                    None => self.garbled(&*error),
                })?
                .to_bytes();
            Ok((status, body))
        };
        // The connection is driven here, not in a task: it ends with its one request.
        tokio::pin!(answer);
        let (status, body) = tokio::select! {
            biased;
            answer = &mut answer => answer?,
            ended = connection => match ended {
                // What was read before the end is still to be had.
                Ok(()) => answer.await?,
                Err(error) => return Err(self.garbled(&error)),
            },
        };
        if status.is_success() {
            Ok(body)
        } else {
            Err(ClientError::Refused {
                status,
                problem: serde_json::from_slice(&body).ok(),
            })
        }
    }

    fn garbled(&self, error: &(dyn std::error::Error + 'static)) -> ClientError {
        ClientError::Garbled {
            socket: self.socket.clone(),
            detail: error.to_string(),
        }
    }
}

/// Why there is no answer, or not the one wanted.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection.
    #[error("cannot connect to {}: {reason}; {fix}", socket.display())]
    Unreachable {
        /// Where to.
        socket: PathBuf,
        /// Why not.
        reason: String,
        /// What to do.
        fix: String,
    },
    /// A connection, and no answer in time.
    #[error(
        "{}: no answer within {} s; see the daemon's log, and whether it is stopped or starved",
        socket.display(),
        deadline.as_secs()
    )]
    Silent {
        /// Where from.
        socket: PathBuf,
        /// How long was waited.
        deadline: Duration,
    },
    /// An answer that spiffe-entra does not give.
    #[error(
        "{}: {detail}; is it spiffe-entra that listens there, and did it stop just now?",
        socket.display()
    )]
    Garbled {
        /// Where from.
        socket: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The daemon says no.
    #[error("{}", told(*status, problem.as_deref()))]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// The problem document that came with it.
        problem: Option<Box<Problem>>,
    },
}

impl ClientError {
    /// Whether the one who asked has to ask otherwise.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::BAD_REQUEST)
    }

    fn connect(socket: &Path, error: io::Error) -> Self {
        let (reason, fix) = match error.kind() {
            io::ErrorKind::NotFound => (
                "there is no such socket".into(),
                "is the daemon running? Start it (`systemctl start spiffe-entra`), or name its \
                 socket with --socket"
                    .into(),
            ),
            io::ErrorKind::PermissionDenied => kept_out(socket),
            io::ErrorKind::ConnectionRefused => refused(socket),
            _ => (
                error.to_string(),
                "name the daemon's socket with --socket".into(),
            ),
        };
        Self::Unreachable {
            socket: socket.into(),
            reason,
            fix,
        }
    }
}

/// Which file keeps us out, and who would be let in.
fn kept_out(socket: &Path) -> (String, String) {
    // The first one that can be looked at: the socket itself, or the folder that hides the rest.
    let seen = socket
        .ancestors()
        .find_map(|path| fs::metadata(path).ok().map(|data| (path, data)));
    let Some((path, data)) = seen else {
        return ("permission denied".into(), "ask its administrator".into());
    };
    let found = Found {
        path,
        is_socket: path == socket,
        mode: data.mode(),
        group: (data.gid() != 0).then(|| group_name(data.gid())),
    };
    let what = if found.is_socket { "it" } else { "its folder" };
    (
        format!(
            "permission denied: {what} ({}) belongs to {}:{} with mode {:04o}",
            path.display(),
            user_name(data.uid()),
            group_name(data.gid()),
            data.mode() & 0o7777
        ),
        found.let_in(),
    )
}

/// A file in the way to the daemon.
struct Found<'a> {
    path: &'a Path,
    is_socket: bool,
    mode: u32,
    /// Nothing for root's: to be in that is no way to get a token.
    group: Option<String>,
}

impl Found<'_> {
    /// What lets more in. Membership of its group is worth a word only where it opens the file.
    fn let_in(&self) -> String {
        let (bit, change) = if self.is_socket {
            let change = "change `mode` or `group` of this [[listen]] (SocketMode and SocketGroup, \
                          where systemd made the socket): connecting takes the right to write";
            (0o020, change.to_owned())
        } else {
            let path = self.path.display();
            let change = format!(
                "let others into the folder: `chmod o+x {path}`, or RuntimeDirectoryMode=0755 \
                 where systemd makes it"
            );
            (0o010, change)
        };
        match &self.group {
            Some(group) if self.mode & bit != 0 => {
                format!("run as a member of the group {group}, or {change}")
            }
            _ => change,
        }
    }
}

/// Why nobody answers at a path that exists.
fn refused(socket: &Path) -> (String, String) {
    match fs::metadata(socket) {
        Ok(data) if !data.file_type().is_socket() => (
            "it is no socket".into(),
            "name the daemon's socket with --socket".into(),
        ),
        _ => (
            "nobody listens on it".into(),
            "the daemon has stopped and left it behind: start it (`systemctl start \
             spiffe-entra`), it replaces the stale socket"
                .into(),
        ),
    }
}

fn user_name(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}

fn group_name(gid: u32) -> String {
    let group = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
    group.map_or_else(|| gid.to_string(), |group| group.name)
}

/// What the daemon said when it said no, on one line, and nothing twice. A body that is no problem
/// document is not quoted: whatever answers there may put anything into it.
fn told(status: StatusCode, problem: Option<&Problem>) -> String {
    let Some(problem) = problem else {
        return format!("the daemon answered {status}");
    };
    let id = problem
        .correlation_id
        .as_ref()
        .map_or_else(String::new, |id| format!(", correlation id {id}"));
    format!(
        "{} ({}{id}): {}; {}",
        problem.title,
        problem.code,
        gist(problem),
        problem.fix
    )
}

/// The detail without what Entra puts around it: the code, which stands before it already, and at the
/// end a link to general documentation, where the fix says what it means here.
fn gist(problem: &Problem) -> Cow<'_, str> {
    if !problem.code.starts_with("AADSTS") {
        return Cow::Borrowed(&problem.detail);
    }
    let detail = problem
        .detail
        .replacen(&format!("{}: ", problem.code), "", 1);
    let detail = match detail.trim_end().rsplit_once(' ') {
        Some((text, link)) if DOCUMENTATION.iter().any(|site| link.starts_with(site)) => text,
        _ => &detail,
    };
    Cow::Owned(detail.trim_end_matches(['.', ' ']).to_owned())
}

/// The request target.
fn target(path: &str, query: &[(&str, &str)]) -> String {
    if query.is_empty() {
        return path.into();
    }
    let query = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(query)
        .finish()
        // A blank in every reading of a query. A plus of ours is `%2B` already.
        .replace('+', "%20");
    format!("{path}?{query}")
}

/// Where Microsoft explains things in general.
const DOCUMENTATION: [&str; 3] = [
    "https://learn.microsoft.com/",
    "https://docs.microsoft.com/",
    "https://aka.ms/",
];

/// More than the daemon lets anybody wait.
const DEADLINE: Duration = Duration::from_secs(15);

/// Above any answer: the status of ten thousand identities is about half of it.
const BODY_LIMIT: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
        task::JoinHandle,
    };

    /// A daemon that gives one answer, then closes. Returns what it was asked.
    fn daemon(answer: &'static str) -> (TempDir, Client, JoinHandle<String>) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(request).unwrap()
        });
        (dir, Client::new(socket), asked)
    }

    #[tokio::test]
    async fn a_query_is_encoded_and_the_body_returned() {
        let (_dir, client, asked) = daemon("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
        let body = client
            .get("/v1/token", &[("resource", "https://a/?b&c d+")])
            .await
            .unwrap();
        assert_eq!(body, "{}");
        let asked = asked.await.unwrap();
        let line = "GET /v1/token?resource=https%3A%2F%2Fa%2F%3Fb%26c%20d%2B HTTP/1.1\r\n";
        assert!(asked.starts_with(line), "{asked}");
    }

    #[tokio::test]
    async fn a_body_that_ends_with_the_connection_is_complete() {
        let (_dir, client, _asked) = daemon("HTTP/1.1 200 OK\r\n\r\nhello");
        assert_eq!(client.post("/x", &[]).await.unwrap(), "hello");
    }

    #[tokio::test]
    async fn a_problem_is_told_with_its_fix() {
        let (_dir, client, _asked) = daemon(
            "HTTP/1.1 424 Failed Dependency\r\nconnection: close\r\n\r\n\
             {\"type\":\"about:blank\",\"status\":424,\"code\":\"AADSTS700213\",\"title\":\"No credential matches\",\
             \"detail\":\"subject differs\",\"fix\":\"add a credential\",\"retryable\":false,\
             \"correlation_id\":\"c-1\"}",
        );
        let error = client.get("/v1/token", &[]).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "No credential matches (AADSTS700213, correlation id c-1): subject differs; add a \
             credential"
        );
        assert!(!error.is_usage());
    }

    #[tokio::test]
    async fn an_error_that_is_no_problem_document_is_not_quoted() {
        let (_dir, client, _asked) =
            daemon("HTTP/1.1 400 Bad Request\r\ncontent-length: 6\r\n\r\ns3cret");
        let error = client.get("/v1/token", &[]).await.unwrap_err();
        assert_eq!(error.to_string(), "the daemon answered 400 Bad Request");
        assert!(error.is_usage());
    }

    #[tokio::test]
    async fn what_is_no_http_is_said_to_be_none() {
        for answer in ["s3cret\r\n\r\n", ""] {
            let (_dir, client, _asked) = daemon(answer);
            let error = client.get("/livez", &[]).await.unwrap_err().to_string();
            assert!(error.contains("is it spiffe-entra"), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[tokio::test]
    async fn an_endless_body_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let client = Client::new(dir.path().join("s"));
        let listener = UnixListener::bind(&client.socket).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            while stream.write_all(&[b'x'; 65536]).await.is_ok() {}
        });
        let error = client.get("/x", &[]).await.unwrap_err().to_string();
        assert!(error.contains("longer than"), "{error}");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_daemon_that_says_nothing_is_given_up_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut client = Client::new(dir.path().join("s"));
        client.deadline = Duration::from_millis(20);
        let _listener = UnixListener::bind(&client.socket).unwrap();
        let error = client.get("/x", &[]).await.unwrap_err().to_string();
        assert!(error.contains("no answer within"), "{error}");
    }

    #[tokio::test]
    async fn a_missing_a_stale_and_a_wrong_file_have_their_own_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let say = async |path: &Path| {
            let error = Client::new(path.into()).get("/x", &[]).await.unwrap_err();
            error.to_string()
        };
        let missing = say(&path).await;
        assert!(missing.contains("is the daemon running?"), "{missing}");
        drop(UnixListener::bind(&path).unwrap());
        let stale = say(&path).await;
        assert!(stale.contains("replaces the stale socket"), "{stale}");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        let wrong = say(&path).await;
        assert!(wrong.contains("it is no socket"), "{wrong}");
    }

    #[test]
    fn who_is_kept_out_learns_by_what() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let (reason, fix) = kept_out(&path);
        assert!(reason.contains("mode 0600"), "{reason}");
        assert!(fix.starts_with("change `mode` or `group`"), "{fix}");
        // Nothing below the folder can be seen: the folder is what is named.
        let (reason, fix) = kept_out(&dir.path().join("gone/s"));
        assert!(reason.contains("its folder"), "{reason}");
        let command = format!("`chmod o+x {}`", dir.path().display());
        assert!(
            fix.contains(&command) && !fix.contains("[[listen]]"),
            "{fix}"
        );
    }

    #[test]
    fn a_group_is_named_only_where_it_helps_and_never_roots() {
        let fix = |is_socket, mode, group: Option<&str>| {
            let path = Path::new("/run/x");
            Found {
                path,
                is_socket,
                mode,
                group: group.map(str::to_owned),
            }
            .let_in()
        };
        let word = "run as a member of the group tokens, or ";
        for (is_socket, mode, named) in [
            (true, 0o660, true),
            (true, 0o600, false),
            (true, 0o650, false),
            (false, 0o710, true),
            (false, 0o700, false),
            (false, 0o760, false),
        ] {
            let fix_of = |group| fix(is_socket, mode, group);
            assert_eq!(fix_of(Some("tokens")).starts_with(word), named, "{mode:o}");
            assert!(!fix_of(None).contains("member"), "{mode:o}");
        }
    }

    #[test]
    fn entras_own_words_do_not_say_again_what_was_said() {
        let line_of = |code: &str, detail: &str| {
            let problem = serde_json::json!({
                "type": "about:blank", "status": 424, "title": "T", "code": code,
                "detail": detail, "fix": "F", "retryable": false,
            });
            let problem: Problem = serde_json::from_value(problem).unwrap();
            told(StatusCode::FAILED_DEPENDENCY, Some(&problem))
        };
        for (code, detail, line) in [
            (
                "AADSTS700213",
                "AADSTS700213: No record for subject 'spiffe://a/b'. Check it. \
                 https://learn.microsoft.com/entra/workload-id",
                "T (AADSTS700213): No record for subject 'spiffe://a/b'. Check it; F",
            ),
            (
                "AADSTS700024",
                "the clock of this machine is behind. AADSTS700024: Out of its range.",
                "T (AADSTS700024): the clock of this machine is behind. Out of its range; F",
            ),
            // A link that is what it is about.
            (
                "AADSTS50166",
                "AADSTS50166: Cannot fetch https://oidc.example.org/keys",
                "T (AADSTS50166): Cannot fetch https://oidc.example.org/keys; F",
            ),
            (
                "entra-dns",
                "cannot look up https://learn.microsoft.com/",
                "T (entra-dns): cannot look up https://learn.microsoft.com/; F",
            ),
        ] {
            assert_eq!(line_of(code, detail), line);
        }
    }
}
