//! Nothing that proves something proves it twice (S7): what the real agent says to its issuer is recorded on the way, what it makes
//! for an API is used once, and then all of it is said again, from two connections and by two users, whole and in parts. The
//! answer to the agent's own challenge is thrown back in tests/attackers.rs (E21b).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/recorder.rs"]
mod recorder;
mod support;

use keybearer::{
    clock::{SystemClock, SystemDice},
    dev::Client,
    jose::{self, Algorithm, Header, Signer as _},
    keys::Key,
    proof::{Claim, Nonce, Target},
    proto::v1::credential::Kind,
};
use recorder::{Recorder, again, again_as_nobody};
use serde_json::{Value, json};
use support::{Issuer, RESOURCE, Setup, TestAgent, built, demo_api, is_root, issuer, register, skip};

/// What issuer and API say to what they have seen.
const USED: &str = "jti was used before";

/// Says `request` again, from two connections and by another user: each time it gets this status and this error, for this reason.
fn refused(what: &str, request: &str, port: u16, status: u16, error: &str, why: &str) {
    let mut answers = vec![again(request, port), again(request, port)];
    if is_root() {
        answers.push(again_as_nobody(request, port));
        answers.push(again_as_nobody(request, port));
    }
    for (got, body) in answers {
        assert_eq!((got, body["error"].as_str()), (status, Some(error)), "{what}: {body}");
        let said = body["error_description"].as_str().unwrap_or_default();
        assert!(said.contains(why), "{what}: {said:?} instead of {why:?}");
    }
}

/// A field of the form in a request.
fn field<'a>(request: &'a str, name: &str) -> &'a str {
    let (_, form) = request.split_once("\r\n\r\n").unwrap();
    form.split('&').find_map(|field| field.strip_prefix(name)?.strip_prefix('=')).unwrap()
}

/// The proof in a request.
fn proof(request: &str) -> &str {
    let line = request.lines().find(|line| line.to_ascii_lowercase().starts_with("dpop: ")).unwrap();
    line.split_once(": ").unwrap().1
}

fn port(url: &str) -> u16 {
    url.rsplit(':').next().unwrap().parse().unwrap()
}

/// A token request of anybody's.
fn token_request(port: u16, assertion: &str, proof: &str) -> String {
    let form = format!(
        "grant_type=client_credentials&resource={}&client_assertion_type=\
         urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer&client_assertion={assertion}",
        RESOURCE.replace(':', "%3A").replace('/', "%2F")
    );
    format!(
        "POST /token HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\ndpop: {proof}\r\n\
         content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
        form.len()
    )
}

/// Another client of the issuer, honest by its own key.
struct Other {
    key: Key,
    issuer: String,
    next: u32,
}

impl Other {
    fn register(issuer: &Issuer) -> Self {
        let key = Key::generate(Algorithm::Es256).unwrap();
        let client = Client {
            client_id: "other".into(),
            keys: vec![(key.public().clone(), Algorithm::Es256)],
            resources: vec![RESOURCE.into()],
            ..Client::default()
        };
        issuer.handle.register(client).unwrap();
        Self { key, issuer: issuer.handle.url().into(), next: 0 }
    }

    /// An assertion that nobody has used.
    fn assertion(&mut self) -> String {
        self.next += 1;
        let now = SystemClock::shared().wall().as_second();
        let claims = json!({
            "iss": "other", "sub": "other", "aud": self.issuer, "jti": format!("an-assertion-of-the-other-{}", self.next),
            "iat": now, "exp": now + 60,
        });
        let signed = jose::sign(&self.key, Header { typ: "client-authentication+jwt" }, &claims).unwrap();
        signed.expose_str().unwrap().to_owned()
    }

    /// A proof that nobody has used, for the token endpoint.
    fn proof(&self, nonce: Option<&str>) -> String {
        let target = Target::parse(&format!("{}/token", self.issuer)).unwrap();
        let nonce = nonce.map(|nonce| Nonce::parse(nonce).unwrap());
        let now = SystemClock::shared().wall();
        let claim = Claim { method: "POST", target: &target, token: None, nonce: nonce.as_ref(), now };
        claim.sign(&self.key, &*SystemDice::shared()).unwrap().text.expose_str().unwrap().to_owned()
    }
}

/// An agent that is recorded on its way to the issuer.
fn recorded(issuer: &Issuer, origin: &str) -> (Recorder, TestAgent) {
    let at = port(issuer.handle.url());
    let (recorder, detour) = (Recorder::before(at), built("libdetour.so"));
    assert!(detour.exists(), "build it: cargo build --examples");
    let setup = Setup::new(issuer.handle.url()).bound(origin);
    register(&issuer.handle, &setup.write());
    let variables = [format!("LD_PRELOAD={}", detour.display()), format!("KB_DETOUR={at}:{}", recorder.port)];
    let wrapper = ["env", &variables[0], &variables[1]];
    let agent = TestAgent::start_under(setup.dir.clone(), &wrapper);
    (recorder, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_to_an_issuer_once_is_refused_when_it_is_said_again() {
    // S7, PKJ-12, DPOP-12, ER-10: assertions and proofs, of requests that were served and of those that were not.
    if !is_root() {
        skip("replays by another user", "only root can become another user");
    }
    let issuer = issuer(300);
    let (recorder, agent) = recorded(&issuer, "http://127.0.0.1:1");
    let at = port(issuer.handle.url());
    let mut client = agent.client().await;
    client.get("orders", &[]).await.unwrap();
    assert!(client.release("orders", &[]).await.unwrap());
    let (asked, ended) = (recorder.heard("/token"), recorder.heard("/revoke"));
    assert_eq!((asked.len(), ended.len()), (2, 1), "for want of a nonce, with one, and the end");
    let tokens = issuer.handle.diary().counts.tokens;

    let mut other = Other::register(&issuer);
    for (what, request) in
        [("without a nonce", &asked[0]), ("with a nonce", &asked[1]), ("the revocation", &ended[0])]
    {
        refused(what, request, at, 401, "invalid_client", USED);
        // By itself, with a proof that is good.
        let nonce = jose::Unverified::parse(proof(&asked[1])).unwrap().claims::<Value>().unwrap();
        let nonce = nonce["nonce"].as_str();
        let stolen = field(request, "client_assertion");
        refused(what, &token_request(at, stolen, &other.proof(nonce)), at, 401, "invalid_client", USED);
        // The control: an assertion and a proof of its own are good, once.
        let (assertion, good) = (other.assertion(), other.proof(nonce));
        let request = token_request(at, &assertion, &good);
        assert_eq!(again(&request, at).0, 200, "the control");
        refused("the control", &request, at, 401, "invalid_client", USED);
    }
    // The proofs by themselves, each time with an assertion that is good.
    for (what, request) in [("without a nonce", &asked[0]), ("with a nonce", &asked[1])] {
        for _ in 0..2 {
            let request = token_request(at, &other.assertion(), proof(request));
            let (status, body) = again(&request, at);
            assert_eq!((status, body["error"].as_str()), (400, Some("invalid_dpop_proof")), "{what}: {body}");
            assert!(body["error_description"].as_str().unwrap().contains(USED), "{what}: {body}");
        }
        if is_root() {
            let request = token_request(at, &other.assertion(), proof(request));
            let (status, body) = again_as_nobody(&request, at);
            assert_eq!((status, body["error"].as_str()), (400, Some("invalid_dpop_proof")), "{what}: {body}");
        }
    }
    assert_eq!(issuer.handle.diary().counts.tokens, tokens + 3, "none but for the controls");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_shown_to_an_api_once_is_refused_when_it_is_shown_again() {
    // S7, TM-12, TM-13, DPOP-12
    let issuer = issuer(300);
    let api = demo_api(&issuer);
    let agent = Setup::new(issuer.handle.url()).bound(&api.url).start(Some(&issuer.handle));
    let mut client = agent.client().await;
    let credential = client.get("orders", &[]).await.unwrap();
    let Some(Kind::AccessToken(token)) = &credential.kind else { panic!("not a token") };
    let at = port(&api.url);
    let request = |scheme: &str, proof: Option<&str>| {
        let proof = proof.map(|proof| format!("dpop: {proof}\r\n")).unwrap_or_default();
        let token = &token.token;
        format!(
            "GET /orders HTTP/1.1\r\nhost: 127.0.0.1:{at}\r\nconnection: close\r\nauthorization: {scheme} {token}\r\n{proof}\r\n"
        )
    };
    let early = client.prove(&credential, "GET", &api.orders(), None).await.unwrap();
    let authorization = format!("DPoP {}", token.token);
    let (status, nonce, _) = api.get(&[("authorization", &authorization), ("dpop", &early)]).await;
    assert_eq!(status, 401, "for want of a nonce");
    let proof = client.prove(&credential, "GET", &api.orders(), nonce.as_deref()).await.unwrap();
    let served = request("DPoP", Some(&proof));
    assert_eq!(again(&served, at).0, 200, "once");

    refused("what was served", &served, at, 401, "invalid_dpop_proof", USED);
    refused("what was not", &request("DPoP", Some(&early)), at, 401, "invalid_dpop_proof", USED);
    refused("the token as a bearer's", &request("Bearer", None), at, 401, "invalid_token", "bound to a key");
    refused("the token alone", &request("DPoP", None), at, 401, "invalid_dpop_proof", "send a DPoP header");
    refused(
        "the token and its proof as a bearer's",
        &request("Bearer", Some(&proof)),
        at,
        401,
        "invalid_token",
        "bound",
    );

    // Given back, not even a proof that is good helps.
    let fresh = client.prove(&credential, "GET", &api.orders(), None).await.unwrap();
    assert!(client.release("orders", &[]).await.unwrap());
    refused("the token after its end", &request("DPoP", Some(&fresh)), at, 401, "invalid_token", "revoked");
}
