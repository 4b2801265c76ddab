//! Renewal ahead of time, and the two clocks.

use std::{sync::Arc, time::Duration};

use proptest::prelude::*;
use tokio::time::{Instant, sleep};

use super::fakes::*;
use crate::{assertion::AssertionErrorKind, exchange::Class};

#[tokio::test(start_paused = true)]
async fn a_token_in_use_is_renewed_at_half_life() {
    let world = World::new();
    let first = world.get().await.unwrap();
    // The jitter of these tests brings it forward by a tenth.
    sleep(MIN * 26).await;
    assert_eq!(world.exchanges(), 1);
    sleep(MIN * 2).await;
    assert_eq!(world.exchanges(), 2);
    let second = world.account.ready(&vault()).unwrap();
    assert!(!Arc::ptr_eq(&first.token, &second.token));
}

#[tokio::test(start_paused = true)]
async fn entra_may_say_when() {
    let world = World::new();
    {
        let mut script = world.entra.script.lock().unwrap();
        script.lifetime = MIN * 60 * 24;
        script.refresh_in = Some(MIN * 60 * 10);
    }
    world.get().await.unwrap();
    sleep(MIN * 60 * 8).await;
    assert_eq!(world.exchanges(), 1);
    sleep(MIN * 70).await;
    assert_eq!(world.exchanges(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_unused_token_is_dropped() {
    let world = World::new();
    world.get().await.unwrap();
    sleep(MIN * 60 * 3).await;
    let exchanges = world.exchanges();
    assert!(exchanges <= 3, "renewed {exchanges} times for nobody");
    assert!(world.account.ready(&vault()).is_none());
    assert!(world.account.snapshot().tokens.is_empty());
    let fetches = world.fetches();
    sleep(MIN * 60 * 24).await;
    assert_eq!(
        (world.exchanges(), world.fetches()),
        (exchanges, fetches),
        "all is quiet"
    );
    assert!(world.get().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_day_of_use_never_meets_an_expired_token() {
    let world = World::new();
    world.get().await.unwrap();
    let different = world.keep_asking(MIN * 60 * 24).await;
    assert!((48..=60).contains(&different), "{different}");
    assert_eq!(world.exchanges(), different);
}

#[tokio::test(start_paused = true)]
async fn a_short_token_is_served_while_half_is_left() {
    let world = World::new();
    world.entra.script.lock().unwrap().lifetime = SEC * 20;
    world.get().await.unwrap();
    for _ in 0..100 {
        sleep(SEC).await;
        let served = world.get().await.unwrap();
        assert!(served.expires_in >= 9, "{}", served.expires_in);
    }
}

#[tokio::test(start_paused = true)]
async fn a_suspended_machine_wakes_to_a_fresh_token() {
    let world = World::new();
    let before = world.get().await.unwrap();
    world.clock.suspend(MIN * 120);
    assert!(
        world.account.ready(&vault()).is_none(),
        "the token died in the machine's sleep"
    );
    let after = world.get().await.unwrap();
    assert!(!Arc::ptr_eq(&before.token, &after.token));
}

#[tokio::test(start_paused = true)]
async fn a_stepped_wall_clock_costs_an_exchange_at_most() {
    let world = World::new();
    world.get().await.unwrap();
    world.clock.step_wall(7200);
    assert!(world.account.ready(&vault()).is_none());
    world.get().await.unwrap();
    world.clock.step_wall(-7200);
    let served = world.account.ready(&vault()).unwrap();
    assert!(served.expires_in <= 3600, "a step back lengthens no life");
    assert_eq!(served.expires_on, world.clock.now().unix_seconds() + 3600);
    sleep(MIN * 55 + SEC).await;
    let served = world.get().await.unwrap();
    assert!(served.expires_in > 300);
}

#[tokio::test(start_paused = true)]
async fn a_stream_gets_each_new_token() {
    let world = World::new();
    let mut watch = world.account.watch(&vault());
    let start = Instant::now();
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(
            watch
                .next()
                .await
                .unwrap()
                .token
                .access_token
                .expose()
                .to_owned(),
        );
    }
    // Followed is wanted, though nobody asks.
    assert!(
        (MIN * 80..MIN * 82).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
    seen.dedup();
    assert_eq!((seen.len(), world.exchanges()), (4, 4));
    drop(watch);
    sleep(MIN * 60 * 4).await;
    assert!(
        world.account.snapshot().tokens.is_empty(),
        "dropped with its last follower"
    );
}

#[tokio::test(start_paused = true)]
async fn the_svid_is_fetched_again_while_tokens_are_in_use() {
    let world = World::new();
    world.get().await.unwrap();
    world.keep_asking(MIN * 20).await;
    // Every 2:15 with this jitter.
    assert!((8..=10).contains(&world.fetches()), "{}", world.fetches());
    assert_eq!(world.exchanges(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_five_second_svid_will_do() {
    let world = World::new();
    world.spire.script.lock().unwrap().ttl = SEC * 5;
    world.get().await.unwrap();
    world.keep_asking(MIN * 120).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_away_is_bridged_by_the_svid_at_hand() {
    let world = World::new();
    world.get().await.unwrap();
    world.spire_fails(Some(AssertionErrorKind::Unavailable));
    sleep(MIN * 3).await;
    assert!(
        world.account.token(&graph(), None).await.is_ok(),
        "the SVID has two minutes left"
    );
    sleep(MIN * 3).await;
    let third = crate::id::Scope::from_resource("api://third").unwrap();
    assert_eq!(
        world.account.token(&third, None).await.unwrap_err().code,
        "svid-unavailable"
    );
    assert!(world.get().await.is_ok(), "what is held is served");
    world.spire_fails(None);
    sleep(MIN).await;
    assert!(world.account.token(&third, None).await.is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// An outage that begins at any moment of a token's life is survived for half a life at least,
    /// and no token is served beyond its end.
    #[test]
    fn an_outage_at_any_moment_leaves_half_a_life(
        begin in 0u64..7200, lifetime in 60u64..7200, spire in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let world = World::new();
            world.entra.script.lock().unwrap().lifetime = Duration::from_secs(lifetime);
            world.get().await.unwrap();
            let mut passed = 0;
            while passed < begin {
                let step = 20.min(begin - passed);
                sleep(Duration::from_secs(step)).await;
                world.get().await.unwrap();
                passed += step;
            }
            if spire {
                world.spire_fails(Some(AssertionErrorKind::Unavailable));
            }
            world.entra_fails(Some(error(Class::Transient)));
            let start = Instant::now();
            let half = Duration::from_secs(lifetime / 2);
            loop {
                let asked = start.elapsed();
                match world.get().await {
                    Ok(served) => {
                        assert!(served.expires_in > 0);
                        assert!(start.elapsed() <= Duration::from_secs(lifetime + 1));
                    }
                    Err(report) => {
                        assert!(asked + SEC >= half, "lost after {asked:?} of {lifetime} s: {report:?}");
                        break;
                    }
                }
                sleep(SEC).await;
            }
        });
    }
}
