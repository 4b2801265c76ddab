//! Consent withdrawn by SPIRE or Entra; reload; refresh; stop.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::fakes::*;
use crate::{assertion::AssertionErrorKind, exchange::Class};

/// Asks every second until a request fails; how long that took.
async fn served_for(world: &World) -> Duration {
    let start = Instant::now();
    while world.account.ready(&vault()).is_some() {
        sleep(SEC).await;
    }
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_deleted_entry_ends_the_token_in_minutes() {
    let world = World::new();
    world.get().await.unwrap();
    world.account.token(&graph(), None).await.unwrap();
    world.spire_fails(Some(AssertionErrorKind::Denied));
    let time = served_for(&world).await;
    // A half-life of the SVID until it is noticed, then `revoke_after`.
    assert!((MIN * 5..=MIN * 7 + SEC * 31).contains(&time), "{time:?}");
    assert!(world.account.ready(&graph()).is_none());
    let report = world.get().await.unwrap_err();
    assert_eq!(report.code, "svid-denied");
    assert!(world.account.snapshot().revoked.is_some());
    assert_eq!(world.exchanges(), 2, "Entra was not bothered");
    world.spire_fails(None);
    sleep(MIN).await;
    assert!(world.get().await.is_ok(), "and it comes back");
    assert!(world.account.snapshot().revoked.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_is_back_in_time_changes_nothing() {
    let world = World::new();
    let first = world.get().await.unwrap();
    world.spire_fails(Some(AssertionErrorKind::Denied));
    sleep(MIN * 5).await;
    world.spire_fails(None);
    sleep(MIN * 10).await;
    let served = world.account.ready(&vault()).unwrap();
    assert!(Arc::ptr_eq(&first.token, &served.token));
}

#[tokio::test(start_paused = true)]
async fn a_disabled_client_ends_all_its_tokens_at_once() {
    let world = World::new();
    world.get().await.unwrap();
    sleep(MIN * 10).await;
    world.account.token(&graph(), None).await.unwrap();
    world.entra_fails(Some(error(Class::Denied)));
    let time = served_for(&world).await;
    assert!(time <= MIN * 20, "at the first renewal: {time:?}");
    assert!(world.account.ready(&graph()).is_none());
    let report = world.get().await.unwrap_err();
    assert_eq!(
        (report.code.as_ref(), report.retryable),
        ("AADSTS7000112", false)
    );
    world.entra_fails(None);
    sleep(SEC * 31).await;
    assert!(world.get().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_denial_about_one_resource_costs_the_others_an_exchange() {
    let world = World::new();
    world.get().await.unwrap();
    sleep(MIN * 10).await;
    world.account.token(&graph(), None).await.unwrap();
    {
        let mut script = world.entra.script.lock().unwrap();
        script.fails = Some(error(Class::Denied));
        script.times = Some(1);
    }
    sleep(MIN * 17 + SEC * 5).await;
    assert_eq!(world.get().await.unwrap_err().code, "AADSTS7000112");
    let served = world.account.token(&graph(), None).await.unwrap();
    assert!(served.expires_in > 3500, "asked about anew");
}

#[tokio::test(start_paused = true)]
async fn a_lagging_replica_takes_no_token_away_but_a_removed_credential_does() {
    let world = World::new();
    let first = world.get().await.unwrap();
    sleep(MIN * 20).await;
    world.entra_fails(Some(unmatched()));
    sleep(MIN * 16).await;
    let served = world
        .account
        .ready(&vault())
        .expect("the window has not passed");
    assert!(Arc::ptr_eq(&first.token, &served.token));
    let time = served_for(&world).await;
    assert!(
        time < MIN * 2,
        "ten minutes after the first such answer: {time:?}"
    );
    assert!(!world.get().await.unwrap_err().retryable);
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_when_its_token_is_withdrawn() {
    let world = World::new();
    let mut watch = world.account.watch(&vault());
    watch.next().await.unwrap();
    world.entra_fails(Some(error(Class::Denied)));
    let report = watch.next().await.unwrap_err();
    assert_eq!(report.code, "AADSTS7000112");
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_what_is_still_right() {
    let world = World::new();
    let orders = world.tokens.account(&trust("orders"));
    let kept = world.get().await.unwrap();
    orders.token(&vault(), None).await.unwrap();
    world.reload(&[trust("payments")]);
    let served = world.account.ready(&vault()).unwrap();
    assert!(Arc::ptr_eq(&kept.token, &served.token));
    assert!(Arc::ptr_eq(
        &world.account,
        &world.tokens.account(&trust("payments"))
    ));
    assert!(
        orders.ready(&vault()).is_none(),
        "nothing rests on it any more"
    );
    assert_eq!(
        orders.token(&vault(), None).await.unwrap_err().code,
        "stopping"
    );
    assert!(!Arc::ptr_eq(
        &orders,
        &world.tokens.account(&trust("orders"))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_replaces_tokens_and_svid() {
    let world = World::new();
    let before = world.get().await.unwrap();
    world.account.token(&graph(), None).await.unwrap();
    sleep(SEC * 2).await;
    assert_eq!(world.account.refresh().await.unwrap(), 2);
    assert_eq!(world.exchanges(), 4);
    let after = world.account.ready(&vault()).unwrap();
    assert!(!Arc::ptr_eq(&before.token, &after.token));
    world.entra_fails(Some(error(Class::Misconfigured)));
    assert_eq!(
        world.account.refresh().await.unwrap_err().code,
        "AADSTS500011"
    );
}

#[tokio::test(start_paused = true)]
async fn stopping_answers_those_who_wait() {
    let world = World::new();
    world.entra.script.lock().unwrap().latency = MIN;
    let account = Arc::clone(&world.account);
    let waiting = tokio::spawn(async move { account.token(&vault(), None).await });
    sleep(SEC).await;
    world.tokens.stop().await;
    assert_eq!(waiting.await.unwrap().unwrap_err().code, "stopping");
}

#[tokio::test(start_paused = true)]
async fn an_identity_nobody_asked_for_is_probed_without_exchanges() {
    let world = World::new();
    world.spire_fails(Some(AssertionErrorKind::Denied));
    world.account.probe().await;
    let snapshot = world.account.snapshot();
    assert_eq!(snapshot.assertion_error.unwrap().code, "svid-denied");
    world.spire_fails(None);
    sleep(SEC * 2).await;
    world.account.probe().await;
    let snapshot = world.account.snapshot();
    assert!(snapshot.assertion_error.is_none() && snapshot.assertion_expires_in.is_none());
    world.account.probe().await;
    assert_eq!(
        (world.fetches(), world.exchanges()),
        (2, 0),
        "known to be well: not asked again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_first_request_takes_nothing_from_others() {
    for denial in [unmatched(), error(Class::Denied)] {
        let world = World::new();
        let held = world.get().await.unwrap();
        sleep(MIN * 12).await;
        world.entra_fails(Some(denial));
        // Another resource, another caller: refused, or not yet known to this replica.
        let report = world.account.token(&graph(), None).await.unwrap_err();
        let challenge = world.account.token(&vault(), Some("{}")).await.unwrap_err();
        assert_eq!(report.code, challenge.code);
        let served = world.account.ready(&vault()).expect("not withdrawn");
        assert!(Arc::ptr_eq(&held.token, &served.token));
        // One answer of one replica, while the credential was good a while ago, may pass.
        assert_eq!(report.retryable, report.code == "AADSTS700213");
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_denial_goes_on_while_spire_is_away() {
    let world = World::new();
    world.get().await.unwrap();
    world.spire_fails(Some(AssertionErrorKind::Denied));
    sleep(MIN * 3).await;
    world.spire_fails(Some(AssertionErrorKind::Unavailable));
    let time = served_for(&world).await;
    assert!(time <= MIN * 5, "{time:?}");
}

#[tokio::test(start_paused = true)]
async fn a_reload_may_shorten_the_patience_with_denials() {
    let world = World::new();
    world.get().await.unwrap();
    world.spire_fails(Some(AssertionErrorKind::Denied));
    sleep(MIN * 3).await;
    assert!(world.account.ready(&vault()).is_some());
    let limits = crate::config::Limits {
        revoke_after: SEC * 10,
        ..Default::default()
    };
    world
        .tokens
        .reload(&[trust("payments")].iter().collect(), limits);
    let time = served_for(&world).await;
    assert!(time <= SEC * 31, "{time:?}");
}

#[tokio::test(start_paused = true)]
async fn an_exchange_under_way_does_not_outlive_a_withdrawal() {
    let world = World::new();
    world.get().await.unwrap();
    world.spire_fails(Some(AssertionErrorKind::Denied));
    // Began with the SVID of before the denial, and ends after the withdrawal.
    sleep(MIN * 2 + SEC * 10).await;
    world.entra.script.lock().unwrap().latency = MIN * 10;
    world.spire_fails(None);
    sleep(MIN).await;
    let account = Arc::clone(&world.account);
    let asking = tokio::spawn(async move { account.token(&graph(), None).await });
    sleep(SEC).await;
    world.spire_fails(Some(AssertionErrorKind::Denied));
    sleep(MIN * 11).await;
    asking.await.unwrap().unwrap_err();
    assert!(world.account.snapshot().revoked.is_some());
    assert!(
        world.account.ready(&graph()).is_none(),
        "issued, and not served"
    );
}

#[tokio::test(start_paused = true)]
async fn a_refresh_drops_even_when_spire_is_away() {
    let world = World::new();
    world.get().await.unwrap();
    sleep(SEC * 2).await;
    world.spire_fails(Some(AssertionErrorKind::Unavailable));
    assert_eq!(
        world.account.refresh().await.unwrap_err().code,
        "svid-unavailable"
    );
    assert!(world.account.ready(&vault()).is_none());
    world.spire_fails(None);
    sleep(SEC * 31).await;
    assert!(world.get().await.is_ok());
}
