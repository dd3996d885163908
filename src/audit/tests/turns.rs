//! Turns from one file to the next, retention, and what can go wrong with either.

use std::{collections::BTreeSet, fs, path::PathBuf, sync::atomic::AtomicU64};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{super::turn, *};

/// Small files, signed often.
fn small(directory: &Path) -> LedgerSettings {
    LedgerSettings { checkpoint_records: 2, rotate_at: 6000, ..settings(directory) }
}

/// Writes until there are `files` of them and the last turn is done; how many records there are.
async fn until(ledger: &Ledger, settings: &LedgerSettings, files: u64) -> u64 {
    while ledger.health().files < files || unfinished(settings) || ledger.health().bytes != size(settings) {
        // The disk is slower: without this, a file would grow as long as it is flushed.
        if ledger.health().unsigned < 5 {
            let _ = ledger.record(entry(0)).await.unwrap();
        }
        tokio::task::yield_now().await;
    }
    ledger.health().records
}

/// How long all is that a ledger keeps of its records.
fn size(settings: &LedgerSettings) -> u64 {
    let names = names(settings).into_iter().filter(|name| name.starts_with("ledger"));
    names.filter_map(|name| Some(fs::metadata(path(settings, name)).ok()?.len())).sum()
}

fn unfinished(settings: &LedgerSettings) -> bool {
    let names = names(settings);
    let count = |kind: &str| names.iter().filter(|name| name.ends_with(kind)).count();
    count(".leaves") + 1 < count(".jsonl") || names.contains("ledger.next")
}

fn names(settings: &LedgerSettings) -> BTreeSet<String> {
    let entries = fs::read_dir(&settings.directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The names of the closed files, without what they are.
fn closed(settings: &LedgerSettings) -> Vec<String> {
    let leaves = names(settings);
    leaves.iter().filter_map(|name| Some(name.strip_suffix(".leaves")?.to_owned())).collect()
}

/// A ledger of `files` files, closed in order; how many records it has.
async fn written(settings: &LedgerSettings, files: u64) -> u64 {
    let (ledger, scribe) = try_open(settings.clone()).unwrap();
    let running = tokio::spawn(scribe.run());
    until(&ledger, settings, files).await;
    // So that there is something in the last one too.
    for n in 0..3 {
        let _ = ledger.record(entry(n)).await.unwrap();
    }
    drop(ledger);
    running.await.unwrap();
    assert!(!unfinished(settings));
    verify(&settings.directory, None).unwrap().records
}

fn path(settings: &LedgerSettings, name: impl AsRef<Path>) -> PathBuf {
    settings.directory.join(name)
}

/// Every file of a directory, to put it back.
fn kept(settings: &LedgerSettings) -> Vec<(String, Vec<u8>)> {
    let kept = names(settings).into_iter();
    kept.map(|name| (name.clone(), fs::read(path(settings, &name)).unwrap())).collect()
}

fn put_back(settings: &LedgerSettings, kept: &[(String, Vec<u8>)]) {
    for name in names(settings) {
        fs::remove_file(path(settings, name)).unwrap();
    }
    for (name, bytes) in kept {
        fs::write(path(settings, name), bytes).unwrap();
        fs::set_permissions(path(settings, name), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
    }
}

/// What opening says is broken.
fn refused(settings: &LedgerSettings, why: &str) -> (u64, String) {
    match try_open(settings.clone()) {
        Err(LedgerError::Broken { seq, what, .. }) => (seq, what),
        Err(error) => panic!("{why}: {error}"),
        Ok(_) => panic!("a broken ledger was opened: {why}"),
    }
}

#[tokio::test]
async fn the_tree_goes_on_over_files() {
    // AUD-25, AUD-20, AUD-22
    let dir = tempfile::tempdir().unwrap();
    let settings = small(dir.path());
    let records = written(&settings, 4).await;
    let report = verify(&settings.directory, None).unwrap();
    assert_eq!((report.files, report.signed, report.kept_from), (4, records, 0));
    let seqs: Vec<u64> = read(&settings.directory, 0).unwrap().map(|record| record.seq).collect();
    assert_eq!(seqs, (0..records).collect::<Vec<_>>());
    for from in [1, 7, records - 1] {
        assert_eq!(read(&settings.directory, from).unwrap().next().unwrap().seq, from);
    }
    assert!(every_line(&settings.directory).unwrap().all(|(at, record)| record.unwrap().seq == at));
    // A file ends with a record that says so, and is no longer than it may be and what is written between two checkpoints.
    let turned: Vec<Record> = read(&settings.directory, 0)
        .unwrap()
        .filter(|record| record.entry.event.kind == EventType::LedgerTurned)
        .collect();
    let firsts: Vec<u64> = turned.iter().map(|record| record.entry.ledger.unwrap().first).collect();
    assert_eq!(firsts, [0, turned[0].seq + 1, turned[1].seq + 1]);
    let (newest, next) = last(&settings.directory, 20, |_| true).unwrap();
    assert_eq!((next, newest.len()), (records, 20));
    assert!(newest.iter().map(|record| record.seq).eq(records - 20..records));
    let (found, _) = last(&settings.directory, 2, |record| record.entry.ledger.is_some()).unwrap();
    assert!(found.iter().map(|record| record.seq).eq([turned[1].seq, turned[2].seq]));
    // The next agent goes on where this one stopped.
    let (ledger, scribe) = try_open(settings.clone()).unwrap();
    let running = tokio::spawn(scribe.run());
    assert_eq!(ledger.record(entry(0)).await.unwrap().seq(), Some(records));
    let health = ledger.health();
    assert_eq!((health.files, health.bytes, health.kept_from), (4, size(&settings), 0));
    until(&ledger, &settings, 6).await;
    drop(ledger);
    running.await.unwrap();
    assert_eq!(verify(&settings.directory, None).unwrap().files, 6);
}

#[tokio::test]
async fn a_ledger_of_one_file_is_taken_over_as_it_is() {
    // AUD-25: as agents wrote it that knew of one file only, and of no `ledger` in a record.
    let dir = tempfile::tempdir().unwrap();
    let settings = small(dir.path());
    fill(LedgerSettings { rotate_at: u64::MAX, ..settings.clone() }, 20).await;
    assert_eq!(closed(&settings).len(), 0);
    let before = fs::read(lines_of(&settings)).unwrap();
    let records = written(&settings, 2).await;
    assert_eq!(verify(&settings.directory, None).unwrap().records, records);
    let first = fs::read(path(&settings, format!("ledger-{:020}.jsonl", 0))).unwrap();
    assert!(first.starts_with(&before));
    let old = r#"{"v":1,"seq":0,"time":"t","boot_ns":0,"boot_id":"b","host":{"id":null,"name":"h"},"agent":{"version":"0","instance":"i","config_digest":"d"},"event":{"type":"denial","outcome":"denied","reason":null},"exchange_id":"00000000-0000-0000-0000-000000000000","trace_id":null,"workload":null,"peer":null,"socket":null,"credential":null,"policy":null,"issuer_response":null,"detail":null,"prev":""}"#;
    assert_eq!(serde_json::from_str::<Record>(old).unwrap().entry.ledger, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_and_those_who_are_alone_have_their_records_through_every_turn() {
    // AUD-02, AUD-25
    for sync in [Sync::Checkpoint, Sync::Always] {
        let dir = tempfile::tempdir().unwrap();
        let settings = LedgerSettings { sync, ..small(dir.path()) };
        let (ledger, scribe) = try_open(settings.clone()).unwrap();
        let running = tokio::spawn(scribe.run());
        let told = Arc::new(AtomicU64::new(0));
        let mut callers = tokio::task::JoinSet::new();
        for n in 0..16 {
            let (ledger, told) = (ledger.clone(), Arc::clone(&told));
            callers.spawn(async move {
                let mut seqs = Vec::new();
                while ledger.health().files < 6 {
                    let receipt = match n % 2 {
                        0 => ledger.record(entry(n)).await,
                        _ => ledger.record_alone(entry(n)).await,
                    };
                    seqs.push(receipt.unwrap().seq().unwrap());
                    told.fetch_add(1, Ordering::Relaxed);
                    // Whoever writes alone does not wait for anybody, and would keep the scribe from its turn.
                    tokio::task::yield_now().await;
                }
                seqs
            });
        }
        let mut seqs: Vec<u64> = callers.join_all().await.concat();
        drop(ledger);
        running.await.unwrap();
        seqs.sort_unstable();
        // What nobody asked for are the records that close files.
        let turned = read(&settings.directory, 0).unwrap().filter(|record| record.entry.ledger.is_some());
        seqs.extend(turned.map(|record| record.seq));
        seqs.sort_unstable();
        let report = verify(&settings.directory, None).unwrap();
        assert_eq!(seqs, (0..report.records).collect::<Vec<_>>());
        assert!(report.files >= 6 && told.load(Ordering::Relaxed) < report.records);
    }
}

#[tokio::test]
async fn what_retention_took_leaves_its_hashes_and_everything_verifies() {
    // AUD-25, AUD-24
    let dir = tempfile::tempdir().unwrap();
    let day = Duration::from_secs(24 * 60 * 60);
    let settings = LedgerSettings { keep: Some(day * 10), ..small(dir.path()) };
    let clock = ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
    let (ledger, scribe) = open_at(settings.clone(), Arc::clone(&clock)).unwrap();
    let running = tokio::spawn(scribe.run());
    until(&ledger, &settings, 4).await;
    let all: BTreeSet<String> = closed(&settings).into_iter().collect();
    let there = |name: &String| path(&settings, format!("{name}.jsonl")).exists();
    assert!(all.iter().all(there));
    clock.advance(day * 9);
    until(&ledger, &settings, 5).await;
    assert!(all.iter().all(there), "they are not old enough");
    // Whatever a clock says, no more than two go with a turn.
    clock.advance(day * 30_000);
    until(&ledger, &settings, 6).await;
    assert_eq!(all.iter().filter(|name| there(name)).count(), 1);
    let health = ledger.health();
    until(&ledger, &settings, 7).await;
    assert_eq!(all.iter().filter(|name| there(name)).count(), 0);
    assert!(ledger.health().kept_from > health.kept_from && health.kept_from > 0);
    // What was said before is true still, of what is gone too.
    let report = verify(&settings.directory, None).unwrap();
    assert!(report.kept_from > 0 && report.checkpoints > 4 && report.records > report.kept_from);
    assert_eq!(read(&settings.directory, 0).unwrap().next().unwrap().seq, report.kept_from);
    assert_eq!(every_line(&settings.directory).unwrap().next().unwrap().0, report.kept_from);
    let (found, _) = last(&settings.directory, usize::MAX, |_| true).unwrap();
    assert!(found.iter().map(|record| record.seq).eq(report.kept_from..ledger.health().records));
    drop(ledger);
    running.await.unwrap();
    let after = written(&settings, 8).await;
    assert!(after > report.records);
    // Every record is proved by the key alone, over all files, whether it is kept or its hash is.
    let key = Verifier::parse(&fs::read_to_string(path(&settings, "checkpoint.pub")).unwrap()).unwrap();
    let kept_from = verify(&settings.directory, None).unwrap().kept_from;
    for seq in (0..after).step_by(7).chain([kept_from - 1, kept_from, after - 1]) {
        let proof = prove(&settings.directory, seq, Some(&key)).unwrap();
        let (head, note) = proof.split_once("\n\n").unwrap();
        let checkpoint = key.verify(note).unwrap();
        let mut lines = head.lines().skip(1).peekable();
        let decode = |text: &str| STANDARD.decode(text).unwrap();
        let record = lines.next_if(|line| line.starts_with("extra ")).map(|line| decode(&line[6..]));
        assert_eq!(record.is_some(), seq >= kept_from, "{proof}");
        assert_eq!(lines.next(), Some(&*format!("index {seq}")));
        let hashes: Vec<tree::Hash> = lines.map(|line| decode(line).try_into().unwrap()).collect();
        let hash = match record {
            Some(record) => {
                assert_eq!(serde_json::from_slice::<Record>(&record).unwrap().seq, seq);
                tree::leaf(&record)
            }
            None => {
                let all: Vec<u8> = closed(&settings)
                    .iter()
                    .flat_map(|name| fs::read(path(&settings, format!("{name}.leaves"))).unwrap())
                    .collect();
                all[seq as usize * 32..][..32].try_into().unwrap()
            }
        };
        assert_eq!(tree::tests::led_to(hash, seq, checkpoint.size, &hashes), Some(checkpoint.root), "{seq}");
    }
    assert_eq!(prove(&settings.directory, after, None), Err(ProveError::Unsigned(after)));
    // A hash of a record that is gone cannot be changed: the checkpoints say what it was.
    let gone = path(&settings, format!("ledger-{:020}.leaves", 0));
    let mut leaves = fs::read(&gone).unwrap();
    leaves[40] ^= 1;
    fs::write(&gone, leaves).unwrap();
    assert!(matches!(verify(&settings.directory, None).unwrap_err().fault, Fault::Root(_)));
    assert!(matches!(prove(&settings.directory, 0, None), Err(ProveError::Ledger(_))));
    assert_eq!(refused(&settings, "a hash").1, "the records up to here are not those that were signed");
}

#[tokio::test]
async fn a_clock_that_goes_back_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let settings = LedgerSettings { keep: Some(Duration::from_secs(1)), ..small(dir.path()) };
    let (ledger, scribe) =
        open_at(settings.clone(), ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap())).unwrap();
    let running = tokio::spawn(scribe.run());
    until(&ledger, &settings, 3).await;
    drop(ledger);
    running.await.unwrap();
    let (ledger, scribe) =
        open_at(settings.clone(), ManualClock::at("1970-01-01T00:00:00Z".parse().unwrap())).unwrap();
    let running = tokio::spawn(scribe.run());
    until(&ledger, &settings, 5).await;
    assert_eq!(ledger.health().kept_from, 0);
    drop(ledger);
    running.await.unwrap();
    assert_eq!(verify(&settings.directory, None).unwrap().kept_from, 0);
}

#[tokio::test]
async fn nobody_can_make_records_old_so_that_retention_takes_them() {
    // TM-21, AUD-25
    let dir = tempfile::tempdir().unwrap();
    let settings = LedgerSettings { keep: Some(Duration::from_secs(60)), ..small(dir.path()) };
    let clock = ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
    let (ledger, scribe) = open_at(settings.clone(), clock).unwrap();
    let running = tokio::spawn(scribe.run());
    until(&ledger, &settings, 3).await;
    let first = path(&settings, format!("ledger-{:020}.jsonl", 0));
    let text = fs::read_to_string(&first).unwrap().replace("\"time\":\"2026", "\"time\":\"2016");
    fs::write(&first, text).unwrap();
    until(&ledger, &settings, 5).await;
    assert!(first.exists() && ledger.health().kept_from == 0, "it is evidence still");
    drop(ledger);
    running.await.unwrap();
    verify(&settings.directory, None).unwrap_err();
    refused(&settings, "made old");
}

#[tokio::test]
async fn whatever_is_done_to_a_closed_file_is_found_at_the_start_and_by_verify() {
    // AUD-25, AUD-22, AUD-24
    let dir = tempfile::tempdir().unwrap();
    let settings = small(dir.path());
    written(&settings, 4).await;
    let names = closed(&settings);
    let [first, second, third] = &names[..] else { panic!("{names:?}") };
    let other = tempfile::tempdir().unwrap();
    let foreign = small(other.path());
    {
        // The same in every respect but what it says.
        let (ledger, scribe) = try_open(foreign.clone()).unwrap();
        let running = tokio::spawn(scribe.run());
        let _ = ledger.record(entry(9)).await.unwrap();
        until(&ledger, &foreign, 4).await;
        drop(ledger);
        running.await.unwrap();
    }
    let strange = closed(&foreign);
    let whole = kept(&settings);
    let at = |name: &str, kind: &str| path(&settings, format!("{name}.{kind}"));
    let current = lines_of(&settings);
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    let swap = |one: &Path, two: &Path| {
        let (a, b) = (fs::read(one).unwrap(), fs::read(two).unwrap());
        fs::write(one, b).unwrap();
        fs::write(two, a).unwrap();
    };
    let change = |path: &Path, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    };
    let lines = |bytes: &[u8]| -> Vec<Vec<u8>> {
        bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
    };
    type Damage<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let mut damages: Vec<Damage<'_>> = vec![
        ("the file that is written deleted", Box::new(|| remove(&current))),
        ("the file that is written emptied", Box::new(|| fs::write(&current, "").unwrap())),
        (
            "a closed one written on",
            Box::new(|| assert!(fs::copy(at(third, "jsonl"), &current).unwrap() > 0)),
        ),
    ];
    for name in &names {
        damages.extend([
            ("records deleted", Box::new(|| remove(&at(name, "jsonl"))) as Box<dyn Fn()>),
            ("records emptied", Box::new(|| fs::write(at(name, "jsonl"), "").unwrap())),
            (
                "the last record cut off",
                Box::new(|| {
                    change(&at(name, "jsonl"), &|bytes| {
                        let mut lines = lines(bytes);
                        lines.pop();
                        *bytes = lines.concat();
                    });
                }),
            ),
            ("torn", Box::new(|| change(&at(name, "jsonl"), &|bytes| bytes.truncate(bytes.len() - 5)))),
            (
                "the end without its line feed",
                Box::new(|| change(&at(name, "jsonl"), &|bytes| bytes.truncate(bytes.len() - 1))),
            ),
            (
                "the first record gone",
                Box::new(|| {
                    change(&at(name, "jsonl"), &|bytes| *bytes = lines(bytes)[1..].concat());
                }),
            ),
            ("hashes emptied", Box::new(|| fs::write(at(name, "leaves"), "").unwrap())),
            (
                "half a hash",
                Box::new(|| change(&at(name, "leaves"), &|bytes| bytes.truncate(bytes.len() - 1))),
            ),
            (
                "a hash less",
                Box::new(|| change(&at(name, "leaves"), &|bytes| bytes.truncate(bytes.len() - 32))),
            ),
            ("a hash more", Box::new(|| change(&at(name, "leaves"), &|bytes| bytes.extend([7; 32])))),
            ("a hash changed", Box::new(|| change(&at(name, "leaves"), &|bytes| bytes[33] ^= 1))),
            (
                "the last hash changed",
                Box::new(|| change(&at(name, "leaves"), &|bytes| *bytes.last_mut().unwrap() ^= 1)),
            ),
            ("hashes out of order", Box::new(|| change(&at(name, "leaves"), &|bytes| bytes.rotate_left(32)))),
            (
                "another number",
                Box::new(|| {
                    let number: u64 = name.rsplit('-').next().unwrap().parse().unwrap();
                    let later = format!("ledger-{:020}", number + 1);
                    fs::rename(at(name, "jsonl"), at(&later, "jsonl")).unwrap();
                    fs::rename(at(name, "leaves"), at(&later, "leaves")).unwrap();
                }),
            ),
            (
                "gone as a whole",
                Box::new(|| {
                    remove(&at(name, "jsonl"));
                    remove(&at(name, "leaves"));
                }),
            ),
            (
                "from another ledger",
                Box::new(|| {
                    fs::copy(path(&foreign, format!("{}.jsonl", strange[0])), at(name, "jsonl")).unwrap();
                }),
            ),
            (
                "from another ledger, with its hashes",
                Box::new(|| {
                    let number = names.iter().position(|one| one.as_str() == name.as_str()).unwrap();
                    for kind in ["jsonl", "leaves"] {
                        let from = path(&foreign, format!("{}.{kind}", strange[number]));
                        fs::copy(from, at(name, kind)).unwrap();
                    }
                }),
            ),
        ]);
    }
    for (one, two) in [(first, second), (second, third)] {
        damages.extend([
            (
                "two files out of order",
                Box::new(|| swap(&at(one, "jsonl"), &at(two, "jsonl"))) as Box<dyn Fn()>,
            ),
            (
                "two files out of order, with their hashes",
                Box::new(|| {
                    swap(&at(one, "jsonl"), &at(two, "jsonl"));
                    swap(&at(one, "leaves"), &at(two, "leaves"));
                }),
            ),
            ("two lists of hashes out of order", Box::new(|| swap(&at(one, "leaves"), &at(two, "leaves")))),
        ]);
    }
    // Only those that are there can have been lost on the way to the disk.
    for name in [first, second] {
        damages.push(("hashes deleted", Box::new(|| remove(&at(name, "leaves")))));
    }
    for (what, damage) in &damages {
        put_back(&settings, &whole);
        damage();
        let found = verify(&settings.directory, None);
        assert!(found.is_err(), "{what}: {found:?}");
        let before = kept(&settings);
        let (_, said) = refused(&settings, what);
        assert!(!said.is_empty());
        // "Nothing was changed": what was found is evidence.
        let ours = |kept: &[(String, Vec<u8>)]| -> Vec<_> {
            kept.iter().filter(|(name, _)| name.starts_with("ledger")).cloned().collect()
        };
        assert_eq!(ours(&kept(&settings)), ours(&before), "{what}");
    }
    put_back(&settings, &whole);
    verify(&settings.directory, None).unwrap();
    try_open(settings.clone()).unwrap();
    // What lies between the ends of a closed file, verify finds where it is. What a start goes on with rests on the hashes.
    let start: u64 = second.rsplit('-').next().unwrap().parse().unwrap();
    let records = lines(&fs::read(at(second, "jsonl")).unwrap());
    let end = start + records.len() as u64;
    for (changed, found) in [
        ([&records[..2], &[[b" ", &records[2][..]].concat()], &records[3..]].concat(), start + 2),
        ([&records[..3], &records[4..]].concat(), start + 3),
        ([&records[..], &records[records.len() - 1..]].concat(), end),
    ] {
        fs::write(at(second, "jsonl"), changed.concat()).unwrap();
        let error = verify(&settings.directory, None).unwrap_err();
        assert_eq!(error.seq, found, "{error}");
        assert!(error.sound <= found);
        try_open(settings.clone()).unwrap();
    }
}

#[tokio::test]
async fn an_agent_that_ends_anywhere_in_a_turn_leaves_a_ledger_that_goes_on() {
    // AUD-25, AUD-22
    let dir = tempfile::tempdir().unwrap();
    let settings = small(dir.path());
    let records = written(&settings, 3).await;
    let names = closed(&settings);
    let second = names[1].clone();
    let began = {
        let (ledger, scribe) = try_open(settings.clone()).unwrap();
        let running = tokio::spawn(scribe.run());
        drop(ledger);
        running.await.unwrap();
        read(&settings.directory, 0)
            .unwrap()
            .filter_map(|record| record.entry.ledger.map(|_| record.seq + 1))
            .last()
            .unwrap()
    };
    let whole = kept(&settings);
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let at = |name: &str, kind: &str| path(&settings, format!("{name}.{kind}"));
    let goes_on = || {
        assert_eq!(verify(&settings.directory, None).unwrap().records, records);
        let (ledger, scribe) = try_open(settings.clone()).unwrap();
        assert_eq!((ledger.health().records, ledger.health().files), (records, 3));
        drop(ledger);
        scribe
    };
    // The next file is there, and the second name.
    turn::prepare(&settings.directory, began, 0, None, now).unwrap();
    assert!(self::names(&settings).contains("ledger.next"));
    let scribe = goes_on();
    assert!(!self::names(&settings).contains("ledger.next"));
    assert_eq!(closed(&settings), names, "the second name went");
    assert!(!path(&settings, format!("ledger-{began:020}.jsonl")).exists());
    drop(scribe);
    // Only one of the two is.
    fs::write(path(&settings, "ledger.next"), "").unwrap();
    drop(goes_on());
    fs::hard_link(lines_of(&settings), path(&settings, format!("ledger-{began:020}.jsonl"))).unwrap();
    drop(goes_on());
    // The file is closed, and its hashes are not kept, or half of them in a file beside it.
    put_back(&settings, &whole);
    let hashes = fs::read(at(&second, "leaves")).unwrap();
    fs::rename(at(&second, "leaves"), at(&second, "new")).unwrap();
    let scribe = goes_on();
    scribe.run().await;
    assert_eq!(fs::read(at(&second, "leaves")).unwrap(), hashes, "they are the same again");
    // The same, and nothing of it is signed yet: checkpoints are as they were before the turn.
    let early = |settings: &LedgerSettings| {
        let history = fs::read_to_string(path(settings, "checkpoints")).unwrap();
        let notes: Vec<&str> = history.split_inclusive('\n').collect();
        fs::write(path(settings, "checkpoint"), notes[..5].concat()).unwrap();
        fs::write(path(settings, "checkpoints"), notes[..5].concat()).unwrap();
    };
    put_back(&settings, &whole);
    early(&settings);
    drop(goes_on());
    fs::remove_file(at(&second, "leaves")).unwrap();
    drop(goes_on());
    // Then the hashes could say anything, so the records are read: each has to be there, whole, and as its hash says.
    for damage in 0..4 {
        put_back(&settings, &whole);
        early(&settings);
        let file = at(&second, if damage == 0 { "leaves" } else { "jsonl" });
        let mut bytes = fs::read(&file).unwrap();
        match damage {
            0 => bytes[70] ^= 1,
            1 => bytes.truncate(bytes.len() - 3),
            2 => bytes.truncate(bytes.len() / 2),
            _ => {
                let reason = bytes.windows(9).position(|window| window == b"NO_IDENTI").unwrap();
                bytes[reason] = b'X';
            }
        }
        fs::write(&file, bytes).unwrap();
        verify(&settings.directory, None).unwrap_err();
        refused(&settings, "unsigned");
        if damage > 0 {
            fs::remove_file(at(&second, "leaves")).unwrap();
            verify(&settings.directory, None).unwrap_err();
            refused(&settings, "without hashes");
        }
    }
    // What was to be let go is let go by the next one.
    put_back(&settings, &whole);
    let (ledger, scribe) =
        try_open(LedgerSettings { keep: Some(Duration::ZERO), ..settings.clone() }).unwrap();
    drop(ledger);
    drop(scribe);
    assert!(at(&names[0], "jsonl").exists(), "nothing of it is said yet");
}

#[tokio::test]
async fn what_an_agent_said_it_would_let_go_goes_with_the_next_start() {
    // AUD-25
    let dir = tempfile::tempdir().unwrap();
    let settings = LedgerSettings { keep: Some(Duration::from_secs(1)), ..small(dir.path()) };
    let clock = ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
    let (ledger, scribe) = open_at(settings.clone(), Arc::clone(&clock)).unwrap();
    let running = tokio::spawn(scribe.run());
    until(&ledger, &settings, 3).await;
    let first = path(&settings, format!("ledger-{:020}.jsonl", 0));
    let records = fs::read(&first).unwrap();
    clock.advance(Duration::from_secs(10));
    until(&ledger, &settings, 4).await;
    assert!(!first.exists());
    drop(ledger);
    running.await.unwrap();
    // It ended before it deleted them.
    fs::write(&first, records).unwrap();
    verify(&settings.directory, None).unwrap();
    let (ledger, _scribe) = try_open(settings.clone()).unwrap();
    assert!(!first.exists());
    verify(&settings.directory, None).unwrap();
    assert!(ledger.health().kept_from > 0);
}

#[tokio::test]
async fn where_there_is_no_room_for_a_turn_it_goes_on_as_it_is_and_turns_later() {
    // AUD-02, AUD-25: a full disk.
    let dir = tempfile::tempdir().unwrap();
    let settings = small(dir.path());
    let (ledger, scribe) = try_open(settings.clone()).unwrap();
    let running = tokio::spawn(scribe.run());
    let signed_beyond = async |least: u64| {
        while ledger.health().records - ledger.health().unsigned < least {
            if ledger.health().unsigned < 5 {
                let _ = ledger.record(entry(0)).await.unwrap();
            }
            tokio::task::yield_now().await;
        }
    };
    // The next file cannot be made.
    fs::create_dir_all(path(&settings, "ledger.next/there")).unwrap();
    signed_beyond(30).await;
    assert_eq!((ledger.health().files, ledger.health().healthy), (1, true));
    fs::remove_dir_all(path(&settings, "ledger.next")).unwrap();
    // Nor can the second name: somebody's file is there. It is left alone.
    let taken = path(&settings, format!("ledger-{:020}.jsonl", 0));
    fs::write(&taken, "mine").unwrap();
    signed_beyond(60).await;
    assert_eq!((ledger.health().files, fs::read_to_string(&taken).unwrap()), (1, "mine".into()));
    fs::remove_file(&taken).unwrap();
    // Nor can its hashes be kept, once it is closed.
    fs::create_dir_all(path(&settings, format!("ledger-{:020}.new", 0))).unwrap();
    while ledger.health().files < 2 {
        if ledger.health().unsigned < 5 {
            let _ = ledger.record(entry(0)).await.unwrap();
        }
        tokio::task::yield_now().await;
    }
    let records = ledger.health().records;
    signed_beyond(records + 30).await;
    assert_eq!(
        (ledger.health().files, closed(&settings).len()),
        (2, 0),
        "no turn before the last one is done"
    );
    verify(&settings.directory, None).unwrap();
    fs::remove_dir_all(path(&settings, format!("ledger-{:020}.new", 0))).unwrap();
    until(&ledger, &settings, 4).await;
    drop(ledger);
    running.await.unwrap();
    verify(&settings.directory, None).unwrap();
}

/// A file that takes no record that would close it, while it is told so.
struct Unclosable(File, Arc<AtomicBool>);

impl Sink for Unclosable {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.1.load(Ordering::Relaxed) && bytes.windows(13).any(|window| window == b"ledger_turned") {
            self.0.write_all(&bytes[..bytes.len() / 2])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.write_all(bytes)
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn flusher(&self) -> io::Result<File> {
        self.0.try_clone()
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_closed_stays_open() {
    // AUD-02: a disk that is full at the last record.
    let dir = tempfile::tempdir().unwrap();
    let settings = small(dir.path());
    let (ledger, scribe) = try_open(settings.clone()).unwrap();
    let full = Arc::new(AtomicBool::new(true));
    let file = OpenOptions::new().append(true).open(lines_of(&settings)).unwrap();
    let running = tokio::spawn(scribe.writing_to(Box::new(Unclosable(file, Arc::clone(&full)))).run());
    for n in 0..60 {
        let receipt =
            if n % 2 == 0 { ledger.record(entry(n)).await } else { ledger.record_alone(entry(n)).await };
        assert_eq!(receipt.unwrap().seq(), Some(n));
        // Time for a turn to be tried.
        tokio::task::yield_now().await;
    }
    while ledger.health().unsigned > 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(ledger.health().files, 1);
    assert_eq!(verify(&settings.directory, None).unwrap().records, 60);
    full.store(false, Ordering::Relaxed);
    until(&ledger, &settings, 3).await;
    drop(ledger);
    running.await.unwrap();
    verify(&settings.directory, None).unwrap();
}

#[tokio::test]
async fn a_record_that_is_changed_while_the_agent_runs_is_told_when_its_file_is_closed() {
    // TM-21
    let dir = tempfile::tempdir().unwrap();
    let settings = LedgerSettings { rotate_at: 20_000, ..small(dir.path()) };
    let (ledger, scribe) = try_open(settings.clone()).unwrap();
    let running = tokio::spawn(scribe.run());
    for n in 0..5 {
        let _ = ledger.record(entry(n)).await.unwrap();
    }
    use std::os::unix::fs::FileExt as _;
    let text = fs::read(lines_of(&settings)).unwrap();
    let at = text.windows(9).position(|window| window == b"NO_IDENTI").unwrap();
    OpenOptions::new().write(true).open(lines_of(&settings)).unwrap().write_all_at(b"X", at as u64).unwrap();
    while ledger.health().healthy {
        let _ = ledger.record(entry(0)).await.unwrap();
        tokio::task::yield_now().await;
    }
    // Nothing mends it: no later checkpoint, and no start.
    let records = ledger.health().records;
    while ledger.health().records < records + 20 {
        let _ = ledger.record(entry(0)).await.unwrap();
    }
    while ledger.health().unsigned > 1 {
        tokio::task::yield_now().await;
    }
    assert!(!ledger.health().healthy);
    drop(ledger);
    running.await.unwrap();
    verify(&settings.directory, None).unwrap_err();
    refused(&settings, "changed");
}

#[tokio::test]
async fn a_second_agent_is_refused_after_a_turn_too() {
    let dir = tempfile::tempdir().unwrap();
    let settings = small(dir.path());
    let (ledger, scribe) = try_open(settings.clone()).unwrap();
    let running = tokio::spawn(scribe.run());
    until(&ledger, &settings, 3).await;
    assert!(matches!(try_open(settings), Err(LedgerError::InUse(_))));
    drop(ledger);
    running.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_reads_while_it_turns_and_lets_go_sees_a_whole_ledger() {
    // AUD-24, AUD-25
    let dir = tempfile::tempdir().unwrap();
    let settings = LedgerSettings { keep: Some(Duration::from_secs(1)), ..small(dir.path()) };
    let clock = ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
    let (ledger, scribe) = open_at(settings.clone(), Arc::clone(&clock)).unwrap();
    let running = tokio::spawn(scribe.run());
    let stop = Arc::new(AtomicBool::new(false));
    let reader = std::thread::spawn({
        let (stop, directory) = (Arc::clone(&stop), settings.directory.clone());
        move || {
            let mut seen = 0;
            while !stop.load(Ordering::Relaxed) {
                // A checkpoint is kept in two files, one after the other.
                let report = verify(&directory, None).unwrap();
                assert!(report.records >= seen);
                seen = report.records;
                let seqs: Vec<u64> = read(&directory, 0).unwrap().map(|record| record.seq).collect();
                // What retention takes meanwhile is not there.
                assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]), "{seqs:?}");
                let (found, next) = last(&directory, 5, |_| true).unwrap();
                assert!(found.iter().rev().zip((0..next).rev()).all(|(record, seq)| record.seq == seq));
            }
            seen
        }
    });
    for files in 2..25 {
        until(&ledger, &settings, files).await;
        clock.advance(Duration::from_secs(2));
    }
    stop.store(true, Ordering::Relaxed);
    let seen = reader.join().unwrap();
    drop(ledger);
    running.await.unwrap();
    assert!(seen > 0 && verify(&settings.directory, None).unwrap().kept_from > 0);
}
