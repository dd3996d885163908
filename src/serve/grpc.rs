//! `keybearer.v1.Credentials`: the workloads' API. In goes a call of an attested session; out comes what the journey
//! answered. Every call carries `keybearer: v1`, so that nothing that merely reaches the socket speaks by accident
//! (ATT-28).

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};
use prost_types::Timestamp;
use tokio::sync::watch;
use tonic::{Status, body::Body, service::Routes};
use tonic_health::ServingStatus;
use tower::Service as _;

use super::{
    forward,
    framed::{Framed, Next, Step, foreign, framed, read},
    proving,
    status::{EXCHANGE, invalid, told},
};
use crate::{
    audit::Receipt,
    clock::{Boot, Clock},
    credential::{Bound, Credential, Payload},
    journey::{self, Answer, Call, Journey, Session, Watching, trace_id},
    policy::name_is_sound,
    proto::v1::{
        AccessToken, Caller, ClientCertificate, Credential as Wire, DESCRIPTORS, DescribeRequest,
        DescribeResponse, GetRequest, LeasedValues, Offer, ProveRequest, ProveResponse, ReleaseRequest,
        ReleaseResponse, StaticValues, WatchRequest, X509Certificate, credential::Kind,
    },
    secret::Secret,
};

/// How long a caller waits that set no deadline of its own (CLK-05).
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest scope list a caller may send.
const MAX_SCOPES: usize = 64;

/// The name of the service, and how the path of each of its calls begins.
const SERVICE: &str = "keybearer.v1.Credentials";
const CALLS: &str = "/keybearer.v1.Credentials/";

/// Everything on the workloads' socket. What nearly every call is, is answered here; the rest is looked up.
#[derive(Clone, Debug)]
pub struct Workloads {
    face: Arc<Face>,
    others: Routes,
}

impl Workloads {
    /// The services of the workloads' socket.
    pub fn new(
        journey: Arc<Journey>,
        clock: Arc<dyn Clock>,
        stop: watch::Receiver<bool>,
        reflection: bool,
    ) -> Self {
        let (reporter, health) = tonic_health::server::health_reporter();
        tokio::spawn(async move { reporter.set_service_status(SERVICE, ServingStatus::Serving).await });
        let others = Routes::new(health);
        let others = if reflection { reflecting(others) } else { others };
        Self { face: Arc::new(Face { journey, clock, stop }), others: others.prepare() }
    }

    /// Answers one call. Boxed: the way is long, and an answer that is a stream outlives it.
    pub fn answer(
        &self,
        session: Arc<Session>,
        request: Request<Incoming>,
    ) -> Pin<Box<dyn Future<Output = Response<Framed>> + Send>> {
        if request.uri().path().starts_with(CALLS) {
            let (face, call) = (Arc::clone(&self.face), session.enter());
            return Box::pin(
                async move { face.answer(call, request).await.unwrap_or_else(Status::into_http) },
            );
        }
        if forward::is_meant(&request) {
            let (face, call) = (self.face.http(), session.enter());
            return Box::pin(async move {
                face.forward(&call, request).await.map(|body| Framed::Foreign(Body::new(body)))
            });
        }
        let answered = self.others.clone().call(request.map(Body::new));
        Box::pin(async move { foreign(answered.await) })
    }
}

fn reflecting(routes: Routes) -> Routes {
    match tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .build_v1()
    {
        Ok(reflection) => routes.add_service(reflection),
        Err(error) => {
            tracing::error!(%error, "the API cannot describe itself");
            routes
        }
    }
}

/// The face.
#[derive(Debug)]
struct Face {
    journey: Arc<Journey>,
    clock: Arc<dyn Clock>,
    stop: watch::Receiver<bool>,
}

impl Face {
    /// The same journey, for what is no gRPC.
    fn http(&self) -> super::http::Face {
        super::http::Face {
            journey: Arc::clone(&self.journey),
            clock: Arc::clone(&self.clock),
            stop: self.stop.clone(),
            metrics: None,
        }
    }

    async fn answer(
        self: Arc<Self>,
        call: Call,
        request: Request<Incoming>,
    ) -> Result<Response<Framed>, Status> {
        let (head, body) = request.into_parts();
        let headers = &head.headers;
        match head.uri.path().strip_prefix(CALLS) {
            Some("Get") => self.get(&call, headers, read(headers, body).await?).await,
            Some("Watch") => self.watch(&call, headers, read(headers, body).await?).await,
            Some("Describe") => self.describe(&call, headers, read(headers, body).await?).await,
            Some("Prove") => self.prove(&call, headers, read(headers, body).await?).await,
            Some("Release") => self.release(&call, headers, read(headers, body).await?).await,
            _ => Err(Status::unimplemented("there is no such call")),
        }
    }

    async fn get(
        &self,
        call: &Call,
        headers: &HeaderMap,
        said: GetRequest,
    ) -> Result<Response<Framed>, Status> {
        let asked = self.asked(call, headers, said.name, said.scope, said.min_ttl).await?;
        let answer = self.journey.fulfil(call, &asked).await.map_err(|no| told(&no).status())?;
        Ok(receipted(Framed::One(self.framed(&asked.name, &answer)), answer.receipt()))
    }

    async fn watch(
        self: &Arc<Self>,
        call: &Call,
        headers: &HeaderMap,
        said: WatchRequest,
    ) -> Result<Response<Framed>, Status> {
        let mut asked = self.asked(call, headers, said.name, said.scope, None).await?;
        // A deadline of the stream is not one of each fetch in it.
        asked.patience = PATIENCE;
        let (first, watching) = self.journey.watch(call, &asked).await.map_err(|no| told(&no).status())?;
        let message = self.framed(&asked.name, &first);
        let (face, session, stop) = (Arc::clone(self), Arc::clone(call), self.stop.clone());
        let listener = Listener { face, session, stop, asked, watching };
        Ok(receipted(Framed::Stream(Some(message), listener.step()), first.receipt()))
    }

    async fn describe(
        &self,
        call: &Call,
        headers: &HeaderMap,
        _: DescribeRequest,
    ) -> Result<Response<Framed>, Status> {
        self.keeps_the_rules(call, headers).await?;
        let (workload, entitlement, receipt) = self
            .journey
            .describe(call, &journey::Request::default())
            .await
            .map_err(|no| told(&no).status())?;
        let seen = workload.evidence();
        let offers = entitlement.credentials.iter().map(|rule| Offer {
            name: rule.name.to_string(),
            resource: rule.resource.as_deref().unwrap_or_default().into(),
            scope: rule.scope.iter().map(ToString::to_string).collect(),
            binding: rule.binding.as_str().into(),
            max_ttl: prost_types::Duration::try_from(rule.max_ttl).ok(),
            origins: rule.proofs.origins.clone(),
            username: rule.username.as_deref().unwrap_or_default().into(),
            per: rule.per.as_str().into(),
        });
        let response = DescribeResponse {
            identity: entitlement.identity.to_string(),
            level: seen.level().to_string(),
            assurance: entitlement.assurance.as_str().into(),
            credentials: offers.collect(),
            caller: Some(Caller {
                pid: seen.pid,
                uid: seen.uid(),
                gid: seen.gid(),
                unit: seen.unit.as_ref().map(|unit| unit.name.clone()).unwrap_or_default(),
            }),
            delivery: Some(entitlement.delivery.told()),
        };
        Ok(receipted(Framed::One(framed(&[&response.encode_to_vec()])), &receipt))
    }

    async fn prove(
        &self,
        call: &Call,
        headers: &HeaderMap,
        said: ProveRequest,
    ) -> Result<Response<Framed>, Status> {
        let asked = self.asked(call, headers, said.name, vec![], None).await?;
        let proving = match proving(&said.fingerprint, said.method, &said.url, &said.nonce) {
            Ok(proving) => proving,
            Err(what) => return Err(self.broke(call, what).await),
        };
        let proved = self.journey.prove(call, &asked, &proving).await.map_err(|no| told(&no).status())?;
        let proof = proved.proof().expose_str().unwrap_or_default().to_owned();
        Ok(receipted(Framed::One(framed(&[&ProveResponse { proof }.encode_to_vec()])), proved.receipt()))
    }

    async fn release(
        &self,
        call: &Call,
        headers: &HeaderMap,
        said: ReleaseRequest,
    ) -> Result<Response<Framed>, Status> {
        let asked = self.asked(call, headers, said.name, said.scope, None).await?;
        let (revoked, receipt) = self.journey.release(call, &asked).await.map_err(|no| told(&no).status())?;
        Ok(receipted(Framed::One(framed(&[&ReleaseResponse { revoked }.encode_to_vec()])), &receipt))
    }

    async fn keeps_the_rules(&self, session: &Session, headers: &HeaderMap) -> Result<(), Status> {
        if headers.get("keybearer").is_some_and(|value| value == "v1") {
            return Ok(());
        }
        Err(self.broke(session, "every call carries the metadata `keybearer: v1`").await)
    }

    /// A call that breaks the rules is answered so, and is on record.
    async fn broke(&self, session: &Session, what: &'static str) -> Status {
        let mut answer = invalid(what);
        match self.journey.broke_protocol(session, what).await {
            Ok(receipt) => answer.exchange = Some(receipt.exchange().to_string()),
            Err(refusal) => answer = told(&refusal),
        }
        answer.status()
    }

    async fn asked(
        &self,
        session: &Session,
        headers: &HeaderMap,
        name: String,
        scope: Vec<String>,
        min_ttl: Option<prost_types::Duration>,
    ) -> Result<journey::Request, Status> {
        self.keeps_the_rules(session, headers).await?;
        if !name_is_sound(&name) {
            return Err(self.broke(session, "`name` is 1 to 63 of a-z, 0-9, - and _").await);
        }
        if scope.len() > MAX_SCOPES
            || scope.iter().any(|scope| scope.is_empty() || scope.len() > 256 || !scope.is_ascii())
        {
            return Err(self
                .broke(session, "`scope` is at most 64 words of at most 256 ASCII characters")
                .await);
        }
        let min_ttl = match min_ttl.map(Duration::try_from) {
            None => Duration::ZERO,
            Some(Ok(min_ttl)) if min_ttl <= Duration::from_secs(86_400) => min_ttl,
            Some(_) => return Err(self.broke(session, "`min_ttl` is from 0 to a day").await),
        };
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let patience =
            text("grpc-timeout").and_then(grpc_timeout).map_or(PATIENCE, |said| said.min(PATIENCE));
        Ok(journey::Request {
            name,
            scope,
            min_ttl,
            patience,
            trace_id: text("traceparent").and_then(trace_id),
        })
    }

    fn framed(&self, name: &str, answer: &Answer) -> Bytes {
        let key = answer.client_certificate().and_then(|(_, key)| key);
        framed_credential(name, answer.credential(), key, self.clock.boot())
    }
}

/// An answer to `Get`, and a message of `Watch`: both are a credential in their first field. All of it is spelled out once,
/// but what is left of its life and a key that is not for everybody who gets it: what says the same field again is merged.
fn framed_credential(name: &str, credential: &Credential, key: Option<&Secret>, now: Boot) -> Bytes {
    let expires_in = prost_types::Duration::try_from(credential.window.left(now)).ok();
    let client_certificate = key
        .and_then(Secret::expose_str)
        .map(|key_pem| ClientCertificate { key_pem: key_pem.to_owned(), ..ClientCertificate::default() });
    let left = Wire { expires_in, client_certificate, ..Wire::default() }.encode_to_vec();
    let rest = credential.form.get_or_spell(name, || spelled(name, credential));
    let mut field = Vec::with_capacity(8);
    encode_key(1, WireType::LengthDelimited, &mut field);
    encode_varint((rest.len() + left.len()) as u64, &mut field);
    framed(&[&field, &rest, &left])
}

/// A credential as it is told, but for what changes from answer to answer.
fn spelled(name: &str, credential: &Credential) -> Vec<u8> {
    whole(name, credential, None).encode_to_vec()
}

/// A credential as the API tells it, with the key that is handed out with it, if one is.
pub(super) fn whole(name: &str, credential: &Credential, key: Option<&Secret>) -> Wire {
    let until = credential.window.until_wall;
    let client_certificate = match &credential.bound {
        Bound::Mtls(certificate) => {
            let key_pem = key.and_then(Secret::expose_str).unwrap_or_default().to_owned();
            Some(ClientCertificate { chain_pem: certificate.chain_pem(), key_pem })
        }
        _ => None,
    };
    Wire {
        name: name.to_owned(),
        kind: Some(kind(credential)),
        expires_at: Some(Timestamp { seconds: until.as_second(), nanos: until.subsec_nanosecond() }),
        expires_in: None,
        scope: credential.scope.clone(),
        audience: credential.audience.clone().unwrap_or_default(),
        binding: credential.binding().as_str().into(),
        fingerprint: credential.fingerprint.to_string(),
        thumbprint: credential.bound.thumbprint().unwrap_or_default().to_owned(),
        client_certificate,
    }
}

fn kind(credential: &Credential) -> Kind {
    let text = |secret: &Secret| secret.expose_str().unwrap_or_default().to_owned();
    match &credential.payload {
        Payload::Token(token) => Kind::AccessToken(AccessToken {
            token: text(token),
            token_type: credential.binding().scheme().into(),
        }),
        Payload::Certificate { bundle, .. } => {
            Kind::X509Certificate(X509Certificate { bundle_pem: bundle.to_string() })
        }
        Payload::Values { values, .. } => {
            let values = values.iter().map(|(name, value)| (name.clone(), text(value))).collect();
            Kind::LeasedValues(LeasedValues { values })
        }
        Payload::Static(values) => {
            let values = values.iter().map(|(name, value)| (name.clone(), text(value))).collect();
            Kind::StaticValues(StaticValues { values })
        }
    }
}

/// One who is sent the credential at each rotation until the right, the stream, the process or the agent ends.
struct Listener {
    face: Arc<Face>,
    session: Arc<Session>,
    stop: watch::Receiver<bool>,
    asked: journey::Request,
    watching: Watching,
}

impl Listener {
    /// The next message, whenever it comes.
    fn step(mut self) -> Step {
        Box::pin(async move {
            let answer = tokio::select! {
                next = self.face.journey.next(&self.session, &self.asked, &mut self.watching) => {
                    next.map_err(|refusal| told(&refusal).status())?
                }
                () = stopping(&mut self.stop) => {
                    return Err(Status::unavailable("the agent is shutting down: connect again"));
                }
            };
            let message = self.face.framed(&self.asked.name, &answer);
            Ok((message, Next(self.step())))
        })
    }
}

/// Waits until the agent stops.
async fn stopping(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn receipted(body: Framed, receipt: &Receipt) -> Response<Framed> {
    body.answer(EXCHANGE, &receipt.exchange().to_string())
}

/// The caller's deadline: digits and a unit (gRPC over HTTP/2, "Timeout").
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(amount.checked_mul(3600)?),
        "M" => Duration::from_secs(amount.checked_mul(60)?),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::ManualClock,
        credential::{Form, Window},
        proto::v1::{GetResponse, WatchResponse},
    };

    #[test]
    fn an_answer_in_two_parts_is_the_message_that_the_api_knows() {
        let clock = ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
        let token = Secret::new("token");
        let life = Duration::from_secs(300);
        let credential = Credential {
            fingerprint: token.fingerprint(),
            payload: Payload::Token(token),
            window: Window::opening(clock.boot(), clock.wall(), life),
            bound: Bound::Bearer,
            scope: vec!["read".into()],
            audience: Some("https://api".into()),
            jti: None,
            form: Form::default(),
        };
        for (name, passed) in [("orders", 0), ("orders", 100), ("other", 0), ("orders", 500)] {
            clock.advance(Duration::from_secs(passed));
            let bytes = framed_credential(name, &credential, None, clock.boot());
            let left = credential.window.left(clock.boot());
            assert_eq!(bytes[..5], [&[0], &(bytes.len() as u32 - 5).to_be_bytes()[..]].concat());
            let told = GetResponse::decode(&bytes[5..]).unwrap().credential.unwrap();
            assert_eq!(WatchResponse::decode(&bytes[5..]).unwrap().credential.as_ref(), Some(&told));
            assert_eq!((told.name.as_str(), told.audience.as_str()), (name, "https://api"));
            assert_eq!(told.expires_in, Some(left.try_into().unwrap()));
            let Some(Kind::AccessToken(access)) = told.kind else { panic!("no token") };
            assert_eq!((access.token.as_str(), access.token_type.as_str()), ("token", "Bearer"));
        }
    }

    #[test]
    fn a_key_is_in_the_answers_that_it_is_for_and_in_no_other() {
        // MT-11: the form that is kept for everybody holds none.
        let clock = ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
        let (token, key) = (Secret::new("token"), Secret::new("key"));
        let credential = Credential {
            fingerprint: token.fingerprint(),
            payload: Payload::Token(token),
            window: Window::opening(clock.boot(), clock.wall(), Duration::from_secs(300)),
            bound: Bound::Bearer,
            scope: vec![],
            audience: None,
            jti: None,
            form: Form::default(),
        };
        for key in [Some(&key), None, Some(&key)] {
            let bytes = framed_credential("orders", &credential, key, clock.boot());
            let told = GetResponse::decode(&bytes[5..]).unwrap().credential.unwrap();
            let shown = told.client_certificate.map(|shown| shown.key_pem);
            assert_eq!((told.name.as_str(), shown.as_deref()), ("orders", key.map(|_| "key")));
        }
    }

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        assert_eq!(grpc_timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(grpc_timeout("2H"), Some(Duration::from_secs(7200)));
        for bad in ["", "S", "5", "5x", "123456789S", "-1S", "\u{e9}"] {
            assert_eq!(grpc_timeout(bad), None, "{bad}");
        }
    }
}
