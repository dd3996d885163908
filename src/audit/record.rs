//! One record: who called what, from where, under which policy decision. In go the facts of one exchange; out comes
//! one line of JSON. What is not known is `null`, never invented (AUD-04); no field can hold a key, a token or an
//! assertion, only fingerprints of them (AUD-05).
//! Over 400 lines, because it is the list of all that a record can say.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::secret::scrubbed;

/// No text in a record is longer.
const MAX_TEXT: usize = 1024;

/// A record as written: what the ledger adds, and what the caller said.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Record {
    /// The version of this form.
    pub v: u32,
    /// Its number in this ledger, from 0: also the index of its leaf.
    pub seq: u64,
    /// The wall clock, RFC 3339 in UTC with milliseconds (AUD-06).
    pub time: String,
    /// Nanoseconds since boot.
    pub boot_ns: u64,
    /// Which boot.
    pub boot_id: String,
    /// Which host.
    pub host: Host,
    /// Which agent.
    pub agent: Agent,
    /// What the caller said.
    #[serde(flatten)]
    pub entry: Entry,
    /// The leaf hash of the record before, hexadecimal; zeros for the first.
    pub prev: String,
}

/// Which host.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Host {
    /// machine-id(5), if there is one.
    pub id: Option<String>,
    /// Its name.
    pub name: String,
}

/// Which agent, under which settings.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Agent {
    /// Its version.
    pub version: String,
    /// This run of it.
    pub instance: String,
    /// SHA-256 of the settings in force.
    pub config_digest: String,
}

/// What is said about one exchange.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Entry {
    /// What happened.
    pub event: Event,
    /// The exchange, as the caller was told it (AUD-08).
    pub exchange_id: uuid_text::Id,
    /// The caller's W3C trace, if it sent a valid one.
    pub trace_id: Option<String>,
    /// Who.
    pub workload: Option<WorkloadPart>,
    /// From where.
    pub peer: Option<PeerPart>,
    /// By which socket.
    pub socket: Option<String>,
    /// What the host's service manager came for, where it is the one who asks: then the peer is its process, and the program does
    /// not run yet.
    #[serde(default)]
    pub service_manager: Option<ErrandPart>,
    /// What.
    pub credential: Option<CredentialPart>,
    /// The request to an API that it is about: one that a proof was wanted for, or one that the agent was asked to make.
    #[serde(default)]
    pub target: Option<TargetPart>,
    /// Whose it is, where somebody else used it.
    #[serde(default)]
    pub holder: Option<HolderPart>,
    /// Under which decision.
    pub policy: Option<PolicyPart>,
    /// What the issuer said.
    pub issuer_response: Option<IssuerPart>,
    /// What the API said.
    #[serde(default)]
    pub api_response: Option<ApiPart>,
    /// Which file of the ledger was closed, and what is kept.
    #[serde(default)]
    pub ledger: Option<LedgerPart>,
    /// Anything else worth knowing.
    pub detail: Option<String>,
}

impl Entry {
    /// An entry that says only what happened.
    pub fn new(kind: EventType, outcome: Outcome, exchange_id: uuid::Uuid) -> Self {
        Self {
            event: Event { kind, outcome, reason: None },
            exchange_id: uuid_text::Id(exchange_id),
            trace_id: None,
            workload: None,
            peer: None,
            socket: None,
            service_manager: None,
            credential: None,
            target: None,
            holder: None,
            policy: None,
            issuer_response: None,
            api_response: None,
            ledger: None,
            detail: None,
        }
    }

    /// With the reason code.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.event.reason = Some(reason.into());
        self
    }

    /// With a sentence. It is scrubbed of what looks like a token (AUD-05).
    #[must_use]
    pub fn detail(mut self, text: impl AsRef<str>) -> Self {
        self.detail = Some(scrubbed(text.as_ref(), MAX_TEXT));
        self
    }

    /// A sentence for people.
    pub(super) fn sentence(&self) -> String {
        let (kind, outcome) = (snake(&self.event.kind), snake(&self.event.outcome));
        let who = self.workload.as_ref().map_or("somebody unknown", |who| &who.id);
        let what = self.credential.as_ref().and_then(|what| what.name.as_deref());
        let what = what.map(|what| format!(" {what}")).unwrap_or_default();
        let reason = self.event.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        let detail = self.detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default();
        format!("{} {outcome}{reason}, {who}{what}{detail}", kind.replace('_', " "))
    }

    /// Cuts what strangers could have made long (AUD-07). JSON escapes the rest.
    pub(super) fn capped(mut self) -> Self {
        let cap = |text: &mut Option<String>| {
            if let Some(text) = text.as_mut().filter(|text| text.len() > MAX_TEXT) {
                let end = (0..=MAX_TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
                text.truncate(end);
            }
        };
        cap(&mut self.detail);
        cap(&mut self.trace_id);
        if let Some(exe) = self.peer.as_mut().and_then(|peer| peer.exe.as_mut()) {
            cap(&mut exe.path_hint);
        }
        if let Some(credential) = &mut self.credential {
            cap(&mut credential.name);
        }
        if let Some(target) = &mut self.target {
            target.htm.truncate(32);
            // Both are ASCII by the form of URLs.
            target.origin.truncate(MAX_TEXT);
            if let Some(path) = &mut target.path {
                *path = scrubbed(path, MAX_TEXT);
            }
        }
        if let Some(policy) = &mut self.policy {
            policy.missing.truncate(32);
        }
        self
    }
}

/// What happened, how it ended, why.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Event {
    /// What.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// How it ended.
    pub outcome: Outcome,
    /// The reason code, where there is one.
    pub reason: Option<String>,
}

/// What can happen (AUD-01).
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    /// The agent began.
    AgentStart,
    /// The agent ended.
    AgentStop,
    /// A caller could not be attested, or changed.
    AttestationFailure,
    /// A certificate ends that the agent cannot make anew, or has ended.
    CertificateEnding,
    /// New settings are in force.
    ConfigLoad,
    /// Settings were refused; the old ones stay.
    ConfigRefused,
    /// A credential was fetched from its issuer and handed out.
    CredentialIssue,
    /// A live credential was handed out.
    CredentialRelease,
    /// An issuer was asked so that a credential stays fresh: there is another, or the one before goes on.
    CredentialRenew,
    /// A credential was given back.
    CredentialReturn,
    /// A credential was revoked before its time, or could not be.
    CredentialRevoke,
    /// A caller asked who it is.
    Describe,
    /// Policy said no.
    Denial,
    /// An exception ends soon.
    ExceptionEnding,
    /// An operator asked why.
    Explain,
    /// What became of a request that the agent made for a program.
    ForwardAnswer,
    /// A request is about to leave for an API, made for a program with a credential of its own.
    ForwardSend,
    /// A person came as an identity that is a service's (NHI-10).
    HumanSession,
    /// An identity was switched off.
    IdentityDisable,
    /// An identity was switched on again.
    IdentityEnable,
    /// Policy said yes, the issuer did not.
    IssueFailure,
    /// A key was opened or made.
    KeyOpen,
    /// An issuer was told which keys are a client's, or could not be (KEY-09).
    KeyRegister,
    /// A key makes room for another: it was made, signs, was not taken, or was destroyed.
    KeyRotate,
    /// Records could not be written for a while.
    LedgerGap,
    /// A torn end was cut off at start.
    LedgerRepaired,
    /// The last record of a file: what follows is in the next one (AUD-25).
    LedgerTurned,
    /// An identity was used from a place that it was never used from (S17).
    NewPlace,
    /// An operator had credentials or keys ended before their time.
    OperatorRevoke,
    /// A proof of possession was made, or refused.
    ProofMint,
    /// A call broke the rules of the API.
    Protocol,
    /// An alarm: what was given to one was used by another (S10).
    ReuseDetected,
    /// An operator put in a secret that cannot be dynamic yet, or took it away, or could not (S1).
    SecretSeal,
    /// An identity is used from two places at once (NHI-9).
    TwoPlaces,
}

/// How it ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Refused.
    Denied,
    /// Tried, in vain.
    Failed,
    /// Done.
    Success,
}

impl EventType {
    /// Whether it tells of something beside what became of an exchange: that has a record of its own (S17).
    pub fn is_signal(self) -> bool {
        matches!(self, Self::HumanSession | Self::NewPlace | Self::ReuseDetected | Self::TwoPlaces)
    }

    /// As records write it.
    pub fn word(self) -> String {
        snake(&self)
    }
}

impl Outcome {
    /// As records write it.
    pub fn word(self) -> String {
        snake(&self)
    }
}

/// Who.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct WorkloadPart {
    /// The identity.
    pub id: String,
    /// The environment.
    pub env: String,
    /// Who answers for it.
    pub owner: Option<String>,
    /// What it demands.
    pub assurance: Option<String>,
}

/// From where: the process at the other end.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct PeerPart {
    /// Its pid.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
    /// Its uid.
    pub uid: u32,
    /// Its gid.
    pub gid: u32,
    /// Who logged in.
    pub loginuid: Option<u32>,
    /// Its program.
    pub exe: Option<ExePart>,
    /// Its unit.
    pub unit: Option<UnitPart>,
    /// Its container; not told apart yet.
    pub container: Option<String>,
    /// Whether it is in the agent's user namespace.
    pub same_userns: Option<bool>,
    /// Its mount namespace.
    pub mntns: Option<u64>,
    /// Whether it answered the challenge; unknown where nobody asked (ATT-17).
    #[serde(default)]
    pub challenge: Option<bool>,
    /// How strong all this is.
    pub level: Option<String>,
}

/// A program.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct ExePart {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// SHA-256, if it was asked for.
    pub sha256: Option<String>,
    /// The link text: a hint, never evidence.
    pub path_hint: Option<String>,
}

/// A systemd unit.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct UnitPart {
    /// Its name.
    pub name: String,
    /// This run of it.
    pub invocation_id: Option<String>,
    /// system, or user:UID.
    pub manager: String,
}

/// What a service manager asks for.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct ErrandPart {
    /// For which unit, by its own word; what the kernel says is the peer's unit.
    pub unit: String,
    /// The id of the credential in that unit: a credential's name, or one of its fields, as `ledger.token`.
    pub credential: String,
    /// What the identity matches beside the unit. Nobody can look at it yet: it is for the service manager to bring about.
    pub promised: Vec<String>,
}

/// What.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct CredentialPart {
    /// Its name, as asked for.
    pub name: Option<String>,
    /// Its kind.
    pub kind: Option<String>,
    /// The issuer.
    pub issuer: Option<String>,
    /// The client.
    pub client_id: Option<String>,
    /// The API.
    pub resource: Option<String>,
    /// The scope asked of the agent.
    pub scope_requested: Vec<String>,
    /// The scope granted.
    pub scope_granted: Option<Vec<String>>,
    /// Its life, in seconds.
    pub ttl_s: Option<u64>,
    /// Its end, RFC 3339.
    pub not_after: Option<String>,
    /// What binds it.
    pub binding: Option<String>,
    /// The thumbprint of the key that does.
    #[serde(default)]
    pub thumbprint: Option<String>,
    /// The first 16 bytes of its SHA-256.
    pub token_hash: Option<String>,
    /// The same of its `jti`.
    pub jti_hash: Option<String>,
    /// The key that proved us to the issuer.
    pub kid: Option<String>,
    /// From the issuer, or from the shelf.
    pub source: Option<String>,
}

/// A request to an API.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct TargetPart {
    /// Its method.
    pub htm: String,
    /// Where it goes; empty if that was never decided.
    pub origin: String,
    /// The path, where the agent makes the request: for a proof it may be nobody's business but the API's. Never the query.
    #[serde(default)]
    pub path: Option<String>,
    /// The first 16 bytes of the SHA-256 of the proof's `jti`, if one was made.
    pub jti_hash: Option<String>,
}

/// Whose a credential is that somebody else used (S10).
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct HolderPart {
    /// The identity.
    pub id: String,
    /// The credential's name.
    pub credential: String,
    /// The processes that it was given to, as far as they are known: a few of the first.
    pub processes: Vec<ProcessPart>,
}

/// One run of one process.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct ProcessPart {
    /// Its pid.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
}

/// Under which decision.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct PolicyPart {
    /// The rule, as `identity.credential`.
    pub rule: Option<String>,
    /// grant or deny.
    pub decision: String,
    /// SHA-256 of the settings it was read from.
    pub digest: String,
    /// The end of the exception that was used.
    pub exception_until: Option<String>,
    /// What was missing.
    pub missing: Vec<String>,
}

/// What the issuer said.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct IssuerPart {
    /// HTTP status.
    pub http_status: Option<u16>,
    /// OAuth error code.
    pub oauth_error: Option<String>,
    /// How long it took.
    pub latency_ms: Option<u64>,
    /// How many attempts.
    pub attempts: Option<u32>,
    /// How far its clock is from ours.
    pub date_skew_ms: Option<i64>,
    /// The life that it gave, where policy cut it (CLK-04).
    #[serde(default)]
    pub cut_life_from_s: Option<u64>,
    /// Whether it took only the key before (KEY-06).
    #[serde(default)]
    pub key_fallback: bool,
    /// Whether it sent a refresh token, which was thrown away (OA-29).
    #[serde(default)]
    pub refresh_token_ignored: bool,
    /// Whether it said that a one-time value of this agent had been used before (ER-10).
    #[serde(default)]
    pub one_time_reuse: bool,
    /// Whether its metadata are not those that are pinned (OA-05).
    #[serde(default)]
    pub metadata_changed: bool,
    /// Why a lease that was held goes on no longer, where there is another one instead.
    #[serde(default)]
    pub lease_replaced: Option<String>,
}

/// What an API said.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct ApiPart {
    /// HTTP status; none if there was no answer.
    pub http_status: Option<u16>,
    /// How long it took.
    pub latency_ms: Option<u64>,
    /// How often the request went out.
    pub attempts: u32,
}

/// A file of the ledger that ends with this record, and from where on the records themselves are kept. Before, only their leaf
/// hashes are.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct LedgerPart {
    /// The number of the file's first record.
    pub first: u64,
    /// The number of the first record that retention leaves.
    pub kept_from: u64,
}

impl Record {
    /// The record as answers to who, what, from where and under which decision (S28).
    pub fn explain(&self) -> String {
        let none = || "unknown".to_owned();
        let entry = &self.entry;
        let text = |value: &Option<String>| value.clone().unwrap_or_else(none);
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{name:<14}{value}");
        };
        let reason = entry.event.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        line("record", format!("{} of {}, {}", self.seq, self.agent.instance, self.time));
        line("event", format!("{}: {}{reason}", snake(&entry.event.kind), snake(&entry.event.outcome)));
        line("exchange", entry.exchange_id.0.to_string());
        line(
            "who",
            entry.workload.as_ref().map_or_else(
                || "nobody this agent knows".into(),
                |who| {
                    format!(
                        "{} in {}, owner {}, assurance {}",
                        who.id,
                        who.env,
                        text(&who.owner),
                        text(&who.assurance)
                    )
                },
            ),
        );
        line(
            "from where",
            entry.peer.as_ref().map_or_else(none, |peer| {
                let unit =
                    peer.unit.as_ref().map_or_else(|| "no unit".into(), |unit| format!("unit {}", unit.name));
                let exe = peer.exe.as_ref().and_then(|exe| exe.path_hint.clone()).unwrap_or_else(none);
                let level = text(&peer.level);
                format!(
                    "pid {} uid {} gid {}, {unit}, program {exe} (hint), level {level}, host {}",
                    peer.pid, peer.uid, peer.gid, self.host.name
                )
            }),
        );
        line(
            "what",
            entry.credential.as_ref().map_or_else(none, |what| {
                let scope = what.scope_granted.as_ref().unwrap_or(&what.scope_requested).join(" ");
                format!(
                    "{} from {} for {}, scope [{scope}], until {}, token {}",
                    text(&what.name),
                    text(&what.issuer),
                    text(&what.resource),
                    text(&what.not_after),
                    text(&what.token_hash)
                )
            }),
        );
        if let Some(errand) = &entry.service_manager {
            let promised = match &errand.promised[..] {
                [] => String::new(),
                keys => format!(", trusted with its {}", keys.join(" and ")),
            };
            line(
                "asked by",
                format!("the service manager, for {} of {}{promised}", errand.credential, errand.unit),
            );
        }
        if let Some(target) = &entry.target {
            match &target.path {
                None => line("proof for", format!("{} {}", target.htm, target.origin)),
                Some(path) => line("request", format!("{} {}{path}", target.htm, target.origin)),
            }
        }
        if let Some(holder) = &entry.holder {
            let pids: Vec<String> = holder.processes.iter().map(|one| one.pid.to_string()).collect();
            line("given to", format!("{} as {}, pid {}", holder.id, holder.credential, pids.join(", ")));
        }
        line(
            "decision",
            entry.policy.as_ref().map_or_else(none, |policy| {
                let digest = policy.digest.get(..12).unwrap_or(&policy.digest);
                format!("{} by {}, settings {digest}", policy.decision, text(&policy.rule))
            }),
        );
        for missing in entry.policy.iter().flat_map(|policy| &policy.missing) {
            line("missing", missing.clone());
        }
        if let Some(issuer) = &entry.issuer_response {
            let status = issuer.http_status.map_or_else(none, |status| status.to_string());
            let error = text(&issuer.oauth_error);
            line(
                "issuer said",
                format!("status {status}, error {error}, after {} ms", issuer.latency_ms.unwrap_or(0)),
            );
        }
        if let Some(api) = &entry.api_response {
            let status = api.http_status.map_or_else(none, |status| status.to_string());
            let (latency, attempts) = (api.latency_ms.unwrap_or(0), api.attempts);
            line("API said", format!("status {status} after {latency} ms, asked {attempts} times"));
        }
        if let Some(detail) = &entry.detail {
            line("detail", detail.clone());
        }
        out
    }
}

/// A word as records write it.
pub(super) fn snake(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// UUIDs as text.
pub mod uuid_text {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

    /// An exchange's id.
    #[derive(Clone, Copy, Debug, Eq, PartialEq)]
    pub struct Id(pub uuid::Uuid);

    impl Serialize for Id {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_str(self.0.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()))
        }
    }

    impl<'de> Deserialize<'de> for Id {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            String::deserialize(deserializer)?.parse().map(Self).map_err(D::Error::custom)
        }
    }
}
