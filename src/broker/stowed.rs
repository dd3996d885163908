//! What is live, kept over a restart of the agent: an upgrade while an issuer is down costs no program its credential, and a lease
//! goes on for the process that has it. In goes the shelf as it is when the agent stops in order; out comes, for the next agent
//! of the same boot, what of it lives still.
//!
//! It is one sealed file in the runtime directory, on a tmpfs: gone with the host's power, and nothing without the key, which is in
//! the state directory; so that neither place alone tells anything. A memfd in the service manager's descriptor store would
//! hold the same bytes, sealed too, with a part that only runs where there is a service manager. The file is taken away when it
//! is read: what one agent left is taken up once. An agent that is killed leaves nothing, and the next one fetches anew.
//!
//! Certificates are not in it: each is kept with its key in a file of its own (`keys`). What is bound to a key that the next agent
//! does not have is let go of: nobody could use it.

use std::{collections::HashSet, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

use super::{Books, Live, timing::margin};
use crate::{
    clock::{Boot, Dice},
    credential::{Binding, Bound, Credential, Form, Payload, Window},
    issuer::{Order, Signers},
    keys::{SealedFile, SealingKey},
    secret::{Fingerprint, Secret},
};

/// What the bytes are sealed for.
const PURPOSE: &str = "what is live";

/// Where the shelf is kept.
#[derive(Debug)]
pub struct StowFile {
    file: SealedFile,
    /// Moments of one boot mean nothing in another.
    boot: String,
}

/// All of it.
#[derive(Deserialize, Serialize)]
struct Stowed {
    boot: String,
    live: Vec<StowedLive>,
}

/// What is live under one order.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct StowedLive {
    pub(super) order: Order,
    /// Whoever its issuer was.
    pub(super) who: String,
    credential: StowedCredential,
    /// Those before it that callers may hold still.
    before: Vec<StowedCredential>,
    /// In nanoseconds since boot: drawn once, not again.
    refresh_at: u64,
    asked: bool,
    uses_left: Option<u32>,
}

#[derive(Deserialize, Serialize)]
struct StowedCredential {
    secret: StowedSecret,
    /// In nanoseconds since boot.
    from: u64,
    until: u64,
    /// By the wall clock, in seconds.
    until_wall: i64,
    spent: Duration,
    binding: Binding,
    /// Of what binds it.
    thumbprint: Option<String>,
    scope: Vec<String>,
    audience: Option<String>,
    fingerprint: String,
    jti: Option<String>,
}

#[derive(Deserialize, Serialize)]
enum StowedSecret {
    Token(String),
    Values { values: Vec<(String, String)>, handle: String },
}

/// What has become of what was left.
pub(super) enum Found {
    /// It is live again.
    Live(Box<Live>),
    /// What it is bound to is not there yet.
    Unbound,
    /// It has ended, or what it is bound to is gone.
    Over,
}

impl StowFile {
    /// A file at `path`, sealed with `key`, for agents of the boot of this id.
    pub fn new(path: PathBuf, key: SealingKey, boot: String, dice: Arc<dyn Dice>) -> Self {
        Self { file: SealedFile::new(path, key, PURPOSE, dice), boot }
    }

    /// Leaves what is live for the next agent, and what is `unbound` still and was not had anew. How many orders that are.
    pub(super) fn leave<'a>(
        &self,
        live: impl Iterator<Item = (&'a Order, &'a Arc<Live>)>,
        unbound: Vec<StowedLive>,
        books: &Books,
        now: Boot,
    ) -> usize {
        let of = |(order, live): (&Order, &Arc<Live>)| StowedLive::of(order, books.who(order), live, now);
        let mut live: Vec<_> = live.filter_map(of).collect();
        let had: HashSet<Order> = live.iter().map(|live| live.order.clone()).collect();
        live.extend(unbound.into_iter().filter(|left| !had.contains(&left.order)));
        let path = self.file.path().display();
        let stowed = Stowed { boot: self.boot.clone(), live };
        let left = match &*stowed.live {
            [] => self.file.remove(),
            _ => self.file.write(&stowed),
        };
        match left {
            Ok(()) => stowed.live.len(),
            Err(error) => {
                tracing::error!(%error, %path, "what is live is not kept for the next start, which fetches anew: make room");
                0
            }
        }
    }

    /// What the agent before this one left, if it was one of this boot.
    pub(super) fn take(&self) -> Vec<StowedLive> {
        let path = self.file.path().display();
        let stowed = self.file.read::<Stowed>();
        // Before any of it is used: a file that stays would be what is live at another start.
        if let Err(error) = self.file.remove() {
            tracing::error!(%error, %path, "what was live before cannot be taken up: its file cannot be taken away");
            return vec![];
        }
        match stowed {
            Ok(None) => vec![],
            Ok(Some(stowed)) if stowed.boot == self.boot => stowed.live,
            Ok(Some(_)) => {
                tracing::info!(%path, "what was live before is of another boot and not taken up");
                vec![]
            }
            Err(error) => {
                tracing::warn!(%error, %path, "what was live before cannot be taken up and is fetched anew");
                vec![]
            }
        }
    }
}

impl StowedLive {
    fn of(order: &Order, who: &str, live: &Live, now: Boot) -> Option<Self> {
        let held = live.still_held(now);
        let mut before = held.iter().filter(|held| !Arc::ptr_eq(held, &live.credential));
        Some(Self {
            order: order.clone(),
            who: who.to_owned(),
            credential: StowedCredential::of(&live.credential)?,
            before: before.by_ref().filter_map(|credential| StowedCredential::of(credential)).collect(),
            refresh_at: live.refresh_at.as_nanos(),
            asked: live.was_asked(),
            uses_left: live.uses_left(),
        })
    }

    /// As what it was, with the keys of now.
    pub(super) fn revived(&self, signers: &Signers, now: Boot, wall: Timestamp) -> Found {
        let of = |credential: &StowedCredential| credential.revived(signers, now, wall);
        let credential = match of(&self.credential) {
            Ok(credential) => credential,
            Err(unbound) if unbound => return Found::Unbound,
            Err(_) => return Found::Over,
        };
        let window = &credential.window;
        Found::Live(Box::new(Live {
            refresh_at: Boot::from_nanos(self.refresh_at),
            serve_until: window.until - margin(window.life()),
            before: self.before.iter().filter_map(|before| of(before).ok()).map(Arc::new).collect(),
            asked: self.asked.into(),
            uses_left: self.uses_left.map(Into::into),
            credential: Arc::new(credential),
        }))
    }

    /// As much of it as its issuer needs to end it; nothing, if it has ended.
    pub(super) fn to_revoke(&self, now: Boot, wall: Timestamp) -> Vec<Credential> {
        let all = std::iter::once(&self.credential).chain(&self.before);
        all.filter_map(|credential| credential.with(Bound::Bearer, now, wall)).collect()
    }
}

impl StowedCredential {
    /// None of a certificate, which is kept elsewhere, and of what is no text.
    fn of(credential: &Credential) -> Option<Self> {
        let text = |secret: &Secret| secret.expose_str().map(str::to_owned);
        let secret = match &credential.payload {
            // What is static lies sealed already.
            Payload::Certificate { .. } | Payload::Static(_) => return None,
            Payload::Token(token) => StowedSecret::Token(text(token)?),
            Payload::Values { values, handle } => StowedSecret::Values {
                values: values
                    .iter()
                    .map(|(name, value)| Some((name.clone(), text(value)?)))
                    .collect::<Option<_>>()?,
                handle: text(handle)?,
            },
        };
        let window = &credential.window;
        Some(Self {
            secret,
            from: window.from.as_nanos(),
            until: window.until.as_nanos(),
            until_wall: window.until_wall.as_second(),
            spent: window.spent,
            binding: credential.binding(),
            thumbprint: credential.bound.thumbprint().map(str::to_owned),
            scope: credential.scope.clone(),
            audience: credential.audience.clone(),
            fingerprint: credential.fingerprint.to_string(),
            jti: credential.jti.map(|jti| jti.to_string()),
        })
    }

    /// With what binds it; or whether that may be there later.
    fn revived(&self, signers: &Signers, now: Boot, wall: Timestamp) -> Result<Credential, bool> {
        let is = |thumbprint: &str| self.thumbprint.as_deref() == Some(thumbprint);
        let bound = match self.binding {
            Binding::Bearer => Some(Bound::Bearer),
            Binding::Dpop => signers.dpop.clone().filter(|key| is(key.kid())).map(Bound::Dpop),
            Binding::Mtls => {
                signers.certificates.iter().find(|one| is(one.thumbprint())).cloned().map(Bound::Mtls)
            }
        };
        let ended = self.window(now, wall).is_none();
        let bound = bound.ok_or(!ended && self.binding == Binding::Mtls)?;
        self.with(bound, now, wall).ok_or(false)
    }

    fn with(&self, bound: Bound, now: Boot, wall: Timestamp) -> Option<Credential> {
        Some(Credential {
            payload: match &self.secret {
                StowedSecret::Token(token) => Payload::Token(Secret::new(token.as_str())),
                StowedSecret::Values { values, handle } => Payload::Values {
                    values: values
                        .iter()
                        .map(|(name, value)| (name.clone(), Secret::new(value.as_str())))
                        .collect(),
                    handle: Secret::new(handle.as_str()),
                },
            },
            window: self.window(now, wall)?,
            bound,
            scope: self.scope.clone(),
            audience: self.audience.clone(),
            fingerprint: fingerprint(&self.fingerprint)?,
            jti: self.jti.as_deref().and_then(fingerprint),
            form: Form::default(),
        })
    }

    /// What is left of it, by the clock that has less left: whoever kept the file for longer gains nothing (CLK-01).
    fn window(&self, now: Boot, wall: Timestamp) -> Option<Window> {
        let until_wall = Timestamp::from_second(self.until_wall).ok()?;
        let left = Duration::try_from(until_wall.duration_since(wall)).ok()?;
        let until = Boot::from_nanos(self.until).min(now + left);
        let from = Boot::from_nanos(self.from);
        (now < until && from <= now).then_some(Window { from, until, until_wall, spent: self.spent })
    }
}

impl Drop for StowedSecret {
    fn drop(&mut self) {
        match self {
            Self::Token(token) => token.zeroize(),
            Self::Values { values, handle } => {
                handle.zeroize();
                values.iter_mut().for_each(|(_, value)| value.zeroize());
            }
        }
    }
}

impl std::fmt::Debug for StowedCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StowedCredential({})", self.fingerprint)
    }
}

fn fingerprint(text: &str) -> Option<Fingerprint> {
    text.parse().ok()
}
