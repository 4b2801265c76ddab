//! The SPIFFE source against the lab's Workload API: an agent that comes, goes, hangs, refuses and
//! answers what it should not.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use lab::{
    AUDIENCE, Ca, Issuer, IssuerOptions, Workload,
    faults::Armed,
    workload::{Fault, Faults},
};
use spiffe_entra::{
    assertion::{
        Assertion, AssertionError, AssertionErrorKind, AssertionSource, AssertionSpec,
        spiffe::SpiffeSource,
    },
    config::Endpoint,
    id::SpiffeId,
    time::Clock,
};
use tokio::net::{TcpListener, UnixListener};
use tonic::Code;

const SUBJECT: &str = "spiffe://example.org/payments";

/// An issuer, an agent on a socket, and a source that asks it.
struct Rig {
    issuer: Issuer,
    agent: Workload,
    source: SpiffeSource,
    _folder: tempfile::TempDir,
}

impl Rig {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let issuer = issuer().await;
        let agent = Workload::start(&folder.path().join("agent.sock"), issuer.clone()).unwrap();
        agent.entry(SUBJECT).add();
        let source = source(agent.socket());
        Self {
            issuer,
            agent,
            source,
            _folder: folder,
        }
    }

    fn spec(&self) -> AssertionSpec {
        spec(&self.issuer)
    }

    async fn fetch(&self) -> Result<Assertion, AssertionError> {
        self.source.fetch(&self.spec()).await
    }

    /// The one code with which a fetch fails.
    async fn fails(&self) -> (AssertionErrorKind, String) {
        let error = self.fetch().await.unwrap_err();
        (error.kind, error.report.code.to_string())
    }
}

async fn issuer() -> Issuer {
    Issuer::start(&Ca::new().unwrap(), IssuerOptions::default())
        .await
        .unwrap()
}

fn source(socket: &Path) -> SpiffeSource {
    SpiffeSource::new(Endpoint::Unix(socket.to_owned()), Clock::system())
}

fn hasty(endpoint: Endpoint) -> SpiffeSource {
    SpiffeSource::with_deadline(endpoint, Clock::system(), Duration::from_millis(300))
}

fn spec(issuer: &Issuer) -> AssertionSpec {
    AssertionSpec {
        subject: SpiffeId::parse(SUBJECT).unwrap(),
        audience: AUDIENCE.into(),
        issuer: Some(issuer.url().into()),
    }
}

fn uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

#[tokio::test]
async fn a_svid_is_fetched_for_one_identity_and_one_audience() {
    let rig = Rig::start().await;
    let assertion = rig.fetch().await.unwrap();
    assert_eq!(assertion.issuer, rig.issuer.url());
    assert_eq!(assertion.key_id, rig.issuer.active_key().kid());
    assert_eq!(assertion.algorithm, "RS256");
    assert_eq!(assertion.lifetime(), Duration::from_secs(300));
    let shown = format!("{assertion:?}");
    assert!(!shown.contains(assertion.token.expose().split('.').nth(1).unwrap()));
    let [call] = &rig.agent.record()[..] else {
        panic!("one call")
    };
    assert_eq!(
        (&*call.spiffe_id, &*call.audience),
        (SUBJECT, &[AUDIENCE.to_owned()][..])
    );
    rig.source.reachable().await.unwrap();
}

#[tokio::test]
async fn an_agent_may_come_late_go_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let issuer = issuer().await;
    let source = source(&socket);
    let spec = spec(&issuer);
    let code = async || source.fetch(&spec).await.unwrap_err();

    let missing = code().await;
    assert_eq!(missing.kind, AssertionErrorKind::Unavailable);
    assert_eq!(missing.report.code, "workload-api-socket-missing");
    assert!(missing.is_transient());
    assert!(
        missing
            .report
            .fix
            .contains(&format!("unix://{}", socket.display()))
    );
    assert!(missing.report.fix.contains("workload_api.endpoint"));
    assert_eq!(
        source.reachable().await.unwrap_err().report.code,
        missing.report.code
    );

    let agent = Workload::start(&socket, issuer.clone()).unwrap();
    agent.entry(SUBJECT).add();
    source.fetch(&spec).await.unwrap();

    // Killed: the file stays behind, and nobody listens.
    agent.crash().await;
    let refused = code().await;
    assert_eq!(refused.report.code, "workload-api-refused", "{refused:?}");
    assert_eq!(refused.kind, AssertionErrorKind::Unavailable);
    assert_eq!(
        source.reachable().await.unwrap_err().report.code,
        "workload-api-refused"
    );

    agent.restart().await.unwrap();
    source.fetch(&spec).await.unwrap();

    // Restarted between two calls: the second does not even notice.
    agent.crash().await;
    agent.restart().await.unwrap();
    source.fetch(&spec).await.unwrap();

    // Told to stop: the file goes too. And twice, to be sure.
    for _ in 0..2 {
        agent.stop().await;
        assert_eq!(code().await.report.code, "workload-api-socket-missing");
        agent.restart().await.unwrap();
        source.fetch(&spec).await.unwrap();
        source.reachable().await.unwrap();
    }
}

#[tokio::test]
async fn a_hung_agent_meets_the_deadline_and_is_asked_anew() {
    let rig = Rig::start().await;
    let hasty = hasty(Endpoint::Unix(rig.agent.socket().to_owned()));
    let hang = rig.agent.faults().hang();
    let error = hasty.fetch(&rig.spec()).await.unwrap_err();
    assert_eq!(error.kind, AssertionErrorKind::Unavailable);
    assert_eq!(error.report.code, "workload-api-timeout");
    assert!(
        error.report.fix.contains("jwt_svid_cache_hit_timeout"),
        "{}",
        error.report.fix
    );
    assert!(error.is_transient());
    hang.clear();
    // A deadline of its own was for the test; a loaded machine may need more than that.
    let assertion = loop {
        match hasty.fetch(&rig.spec()).await {
            Ok(assertion) => break assertion,
            Err(error) => assert_eq!(error.report.code, "workload-api-timeout"),
        }
    };
    assert_eq!(assertion.issuer, rig.issuer.url());
}

#[tokio::test]
async fn a_stuck_agent_does_not_hide_the_one_that_took_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    // Accepts in the kernel's queue and never says a word; it stays alive to the end.
    let stuck = UnixListener::bind(&socket).unwrap();
    let issuer = issuer().await;
    let source = hasty(Endpoint::Unix(socket.clone()));
    let error = source.fetch(&spec(&issuer)).await.unwrap_err();
    assert_eq!(error.report.code, "workload-api-timeout");
    std::fs::remove_file(&socket).unwrap();
    let agent = Workload::start(&socket, issuer.clone()).unwrap();
    agent.entry(SUBJECT).add();
    loop {
        match source.fetch(&spec(&issuer)).await {
            Ok(_) => break,
            Err(error) => assert_eq!(error.report.code, "workload-api-timeout"),
        }
    }
    drop(stuck);
}

#[tokio::test]
async fn a_call_that_waits_does_not_hold_up_another() {
    let rig = Rig::start().await;
    let other = "spiffe://example.org/other";
    rig.agent.entry(other).add();
    let hang = rig.agent.faults_for(SUBJECT).hang();
    let spec = rig.spec();
    let waiting = rig.source.fetch(&spec);
    let second = async {
        rig.agent.wait_fetches(1).await;
        let spec = AssertionSpec {
            subject: SpiffeId::parse(other).unwrap(),
            ..rig.spec()
        };
        rig.source.fetch(&spec).await.unwrap();
    };
    tokio::select! {
        _ = waiting => panic!("it hangs"),
        () = second => {}
    }
    hang.clear();
}

#[tokio::test]
async fn denied_until_there_is_an_entry() {
    let rig = Rig::start().await;
    rig.agent.remove(SUBJECT);
    let error = rig.fetch().await.unwrap_err();
    assert_eq!(error.kind, AssertionErrorKind::Denied);
    assert_eq!(error.report.code, "workload-api-denied");
    assert!(error.is_transient(), "entries take time");
    let command = format!("spire-server entry create -spiffeID {SUBJECT} -parentID ");
    assert!(error.report.fix.contains(&command), "{}", error.report.fix);
    assert!(
        error
            .report
            .fix
            .contains(&format!("-selector unix:uid:{}", uid()))
    );
    rig.agent.entry(SUBJECT).uid(uid() + 1).add();
    assert_eq!(rig.fails().await.0, AssertionErrorKind::Denied);
    rig.agent.entry(SUBJECT).uid(uid()).add();
    rig.fetch().await.unwrap();
}

#[tokio::test]
async fn what_the_agent_says_is_retried_or_not_as_the_standard_has_it() {
    let rig = Rig::start().await;
    use AssertionErrorKind::{Denied, Refused, Unavailable, Unusable};
    for (code, message, kind, name) in [
        (
            Code::PermissionDenied,
            "no identity issued",
            Denied,
            "workload-api-denied",
        ),
        (
            Code::PermissionDenied,
            "not today",
            Denied,
            "workload-api-denied",
        ),
        (
            Code::Unavailable,
            "workload attestation failed",
            Unavailable,
            "workload-api-unavailable",
        ),
        (
            Code::DeadlineExceeded,
            "server",
            Unavailable,
            "workload-api-timeout",
        ),
        (
            Code::ResourceExhausted,
            "",
            Unavailable,
            "workload-api-unavailable",
        ),
        (Code::Internal, "x", Unavailable, "workload-api-unavailable"),
        (Code::Unknown, "x", Unavailable, "workload-api-unavailable"),
        (
            Code::InvalidArgument,
            "security header",
            Refused,
            "workload-api-invalid-argument",
        ),
        (
            Code::Unimplemented,
            "x",
            Refused,
            "workload-api-unimplemented",
        ),
    ] {
        let armed = rig.agent.faults().status(code, message);
        let error = rig.fetch().await.unwrap_err();
        assert_eq!((error.kind, &*error.report.code), (kind, name), "{code:?}");
        assert_eq!(
            error.is_transient(),
            matches!(kind, Denied | Unavailable),
            "{code:?}"
        );
        let said = if message.is_empty() {
            "(no message)"
        } else {
            message
        };
        assert!(
            error.report.detail.contains(said),
            "{}",
            error.report.detail
        );
        armed.clear();
    }
    let armed = rig.agent.faults().empty_answer();
    assert_eq!(
        rig.fails().await,
        (Unusable, "workload-api-bad-answer".into())
    );
    armed.clear();
    let armed = rig
        .agent
        .faults()
        .status(Code::Unavailable, &"long\n".repeat(500));
    let detail = rig.fetch().await.unwrap_err().report.detail;
    assert!(detail.len() < 400 && !detail.contains('\n'), "{detail}");
    armed.clear();
    rig.fetch().await.unwrap();
}

#[tokio::test]
async fn svids_that_entra_would_refuse_name_the_setting_of_spire() {
    let rig = Rig::start().await;
    type Arm = fn(&Faults) -> Armed<Fault>;
    let cases: [(Arm, &str, &str); 11] = [
        (
            |f| f.es256(),
            "svid-algorithm",
            "jwt_key_type = \"rsa-2048\"",
        ),
        (
            |f| f.no_issuer(),
            "svid-issuer-missing",
            "jwt_issuer = \"https://localhost",
        ),
        (
            |f| f.wrong_issuer("https://other.example"),
            "svid-issuer-mismatch",
            "jwt_issuer",
        ),
        (
            |f| f.wrong_issuer("http://plain.example"),
            "svid-issuer-invalid",
            "jwt_issuer",
        ),
        (|f| f.expired(), "svid-expired", "default_jwt_svid_ttl"),
        (
            |f| f.wrong_subject("spiffe://evil.org/other"),
            "svid-subject",
            "spire-server entry show",
        ),
        (
            |f| f.wrong_audience(&["other"]),
            "svid-audience",
            "entra.audience",
        ),
        (
            |f| f.wrong_audience(&[AUDIENCE, "other"]),
            "svid-audience",
            "entra.audience",
        ),
        (
            |f| f.malformed(),
            "svid-malformed",
            "spire-agent api fetch jwt",
        ),
        (
            |f| f.arm(Fault::Type("wit+jwt".into())),
            "svid-type",
            "`typ: JWT`",
        ),
        (|f| f.arm(Fault::NoKeyId), "svid-key-id", "kid"),
    ];
    for (arm, code, setting) in cases {
        let armed = arm(&rig.agent.faults());
        let error = rig.fetch().await.unwrap_err();
        assert_eq!(error.kind, AssertionErrorKind::Unusable);
        assert_eq!(error.report.code, code, "{}", error.report.detail);
        assert!(
            error.report.fix.contains(setting),
            "{code}: {}",
            error.report.fix
        );
        assert_eq!(error.is_transient(), code == "svid-expired");
        armed.clear();
    }
    rig.fetch().await.unwrap();
}

#[tokio::test]
async fn an_issuer_with_a_slash_too_many_is_told_so() {
    let rig = Rig::start().await;
    let spec = AssertionSpec {
        issuer: Some(format!("{}/", rig.issuer.url()).into()),
        ..rig.spec()
    };
    let error = rig.source.fetch(&spec).await.unwrap_err();
    assert_eq!(error.report.code, "svid-issuer-mismatch");
    assert!(
        error.report.detail.contains("slash at the end"),
        "{}",
        error.report.detail
    );
}

#[tokio::test]
async fn lives_of_five_seconds_work() {
    let rig = Rig::start().await;
    let short = "spiffe://example.org/short";
    rig.agent.entry(short).ttl(Duration::from_secs(5)).add();
    let spec = AssertionSpec {
        subject: SpiffeId::parse(short).unwrap(),
        ..rig.spec()
    };
    let fresh = rig.source.fetch(&spec).await.unwrap();
    assert_eq!(fresh.lifetime(), Duration::from_secs(5));
    // The agent gives the same until about half of its life is over.
    let cached = rig.source.fetch(&spec).await.unwrap();
    assert!(cached.expires_at >= fresh.expires_at);
}

#[tokio::test]
async fn a_clock_that_is_behind_the_servers_is_told_so() {
    let rig = Rig::start().await;
    rig.agent.clock().set_offset(900);
    let error = rig.fetch().await.unwrap_err();
    assert_eq!(error.report.code, "svid-clock");
    assert!(error.is_transient() && error.report.fix.contains("NTP"));
}

#[tokio::test]
async fn without_a_spiffe_id_there_must_be_one_identity() {
    let rig = Rig::start().await;
    assert_eq!(
        rig.source.only_identity(AUDIENCE).await.unwrap().as_str(),
        SUBJECT
    );
    // Two entries of one identity, with two hints, are one.
    rig.agent.entry(SUBJECT).hint("again").add();
    assert_eq!(
        rig.source.only_identity(AUDIENCE).await.unwrap().as_str(),
        SUBJECT
    );
    let other = "spiffe://example.org/other";
    rig.agent.entry(other).add();
    let error = rig.source.only_identity(AUDIENCE).await.unwrap_err();
    assert_eq!(error.report.code, "workload-api-many-identities");
    assert!(error.report.detail.contains(SUBJECT) && error.report.detail.contains(other));
    assert!(error.report.fix.contains("SPIFFE_ID"));
    rig.agent.remove(other);
    rig.agent.remove(SUBJECT);
    let error = rig.source.only_identity(AUDIENCE).await.unwrap_err();
    assert_eq!(error.kind, AssertionErrorKind::Denied);
    let long = format!("spiffe://example.org/{}", "a".repeat(600));
    rig.agent.entry(&long).add();
    let error = rig.source.only_identity(AUDIENCE).await.unwrap_err();
    assert_eq!(error.report.code, "svid-subject");
    assert!(
        error.report.detail.contains("600"),
        "{}",
        error.report.detail
    );
}

#[tokio::test]
async fn odd_paths_are_taken_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let odd = folder.path().join("my dir %20 ü");
    std::fs::create_dir(&odd).unwrap();
    let issuer = issuer().await;
    let agent = Workload::start(&odd.join("a.sock"), issuer.clone()).unwrap();
    agent.entry(SUBJECT).add();
    source(agent.socket()).fetch(&spec(&issuer)).await.unwrap();
}

#[tokio::test]
async fn a_tcp_endpoint_works_and_its_absence_is_told() {
    let rig = Rig::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let socket = PathBuf::from(rig.agent.socket());
    let relay = tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        drop(listener);
        let mut far = tokio::net::UnixStream::connect(socket).await.unwrap();
        tokio::io::copy_bidirectional(&mut near, &mut far)
            .await
            .ok();
    });
    let source = SpiffeSource::new(Endpoint::Tcp(address), Clock::system());
    source.fetch(&rig.spec()).await.unwrap();
    rig.agent.stop().await;
    relay.await.unwrap();
    let error = source.fetch(&rig.spec()).await.unwrap_err();
    assert_eq!(error.report.code, "workload-api-refused", "{error:?}");
    assert!(
        error.report.fix.contains(&format!("tcp://{address}")),
        "{}",
        error.report.fix
    );
    assert!(source.reachable().await.is_err());
}

#[tokio::test]
async fn something_else_on_the_socket_is_no_agent() {
    use tokio::io::AsyncWriteExt;
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let talker = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .ok();
        }
    });
    let issuer = issuer().await;
    let error = source(&socket).fetch(&spec(&issuer)).await.unwrap_err();
    assert_eq!(error.kind, AssertionErrorKind::Unavailable, "{error:?}");
    assert!(error.is_transient());
    talker.abort();
}
