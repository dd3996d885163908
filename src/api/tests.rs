use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_stream::{StreamExt as _, wrappers::UnboundedReceiverStream};

use super::{
    body::{BoxError, Moved, Room},
    *,
};
use crate::{
    clock::ManualClock,
    credential::{Form, Payload, Window},
    keys::{CertificateSettings, Certificates, Custody, Keyring, SignedBy},
};

/// An API that answers every request with the number of the connection it came over, and keeps them open.
async fn counting() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer_all(stream, counted.fetch_add(1, Ordering::SeqCst)));
        }
    });
    (url, connections)
}

async fn answer_all(mut stream: TcpStream, number: usize) {
    let mut read = vec![];
    while let Ok(byte) = stream.read_u8().await {
        read.push(byte);
        if read.ends_with(b"\r\n\r\n") {
            let body = number.to_string();
            let text = format!("HTTP/1.1 200 x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(text.as_bytes()).await;
            read.clear();
        }
    }
}

fn credential(clock: &dyn Clock, bound: Bound) -> Credential {
    let token = Secret::new("token");
    Credential {
        fingerprint: token.fingerprint(),
        payload: Payload::Token(token),
        window: Window::opening(clock.boot(), clock.wall(), Duration::from_secs(300)),
        bound,
        scope: vec![],
        audience: None,
        jti: None,
        form: Form::default(),
    }
}

struct House {
    apis: Apis,
    clock: Arc<ManualClock>,
}

impl House {
    fn new() -> Self {
        let clock = ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
        Self { apis: Apis::new(Arc::clone(&clock) as _), clock }
    }

    async fn send(
        &self,
        url: &str,
        identity: &str,
        bound: Bound,
        body: Coming,
    ) -> Result<Response<Incoming>, ApiError> {
        let credential = credential(&*self.clock, bound);
        let patience = Duration::from_secs(2);
        let attempt = Attempt {
            method: &Method::POST,
            url,
            headers: &HeaderMap::new(),
            credential: &credential,
            carry: None,
            proof: None,
            identity: &identity.into(),
            reach: &Reach { ca_file: None, plain: true },
            patience,
        };
        let mut body = self.apis.take(body, patience).await?;
        self.apis.send(attempt, &mut body).await
    }

    async fn connection(&self, url: &str, identity: &str) -> String {
        let answer = self.send(url, identity, Bound::Bearer, whole("")).await.unwrap();
        String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }
}

#[tokio::test]
async fn connections_are_of_one_identity_and_of_no_other() {
    // MT-10
    let (url, connections) = counting().await;
    let house = House::new();
    for (identity, connection) in [("a", "0"), ("a", "0"), ("b", "1"), ("a", "0"), ("b", "1")] {
        assert_eq!(house.connection(&url, identity).await, connection, "{identity}");
    }
    // New settings may mean other roots: nothing goes on over what was opened under the old ones.
    house.apis.forget();
    assert_eq!(house.connection(&url, "a").await, "2");
    assert_eq!(
        Arc::weak_count(&house.apis.inner),
        1,
        "one looks through them, however often settings change"
    );
    assert_eq!(connections.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn connections_are_of_one_certificate_which_goes_with_its_last_credential() {
    // MT-08, MT-10
    tokio::time::pause();
    let house = House::new();
    let settings = CertificateSettings {
        custody: Custody::Memory,
        signed_by: SignedBy::Itself,
        san_uri: None,
        lifetime: Duration::from_secs(86_400),
        export: false,
    };
    let opened = |identity: &str| {
        let wanted = [(Arc::from(identity), settings.clone())].into();
        let ring = Keyring::default();
        let all = Certificates::open(&wanted, &Certificates::default(), &ring, house.clock.wall()).unwrap();
        all.of(&identity.into(), house.clock.wall()).remove(0)
    };
    let (old, new) = (opened("a"), opened("a"));
    let reach = Reach { ca_file: None, plain: true };
    let client = |certificate: &Arc<ClientCertificate>| {
        let credential = credential(&*house.clock, Bound::Mtls(Arc::clone(certificate)));
        let attempt = Attempt {
            method: &Method::GET,
            url: "https://localhost/",
            headers: &HeaderMap::new(),
            credential: &credential,
            carry: None,
            proof: None,
            identity: &"a".into(),
            reach: &reach,
            patience: Duration::from_secs(1),
        };
        house.apis.client(&attempt).unwrap()
    };
    assert!(Arc::ptr_eq(&client(&old), &client(&old)));
    assert!(!Arc::ptr_eq(&client(&old), &client(&new)), "the same name, and another certificate");
    // A certificate is never shown to whom a request without one goes, nor is plain HTTP a way past it.
    let plain = house.send("http://127.0.0.1:9/", "a", Bound::Mtls(Arc::clone(&old)), whole("")).await;
    assert!(matches!(plain, Err(ApiError::Certificate(_))), "{plain:?}");

    let kept = Arc::downgrade(&old);
    drop(old);
    tokio::time::sleep(2 * SWEEP).await;
    assert!(kept.upgrade().is_some(), "its credential lives");
    house.clock.advance(Duration::from_secs(200));
    drop(client(&new));
    house.clock.advance(Duration::from_secs(101));
    tokio::time::sleep(2 * SWEEP).await;
    assert!(kept.upgrade().is_none(), "nothing keeps the key of a credential that has ended");
    assert_eq!(lock(&house.apis.inner.pools).len(), 1, "and the other stays as long as its own");
}

/// A body in pieces that a test sends.
fn coming() -> (mpsc::UnboundedSender<&'static [u8]>, Coming) {
    let (pieces, given) = mpsc::unbounded_channel::<&'static [u8]>();
    let pieces_in = UnboundedReceiverStream::new(given)
        .map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::from_static(piece))));
    (pieces, StreamBody::new(pieces_in).map_err(|never| match never {}).boxed_unsync())
}

#[tokio::test(start_paused = true)]
async fn bodies_are_kept_while_there_is_room_and_go_on_once_where_there_is_none() {
    // MT-09
    const PIECE: &[u8] = &[7; 512 << 10];
    let room = Room::default();
    let patience = Duration::from_secs(1);
    let take = |body| Asking::take(body, &room, patience);
    assert!(take(whole("")).await.unwrap().is_whole());
    assert!(take(whole("short")).await.unwrap().is_whole());
    let long = take(whole(vec![7; (1 << 20) + 1])).await.unwrap();
    assert!(!long.is_whole());
    // How long it is shows only when it came.
    for (pieces, kept) in [(2, true), (3, false)] {
        let (sender, body) = coming();
        (0..pieces).for_each(|_| sender.send(PIECE).unwrap());
        drop(sender);
        let mut asking = take(body).await.unwrap();
        assert_eq!(asking.is_whole(), kept);
        let out = asking.outgoing(&Moved::default()).unwrap().collect().await.unwrap().to_bytes();
        assert_eq!(out.len(), pieces * PIECE.len(), "all of it goes out");
        assert_eq!(asking.outgoing(&Moved::default()).is_some(), kept, "once more only if it was kept");
        assert_eq!(asking.is_whole(), kept);
    }
    // All callers together have so much room and no more; it comes back.
    let mut full = Vec::new();
    for _ in 0..64 {
        full.push(take(whole(vec![7; 1 << 20])).await.unwrap());
    }
    assert!(full.iter().all(Asking::is_whole));
    let one_more = take(whole("one more")).await.unwrap();
    assert!(!one_more.is_whole());
    full.pop();
    assert!(take(whole("one more")).await.unwrap().is_whole());
    full.push(take(whole(vec![7; 1 << 20])).await.unwrap());
    // Who stops sending is given up, who breaks it off too.
    let (_sender, body) = coming();
    assert_eq!(take(body).await.err(), None, "no room: it is not waited for here");
    drop(full);
    let (_sender, body) = coming();
    assert_eq!(take(body).await.err(), Some(BodyError::Late(patience)));
    let broken = StreamBody::new(tokio_stream::iter([Err::<Frame<Bytes>, _>(BoxError::from("gone"))]));
    assert_eq!(take(broken.boxed_unsync()).await.err(), Some(BodyError::Broken));
}

#[tokio::test]
async fn a_body_of_any_method_goes_on_however_long_it_turns_out_to_be() {
    // MT-11: what was not asked for is not what is sent.
    for method in [Method::GET, Method::POST] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let house = House::new();
        let (pieces, body) = coming();
        // More than is kept, so that the length is not known when it leaves.
        (0..3).for_each(|_| pieces.send(&[b'7'; 512 << 10]).unwrap());
        drop(pieces);
        let api = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = vec![];
            while !read.ends_with(b"\r\n0\r\n\r\n") && stream.read_buf(&mut read).await.unwrap() > 0 {
                if read.ends_with(b"\r\n\r\n") && !read.windows(7).any(|window| window == b"chunked") {
                    break;
                }
            }
            stream.write_all(b"HTTP/1.1 200 x\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            read.iter().filter(|byte| **byte == b'7').count()
        };
        let credential = credential(&*house.clock, Bound::Bearer);
        let attempt = Attempt {
            method: &method,
            url: &url,
            headers: &HeaderMap::new(),
            credential: &credential,
            carry: None,
            proof: None,
            identity: &"a".into(),
            reach: &Reach { ca_file: None, plain: true },
            patience: Duration::from_secs(5),
        };
        let mut body = house.apis.take(body, Duration::from_secs(5)).await.unwrap();
        let (answer, came) = tokio::join!(house.apis.send(attempt, &mut body), api);
        assert!(answer.is_ok(), "{method}: {answer:?}");
        assert!(came >= 3 * (512 << 10), "{method}: {came} bytes of it came");
    }
}

#[tokio::test(start_paused = true)]
async fn slow_is_not_stuck_and_ended_is_not_whole() {
    // GA-10
    let patience = Duration::from_secs(30);
    let place = || Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    let answering = |body, may_go_on: MayGoOn| Answering::new(body, patience, may_go_on, place());
    let (sender, body) = coming();
    let mut slow = answering(body, Box::new(|| true));
    for piece in [b"one", b"two"] {
        // A program that takes its time is not the API's fault.
        sleep(2 * patience).await;
        let late = async {
            sleep(patience - Duration::from_secs(1)).await;
            sender.send(piece).unwrap();
        };
        let (frame, ()) = tokio::join!(slow.frame(), late);
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), &piece[..]);
    }
    assert!(slow.frame().await.unwrap().is_err(), "nothing came for as long");
    let (sender, body) = coming();
    let mut left = 1;
    let mut ended = answering(
        body,
        Box::new(move || {
            left -= 1;
            left >= 0
        }),
    );
    sender.send(b"one").unwrap();
    sender.send(b"two").unwrap();
    drop(sender);
    assert!(ended.frame().await.unwrap().is_ok());
    assert!(ended.frame().await.unwrap().is_err(), "an answer that ends too soon ends in an error");
}

#[tokio::test]
async fn calls_of_one_identity_are_so_many_at_once() {
    // TM-20
    let house = House::new();
    let (loud, quiet) = ("loud".into(), "quiet".into());
    let mut places: Vec<_> = (0..AT_ONCE).map(|_| house.apis.enter(&loud).unwrap()).collect();
    assert_eq!(house.apis.enter(&loud).err(), Some(ApiError::Busy));
    assert!(house.apis.enter(&quiet).is_ok());
    places.pop();
    assert!(house.apis.enter(&loud).is_ok());
}

proptest::proptest! {
    /// DPOP-27, MT-09: of the characters that such things are made of.
    #[test]
    fn whatever_is_asked_for_leads_home(text in "/[/a.%2eEfF5cCzZ0;?@:=&~-]{0,24}(\n(x-a|te|connection|via): [a-z,= \"\\\\_]{0,12}){0,3}") {
        properties::forward(text.as_bytes());
    }

    #[test]
    fn whatever_an_api_says_of_a_token_is_read_or_not(text in "(Bearer|DPoP|Basic|,|=|\"|\\\\| |error|invalid_token|use_dpop_nonce){0,24}") {
        properties::forward(text.as_bytes());
    }
}
