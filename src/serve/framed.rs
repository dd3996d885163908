//! gRPC as far as the workloads' socket speaks it: one message in, one or many out, none compressed. In go the bodies of
//! HTTP/2; out come messages, and answers that lie framed and ready. tonic's codec does the same with buffers, a boxed
//! stream and a task for each call, which is half of what a call of ours costs.

use std::{
    convert::Infallible,
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use prost::Message;
use tonic::{Code, Status};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request is small; a larger message is none of ours (ATT-26).
const MAX_MESSAGE: usize = 64 << 10;

/// Whether it is compressed, and its length: what stands before each message (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX: usize = 5;

/// Reads the one message of a request.
///
/// # Errors
/// A [`Status`] if there is none, or more than one, or it is too long, compressed, or no `M`.
pub async fn read<M: Message + Default>(
    headers: &HeaderMap,
    body: impl Body<Data = Bytes, Error: Into<BoxError>>,
) -> Result<M, Status> {
    let bytes = gather(body).await?;
    let Some((&[compressed, a, b, c, d], message)) = bytes.split_first_chunk::<PREFIX>() else {
        return Err(Status::internal("there is no message"));
    };
    if compressed != 0 {
        return Err(match headers.get("grpc-encoding") {
            Some(_) => Status::unimplemented("no compression is spoken here"),
            None => Status::internal("a message is compressed, and it is not said how"),
        });
    }
    if u32::from_be_bytes([a, b, c, d]) as usize != message.len() {
        return Err(Status::internal("there is not one message, whole and alone"));
    }
    M::decode(message).map_err(|error| Status::internal(error.to_string()))
}

/// All of a body, to its end. Nearly always it is one piece, which is passed on as it is.
async fn gather(body: impl Body<Data = Bytes, Error: Into<BoxError>>) -> Result<Bytes, Status> {
    let mut body = pin!(body);
    let mut whole = Bytes::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::from_error(error.into()))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > MAX_MESSAGE + PREFIX {
            return Err(Status::out_of_range("a message is at most 64 KiB"));
        }
        whole = if whole.is_empty() { data } else { [&whole[..], &data].concat().into() };
    }
    Ok(whole)
}

/// `parts` of one message, framed: protobuf merges what is concatenated.
pub fn framed(parts: &[&[u8]]) -> Bytes {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(PREFIX + length);
    out.push(0);
    // No message of ours is near 4 GiB.
    out.extend_from_slice(&(length as u32).to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    out.into()
}

/// What comes of one step of a stream: a message and the next step, or how it ended.
pub type Step = Pin<Box<dyn Future<Output = Result<(Bytes, Next), Status>> + Send>>;

/// How a stream goes on.
pub struct Next(pub Step);

/// The body of an answer. The default is none: a status that stands in the headers.
#[derive(Default)]
pub enum Framed {
    /// Nothing, or nothing more.
    #[default]
    Empty,
    /// One message, and that all is well.
    One(Bytes),
    /// That all is well.
    Done,
    /// A message, and then what the step brings.
    Stream(Option<Bytes>, Step),
    /// Of a service that speaks for itself.
    Foreign(tonic::body::Body),
}

impl Framed {
    /// An answer with this body, of the exchange that is on record as `exchange`.
    pub fn answer(self, name: &'static str, exchange: &str) -> Response<Self> {
        let mut response = Response::new(self);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        if let Ok(mut exchange) = HeaderValue::from_str(exchange) {
            // Said once and never again: no place for it in the tables that HPACK keeps on both sides.
            exchange.set_sensitive(true);
            headers.insert(name, exchange);
        }
        response
    }
}

impl Body for Framed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = match &mut *self {
            Self::Empty => return Poll::Ready(None),
            Self::One(message) => {
                let message = std::mem::take(message);
                *self = Self::Done;
                Frame::data(message)
            }
            Self::Done => {
                *self = Self::Empty;
                Frame::trailers(trailers(&Status::new(Code::Ok, "")))
            }
            Self::Stream(message, step) => match message.take() {
                Some(message) => Frame::data(message),
                None => match ready!(step.as_mut().poll(cx)) {
                    Ok((message, Next(next))) => {
                        *step = next;
                        Frame::data(message)
                    }
                    Err(status) => {
                        *self = Self::Empty;
                        Frame::trailers(trailers(&status))
                    }
                },
            },
            Self::Foreign(body) => return Pin::new(body).poll_frame(cx).map_err(Into::into),
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Foreign(body) => body.is_end_stream(),
            Self::One(_) | Self::Done | Self::Stream(..) => false,
        }
    }
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(4);
    if status.add_header(&mut trailers).is_err() {
        // A message that cannot stand in a header; the code can.
        trailers.insert("grpc-status", HeaderValue::from(status.code() as i32));
    }
    trailers
}

/// The answer of a service that speaks for itself and never fails.
pub fn foreign(answered: Result<Response<tonic::body::Body>, Infallible>) -> Response<Framed> {
    match answered {
        Ok(response) => response.map(Framed::Foreign),
        Err(never) => match never {},
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{Full, StreamBody};
    use tonic::Code;

    use super::*;
    use crate::proto::v1::ReleaseRequest;

    fn asked() -> ReleaseRequest {
        ReleaseRequest { name: "orders".into(), scope: vec!["read".into()] }
    }

    async fn read_in(pieces: &[&[u8]]) -> Result<ReleaseRequest, Code> {
        let frames: Vec<_> = pieces
            .iter()
            .map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        let body = StreamBody::new(tokio_stream::iter(frames));
        read(&HeaderMap::new(), body).await.map_err(|status| status.code())
    }

    #[tokio::test]
    async fn a_message_is_read_in_whatever_pieces_it_comes() {
        let whole = framed(&[&asked().encode_to_vec()]);
        for cut in 0..=whole.len() {
            assert_eq!(read_in(&[&whole[..cut], &whole[cut..]]).await, Ok(asked()));
        }
        // What is concatenated is merged.
        let parts =
            [ReleaseRequest { scope: vec![], ..asked() }, ReleaseRequest { name: String::new(), ..asked() }];
        let parts = parts.map(|part| part.encode_to_vec());
        assert_eq!(read_in(&[&framed(&[&parts[0], &parts[1]])]).await, Ok(asked()));
    }

    #[tokio::test]
    async fn what_is_not_one_sound_message_is_refused() {
        // ATT-26
        let whole = framed(&[&asked().encode_to_vec()]);
        let compressed = [&[1], &whole[1..]].concat();
        let garbled = framed(&[&[0xff; 9]]);
        let large = vec![0; MAX_MESSAGE + PREFIX + 1];
        for (sent, code) in [
            (&b""[..], Code::Internal),
            (&whole[..4], Code::Internal),
            (&whole[..whole.len() - 1], Code::Internal),
            (&[&whole[..], &whole].concat(), Code::Internal),
            (&compressed, Code::Internal),
            (&garbled, Code::Internal),
            (&large, Code::OutOfRange),
        ] {
            assert_eq!(read_in(&[sent]).await, Err(code), "{sent:?}");
        }
        let mut headers = HeaderMap::new();
        headers.insert("grpc-encoding", HeaderValue::from_static("gzip"));
        let refused = read::<ReleaseRequest>(&headers, Full::new(Bytes::from(compressed))).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
        assert_eq!(read::<ReleaseRequest>(&headers, Full::new(whole)).await.unwrap(), asked());
    }

    #[tokio::test]
    async fn a_stream_ends_with_its_status_in_the_trailers() {
        let last: Step = Box::pin(async { Err(Status::unavailable("the agent is shutting down")) });
        let step: Step = Box::pin(async { Ok((Bytes::from_static(b"two"), Next(last))) });
        let body = Framed::Stream(Some(Bytes::from_static(b"one")), step).collect().await.unwrap();
        let trailers = body.trailers().cloned().unwrap_or_default();
        assert_eq!(trailers["grpc-status"], "14");
        assert_eq!(body.to_bytes(), "onetwo");
    }
}
