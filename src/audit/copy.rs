//! A copy of each record in the host's journal (AUD-26). In go lines that are written; out come entries that can be asked for by what they say
//! (`journalctl KEYBEARER_IDENTITY=shop`). A second line for whoever reads journals, sealed by the journal's own means; the
//! ledger is the evidence.
//!
//! Nothing waits for it: a line is put into a queue once it is on file, and a task of its own sends it, after the answer as a rule. A
//! journal that is slow is waited for by that task alone; what does not fit the queue meanwhile, or cannot be sent, is counted as lost.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    net::UnixDatagram,
    sync::{mpsc, oneshot},
};

use super::{Entry, EventType, Line, Outcome, export::severity};
use crate::journal::{put, put_head};

/// How many copies may wait. Each is a pointer to what its record says.
const QUEUE: usize = 1024;

/// Where lines go that are to be copied.
#[derive(Debug)]
pub(super) struct Copies {
    sender: mpsc::Sender<(u64, Line)>,
    lost: Arc<AtomicU64>,
}

/// Who copies them. One task.
#[derive(Debug)]
pub(super) struct Copyist {
    receiver: mpsc::Receiver<(u64, Line)>,
    path: PathBuf,
    lost: Arc<AtomicU64>,
}

/// Copies to the journal that listens at `path`.
pub(super) fn copies(path: PathBuf) -> (Copies, Copyist) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let lost = Arc::new(AtomicU64::new(0));
    (Copies { sender, lost: Arc::clone(&lost) }, Copyist { receiver, path, lost })
}

impl Copies {
    /// Has record `seq` copied, if there is room for it.
    pub(super) fn put(&self, seq: u64, line: &Line) {
        if self.sender.try_send((seq, line.clone())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many were not copied.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Copyist {
    /// Copies until `stop`, and then what can be copied without waiting.
    pub(super) async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut socket = None;
        let mut entry = Vec::new();
        loop {
            let next = tokio::select! {
                biased;
                next = self.receiver.recv() => next,
                _ = &mut stop => break,
            };
            let Some((seq, line)) = next else { return };
            said(&mut entry, seq, &line);
            tokio::select! {
                biased;
                () = self.send(&mut socket, &entry) => {}
                _ = &mut stop => {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    break;
                }
            }
        }
        while let Ok((seq, line)) = self.receiver.try_recv() {
            said(&mut entry, seq, &line);
            let sent = socket.as_ref().is_some_and(|socket: &UnixDatagram| socket.try_send(&entry).is_ok());
            self.lost.fetch_add(u64::from(!sent), Ordering::Relaxed);
        }
    }

    /// Sends an entry, once the journal takes it. One that was started anew may listen at another socket: it is looked for once.
    async fn send(&self, socket: &mut Option<UnixDatagram>, entry: &[u8]) {
        for _ in 0..2 {
            if socket.is_none() {
                *socket = connected(&self.path).ok();
            }
            let Some(there) = socket.as_ref() else { break };
            match there.send(entry).await {
                Ok(_) => return,
                // The journal is there, and does not take this one.
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => break,
                Err(error) => {
                    if error.kind() != ErrorKind::ConnectionRefused {
                        tracing::debug!(%error, "the journal is out of reach");
                    }
                    *socket = None;
                }
            }
        }
        self.lost.fetch_add(1, Ordering::Relaxed);
    }
}

fn connected(path: &Path) -> std::io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    Ok(socket)
}

/// The copy of a record.
fn said(out: &mut Vec<u8>, seq: u64, line: &Line) {
    out.clear();
    out.extend_from_slice(line.copied(fields));
    put(out, "KEYBEARER_SEQ", &seq.to_string());
    put(out, "KEYBEARER_EXCHANGE", &line.exchange().to_string());
    if let Some(trace) = line.trace_id() {
        put(out, "KEYBEARER_TRACE", trace);
    }
}

/// What a record says beside its number and its exchange.
fn fields(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::new();
    let event = &entry.event;
    put_head(&mut out, severity(event.kind, event.outcome).into());
    put(&mut out, "MESSAGE_ID", family(event.kind, event.outcome));
    put(&mut out, "MESSAGE", &entry.sentence());
    let (who, what, peer) = (entry.workload.as_ref(), entry.credential.as_ref(), entry.peer.as_ref());
    let unit = peer.and_then(|peer| peer.unit.as_ref()).map(|unit| unit.name.clone());
    for (name, value) in [
        ("KEYBEARER_EVENT", Some(event.kind.word())),
        ("KEYBEARER_OUTCOME", Some(event.outcome.word())),
        ("KEYBEARER_REASON", event.reason.clone()),
        ("KEYBEARER_IDENTITY", who.map(|who| who.id.clone())),
        ("KEYBEARER_CREDENTIAL", what.and_then(|what| what.name.clone())),
        ("KEYBEARER_ISSUER", what.and_then(|what| what.issuer.clone())),
        ("KEYBEARER_TOKEN_HASH", what.and_then(|what| what.token_hash.clone())),
        ("KEYBEARER_PEER_PID", peer.map(|peer| peer.pid.to_string())),
        ("KEYBEARER_PEER_UID", peer.map(|peer| peer.uid.to_string())),
        ("KEYBEARER_PEER_UNIT", unit),
        ("KEYBEARER_FOR_UNIT", entry.service_manager.as_ref().map(|errand| errand.unit.clone())),
        ("KEYBEARER_LEVEL", peer.and_then(|peer| peer.level.clone())),
        ("KEYBEARER_SOCKET", entry.socket.clone()),
    ] {
        if let Some(value) = value {
            put(&mut out, name, &value);
        }
    }
    out
}

/// What an entry is about: one id for each kind of thing that somebody could want to be told of. They never change their meaning.
fn family(kind: EventType, outcome: Outcome) -> &'static str {
    match (kind, outcome) {
        // Somebody asked for something and did not get it.
        (
            EventType::CredentialIssue
            | EventType::CredentialRelease
            | EventType::ForwardAnswer
            | EventType::ForwardSend
            | EventType::ProofMint,
            Outcome::Denied | Outcome::Failed,
        )
        | (
            EventType::AttestationFailure | EventType::Denial | EventType::IssueFailure | EventType::Protocol,
            _,
        ) => "0cf1015dc11046b593a66a89952b5b94",
        // A credential was handed out.
        (EventType::CredentialIssue | EventType::CredentialRelease, Outcome::Success) => {
            "7fe6bde771224e228edec20964ed3014"
        }
        // A credential was kept fresh, or was not; given back, or taken away.
        (
            EventType::CredentialRenew
            | EventType::CredentialReturn
            | EventType::CredentialRevoke
            | EventType::OperatorRevoke,
            _,
        ) => "40592813f3764f45ae3981ad79392da3",
        // A credential was used by way of the agent.
        (EventType::ForwardAnswer | EventType::ForwardSend | EventType::ProofMint, Outcome::Success) => {
            "6788453adda74aada5afabd91c9a28a2"
        }
        // Alarms and signals.
        (
            EventType::HumanSession | EventType::NewPlace | EventType::ReuseDetected | EventType::TwoPlaces,
            _,
        ) => "6fe41fcba7d246069a110bd5393e1f7e",
        // Keys, certificates, secrets and identities.
        (
            EventType::CertificateEnding
            | EventType::ExceptionEnding
            | EventType::IdentityDisable
            | EventType::IdentityEnable
            | EventType::KeyOpen
            | EventType::KeyRegister
            | EventType::KeyRotate
            | EventType::SecretSeal,
            _,
        ) => "9cd461aca1d04579b355108a85af40c3",
        // The agent and its settings.
        (
            EventType::AgentStart | EventType::AgentStop | EventType::ConfigLoad | EventType::ConfigRefused,
            _,
        ) => "57797feb84714a2387d2701d5918724c",
        // The ledger itself.
        (EventType::LedgerGap | EventType::LedgerRepaired | EventType::LedgerTurned, _) => {
            "39201df0324046f5954a8c07568c0eed"
        }
        // Questions.
        (EventType::Describe | EventType::Explain, _) => "bcab3a308feb40938b120e32390c254c",
    }
}
