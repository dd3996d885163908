//! The host's service manager, asking for units as they start (`LoadCredential=ID:/run/keybearer/systemd.sock`). In goes a connection
//! from root whose address names a unit and a credential; out come the credential's bytes and the end, or the end alone: the protocol
//! has no way to say no, so why not is on record and in the log, and the unit's `ExecStartPre=/usr/bin/test -s %d/ID` makes it fail.
//!
//! Nothing is read here. What is written is bounded in size and in time, so that a client which does not read holds nothing.

use std::{sync::Arc, time::Duration};

use tokio::{io::AsyncWriteExt as _, net::UnixStream, time::timeout};
use zeroize::Zeroize as _;

use super::{Common, accept_all, grpc, status::told};
use crate::{
    attest::{AttestError, Errand},
    deliver::Source,
    journey::{self, Answer, Journey, Refusal, Session},
    policy::{Door, name_is_sound},
    proto::v1::{Credential, LeasedValues, StaticValues, credential::Kind},
    secret::Secret,
    wire::{Accepted, Ended, Listener},
};

/// How long a unit waits for an issuer: well below the 90 s that systemd gives a unit to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the service manager may take to read.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// The most that systemd takes for all the credentials of a unit (CREDENTIALS_TOTAL_SIZE_MAX).
const MOST: usize = 1 << 20;

/// Serves the service manager on `listener` until it is time to stop, then lets those who are being served finish.
pub async fn serve_manager(listener: Listener, common: Common) {
    let journey = Arc::clone(&common.journey);
    accept_all(listener, door, common, |accepted, session, _| serve_one(journey, accepted, session)).await;
}

/// Who comes here, and for what; nobody else is heard.
fn door(accepted: &Accepted) -> Result<Door, AttestError> {
    let errand = Errand::of(&accepted.socket, &accepted.peer);
    if let Err(error) = &errand {
        tracing::warn!(pid = accepted.peer.pid(), uid = accepted.peer.uid(), %error, "refused at the service manager's socket");
    }
    Ok(Door::ServiceManager(Arc::new(errand?)))
}

async fn serve_one(journey: Arc<Journey>, accepted: Accepted, session: Arc<Session>) -> Ended {
    let Accepted { mut socket, peer } = accepted;
    let gone = match peer.outlived() {
        Ok(gone) => gone,
        Err(error) => {
            tracing::error!(%error, "a unit gets no credential: nobody could tell when its service manager is gone");
            return Ended::Closed;
        }
    };
    tokio::select! {
        answered = answer(&journey, &session) => match answered {
            Some(value) => write(&mut socket, &value).await,
            None => Ended::Closed,
        },
        // systemd gave the unit up: there is nobody left to tell.
        () = gone => Ended::PeerExited,
    }
}

async fn write(socket: &mut UnixStream, value: &Secret) -> Ended {
    let written = timeout(READ_WITHIN, async {
        socket.write_all(value.expose()).await?;
        socket.shutdown().await
    });
    match written.await {
        Ok(_) => Ended::Closed,
        Err(_) => Ended::Idle,
    }
}

/// What the unit finds in its file; nothing if there is nothing for it, and then the log says why.
async fn answer(journey: &Journey, session: &Arc<Session>) -> Option<Secret> {
    let errand = session.errand()?;
    let Errand { unit, credential } = errand;
    let Some(wanted) = Wanted::of(credential) else {
        return refuse(journey, session, errand, "its id is neither CREDENTIAL nor CREDENTIAL.FIELD").await;
    };
    let request = journey::Request {
        name: wanted.name().to_owned(),
        patience: PATIENCE,
        ..journey::Request::default()
    };
    let answer = match journey.fulfil(&session.enter(), &request).await {
        Ok(answer) => answer,
        Err(refusal) => {
            let said = told(&refusal);
            let (reason, advice) = match &refusal {
                Refusal::Denied(_, reason) => (reason.as_str(), reason.remedy()),
                _ => (said.reason, said.message),
            };
            let exchange = said.exchange.unwrap_or_default();
            tracing::warn!(%unit, %credential, reason, advice, exchange, "a unit gets no credential");
            return None;
        }
    };
    match wanted.value(&answer) {
        Ok(value) if value.len() > MOST => {
            refuse(journey, session, errand, "it is more than the 1 MiB that systemd takes").await
        }
        Ok(value) if value.is_empty() => refuse(journey, session, errand, "its value is empty").await,
        Ok(value) => {
            let exchange = answer.receipt().exchange();
            tracing::info!(%unit, %credential, %exchange, "a unit gets a credential");
            Some(value)
        }
        Err(why) => refuse(journey, session, errand, &why).await,
    }
}

/// A credential that is there for the unit, but not so as the unit wants it.
async fn refuse(journey: &Journey, session: &Session, errand: &Errand, why: &str) -> Option<Secret> {
    let Errand { unit, credential } = errand;
    tracing::warn!(%unit, %credential, why, "a unit gets no credential");
    // Nothing is answered in either case; if it cannot be written, the ledger's health says so.
    let _ = journey.broke_protocol(session, &format!("{credential} of {unit}: {why}")).await;
    None
}

/// What of a credential is wanted.
#[derive(Debug, PartialEq)]
enum Wanted {
    /// What it is used by.
    Usual(String),
    /// One of its fields.
    Field(Source),
}

impl Wanted {
    /// Reads the id of a credential.
    fn of(id: &str) -> Option<Self> {
        let wanted = match id.contains('.') {
            true => Self::Field(id.parse().ok()?),
            false => Self::Usual(id.to_owned()),
        };
        name_is_sound(wanted.name()).then_some(wanted)
    }

    fn name(&self) -> &str {
        match self {
            Self::Usual(name) => name,
            Self::Field(source) => &source.credential,
        }
    }

    /// The value; or why there is none, in words.
    fn value(&self, answer: &Answer) -> Result<Secret, String> {
        let key = answer.client_certificate().and_then(|(_, key)| key);
        let whole = Wiped(grpc::whole(self.name(), answer.credential(), key));
        match self {
            Self::Usual(name) => usual(name, &whole.0),
            Self::Field(source) => source.value(&whole.0).map_err(|error| error.to_string()),
        }
    }
}

/// What a credential is used by: a token itself, a certificate with its key or without where that stays here, and all values of a
/// lease as a JSON object.
fn usual(name: &str, whole: &Credential) -> Result<Secret, String> {
    let field = |field: &str| {
        let source = Source { credential: name.into(), field: field.to_owned() };
        source.value(whole).map_err(|error| error.to_string())
    };
    match &whole.kind {
        Some(Kind::LeasedValues(LeasedValues { values }) | Kind::StaticValues(StaticValues { values })) => {
            let sorted: std::collections::BTreeMap<_, _> = values.iter().collect();
            serde_json::to_vec(&sorted).map(Secret::new).map_err(|error| error.to_string())
        }
        Some(Kind::X509Certificate(_)) => field("pair").or_else(|_| field("chain")),
        Some(Kind::AccessToken(_)) => field("token"),
        None => Err("this version does not know that kind of credential".into()),
    }
}

/// A credential as it is told, which leaves nothing behind.
struct Wiped(Credential);

impl Drop for Wiped {
    fn drop(&mut self) {
        match &mut self.0.kind {
            Some(Kind::AccessToken(token)) => token.token.zeroize(),
            Some(
                Kind::LeasedValues(LeasedValues { values }) | Kind::StaticValues(StaticValues { values }),
            ) => {
                values.values_mut().for_each(|value| value.zeroize());
            }
            Some(Kind::X509Certificate(_)) | None => {}
        }
        if let Some(shown) = &mut self.0.client_certificate {
            shown.key_pem.zeroize();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::{AccessToken, ClientCertificate, X509Certificate};

    #[test]
    fn an_id_is_a_credential_or_one_of_its_fields() {
        assert_eq!(Wanted::of("ledger"), Some(Wanted::Usual("ledger".into())));
        assert_eq!(Wanted::of("ledger.token"), Some(Wanted::Field("ledger.token".parse().unwrap())));
        for bad in ["", ".", "ledger.", ".token", "Ledger", "a b", "ledger.a b", "../ledger", &"a".repeat(64)]
        {
            assert_eq!(Wanted::of(bad), None, "{bad:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_holds_nothing() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let much = Secret::new(vec![b'x'; MOST]);
        let (before, ended) = (tokio::time::Instant::now(), write(&mut ours, &much).await);
        assert_eq!((ended, before.elapsed()), (Ended::Idle, READ_WITHIN));
        drop(ours);
        // Who reads has all of it, and then the end.
        let (mut ours, mut reads) = UnixStream::pair().unwrap();
        let mut read = Vec::new();
        let (ended, _) = tokio::join!(
            write(&mut ours, &much),
            tokio::io::AsyncReadExt::read_to_end(&mut reads, &mut read)
        );
        assert_eq!((ended, read.as_slice()), (Ended::Closed, much.expose()));
        drop(theirs);
    }

    fn told(kind: Kind, key: &str) -> String {
        let shown = ClientCertificate { chain_pem: "C".into(), key_pem: key.into() };
        let client_certificate = matches!(kind, Kind::X509Certificate(_)).then_some(shown);
        let whole = Wiped(Credential { kind: Some(kind), client_certificate, ..Credential::default() });
        usual("c", &whole.0).unwrap().expose_str().unwrap().to_owned()
    }

    #[test]
    fn each_kind_has_what_it_is_used_by() {
        let token = AccessToken { token: "t".into(), token_type: "Bearer".into() };
        assert_eq!(told(Kind::AccessToken(token), ""), "t");
        let certificate = || Kind::X509Certificate(X509Certificate { bundle_pem: "R".into() });
        assert_eq!(told(certificate(), "K"), "KC");
        assert_eq!(told(certificate(), ""), "C", "the key stays here");
        let values = [("username".into(), "u\n".into()), ("password".into(), "p".into())].into();
        assert_eq!(
            told(Kind::LeasedValues(LeasedValues { values }), ""),
            r#"{"password":"p","username":"u\n"}"#
        );
    }
}
