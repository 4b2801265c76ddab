//! Single flight, deadlines of callers, limits.

use std::sync::Arc;

use tokio::time::{Instant, sleep, timeout};

use super::fakes::*;
use crate::{assertion::AssertionErrorKind, config::Limits, exchange::Class, id::Scope};

#[tokio::test(start_paused = true)]
async fn a_thousand_callers_cause_one_exchange() {
    let world = World::new();
    let callers: Vec<_> = (0..1000)
        .map(|_| {
            let account = Arc::clone(&world.account);
            tokio::spawn(async move { account.token(&vault(), None).await })
        })
        .collect();
    for caller in callers {
        let served = caller.await.unwrap().unwrap();
        assert!(
            served
                .token
                .access_token
                .expose()
                .starts_with("token 1 of client-of-payments")
        );
    }
    assert_eq!((world.exchanges(), world.fetches()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_second_call_is_answered_from_memory() {
    let world = World::new();
    assert!(world.account.ready(&vault()).is_none());
    let first = world.get().await.unwrap();
    let second = world.account.ready(&vault()).unwrap();
    assert!(Arc::ptr_eq(&first.token, &second.token));
    assert!((3598..=3600).contains(&second.expires_in));
    assert_eq!(second.expires_on, world.clock.now().unix_seconds() + 3600);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_served_across_keys() {
    let world = World::new();
    let orders = world.tokens.account(&trust("orders"));
    assert!(Arc::ptr_eq(
        &orders,
        &world.tokens.account(&trust("orders"))
    ));
    let mine = world.get().await.unwrap();
    let theirs = orders.token(&vault(), None).await.unwrap();
    let other = world.account.token(&graph(), None).await.unwrap();
    assert!(
        mine.token
            .access_token
            .expose()
            .contains("client-of-payments for https://vault")
    );
    assert!(
        theirs
            .token
            .access_token
            .expose()
            .contains("client-of-orders for https://vault")
    );
    assert!(
        other
            .token
            .access_token
            .expose()
            .contains("client-of-payments for https://graph")
    );
    // With and without a slash are two resources for Entra, and two tokens.
    let slashed = Scope::from_resource("https://vault.azure.net/").unwrap();
    assert!(world.account.ready(&slashed).is_none());
    assert_eq!(world.exchanges(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_caller_waits_ten_seconds_and_the_work_goes_on() {
    let world = World::new();
    world.entra.script.lock().unwrap().latency = SEC * 15;
    let start = Instant::now();
    let report = world.get().await.unwrap_err();
    assert_eq!(report.code, "still-trying");
    assert!(report.retryable && report.retry_after.is_some());
    assert_eq!(start.elapsed().as_secs(), 10);
    assert!(world.get().await.is_ok());
    assert_eq!((start.elapsed().as_secs(), world.exchanges()), (15, 1));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_takes_nothing_with_it() {
    let world = World::new();
    world.entra.script.lock().unwrap().latency = SEC * 5;
    assert!(timeout(SEC, world.get()).await.is_err());
    sleep(SEC * 5).await;
    assert!(world.account.ready(&vault()).is_some());
    assert_eq!(world.exchanges(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_credential_that_spreads_is_waited_for_two_seconds() {
    let world = World::new();
    world.entra_fails(Some(unmatched()));
    let start = Instant::now();
    let report = world.get().await.unwrap_err();
    assert_eq!(report.code, "AADSTS700213");
    assert!(report.retryable && report.retry_after.unwrap() >= SEC);
    assert!(start.elapsed() <= SEC * 2, "{:?}", start.elapsed());
    // The next caller is told at once: the next attempt is further away than it would wait.
    let again = Instant::now();
    assert!(world.get().await.is_err());
    assert!(again.elapsed().is_zero());
    world.entra_fails(None);
    sleep(SEC * 6).await;
    assert!(
        world.account.ready(&vault()).is_some(),
        "tried again behind"
    );
}

#[tokio::test(start_paused = true)]
async fn a_missing_registration_entry_is_waited_for() {
    let world = World::new();
    world.spire_fails(Some(AssertionErrorKind::Denied));
    let start = Instant::now();
    let report = world.get().await.unwrap_err();
    assert_eq!(report.code, "svid-denied");
    assert!(report.retryable && start.elapsed() <= SEC * 2);
    world.spire_fails(None);
    sleep(SEC * 6).await;
    assert!(world.account.ready(&vault()).is_some());
}

#[tokio::test(start_paused = true)]
async fn an_identity_has_so_many_resources() {
    let world = World::with_limits(Limits {
        resources_per_identity: 2,
        ..Limits::default()
    });
    world.get().await.unwrap();
    world.account.token(&graph(), None).await.unwrap();
    let third = Scope::from_resource("api://third").unwrap();
    let report = world.account.token(&third, None).await.unwrap_err();
    assert_eq!(report.code, "limit-resources");
    assert!(report.is_limit());
    // A challenge is a key too: nobody grows the cache by inventing challenges.
    let report = world.account.token(&vault(), Some("{}")).await.unwrap_err();
    assert_eq!(report.code, "limit-resources");
}

#[tokio::test(start_paused = true)]
async fn what_holds_nothing_gives_its_place_up() {
    let two = Limits {
        resources_per_identity: 2,
        ..Limits::default()
    };
    let world = World::with_limits(two);
    // One that only fails.
    world.entra_fails(Some(error(Class::Misconfigured)));
    let nonsense = Scope::from_resource("api://nonsense").unwrap();
    world.account.token(&nonsense, None).await.unwrap_err();
    world.entra_fails(None);
    world.get().await.unwrap();
    sleep(SEC).await;
    world.account.token(&graph(), None).await.unwrap();
    // Challenges that were answered.
    let world = World::with_limits(Limits {
        resources_per_identity: 3,
        ..Limits::default()
    });
    world.get().await.unwrap();
    for number in 0..5 {
        let challenge = format!("{{\"number\":{number}}}");
        world
            .account
            .token(&vault(), Some(&challenge))
            .await
            .unwrap();
    }
    world.account.token(&graph(), None).await.unwrap();
    assert!(world.get().await.is_ok());
    sleep(MIN * 3).await;
    let keys = world.account.keys().all().len();
    assert_eq!(keys, 2, "challenges are forgotten in minutes");
}

#[tokio::test(start_paused = true)]
async fn everything_that_trust_is_made_of_keeps_tokens_apart() {
    let world = World::new();
    let base = trust("payments");
    let mut others = Vec::new();
    for change in 0..6 {
        let mut other = base.clone();
        match change {
            0 => other.target.authority = "https://login.other.example".parse().unwrap(),
            1 => other.target.tenant = "other".into(),
            2 => other.target.client_id = "other".into(),
            3 => other.assertion = trust("orders").assertion,
            4 => other.assertion.audience = "api://Other".into(),
            _ => other.assertion.issuer = Some("https://oidc.other.example".into()),
        }
        others.push(other);
    }
    world.get().await.unwrap();
    for other in &others {
        let account = world.tokens.account(other);
        assert!(account.ready(&vault()).is_none(), "{other:?}");
        account.token(&vault(), None).await.unwrap();
    }
    assert_eq!(world.exchanges(), 7);
}

#[tokio::test(start_paused = true)]
async fn many_who_look_at_the_svid_cause_one_fetch() {
    let world = World::new();
    world.spire.script.lock().unwrap().latency = MIN;
    for _ in 0..100 {
        let looking = world.account.assertion();
        assert!(timeout(SEC / 10, looking).await.is_err());
    }
    assert_eq!(world.fetches(), 1);
    sleep(MIN).await;
    assert!(world.account.assertion().await.is_ok(), "and it went on");
    assert_eq!(world.fetches(), 1);

    // An end that nobody saw is not the answer of the next hour.
    world.spire_fails(Some(AssertionErrorKind::Denied));
    sleep(MIN * 60).await;
    assert!(timeout(SEC / 10, world.account.assertion()).await.is_err());
    sleep(MIN * 60).await;
    world.spire_fails(None);
    assert!(world.account.assertion().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_identity_has_so_many_exchanges_a_minute() {
    let world = World::with_limits(Limits {
        exchanges_per_minute: 3,
        ..Limits::default()
    });
    for number in 0..3 {
        let scope = Scope::from_resource(&format!("api://{number}")).unwrap();
        world.account.token(&scope, None).await.unwrap();
    }
    let report = world.get().await.unwrap_err();
    assert_eq!(report.code, "limit-exchanges");
    assert!(report.is_limit() && report.retry_after.is_some());
    assert_eq!(world.exchanges(), 3);
    sleep(SEC * 21).await;
    assert!(world.get().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_challenge_asks_entra_anew() {
    let world = World::new();
    let plain = world.get().await.unwrap();
    let first = world
        .account
        .token(&vault(), Some("{\"a\":1}"))
        .await
        .unwrap();
    let second = world
        .account
        .token(&vault(), Some("{\"a\":1}"))
        .await
        .unwrap();
    assert!(!Arc::ptr_eq(&first.token, &second.token));
    assert_eq!(
        world
            .entra
            .script
            .lock()
            .unwrap()
            .claims
            .iter()
            .flatten()
            .count(),
        2,
        "each challenge was sent"
    );
    // What the resource refused is not served again.
    let next = world.get().await.unwrap();
    assert!(!Arc::ptr_eq(&plain.token, &next.token));
}
