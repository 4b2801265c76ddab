//! A client's side: answers, tokens, and asking as other users.

use std::{os::unix::process::CommandExt, path::Path, process::Command};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;

/// An answer of the daemon.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    pub fn parse(answer: &str) -> Self {
        let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
        let mut lines = head.lines();
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        Self {
            status,
            headers,
            body: body.into(),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }

    pub fn access_token(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()["access_token"].as_str().unwrap().to_owned()
    }
}

/// The claims of a JWT.
pub fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

/// Whether the test can become other users.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Asks as another user, by curl-less means: a child that connects under that uid.
pub fn get_as(uid: u32, socket: &Path, target: &str) -> Response {
    get_as_member(uid, &[], socket, target)
}

/// Asks as another user with supplementary groups.
pub fn get_as_member(uid: u32, groups: &[u32], socket: &Path, target: &str) -> Response {
    let script = "import os,socket,sys\n\
        uid=int(sys.argv[3])\n\
        os.setgroups([int(g) for g in sys.argv[4:]]); os.setgid(uid); os.setuid(uid)\n\
        s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n\
        s.sendall(('GET '+sys.argv[2]+' HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n').encode())\n\
        sys.stdout.buffer.write(b''.join(iter(lambda: s.recv(65536), b'')))";
    let output = Command::new("python3")
        .args(["-c", script])
        .arg(socket)
        .args([target, &uid.to_string()])
        .args(groups.iter().map(ToString::to_string))
        .current_dir("/")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Response::parse(&String::from_utf8(output.stdout).unwrap())
}

/// Asks many times at once as one user: all connect, then all ask, then all listen.
pub fn crowd(uid: u32, socket: &Path, target: &str, size: usize) -> Vec<Response> {
    let script = "import resource,socket,sys\n\
        hard=resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n\
        resource.setrlimit(resource.RLIMIT_NOFILE,(hard,hard))\n\
        peers=[]\n\
        for _ in range(int(sys.argv[3])):\n\
        \x20 s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); peers.append(s)\n\
        for s in peers:\n\
        \x20 s.sendall(('GET '+sys.argv[2]+' HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n').encode())\n\
        for s in peers:\n\
        \x20 out=b''.join(iter(lambda: s.recv(65536), b''))\n\
        \x20 sys.stdout.buffer.write(len(out).to_bytes(4,'big')+out)";
    let mut command = Command::new("python3");
    command
        .args(["-c", script])
        .arg(socket)
        .arg(target)
        .arg(size.to_string())
        .current_dir("/");
    if is_root() {
        command.uid(uid).gid(uid);
    }
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut rest = output.stdout.as_slice();
    let mut answers = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let (answer, behind) = behind.split_at(u32::from_be_bytes(*length) as usize);
        answers.push(Response::parse(std::str::from_utf8(answer).unwrap()));
        rest = behind;
    }
    assert_eq!(answers.len(), size);
    answers
}
