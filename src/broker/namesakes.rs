//! An issuer's name is given to another one, by a reload or between two starts: what the old one made is nothing to the new one, which
//! is not told of it either, for a token is a secret of the two who share it.

use std::sync::atomic::Ordering;

use tokio::{task::yield_now, time::sleep};

use super::{
    revocations::Cause,
    tests::{FakeIssuer, House, PausedClock, house, house_of, next_revoked, order},
    *,
};
use crate::{clock::SeededDice, keys::SealingKey, secret::Secret};

const OLD: &str = "https://old.example";
const NEW: &str = "https://new.example";

/// The settings of now, but that `corp` is this one, known by `who`.
fn naming(house: &House, corp: &Arc<FakeIssuer>, who: &str) -> Books {
    let mut books = Books::clone(&house.broker.books());
    books.issuers.insert("corp".into(), Arc::clone(corp) as Arc<dyn Issuer>);
    books.who.insert("corp".into(), who.to_owned());
    books
}

fn known_as(who: &str) -> impl FnOnce(&mut Books) {
    move |books| drop(books.who.insert("corp".into(), who.to_owned()))
}

fn revoked(issuer: &FakeIssuer) -> usize {
    issuer.revoked.load(Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn what_the_old_one_made_ends_there_and_the_new_one_makes_another() {
    // OA-08, S37
    let mut house = house();
    house.broker.replace(naming(&house, &house.corp, OLD), |_| true);
    let first = house.get("a").await.unwrap().credential;
    // Another file, but the same issuer.
    house.broker.replace(naming(&house, &house.corp, OLD), |_| true);
    assert_eq!(house.get("a").await.unwrap().source, Source::Cache);

    let new = FakeIssuer::new(&house.clock, 300);
    house.broker.replace(naming(&house, &new, NEW), |_| true);
    let ended = next_revoked(&mut house.told).await;
    assert_eq!((ended.credential.fingerprint, ended.cause), (first.fingerprint, Cause::Settings));
    assert_ne!(house.get("a").await.unwrap().source, Source::Cache);
    assert_eq!((revoked(&house.corp), revoked(&new), new.diary().len()), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn what_was_on_its_way_is_given_back_to_who_made_it() {
    // OA-08
    let mut house = house();
    house.broker.replace(naming(&house, &house.corp, OLD), |_| true);
    let broker = house.broker.clone();
    let asked = tokio::spawn(async move {
        broker.fetch_order(order("corp", "a"), Duration::ZERO, Duration::from_secs(30)).await
    });
    while house.corp.diary().is_empty() {
        yield_now().await;
    }
    let new = FakeIssuer::new(&house.clock, 300);
    house.broker.replace(naming(&house, &new, NEW), |_| true);
    asked.await.unwrap().unwrap_err();
    let ended = next_revoked(&mut house.told).await;
    assert_eq!((ended.cause, ended.error), (Cause::Unclaimed, None));
    assert_eq!((revoked(&house.corp), revoked(&new)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_the_old_one_could_not_be_told_the_new_one_is_not_told_at_the_next_start() {
    // OA-43
    let dir = tempfile::tempdir().unwrap();
    let file = |_: &Arc<PausedClock>| {
        let key = SealingKey::of(&Secret::new("seed"));
        Some(PendingFile::new(dir.path().join("revocations"), key, SeededDice::from_seed(9)))
    };
    let first = house_of(known_as(OLD), file);
    first.get("a").await.unwrap();
    first.corp.deaf.store(true, Ordering::Relaxed);
    first.broker.retire(Which::Identity("payments".into(), None), Cause::Operator).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    first.keeper.abort();

    for (who, told) in [(NEW, 0), (OLD, 1)] {
        let kept = std::fs::read(dir.path().join("revocations")).unwrap();
        let mut next = house_of(known_as(who), file);
        let ended = next_revoked(&mut next.told).await;
        assert_eq!((ended.cause, revoked(&next.corp)), (Cause::Operator, told));
        assert_eq!(ended.error.is_some_and(|error| error.contains("another issuer")), told == 0);
        next.keeper.abort();
        std::fs::write(dir.path().join("revocations"), kept).unwrap();
    }
}
