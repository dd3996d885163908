//! An issuer out of a script, for tests: it listens on loopback, answers each request with the next answer of its
//! script, and keeps a diary of what it was sent. It checks nothing by itself, but may ask for client certificates and take
//! those of one authority only.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use rustls::{
    DigitallySignedStruct, DistinguishedName, HandshakeKind, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::WebPkiSupportedAlgorithms,
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

/// One answer.
pub(super) enum Answer {
    /// A whole answer.
    Full { status: u16, headers: Vec<(&'static str, String)>, body: String },
    /// Headers and half a body, then silence.
    Half,
    /// The connection is closed without a word.
    HangUp,
    /// The connection stays open for another request, which is then hung up on.
    KeptOpen { body: String },
    /// Another answer, after something has happened in the world.
    After(Box<dyn FnOnce() + Send>, Box<Self>),
    /// What is made of the request.
    Made(Box<dyn FnOnce(&Seen) -> Self + Send>),
}

impl Answer {
    /// JSON with a status, not to be stored.
    pub(super) fn json(status: u16, body: impl ToString) -> Self {
        let headers =
            vec![("content-type", "application/json".to_owned()), ("cache-control", "no-store".to_owned())];
        Self::Full { status, headers, body: body.to_string() }
    }

    /// The same with one more header, though there is one of that name already.
    pub(super) fn and(mut self, name: &'static str, value: &str) -> Self {
        if let Self::Full { headers, .. } = &mut self {
            headers.push((name, value.to_owned()));
        }
        self
    }

    /// The same with one more header, or one of its own replaced.
    pub(super) fn with(mut self, name: &'static str, value: &str) -> Self {
        if let Self::Full { headers, .. } = &mut self {
            headers.retain(|(known, _)| *known != name);
            headers.push((name, value.to_owned()));
        }
        self
    }
}

/// How it asks for client certificates: it takes any, or none of those it is shown.
#[derive(Debug)]
pub(super) struct Asks {
    /// The authorities it names. None says that any will do.
    pub(super) authorities: Vec<DistinguishedName>,
    /// Whether it takes what it is shown.
    pub(super) takes: bool,
}

impl Asks {
    pub(super) fn anybody() -> Self {
        Self { authorities: Vec::new(), takes: true }
    }

    fn algorithms() -> WebPkiSupportedAlgorithms {
        rustls::crypto::ring::default_provider().signature_verification_algorithms
    }
}

impl ClientCertVerifier for Asks {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.authorities
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        self.takes.then(ClientCertVerified::assertion).ok_or(unknown)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &Self::algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &Self::algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::algorithms().supported_schemes()
    }
}

/// One request as it came.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) line: String,
    pub(super) head: String,
    pub(super) body: String,
    /// The certificate of the connection, if one was shown.
    pub(super) certificate: Option<CertificateDer<'static>>,
    /// Which connection it came over, and whether TLS picked up an old session for it.
    pub(super) connection: (usize, Option<HandshakeKind>),
}

impl Seen {
    /// A member of the form, decoded. All of its values: there should be one.
    pub(super) fn form(&self, name: &str) -> Vec<String> {
        let pairs = self.body.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| decode(value)).collect()
    }
}

#[derive(Default)]
struct Book {
    script: VecDeque<Answer>,
    diary: Vec<Seen>,
    connections: usize,
}

/// The issuer.
#[derive(Clone)]
pub(super) struct Script {
    book: Arc<Mutex<Book>>,
    pub(super) url: String,
}

impl Script {
    /// Listens without TLS.
    pub(super) async fn plain() -> Self {
        Self::listen(None, "http", "127.0.0.1").await
    }

    /// Listens with TLS under a certificate for `names`; the root that signed it goes to the file returned. The
    /// URL says `localhost`.
    pub(super) async fn tls(directory: &tempfile::TempDir, names: &[&str]) -> (Self, PathBuf) {
        Self::asking(directory, names, None).await
    }

    /// The same, and asks for client certificates as `asks` says.
    pub(super) async fn asking(
        directory: &tempfile::TempDir,
        names: &[&str],
        asks: Option<Asks>,
    ) -> (Self, PathBuf) {
        let root_key = rcgen::KeyPair::generate().unwrap();
        let mut root = rcgen::CertificateParams::new(Vec::new()).unwrap();
        root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root_certificate = root.self_signed(&root_key).unwrap();
        let path = directory.path().join(format!("{}.pem", names.join("-")));
        std::fs::write(&path, root_certificate.pem()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let leaf = rcgen::CertificateParams::new(names).unwrap();
        let leaf = leaf.signed_by(&key, &rcgen::Issuer::from_params(&root, &root_key)).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = match asks {
            Some(asks) => config.with_client_cert_verifier(Arc::new(asks)),
            None => config.with_no_client_auth(),
        };
        let config = config
            .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        (Self::listen(Some(TlsAcceptor::from(Arc::new(config))), "https", "localhost").await, path)
    }

    /// Adds answers to the end of the script.
    pub(super) fn will(&self, answers: impl IntoIterator<Item = Answer>) {
        self.book.lock().unwrap().script.extend(answers);
    }

    /// All requests so far.
    pub(super) fn diary(&self) -> Vec<Seen> {
        self.book.lock().unwrap().diary.clone()
    }

    /// The requests so far that were a POST.
    pub(super) fn posts(&self) -> Vec<Seen> {
        self.diary().into_iter().filter(|seen| seen.line.starts_with("POST ")).collect()
    }

    async fn listen(tls: Option<TlsAcceptor>, scheme: &str, host: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{scheme}://{host}:{}", listener.local_addr().unwrap().port());
        let book = Arc::new(Mutex::new(Book::default()));
        let shared = Arc::clone(&book);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (book, tls) = (Arc::clone(&shared), tls.clone());
                tokio::spawn(async move {
                    let number = {
                        let mut book = book.lock().unwrap();
                        book.connections += 1;
                        book.connections
                    };
                    match tls {
                        None => serve(stream, &book, None, (number, None)).await,
                        Some(tls) => {
                            // A client that distrusts us hangs up here.
                            if let Ok(stream) = tls.accept(stream).await {
                                let tls = stream.get_ref().1;
                                let shown = tls.peer_certificates().and_then(|shown| shown.first().cloned());
                                let connection = (number, tls.handshake_kind());
                                serve(stream, &book, shown, connection).await;
                            }
                        }
                    }
                });
            }
        });
        Self { book, url }
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    book: &Mutex<Book>,
    certificate: Option<CertificateDer<'static>>,
    connection: (usize, Option<HandshakeKind>),
) {
    while let Some(seen) = read(&mut stream).await {
        let seen = Seen { certificate: certificate.clone(), connection, ..seen };
        let answer = {
            let mut book = book.lock().unwrap();
            book.diary.push(seen.clone());
            book.script.pop_front().unwrap_or(Answer::HangUp)
        };
        let answer = match answer {
            Answer::Made(make) => make(&seen),
            answer => answer,
        };
        let answer = match answer {
            Answer::After(happens, then) => {
                happens();
                *then
            }
            answer => answer,
        };
        let text = match answer {
            Answer::Full { status, headers, body } => {
                let mut text =
                    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
                for (name, value) in headers {
                    text += &format!("{name}: {value}\r\n");
                }
                text + "\r\n" + &body
            }
            Answer::Half => {
                let head =
                    "HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{\"a\":";
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.flush().await;
                std::future::pending().await
            }
            Answer::After(..) | Answer::Made(_) | Answer::HangUp => return,
            Answer::KeptOpen { body } => format!(
                "HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len(),
            ),
        };
        // The client may have seen enough.
        let _ = stream.write_all(text.as_bytes()).await;
        let _ = stream.flush().await;
        if text.contains("connection: close") {
            let _ = stream.shutdown().await;
            return;
        }
    }
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<Seen> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        read.push(stream.read_u8().await.ok()?);
    };
    let head = String::from_utf8(read[..end].to_vec()).ok()?;
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    let line = head.lines().next()?.to_owned();
    let body = String::from_utf8(body).ok()?;
    Some(Seen { line, head, body, certificate: None, connection: (0, None) })
}

fn decode(value: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let hex = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap()
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).unwrap()
}
