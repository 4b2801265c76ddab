//! What is retried, when, and what is remembered.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::fakes::*;
use crate::{assertion::AssertionErrorKind, exchange::Class};

#[tokio::test(start_paused = true)]
async fn a_first_token_survives_a_hiccup() {
    let world = World::new();
    {
        let mut script = world.entra.script.lock().unwrap();
        script.fails = Some(error(Class::Transient));
        script.times = Some(2);
    }
    assert!(world.get().await.is_ok());
    assert_eq!(world.exchanges(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_never_discards_a_valid_token() {
    let world = World::new();
    let first = world.get().await.unwrap();
    world.entra_fails(Some(error(Class::Transient)));
    sleep(MIN * 57).await;
    // Less than five minutes left: a renewal is tried, and what there is is served.
    let served = world.get().await.unwrap();
    assert!(Arc::ptr_eq(&first.token, &served.token));
    let snapshot = world.account.snapshot();
    assert_eq!(
        snapshot.tokens[0].error.as_ref().unwrap().code,
        "entra-unavailable"
    );
    sleep(MIN * 3).await;
    let report = world.get().await.unwrap_err();
    assert_eq!(report.code, "entra-unavailable");
    assert!(report.retryable && report.retry_after.is_some());
    world.entra_fails(None);
    sleep(MIN).await;
    assert!(world.get().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_permanent_failure_of_a_renewal_keeps_the_token_too() {
    let world = World::new();
    world.get().await.unwrap();
    world.entra_fails(Some(error(Class::Misconfigured)));
    sleep(MIN * 50).await;
    assert!(world.get().await.is_ok());
    // Tried again with growing pauses, not every thirty seconds.
    assert!(
        (4..=10).contains(&world.exchanges()),
        "{}",
        world.exchanges()
    );
    // Nor does an SVID that Entra would not take.
    world.entra_fails(None);
    let world = World::new();
    world.get().await.unwrap();
    world.spire_fails(Some(AssertionErrorKind::Unusable));
    sleep(MIN * 50).await;
    assert!(world.get().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn retries_back_off() {
    let world = World::new();
    world.get().await.unwrap();
    world.entra_fails(Some(error(Class::Transient)));
    sleep(MIN * 59).await;
    // From half-life on, 32 minutes: half a minute apart in the end with this jitter.
    assert!(
        (50..=90).contains(&world.exchanges()),
        "{}",
        world.exchanges()
    );
}

#[tokio::test(start_paused = true)]
async fn a_wish_to_be_left_alone_is_shared_by_tenant_and_client() {
    let world = World::new();
    world.entra_fails(Some(throttled(60)));
    let start = Instant::now();
    let report = world.get().await.unwrap_err();
    assert!(report.retry_after.unwrap() >= SEC * 59);
    assert!(start.elapsed() < SEC * 2, "not kept waiting for a minute");
    let report = world.account.token(&graph(), None).await.unwrap_err();
    assert_eq!(report.code, "entra-throttled");
    assert_eq!(world.exchanges(), 1, "the other key did not ask");
    // Another client of the same tenant is not held.
    world.entra_fails(None);
    let orders = world.tokens.account(&trust("orders"));
    assert!(orders.token(&vault(), None).await.is_ok());
    sleep(SEC * 67).await;
    assert!(
        world.account.ready(&vault()).is_some(),
        "tried again once it was allowed"
    );
    let calls = world.entra.script.lock().unwrap().calls.clone();
    let mine: Vec<_> = calls
        .iter()
        .filter(|(svid, ..)| svid.contains("payments"))
        .collect();
    assert!(mine[1].2 >= mine[0].2 + Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_permanent_failure_is_answered_from_memory_for_half_a_minute() {
    let world = World::new();
    world.entra_fails(Some(error(Class::Misconfigured)));
    let start = Instant::now();
    for _ in 0..29 {
        let report = world.get().await.unwrap_err();
        assert_eq!(
            (report.code.as_ref(), report.retryable),
            ("AADSTS500011", false)
        );
        sleep(SEC).await;
    }
    assert_eq!(world.exchanges(), 1);
    sleep(SEC * 2).await;
    world.get().await.unwrap_err();
    assert_eq!(world.exchanges(), 2);
    assert!(start.elapsed() < SEC * 33, "nobody was kept waiting");
}

#[tokio::test(start_paused = true)]
async fn a_permanent_failure_is_forgotten_on_reload() {
    let world = World::new();
    world.entra_fails(Some(error(Class::Misconfigured)));
    world.get().await.unwrap_err();
    world.entra_fails(None);
    world.get().await.unwrap_err();
    world.reload(&[trust("payments")]);
    assert!(world.get().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_permanent_failure_is_forgotten_when_the_signing_key_changes() {
    let world = World::new();
    world.spire.script.lock().unwrap().ttl = SEC * 20;
    world.get().await.unwrap();
    world.entra_fails(Some(error(Class::Misconfigured)));
    world.account.token(&graph(), None).await.unwrap_err();
    world.entra_fails(None);
    world.spire.script.lock().unwrap().key_id = "key-2";
    sleep(SEC * 11).await;
    assert!(
        world.account.token(&graph(), None).await.is_ok(),
        "within the half minute"
    );

    world.entra_fails(Some(error(Class::Misconfigured)));
    let third = crate::id::Scope::from_resource("api://third").unwrap();
    world.account.token(&third, None).await.unwrap_err();
    world.entra_fails(None);
    world.spire.script.lock().unwrap().issuer = "https://oidc.example.org/";
    sleep(SEC * 11).await;
    assert!(
        world.account.token(&third, None).await.is_ok(),
        "an issuer is as good as a key"
    );
}

#[tokio::test(start_paused = true)]
async fn a_missing_credential_is_permanent_after_its_window() {
    let world = World::new();
    world.entra_fails(Some(unmatched()));
    let start = Instant::now();
    let permanent = loop {
        let report = world.get().await.unwrap_err();
        if !report.retryable {
            break start.elapsed();
        }
        sleep(SEC * 5).await;
    };
    assert!((MIN * 10..MIN * 11).contains(&permanent), "{permanent:?}");
    // Every 5 to 30 seconds.
    assert!(
        (20..=60).contains(&world.exchanges()),
        "{}",
        world.exchanges()
    );
    // A reload opens the window again.
    world.reload(&[trust("payments")]);
    assert!(world.get().await.unwrap_err().retryable);
}

#[tokio::test(start_paused = true)]
async fn an_assertion_outside_its_time_is_replaced_once() {
    let world = World::new();
    let mut stale = error(Class::Misconfigured);
    stale.stale_assertion = true;
    {
        let mut script = world.entra.script.lock().unwrap();
        script.fails = Some(stale.clone());
        script.times = Some(1);
    }
    // Only a newer SVID is worth a second request.
    world.spire.script.lock().unwrap().latency = SEC;
    assert!(world.get().await.is_ok());
    assert_eq!((world.exchanges(), world.fetches()), (2, 2));

    let world = World::new();
    world.spire.script.lock().unwrap().latency = SEC;
    world.entra_fails(Some(stale.clone()));
    let report = world.get().await.unwrap_err();
    assert!(!report.retryable);
    assert_eq!(world.exchanges(), 2);

    // The agent has no newer one: nothing is sent twice.
    let world = World::new();
    world.spire.script.lock().unwrap().latency = Duration::ZERO;
    world.entra.script.lock().unwrap().latency = Duration::ZERO;
    world.entra_fails(Some(stale));
    world.get().await.unwrap_err();
    assert_eq!((world.exchanges(), world.fetches()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_entra_has_not_seen_is_waited_for_an_hour() {
    let world = World::new();
    world.entra_fails(Some(error(Class::Propagating {
        window: MIN * 60,
        every: MIN,
    })));
    let start = Instant::now();
    while world.get().await.unwrap_err().retryable {
        sleep(SEC * 20).await;
    }
    assert!(
        (MIN * 60..MIN * 62).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
    assert!(
        (50..=61).contains(&world.exchanges()),
        "once a minute: {}",
        world.exchanges()
    );
}

#[tokio::test(start_paused = true)]
async fn a_hold_is_waited_out_without_spinning() {
    let limits = crate::config::Limits {
        exchanges_per_minute: 60,
        ..Default::default()
    };
    let world = World::with_limits(limits);
    world.entra.script.lock().unwrap().latency = Duration::ZERO;
    for number in 0..60 {
        let challenge = format!("{{\"number\":{number}}}");
        world
            .account
            .token(&vault(), Some(&challenge))
            .await
            .unwrap();
    }
    // Less than a millisecond before the next is allowed.
    sleep(Duration::from_micros(999_400)).await;
    let start = Instant::now();
    assert!(world.get().await.is_ok());
    assert!(start.elapsed() <= SEC * 2);
}
