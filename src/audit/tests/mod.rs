mod turns;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use uuid::Uuid;

use super::{book::Sink, *};
use crate::{
    clock::{ManualClock, SeededDice},
    keys::{Vault, Verifier},
};

fn settings(directory: &Path) -> LedgerSettings {
    LedgerSettings::new(directory.join("audit"), "keybearer/test".into())
}

fn try_open(settings: LedgerSettings) -> Result<(Ledger, Scribe), LedgerError> {
    open_at(settings, ManualClock::at("2026-01-01T00:00:00.5Z".parse().unwrap()))
}

fn open_at(settings: LedgerSettings, clock: Arc<ManualClock>) -> Result<(Ledger, Scribe), LedgerError> {
    let host = Host { id: None, name: "h".into() };
    let agent = Agent { version: "0".into(), instance: "i".into(), config_digest: "d".into() };
    open(settings, host, "b".into(), agent, &Vault::default(), clock, SeededDice::from_seed(1))
}

fn entry(n: u64) -> Entry {
    Entry::new(EventType::Denial, Outcome::Denied, Uuid::from_u64_pair(1, n)).because("NO_IDENTITY")
}

/// Writes `count` records and closes the ledger.
async fn fill(settings: LedgerSettings, count: u64) {
    let (ledger, scribe) = try_open(settings).unwrap();
    let running = tokio::spawn(scribe.run());
    for n in 0..count {
        let _ = ledger.record(entry(n)).await.unwrap();
    }
    drop(ledger);
    running.await.unwrap();
}

fn lines_of(settings: &LedgerSettings) -> std::path::PathBuf {
    settings.directory.join("ledger.jsonl")
}

#[tokio::test]
async fn what_is_written_verifies_and_goes_on_after_a_restart() {
    // AUD-06, AUD-22, AUD-24
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    fill(settings.clone(), 5).await;
    fill(settings.clone(), 3).await;
    let report = verify(&settings.directory, None).unwrap();
    assert_eq!((report.records, report.signed, report.checkpoints, report.torn), (8, 8, 2, false));
    let seqs: Vec<u64> = read(&settings.directory, 3).unwrap().map(|record| record.seq).collect();
    assert_eq!(seqs, [3, 4, 5, 6, 7]);
    let first = read(&settings.directory, 0).unwrap().next().unwrap();
    assert_eq!(first.time, "2026-01-01T00:00:00.500Z");
    let line = fs::read_to_string(lines_of(&settings)).unwrap().lines().next().unwrap().to_owned();
    // AUD-04: absent is null, not missing.
    assert!(line.contains(r#""workload":null,"peer":null"#), "{line}");
}

#[tokio::test]
async fn any_changed_byte_is_found_at_its_record() {
    // AUD-24
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    fill(settings.clone(), 6).await;
    let whole = fs::read(lines_of(&settings)).unwrap();
    let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    let mut start = 0;
    for (k, line) in lines.iter().enumerate() {
        let mut changed = whole.clone();
        let at = start + line.windows(9).position(|window| window == b"NO_IDENTI").unwrap();
        changed[at] = b'X';
        fs::write(lines_of(&settings), &changed).unwrap();
        let error = verify(&settings.directory, None).unwrap_err();
        assert_eq!(error.seq, k as u64, "{error}");
        assert!(matches!(try_open(settings.clone()), Err(LedgerError::Broken { .. })));
        start += line.len();
    }
    // A record taken out, one put in twice, the end cut off.
    for changed in [
        [&lines[..2], &lines[3..]].concat().concat(),
        [&lines[..3], &lines[2..]].concat().concat(),
        lines[..4].concat(),
    ] {
        fs::write(lines_of(&settings), changed).unwrap();
        assert!(verify(&settings.directory, None).is_err());
        let Err(LedgerError::Broken { .. }) = try_open(settings.clone()) else {
            panic!("a broken ledger was opened")
        };
    }
    fs::write(lines_of(&settings), whole).unwrap();
    assert!(verify(&settings.directory, None).is_ok());
}

#[tokio::test]
async fn a_chain_that_was_spun_anew_is_sound_up_to_the_last_checkpoint_that_agrees() {
    // AUD-24: whoever rewrites the ledger can also compute its hashes, but not sign them.
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    fill(settings.clone(), 3).await;
    fill(settings.clone(), 4).await;
    let whole = fs::read_to_string(lines_of(&settings)).unwrap();
    for k in 0..7 {
        let (mut spun, mut prev) = (String::new(), "0".repeat(64));
        for (seq, line) in whole.lines().enumerate() {
            let (body, _) = line.rsplit_once(r#","prev":""#).unwrap();
            let body = if seq == k { body.replace("NO_IDENTITY", "SOMETHING_ELSE") } else { body.into() };
            let line = format!(r#"{body},"prev":"{prev}"}}"#);
            prev = crate::secret::hex(&tree::leaf(line.as_bytes()));
            spun.push_str(&line);
            spun.push('\n');
        }
        fs::write(lines_of(&settings), spun).unwrap();
        let error = verify(&settings.directory, None).unwrap_err();
        let (at, sound) = if k < 3 { (2, 0) } else { (6, 3) };
        assert_eq!((error.seq, error.sound), (at, sound), "{error}");
    }
    // Where the chain itself breaks, what is before the record that was changed is sound.
    fs::write(lines_of(&settings), whole.replacen("NO_IDENTITY", "NO_IDENTITX", 1)).unwrap();
    assert_eq!(verify(&settings.directory, None).unwrap_err().sound, 0);
    fs::write(lines_of(&settings), &whole[..whole.len() - 400]).unwrap();
    assert_eq!(verify(&settings.directory, None).unwrap_err().sound, 3);
}

#[tokio::test]
async fn a_torn_end_is_cut_off_and_told() {
    // AUD-22
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    fill(settings.clone(), 2).await;
    let whole = fs::read(lines_of(&settings)).unwrap();
    let mut file = OpenOptions::new().append(true).open(lines_of(&settings)).unwrap();
    file.write_all(&whole[..100]).unwrap();
    assert!(verify(&settings.directory, None).unwrap().torn);
    fill(settings.clone(), 1).await;
    let told = read(&settings.directory, 2).unwrap().next().unwrap();
    assert_eq!(told.entry.event.kind, EventType::LedgerRepaired);
    assert!(told.entry.detail.unwrap().contains("100 bytes"));
    assert_eq!(verify(&settings.directory, None).unwrap().records, 4);
    // What was signed is never cut off.
    fs::write(lines_of(&settings), &whole[..whole.len() - 10]).unwrap();
    assert!(matches!(try_open(settings), Err(LedgerError::Broken { .. })));
}

#[tokio::test]
async fn a_second_agent_is_refused_and_told_where() {
    let dir = tempfile::tempdir().unwrap();
    let (_ledger, _scribe) = try_open(settings(dir.path())).unwrap();
    let error = try_open(settings(dir.path())).unwrap_err();
    assert!(matches!(&error, LedgerError::InUse(path) if path.ends_with("audit")), "{error}");
}

#[tokio::test]
async fn a_strange_key_verifies_nothing() {
    // AUD-21
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fill(settings(one.path()), 1).await;
    fill(settings(other.path()), 1).await;
    let strange = fs::read_to_string(other.path().join("audit/checkpoint.pub")).unwrap();
    let strange = Verifier::parse(&strange).unwrap();
    let error = verify(&settings(one.path()).directory, Some(&strange)).unwrap_err();
    assert_eq!(error.fault, Fault::Checkpoint);
}

#[tokio::test]
async fn hostile_text_stays_one_line_and_loses_its_token() {
    // AUD-05, AUD-07
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let (ledger, scribe) = try_open(settings.clone()).unwrap();
    let running = tokio::spawn(scribe.run());
    let mut hostile = entry(0).detail("issuer said eyJhbGciOiJFUzI1NiJ9.eyJjYW5hcnkiOjF9.c2lnbmF0dXJl");
    hostile.peer = Some(PeerPart {
        exe: Some(ExePart { path_hint: Some("a\n{\"x\":1}".into()), ..ExePart::default() }),
        ..PeerPart::default()
    });
    let receipt = ledger.record(hostile).await.unwrap();
    assert_eq!(receipt.seq(), Some(0));
    drop(ledger);
    running.await.unwrap();
    let text = fs::read_to_string(lines_of(&settings)).unwrap();
    assert_eq!(text.lines().count(), 1);
    assert!(!text.contains("eyJ") && text.contains("[jwt]"), "{text}");
    let record = read(&settings.directory, 0).unwrap().next().unwrap();
    assert_eq!(
        record.entry.peer.as_ref().unwrap().exe.as_ref().unwrap().path_hint.as_deref(),
        Some("a\n{\"x\":1}")
    );
    assert!(record.explain().contains("nobody this agent knows"));
}

/// A sink that counts, and fails when told to, after having written half.
struct Failing {
    file: File,
    fail: Arc<AtomicBool>,
    stuck: Arc<AtomicBool>,
    writes: Arc<AtomicUsize>,
}

impl Sink for Failing {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        if self.fail.load(Ordering::Relaxed) {
            self.file.write_all(&bytes[..bytes.len() / 2])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write_all(bytes)
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        if self.stuck.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.file.set_len(length)
    }

    fn flusher(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

fn failing(settings: &LedgerSettings) -> (Ledger, Scribe, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (ledger, scribe, fail, _, writes) = stuck(settings);
    (ledger, scribe, fail, writes)
}

type Stuck = (Ledger, Scribe, Arc<AtomicBool>, Arc<AtomicBool>, Arc<AtomicUsize>);

/// One that can also be kept from cutting off what was half written.
fn stuck(settings: &LedgerSettings) -> Stuck {
    let (ledger, scribe) = try_open(settings.clone()).unwrap();
    let (fail, stuck, writes) = Default::default();
    let file = OpenOptions::new().append(true).open(lines_of(settings)).unwrap();
    let sink =
        Failing { file, fail: Arc::clone(&fail), stuck: Arc::clone(&stuck), writes: Arc::clone(&writes) };
    (ledger, scribe.writing_to(Box::new(sink)), fail, stuck, writes)
}

#[tokio::test]
async fn a_crowd_shares_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let (ledger, scribe, _, writes) = failing(&settings);
    let running = tokio::spawn(scribe.run());
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..64 {
        let ledger = ledger.clone();
        callers.spawn(async move { ledger.record(entry(n)).await.unwrap().seq().unwrap() });
    }
    let mut seqs = callers.join_all().await;
    seqs.sort_unstable();
    assert_eq!(seqs, (0..64).collect::<Vec<_>>());
    assert!(writes.load(Ordering::Relaxed) <= 5, "{writes:?} writes for 64 callers");
    drop(ledger);
    running.await.unwrap();
    assert_eq!(verify(&settings.directory, None).unwrap().records, 64);
}

#[tokio::test]
async fn a_full_disk_means_no_receipt_and_no_torn_line() {
    // AUD-02, audit_fail = closed
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let (ledger, scribe, fail, _) = failing(&settings);
    let running = tokio::spawn(scribe.run());
    let _ = ledger.record(entry(0)).await.unwrap();
    fail.store(true, Ordering::Relaxed);
    let refused = ledger.record(entry(1)).await;
    assert!(matches!(refused, Err(LedgerError::Unwritable(io::ErrorKind::StorageFull))));
    assert!(!ledger.health().healthy);
    fail.store(false, Ordering::Relaxed);
    assert_eq!(ledger.record(entry(2)).await.unwrap().seq(), Some(1));
    assert!(ledger.health().healthy);
    drop(ledger);
    running.await.unwrap();
    let report = verify(&settings.directory, None).unwrap();
    assert_eq!((report.records, report.torn), (2, false));
}

#[tokio::test]
async fn nothing_is_written_after_what_was_half_written() {
    // AUD-02: a directory that only lets files grow, say
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let (ledger, scribe, fail, stuck, _) = stuck(&settings);
    let running = tokio::spawn(scribe.run());
    let _ = ledger.record(entry(0)).await.unwrap();
    stuck.store(true, Ordering::Relaxed);
    fail.store(true, Ordering::Relaxed);
    ledger.record(entry(1)).await.unwrap_err();
    fail.store(false, Ordering::Relaxed);
    let refused = ledger.record(entry(2)).await;
    assert!(matches!(refused, Err(LedgerError::Unwritable(io::ErrorKind::PermissionDenied))), "{refused:?}");
    stuck.store(false, Ordering::Relaxed);
    assert_eq!(ledger.record(entry(3)).await.unwrap().seq(), Some(1));
    drop(ledger);
    running.await.unwrap();
    let report = verify(&settings.directory, None).unwrap();
    assert_eq!((report.records, report.torn), (2, false));
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_failed_is_no_healthier_for_a_record_after_it() {
    // AUD-23
    let dir = tempfile::tempdir().unwrap();
    let settings = LedgerSettings { checkpoint_records: 2, ..settings(dir.path()) };
    let (ledger, scribe) = try_open(settings.clone()).unwrap();
    // Where a checkpoint would go, there is something else.
    std::fs::create_dir_all(settings.directory.join("checkpoint/there")).unwrap();
    let running = tokio::spawn(scribe.run());
    for n in 0..2 {
        let _ = ledger.record(entry(n)).await.unwrap();
    }
    while ledger.health().healthy {
        tokio::task::yield_now().await;
    }
    let _ = ledger.record(entry(2)).await.unwrap();
    assert!(!ledger.health().healthy);
    std::fs::remove_dir_all(settings.directory.join("checkpoint")).unwrap();
    let _ = ledger.record(entry(3)).await.unwrap();
    while !ledger.health().healthy {
        tokio::task::yield_now().await;
    }
    drop(ledger);
    running.await.unwrap();
}

#[tokio::test]
async fn whoever_chose_to_go_on_is_told_how_much_is_lost() {
    // AUD-02, on_failure = allow
    let dir = tempfile::tempdir().unwrap();
    let settings = LedgerSettings { on_failure: OnFailure::Allow, ..settings(dir.path()) };
    let (ledger, scribe, fail, _) = failing(&settings);
    let running = tokio::spawn(scribe.run());
    fail.store(true, Ordering::Relaxed);
    for n in 0..3 {
        assert_eq!(ledger.record(entry(n)).await.unwrap().seq(), None);
    }
    fail.store(false, Ordering::Relaxed);
    assert_eq!(ledger.record(entry(3)).await.unwrap().seq(), Some(1));
    drop(ledger);
    running.await.unwrap();
    let gap = read(&settings.directory, 0).unwrap().next().unwrap();
    assert_eq!(gap.entry.event.kind, EventType::LedgerGap);
    assert!(gap.entry.detail.unwrap().starts_with("3 records"));
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_comes_with_time_and_with_records() {
    // AUD-23
    let dir = tempfile::tempdir().unwrap();
    let settings = LedgerSettings { checkpoint_records: 3, ..settings(dir.path()) };
    let (ledger, scribe) = try_open(settings.clone()).unwrap();
    let running = tokio::spawn(scribe.run());
    let _ = ledger.record(entry(0)).await.unwrap();
    assert!(!settings.directory.join("checkpoint").exists());
    tokio::time::sleep(Duration::from_secs(61)).await;
    let signed =
        |settings: &LedgerSettings| verify(&settings.directory, None).map_or(0, |report| report.signed);
    // The signing runs on a thread: time is paused, so its end is what there is to wait for.
    while signed(&settings) < 1 {
        tokio::task::yield_now().await;
    }
    for n in 1..4 {
        let _ = ledger.record(entry(n)).await.unwrap();
    }
    while signed(&settings) < 4 {
        tokio::task::yield_now().await;
    }
    drop(ledger);
    running.await.unwrap();
}

mod copies {
    //! Records in the journal too.

    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::journal::tests::fields;

    fn told(journal: &UnixDatagram) -> std::collections::BTreeMap<String, String> {
        let mut bytes = vec![0; 64 << 10];
        let length = journal.recv(&mut bytes).unwrap();
        fields(&bytes[..length])
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_record_is_in_the_journal_with_fields_to_ask_for() {
        // AUD-26
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = UnixDatagram::bind(&path).unwrap();
        let settings = LedgerSettings { journal: Some(path), ..settings(dir.path()) };
        let (ledger, scribe) = try_open(settings.clone()).unwrap();
        let running = tokio::spawn(scribe.run());
        let mut release =
            Entry::new(EventType::CredentialRelease, Outcome::Success, Uuid::from_u64_pair(1, 0));
        release.workload = Some(WorkloadPart { id: "shop".into(), ..WorkloadPart::default() });
        release.credential = Some(CredentialPart {
            name: Some("orders".into()),
            issuer: Some("corp".into()),
            token_hash: Some("ab12".into()),
            ..CredentialPart::default()
        });
        release.peer = Some(PeerPart {
            pid: 41,
            uid: 1000,
            unit: Some(UnitPart { name: "shop.service".into(), ..UnitPart::default() }),
            level: Some("L4".into()),
            ..PeerPart::default()
        });
        release.socket = Some("/run/keybearer/agent.sock".into());
        let line = Line::from(release);
        let _ = ledger.record(line.clone()).await.unwrap();
        let _ = ledger
            .record_alone(Line::again(line.told(), Uuid::from_u64_pair(1, 7), Some("4bf9".into())))
            .await
            .unwrap();
        let first = told(&journal);
        for (name, value) in [
            ("MESSAGE", "credential release success, shop orders"),
            ("MESSAGE_ID", "7fe6bde771224e228edec20964ed3014"),
            ("PRIORITY", "6"),
            ("SYSLOG_IDENTIFIER", "keybearer"),
            ("KEYBEARER_EVENT", "credential_release"),
            ("KEYBEARER_OUTCOME", "success"),
            ("KEYBEARER_IDENTITY", "shop"),
            ("KEYBEARER_CREDENTIAL", "orders"),
            ("KEYBEARER_ISSUER", "corp"),
            ("KEYBEARER_TOKEN_HASH", "ab12"),
            ("KEYBEARER_PEER_PID", "41"),
            ("KEYBEARER_PEER_UID", "1000"),
            ("KEYBEARER_PEER_UNIT", "shop.service"),
            ("KEYBEARER_LEVEL", "L4"),
            ("KEYBEARER_SOCKET", "/run/keybearer/agent.sock"),
            ("KEYBEARER_SEQ", "0"),
            ("KEYBEARER_EXCHANGE", &Uuid::from_u64_pair(1, 0).to_string()),
        ] {
            assert_eq!(first[name], value, "{name}");
        }
        assert_eq!(first.len(), 17, "what is not known is left out: {first:?}");
        let second = told(&journal);
        assert_eq!((&*second["KEYBEARER_SEQ"], &*second["KEYBEARER_TRACE"]), ("1", "4bf9"));
        assert_eq!(second["KEYBEARER_EXCHANGE"], Uuid::from_u64_pair(1, 7).to_string());
        // What strangers choose ends no field, and what looks like a token was taken out before.
        let mut hostile = entry(3).detail("eyJhbGciOiJFUzI1NiJ9.eyJjYW5hcnkiOjF9.c2lnbmF0dXJl");
        hostile.credential = Some(CredentialPart {
            name: Some("a\nKEYBEARER_IDENTITY=root\n".into()),
            ..CredentialPart::default()
        });
        let _ = ledger.record(hostile).await.unwrap();
        let third = told(&journal);
        assert_eq!(third["KEYBEARER_CREDENTIAL"], "a\nKEYBEARER_IDENTITY=root\n");
        assert!(!third.contains_key("KEYBEARER_IDENTITY") && third["MESSAGE"].contains("[jwt]"), "{third:?}");
        assert_eq!((&*third["PRIORITY"], &*third["KEYBEARER_REASON"]), ("4", "NO_IDENTITY"));
        assert_eq!(third["MESSAGE_ID"], "0cf1015dc11046b593a66a89952b5b94");
        assert_eq!(ledger.health().uncopied, Some(0));
        drop(ledger);
        running.await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_journal_that_is_not_there_or_reads_nothing_delays_nobody() {
        // AUD-26
        for there in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("journal");
            let deaf = there.then(|| UnixDatagram::bind(&path).unwrap());
            let settings = LedgerSettings { journal: Some(path.clone()), ..settings(dir.path()) };
            let (ledger, scribe) = try_open(settings.clone()).unwrap();
            let running = tokio::spawn(scribe.run());
            // More than a socket's queue and ours hold.
            for n in 0..4000 {
                assert_eq!(ledger.record_alone(entry(n)).await.unwrap().seq(), Some(n));
            }
            while ledger.health().uncopied == Some(0) {
                tokio::task::yield_now().await;
            }
            assert!(ledger.health().healthy);
            // Nor does the end wait for it.
            drop(ledger);
            running.await.unwrap();
            assert_eq!(verify(&settings.directory, None).unwrap().records, 4000);
            drop(deaf);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn that_records_were_lost_is_in_the_journal_too() {
        // AUD-26, AUD-02
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = UnixDatagram::bind(&path).unwrap();
        let settings =
            LedgerSettings { on_failure: OnFailure::Allow, journal: Some(path), ..settings(dir.path()) };
        let (ledger, scribe, fail, _) = failing(&settings);
        let running = tokio::spawn(scribe.run());
        fail.store(true, Ordering::Relaxed);
        let _ = ledger.record(entry(0)).await.unwrap();
        fail.store(false, Ordering::Relaxed);
        let _ = ledger.record(entry(1)).await.unwrap();
        let (gap, next) = (told(&journal), told(&journal));
        assert_eq!(
            (&*gap["KEYBEARER_EVENT"], &*gap["PRIORITY"], &*gap["KEYBEARER_SEQ"]),
            ("ledger_gap", "2", "0")
        );
        assert_eq!((&*next["KEYBEARER_EVENT"], &*next["KEYBEARER_SEQ"]), ("denial", "1"));
        drop(ledger);
        running.await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_journal_that_is_started_anew_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let first = UnixDatagram::bind(&path).unwrap();
        let (ledger, scribe) =
            try_open(LedgerSettings { journal: Some(path.clone()), ..settings(dir.path()) }).unwrap();
        let running = tokio::spawn(scribe.run());
        let _ = ledger.record(entry(0)).await.unwrap();
        assert_eq!(told(&first)["KEYBEARER_SEQ"], "0");
        drop(first);
        fs::remove_file(&path).unwrap();
        let second = UnixDatagram::bind(&path).unwrap();
        let _ = ledger.record(entry(1)).await.unwrap();
        assert_eq!(told(&second)["KEYBEARER_SEQ"], "1");
        drop(ledger);
        running.await.unwrap();
    }
}
