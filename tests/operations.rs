//! How the daemon lives with systemd, with an agent that is not there, and without a file.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod support;

use std::os::unix::net::UnixDatagram;

use nix::sys::signal::Signal;
use support::{Start, identity_config, lab_config, me};

const PAYMENTS: &str = "spiffe://example.org/payments";
const VAULT: &str = "resource=https%3A%2F%2Fvault.azure.net";

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_comes_later_is_found() {
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    world.workload.stop().await;
    let config = lab_config(&world)
        + &identity_config("payments", PAYMENTS, payments.client.client_id(), &me());
    let daemon = Start::new(&config).run();
    let unready = daemon.get("/readyz");
    assert_eq!(unready.status, 503, "{}", unready.body);
    assert!(unready.body.contains("workload-api-"), "{}", unready.body);
    assert_eq!(daemon.command(&["health"]).status.code(), Some(1));
    assert_eq!(daemon.get("/livez").status, 200);
    let answer = daemon.token(VAULT);
    assert_eq!(answer.status, 503);
    assert!(
        answer.json()["fix"].as_str().unwrap().contains("agent"),
        "{}",
        answer.body
    );

    world.workload.restart().await.unwrap();
    daemon.until("the token comes", || daemon.token(VAULT).status == 200);
    daemon.until("it is ready", || daemon.get("/readyz").status == 200);
    assert_eq!(daemon.command(&["health"]).status.code(), Some(0));

    // Gone again: what is held is served, and the next resource waits for it.
    world.workload.crash().await;
    assert_eq!(daemon.token(VAULT).status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_the_environment_is_needed() {
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let start = |spiffe_id: Option<&str>| {
        let mut start = Start::new("# not read\nthis is no configuration")
            .arg("--from-env")
            .env("AZURE_TENANT_ID", &world.tenant())
            .env("AZURE_CLIENT_ID", payments.client.client_id())
            .env("AZURE_AUTHORITY_HOST", &world.authority())
            .env("SPIFFE_ENDPOINT_SOCKET", &world.workload.endpoint())
            .env("SSL_CERT_FILE", world.ca_file().to_str().unwrap())
            .env(
                "SPIFFE_ENTRA_SOCKET",
                folder.path().join("s").to_str().unwrap(),
            );
        if let Some(id) = spiffe_id {
            start = start.env("SPIFFE_ID", id);
        }
        start.socket(&folder.path().join("s"))
    };
    for spiffe_id in [Some(PAYMENTS), None] {
        let daemon = start(spiffe_id).run();
        let answer = daemon.token("resource=https%3A%2F%2Fanything.example");
        assert_eq!(answer.json()["code"], "AADSTS500011", "{}", answer.body);
        let answer = daemon.token(VAULT);
        assert_eq!(answer.json()["identity"], "default", "{}", answer.body);
        let _token = answer.access_token();
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.wait(), 0);
    }
    // Two SVIDs, and nothing that says which.
    let _other = world.identity("spiffe://example.org/orders").add().unwrap();
    let daemon = start(None).spawn();
    assert_eq!(daemon.wait(), 1, "{}", daemon.log());
    assert!(daemon.log().contains("SPIFFE_ID"), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_what_happens() {
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let notify = UnixDatagram::bind(&path).unwrap();
    notify.set_read_timeout(Some(support::SOON)).unwrap();
    let config = lab_config(&world)
        + &identity_config("payments", PAYMENTS, payments.client.client_id(), &me());
    let daemon = Start::new(&config)
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .env("WATCHDOG_USEC", "200000")
        .run();
    let hear = |word: &str| {
        let mut buffer = [0; 4096];
        loop {
            let length = notify
                .recv(&mut buffer)
                .unwrap_or_else(|e| panic!("no {word}: {e}"));
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.lines().any(|line| line.starts_with(word)) {
                return text;
            }
        }
    };
    assert!(hear("READY=1").contains("STATUS=serving 1 identities"));
    hear("WATCHDOG=1");
    daemon.signal(Signal::SIGHUP);
    assert!(hear("RELOADING=1").contains("MONOTONIC_USEC="));
    hear("READY=1");
    daemon.signal(Signal::SIGTERM);
    hear("STOPPING=1");
    assert_eq!(daemon.wait(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_of_systemd_is_taken_over_and_left_in_place() {
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    let config = lab_config(&world)
        + &identity_config("payments", PAYMENTS, payments.client.client_id(), &me());
    // As systemd does: descriptor 3, and the pid of who is meant.
    let launcher = "import os,socket,sys\n\
        os.makedirs(os.path.dirname(sys.argv[1]), exist_ok=True)\n\
        s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); os.chmod(sys.argv[1],0o666); s.listen(64)\n\
        os.dup2(s.fileno(),3); os.set_inheritable(3,True)\n\
        os.environ.update(LISTEN_FDS='1',LISTEN_PID=str(os.getpid()))\n\
        os.execv(sys.argv[2],sys.argv[2:])";
    let daemon = Start::new(&config)
        .launcher(&["python3", "-c", launcher, "SOCKET"])
        .run();
    assert_eq!(daemon.token(VAULT).status, 200, "{}", daemon.log());
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), 0);
    assert!(daemon.socket.exists(), "it is systemd's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_does_not_take_the_socket() {
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    let config = lab_config(&world)
        + &identity_config("payments", PAYMENTS, payments.client.client_id(), &me());
    let daemon = Start::new(&config).run();
    let second = Start::new(&config).socket(&daemon.socket).spawn();
    assert_eq!(second.wait(), 1, "{}", second.log());
    assert!(
        second.log().contains(daemon.socket.to_str().unwrap()),
        "{}",
        second.log()
    );
    assert_eq!(daemon.token(VAULT).status, 200);

    // Killed without a chance to clean up, it leaves a stale socket; the next start replaces it.
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    assert!(daemon.socket.exists());
    let third = Start::new(&config).socket(&daemon.socket).run();
    assert_eq!(third.token(VAULT).status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_keeps_its_memory_to_itself() {
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    let config = lab_config(&world)
        + &identity_config("payments", PAYMENTS, payments.client.client_id(), &me());
    let daemon = Start::new(&config).run();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert!(
        core.split_whitespace().filter(|word| *word == "0").count() >= 2,
        "{core}"
    );
    let argv = std::fs::read_to_string(format!("/proc/{}/cmdline", daemon.pid())).unwrap();
    daemon.token(VAULT).access_token();
    daemon.assert_no_secret_in("argv", &argv);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_restart_is_said_and_not_shown() {
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    let config = lab_config(&world)
        + &identity_config("payments", PAYMENTS, payments.client.client_id(), &me());
    let daemon = Start::new(&config).run();
    let used = world.workload.endpoint();
    daemon.configure(&config.replace(&used, "unix:///nowhere/api.sock"));
    for time in 1..=2 {
        daemon.signal(Signal::SIGHUP);
        daemon.until("it is said each time", || {
            daemon
                .log()
                .matches("takes effect at the next restart only")
                .count()
                == time
        });
    }
    let status = daemon.get("/v1/status").json();
    assert_eq!(status["workload_api"]["endpoint"], used.as_str());
    assert_eq!(status["workload_api"]["reachable"], true);
    assert_eq!(daemon.token(VAULT).status, 200);

    // Each mistake of a refused reload is one line of the log.
    daemon.configure(&(config + "[limits]\ndrian = 1\nrevoke_atfer = 2\n"));
    daemon.signal(Signal::SIGHUP);
    daemon.until_logged(&["reload refused", "stays in force"]);
    let log = daemon.log();
    let refused: Vec<_> = log
        .lines()
        .filter(|line| line.contains("reload refused"))
        .collect();
    assert_eq!(refused.len(), 3, "{refused:#?}");
    assert!(
        refused[0].contains("drian") && refused[1].contains("revoke_atfer"),
        "{refused:#?}"
    );
    assert!(
        daemon
            .get("/metrics")
            .body
            .contains("spiffe_entra_reloads_total{outcome=\"refused\"} 1")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_variables_are_honoured() {
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    let config = lab_config(&world)
        + &identity_config("payments", PAYMENTS, payments.client.client_id(), &me());
    let proxy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", proxy.local_addr().unwrap());
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = proxy.accept().unwrap();
        let mut buffer = [0; 1024];
        let length = std::io::Read::read(&mut stream, &mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    });
    let daemon = Start::new(&config)
        .env("HTTPS_PROXY", &address)
        .env("NO_PROXY", "")
        .run();
    let answer = daemon.token(VAULT);
    assert_eq!(answer.status, 503, "{}", answer.body);
    let authority = world.authority().replace("https://", "");
    assert!(
        asked
            .join()
            .unwrap()
            .starts_with(&format!("CONNECT {authority} HTTP/1.1"))
    );
    assert_eq!(world.entra.exchanges(), 0);

    let direct = Start::new(&config)
        .env("HTTPS_PROXY", &address)
        .env("NO_PROXY", "localhost")
        .run();
    assert_eq!(direct.token(VAULT).status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_is_for_one_identity() {
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    let id = payments.client.client_id();
    world.workload.entry("spiffe://example.org/orders").add();
    let config = lab_config(&world)
        + &identity_config("payments", PAYMENTS, id, &me())
        + &identity_config("orders", "spiffe://example.org/orders", id, &me());
    let daemon = Start::new(&config).run();
    assert_eq!(
        daemon.token(&format!("{VAULT}&identity=payments")).status,
        200
    );
    let by_name = daemon.request("POST", "/v1/refresh?identity=payments");
    assert_eq!(by_name.json()["refreshed"], 1, "{}", by_name.body);
    let by_id = daemon.request("POST", &format!("/v1/refresh?identity={id}"));
    assert_eq!(
        (by_id.status, by_id.code().as_str()),
        (400, "identity-needed")
    );
    let unknown = daemon.request("POST", "/v1/refresh?identity=nobody");
    assert_eq!(unknown.status, 404);
}
