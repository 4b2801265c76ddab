//! Faults of the token endpoint, as a client meets them.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::error::Error as _;
use std::time::{Duration, Instant};

use common::{Bench, SCOPE, set};
use lab::entra::RetryAfter;
use lab::guid;
use serde_json::{Value, json};

#[tokio::test]
async fn throttling_with_seconds_a_date_or_nothing() {
    let bench = Bench::new().await;
    let faults = bench.world.entra.faults();
    faults.throttle(Some(60)).times(1);
    faults.throttle(None).times(1);
    faults.throttle_until(90).times(1);
    let answer = bench.exchange().await;
    assert_eq!(
        (answer.status, &answer.headers["retry-after"]),
        (429, &"60".parse().unwrap())
    );
    assert_eq!(answer.json, "Too Many Requests");
    let answer = bench.exchange().await;
    assert_eq!(
        (answer.status, answer.headers.get("retry-after")),
        (429, None)
    );
    let answer = bench.exchange().await;
    let date = answer.headers["retry-after"].to_str().unwrap().to_owned();
    // Wed, 21 Oct 2015 07:28:00 GMT
    assert_eq!((date.len(), &date[25..]), (29, " GMT"), "{date}");
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let moment = time::PrimitiveDateTime::parse(&date, format)
        .unwrap()
        .assume_utc();
    let ahead = moment.unix_timestamp() - lab::Clock::default().now();
    assert!((85..=90).contains(&ahead), "{ahead}");
    bench.exchange().await.is_token();

    let statuses: Vec<_> = bench
        .world
        .entra
        .record()
        .iter()
        .map(|one| one.status)
        .collect();
    assert_eq!(statuses, [Some(429), Some(429), Some(429), Some(200)]);
    assert_eq!(bench.world.entra.record()[0].faults, ["throttle"]);
}

#[tokio::test]
async fn server_errors_html_and_nothing() {
    let bench = Bench::new().await;
    let faults = bench.world.entra.faults();
    let armed = faults.server_error(503);
    for _ in 0..2 {
        let answer = bench.exchange().await;
        assert_eq!(
            (answer.status, &answer.json),
            (503, &json!("The service is unavailable."))
        );
    }
    armed.clear();
    for status in [200, 502] {
        faults.html(status).times(1);
        let answer = bench.exchange().await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.headers["content-type"], "text/html; charset=utf-8");
        assert!(answer.json.as_str().unwrap().starts_with("<!DOCTYPE html>"));
    }
    faults.empty_body(200).times(1);
    let answer = bench.exchange().await;
    assert_eq!((answer.status, &answer.json), (200, &json!("")));
    faults.plain(418, "tea").times(1);
    let answer = bench.exchange().await;
    assert_eq!((answer.status, &answer.json), (418, &json!("tea")));
    faults
        .arm(lab::entra::Fault::Answer {
            status: 503,
            content_type: "application/json".to_owned(),
            body: "{}".to_owned(),
            retry_after: RetryAfter::Seconds(7),
        })
        .times(1);
    let answer = bench.exchange().await;
    assert_eq!(
        (answer.status, &answer.headers["retry-after"]),
        (503, &"7".parse().unwrap())
    );
    bench.exchange().await.is_token();
}

#[tokio::test]
async fn any_code_can_be_forced() {
    let bench = Bench::new().await;
    let faults = bench.world.entra.faults();
    for (code, status, error) in [
        (70021, 400, "invalid_request"),
        (700213, 401, "invalid_client"),
        (700223, 401, "invalid_client"),
        (7002381, 401, "invalid_client"),
        (7000222, 401, "invalid_client"),
        (700238, 401, "invalid_client"),
        (90055, 429, "temporarily_unavailable"),
        (90033, 503, "temporarily_unavailable"),
        (50033, 503, "temporarily_unavailable"),
        (53003, 400, "access_denied"),
        (50076, 400, "interaction_required"),
        // A code nobody has heard of.
        (700215, 400, "invalid_request"),
    ] {
        faults.code(code).times(1);
        let answer = bench.exchange().await;
        answer.is_refusal(u64::from(code), status, error);
        assert!(
            !answer.json["error_description"]
                .as_str()
                .unwrap()
                .contains('{')
        );
        assert_eq!(bench.world.entra.last_exchange().unwrap().code, Some(code));
    }
    faults.code(700016).times(1);
    let text = bench.exchange().await.json["error_description"].to_string();
    assert!(text.contains(bench.app.client_id()), "{text}");
}

#[tokio::test]
async fn error_codes_may_disagree_with_the_text() {
    let bench = Bench::new().await;
    bench
        .world
        .entra
        .faults()
        .disagreeing(700213, &[7000215])
        .times(1);
    let answer = bench.exchange().await;
    assert_eq!(answer.json["error_codes"], json!([7000215]));
    let text = answer.json["error_description"].as_str().unwrap();
    assert!(text.starts_with("AADSTS700213: "), "{text}");
}

#[tokio::test]
async fn error_text_may_have_the_old_line_breaks() {
    let bench = Bench::new().await;
    bench
        .world
        .entra
        .configure(|settings| settings.old_error_text = true);
    bench.app.delete();
    let answer = bench.exchange().await;
    let text = answer.json["error_description"].as_str().unwrap();
    let lines: Vec<_> = text.split("\r\n").collect();
    assert_eq!(lines.len(), 4);
    assert!(lines[0].starts_with("AADSTS700016: ") && lines[1].starts_with("Trace ID: "));
}

#[tokio::test]
async fn faults_of_one_client_leave_the_others_alone() {
    let bench = Bench::new().await;
    let other = bench.world.entra.application("other");
    let issuer = bench.world.issuer.url();
    let other = other
        .credential(&issuer, common::SUBJECT, lab::AUDIENCE)
        .unwrap();
    bench.app.faults().throttle(Some(1));
    assert_eq!(bench.exchange().await.status, 429);
    let form = bench.form(|form| set(form, "client_id", other.client_id()));
    bench.post(&form).await.is_token();
    // An id that nobody has registered can be scoped too.
    let unknown = guid::random();
    bench.world.entra.faults_for(&unknown).server_error(500);
    let form = bench.form(|form| set(form, "client_id", &unknown));
    assert_eq!(bench.post(&form).await.status, 500);
    bench.world.entra.faults().clear();
    bench.exchange().await.is_token();
}

#[tokio::test]
async fn reset_is_a_reset() {
    let bench = Bench::new().await;
    bench.world.entra.faults().reset().times(1);
    // HTTP/1.1, because an HTTP/2 client may try again by itself.
    let ca = reqwest::Certificate::from_pem(bench.world.ca.pem().as_bytes()).unwrap();
    let http = reqwest::Client::builder()
        .tls_certs_only([ca])
        .no_proxy()
        .http1_only();
    let http = http.retry(reqwest::retry::never()).build().unwrap();
    let url = bench.world.entra.token_endpoint();
    let error = http
        .post(&url)
        .form(&bench.form(|_| {}))
        .send()
        .await
        .unwrap_err();
    let mut source = error.source();
    let mut kind = None;
    while let Some(cause) = source {
        kind = kind.or_else(|| {
            cause
                .downcast_ref::<std::io::Error>()
                .map(std::io::Error::kind)
        });
        source = cause.source();
    }
    assert_eq!(kind, Some(std::io::ErrorKind::ConnectionReset), "{error:?}");
    let last = bench.world.entra.last_exchange().unwrap();
    assert_eq!((last.status, last.faults), (None, vec!["reset"]));
    assert!(!last.http2);
    bench.exchange().await.is_token();
}

#[tokio::test]
async fn body_may_break_off() {
    let bench = Bench::new().await;
    bench.world.entra.faults().cut_body().times(1);
    let url = bench.world.entra.token_endpoint();
    let answer = bench
        .http
        .post(url)
        .form(&bench.form(|_| {}))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.content_length().unwrap() > 2000);
    answer.bytes().await.unwrap_err();
    bench.exchange().await.is_token();
}

#[tokio::test]
async fn headers_and_bodies_may_be_slow() {
    let bench = Bench::new().await;
    let delay = Duration::from_millis(80);
    let url = bench.world.entra.token_endpoint();
    let timed = async || {
        let start = Instant::now();
        let answer = bench
            .http
            .post(&url)
            .form(&bench.form(|_| {}))
            .send()
            .await
            .unwrap();
        let headers = start.elapsed();
        let json: Value = answer.json().await.unwrap();
        assert!(json["access_token"].is_string());
        (headers, start.elapsed())
    };
    bench.world.entra.faults().slow_headers(delay).times(1);
    assert!(timed().await.0 >= delay);
    bench.world.entra.faults().slow_body(delay).times(1);
    assert!(timed().await.1 >= delay);
}

#[tokio::test]
async fn hanging_request_is_counted_and_holds_up_nobody() {
    let bench = Bench::new().await;
    bench.world.entra.faults().hang().times(1);
    tokio::select! {
        answer = bench.exchange() => unreachable!("{answer:?}"),
        () = bench.world.entra.wait_answered(1) => {}
    }
    assert_eq!(bench.world.entra.exchanges(), 1);
    bench.exchange().await.is_token();
    bench.world.entra.wait_exchanges(2).await;
}

#[tokio::test]
async fn huge_body_is_streamed() {
    let bench = Bench::new().await;
    bench.world.entra.faults().huge_body().times(1);
    let url = bench.world.entra.token_endpoint();
    let mut answer = bench
        .http
        .post(url)
        .form(&bench.form(|_| {}))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.content_length(), None);
    let mut read = 0;
    while let Some(chunk) = answer.chunk().await.unwrap() {
        read += chunk.len();
    }
    assert!(read > 100 << 20, "{read}");
}

#[tokio::test]
async fn lifetime_and_refresh_are_overridden() {
    let bench = Bench::new().await;
    bench.app.faults().token_lifetime(Duration::from_secs(11));
    bench
        .app
        .faults()
        .refresh_in(Duration::from_secs(4))
        .times(1);
    let answer = bench.exchange().await;
    assert_eq!(
        (&answer.json["expires_in"], &answer.json["refresh_in"]),
        (&json!(10), &json!(4))
    );
    let (_, claims) = answer.token();
    assert_eq!(
        claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(),
        11
    );
    let answer = bench.exchange().await;
    assert_eq!(answer.json["expires_in"], 10);
    assert_eq!(answer.json.get("refresh_in"), None);
    // Faults that shape an answer go together with those that make it up.
    bench.app.faults().throttle(None).times(1);
    assert_eq!(bench.exchange().await.status, 429);
    assert_eq!(
        bench.world.entra.last_exchange().unwrap().faults,
        ["token-lifetime", "throttle"]
    );
}

#[tokio::test]
async fn clock_offset_shows_in_tokens() {
    let bench = Bench::new().await;
    bench.world.entra.clock().set_offset(4);
    let (_, claims) = bench.exchange().await.token();
    let ahead = claims["iat"].as_i64().unwrap() - lab::Clock::default().now();
    assert!((3..=4).contains(&ahead), "{ahead}");
}

#[tokio::test]
async fn entra_goes_away_and_comes_back() {
    let bench = Bench::new().await;
    bench.exchange().await.is_token();
    bench.world.entra.stop().await;
    let url = bench.world.entra.token_endpoint();
    let error = bench
        .http
        .post(url)
        .form(&[("scope", SCOPE)])
        .send()
        .await
        .unwrap_err();
    assert!(error.is_connect(), "{error:?}");
    bench.world.entra.restart().await.unwrap();
    bench.exchange().await.is_token();
    assert_eq!(bench.world.entra.issued(), 2);
}

#[tokio::test]
async fn record_can_be_left_out() {
    let bench = Bench::new().await;
    bench
        .world
        .entra
        .configure(|settings| settings.keep_record = false);
    bench.exchange().await.is_token();
    assert!(bench.world.entra.record().is_empty());
    assert_eq!(
        (bench.world.entra.exchanges(), bench.world.entra.issued()),
        (1, 1)
    );
    bench
        .world
        .entra
        .configure(|settings| settings.keep_record = true);
    bench.exchange().await.is_token();
    assert_eq!(bench.world.entra.record().len(), 1);
    bench.world.entra.clear_record();
    assert!(bench.world.entra.record().is_empty());
}

#[tokio::test]
async fn neither_assertions_nor_tokens_are_logged_or_recorded() {
    #[derive(Clone, Default)]
    struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || writer.clone())
        .finish();
    // The test's runtime has one thread, and this is it.
    let _guard = tracing::subscriber::set_default(subscriber);

    let bench = Bench::new().await;
    let assertion = bench.assertion(|_| {});
    let answer = bench.exchange_with(assertion.clone()).await;
    answer.is_token();
    let token = answer.json["access_token"].as_str().unwrap().to_owned();
    let broken = format!("{assertion}x.");
    bench
        .exchange_with(broken)
        .await
        .is_refusal(50027, 400, "invalid_request");
    let url = bench.world.entra.token_endpoint();
    let form = "application/x-www-form-urlencoded";
    let raw = bench
        .http
        .post(url)
        .header("content-type", form)
        .body(assertion.clone());
    raw.send().await.unwrap();

    let record = format!("{:?}", bench.world.entra.record());
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(
        log.contains("token request") && log.contains("50027"),
        "{log}"
    );
    for secret in assertion.split('.').chain(token.split('.')) {
        assert!(!log.contains(secret) && !record.contains(secret));
    }
}
