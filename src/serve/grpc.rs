//! `keybearer.v1.Credentials`: the workloads' API. In goes a call of an attested session; out comes what the journey
//! answered. Every call carries `keybearer: v1`, so that nothing that merely reaches the socket speaks by accident
//! (ATT-28).

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use prost_types::Timestamp;
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{
    Request, Response, Status,
    body::Body,
    metadata::{AsciiMetadataValue, MetadataMap},
    service::Routes,
};
use tower::Service;

use super::{
    proving,
    status::{EXCHANGE, invalid, told},
};
use crate::{
    audit::Receipt,
    clock::Clock,
    journey::{self, Answer, Journey, Session, trace_id},
    policy::name_is_sound,
    proto::v1::{
        AccessToken, Caller, ClientCertificate, Credential as Wire, DESCRIPTORS, DescribeRequest,
        DescribeResponse, GetRequest, GetResponse, Offer, ProveRequest, ProveResponse, ReleaseRequest,
        ReleaseResponse, WatchRequest, WatchResponse,
        credential::Kind,
        credentials_server::{Credentials, CredentialsServer},
    },
    secret::Secret,
};

/// A request is small; a larger message is none of ours (ATT-26).
const MAX_MESSAGE: usize = 64 << 10;

/// How long a caller waits that set no deadline of its own (CLK-05).
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest scope list a caller may send.
const MAX_SCOPES: usize = 64;

/// Everything on the workloads' socket. What nearly every call is goes straight to its service; the rest is looked up.
#[derive(Clone)]
pub struct Workloads {
    credentials: CredentialsServer<Face>,
    others: Routes,
}

impl Service<http::Request<Body>> for Workloads {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path().starts_with(CREDENTIALS) {
            return self.credentials.call(request);
        }
        Box::pin(self.others.call(request))
    }
}

/// How the path of each call for a credential begins.
const CREDENTIALS: &str = "/keybearer.v1.Credentials/";

/// The services of the workloads' socket.
pub fn workloads(
    journey: Arc<Journey>,
    clock: Arc<dyn Clock>,
    stop: watch::Receiver<bool>,
    reflection: bool,
) -> Workloads {
    let (reporter, health) = tonic_health::server::health_reporter();
    let credentials =
        CredentialsServer::new(Face { journey, clock, stop }).max_decoding_message_size(MAX_MESSAGE);
    tokio::spawn(async move { reporter.set_serving::<CredentialsServer<Face>>().await });
    let others = Routes::new(health);
    let others = if reflection { reflecting(others) } else { others };
    Workloads { credentials, others: others.prepare() }
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

/// The face. Public only because generated code wants it so.
#[derive(Debug)]
pub struct Face {
    journey: Arc<Journey>,
    clock: Arc<dyn Clock>,
    stop: watch::Receiver<bool>,
}

impl Face {
    /// Who calls, if the call keeps the rules.
    async fn session<T>(&self, request: &Request<T>) -> Result<Arc<Session>, Status> {
        // The accept loop puts it there; a call without it never came over our sockets.
        let session = request
            .extensions()
            .get::<Arc<Session>>()
            .cloned()
            .ok_or_else(|| invalid("no session").status())?;
        if request.metadata().get("keybearer").is_some_and(|value| value == "v1") {
            return Ok(session);
        }
        Err(self.broke(&session, "every call carries the metadata `keybearer: v1`").await)
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
        metadata: &MetadataMap,
        name: String,
        scope: Vec<String>,
        min_ttl: Option<prost_types::Duration>,
    ) -> Result<journey::Request, Status> {
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
        let text = |name| metadata.get(name).and_then(|value: &AsciiMetadataValue| value.to_str().ok());
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

    fn wire(&self, name: &str, answer: &Answer) -> Wire {
        let credential = answer.credential();
        let certificate = answer.client_certificate().map(|(certificate, key)| ClientCertificate {
            chain_pem: certificate.chain_pem(),
            key_pem: key.and_then(Secret::expose_str).unwrap_or_default().to_owned(),
        });
        let left = credential.window.left(self.clock.boot());
        let until = credential.window.until_wall;
        Wire {
            name: name.to_owned(),
            kind: Some(Kind::AccessToken(AccessToken {
                token: credential.token.expose_str().unwrap_or_default().to_owned(),
                token_type: credential.binding().scheme().into(),
            })),
            expires_at: Some(Timestamp { seconds: until.as_second(), nanos: until.subsec_nanosecond() }),
            expires_in: prost_types::Duration::try_from(left).ok(),
            scope: credential.scope.clone(),
            audience: credential.audience.clone().unwrap_or_default(),
            binding: credential.binding().as_str().into(),
            fingerprint: credential.fingerprint.to_string(),
            thumbprint: credential.bound.thumbprint().unwrap_or_default().to_owned(),
            client_certificate: certificate,
        }
    }

    fn watched(&self, name: &str, answer: &Answer) -> WatchResponse {
        WatchResponse { credential: Some(self.wire(name, answer)) }
    }
}

#[tonic::async_trait]
impl Credentials for Face {
    async fn describe(
        &self,
        request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        let session = self.session(&request).await?;
        let (workload, entitlement, receipt) = self
            .journey
            .describe(&session, &journey::Request::default())
            .await
            .map_err(|no| told(&no).status())?;
        let seen = workload.evidence();
        let offers = entitlement.credentials.iter().map(|rule| Offer {
            name: rule.name.to_string(),
            resource: rule.resource.as_deref().unwrap_or_default().into(),
            scope: rule.scope.iter().map(ToString::to_string).collect(),
            binding: rule.binding.as_str().into(),
            max_ttl: prost_types::Duration::try_from(rule.max_ttl).ok(),
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
        };
        Ok(receipted(response, &receipt))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let session = self.session(&request).await?;
        let (metadata, _, GetRequest { name, scope, min_ttl }) = request.into_parts();
        let asked = self.asked(&session, &metadata, name, scope, min_ttl).await?;
        let answer = self.journey.fulfil(&session, &asked).await.map_err(|no| told(&no).status())?;
        let response = GetResponse { credential: Some(self.wire(&asked.name, &answer)) };
        Ok(receipted(response, answer.receipt()))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let session = self.session(&request).await?;
        let (metadata, _, WatchRequest { name, scope }) = request.into_parts();
        let mut asked = self.asked(&session, &metadata, name, scope, None).await?;
        // A deadline of the stream is not one of each fetch in it.
        asked.patience = PATIENCE;
        let (first, watching) =
            self.journey.watch(&session, &asked).await.map_err(|no| told(&no).status())?;
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let face = Self {
            journey: Arc::clone(&self.journey),
            clock: Arc::clone(&self.clock),
            stop: self.stop.clone(),
        };
        let response_receipt = first.receipt().exchange().to_string();
        tokio::spawn(async move { face.push(session, asked, first, watching, sender).await });
        let stream: Self::WatchStream = Box::pin(ReceiverStream::new(receiver).map(|message| *message));
        let mut response = Response::new(stream);
        if let Ok(exchange) = AsciiMetadataValue::try_from(response_receipt) {
            response.metadata_mut().insert(EXCHANGE, exchange);
        }
        Ok(response)
    }

    async fn prove(&self, request: Request<ProveRequest>) -> Result<Response<ProveResponse>, Status> {
        let session = self.session(&request).await?;
        let (metadata, _, wanted) = request.into_parts();
        let ProveRequest { name, fingerprint, method, url, nonce } = wanted;
        let asked = self.asked(&session, &metadata, name, vec![], None).await?;
        let proving = match proving(&fingerprint, method, &url, &nonce) {
            Ok(proving) => proving,
            Err(what) => return Err(self.broke(&session, what).await),
        };
        let proved = self.journey.prove(&session, &asked, &proving).await.map_err(|no| told(&no).status())?;
        let proof = proved.proof().expose_str().unwrap_or_default().to_owned();
        Ok(receipted(ProveResponse { proof }, proved.receipt()))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        let session = self.session(&request).await?;
        let (metadata, _, ReleaseRequest { name, scope }) = request.into_parts();
        let asked = self.asked(&session, &metadata, name, scope, None).await?;
        let (revoked, receipt) =
            self.journey.release(&session, &asked).await.map_err(|no| told(&no).status())?;
        Ok(receipted(ReleaseResponse { revoked }, &receipt))
    }
}

/// Boxed: a channel has room for 32, however few it may hold, and there is one for each stream.
type Pushes = tokio::sync::mpsc::Sender<Box<Result<WatchResponse, Status>>>;

impl Face {
    /// Sends the credential at each rotation until the right, the stream, the process or the agent ends.
    async fn push(
        mut self,
        session: Arc<Session>,
        asked: journey::Request,
        first: Answer,
        mut watching: journey::Watching,
        sender: Pushes,
    ) {
        if sender.send(Box::new(Ok(self.watched(&asked.name, &first)))).await.is_err() {
            return;
        }
        drop(first);
        loop {
            let next = tokio::select! {
                next = self.journey.next(&session, &asked, &mut watching) => next,
                () = sender.closed() => return,
                () = stopping(&mut self.stop) => {
                    let status = Status::unavailable("the agent is shutting down: connect again");
                    // Whoever has gone needs no goodbye.
                    let _ = sender.send(Box::new(Err(status))).await;
                    return;
                }
            };
            let (message, last) = match next {
                Ok(answer) => (Ok(self.watched(&asked.name, &answer)), false),
                Err(refusal) => (Err(told(&refusal).status()), true),
            };
            if sender.send(Box::new(message)).await.is_err() || last {
                return;
            }
        }
    }
}

/// Waits until the agent stops.
async fn stopping(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn receipted<T>(response: T, receipt: &Receipt) -> Response<T> {
    let mut response = Response::new(response);
    if let Ok(exchange) = AsciiMetadataValue::try_from(receipt.exchange().to_string()) {
        response.metadata_mut().insert(EXCHANGE, exchange);
    }
    response
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

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        assert_eq!(grpc_timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(grpc_timeout("2H"), Some(Duration::from_secs(7200)));
        for bad in ["", "S", "5", "5x", "123456789S", "-1S", "\u{e9}"] {
            assert_eq!(grpc_timeout(bad), None, "{bad}");
        }
    }
}
