//! The story: every sentence is what was found on record or answered, and each that does not come true ends it. In go the
//! servers and the stage; out come words.

use serde_json::json;

use super::{
    call::call,
    stage::{Stage, expect},
};
use crate::{
    audit::{EventType, verify},
    cli::{Exit, paint},
    dev::Handle,
    journey::Journey,
};

/// Whom the certificate of the story is for.
pub(super) const NAME: &str = "spiffe://dev.example/demo-shop";

/// What the story needs beside a token: a certificate, from the CA that the issuer is too.
pub(super) fn settings(issuer: &Handle) -> String {
    let (url, sum) = (issuer.url(), issuer.root_sum());
    format!(
        r#"
[identities.demo-shop.credentials.tls]
issuer = "ca"
client_id = "demo-shop"
certificate = {{ uri = ["{NAME}"] }}

[issuers.ca]
kind = "step-ca"
url = "{url}"
root_sha256 = "{sum}"
dev = true
"#
    )
}

impl Stage {
    pub(super) async fn tell(&self, journey: &Journey, issuer: &str, api: &str) -> Result<(), Exit> {
        let scene =
            |name: &str, text: String| paint::line(&format!("{} {text}", paint::bold(&format!("{name:<9}"))));
        paint::line(&paint::dim(
            "Development only: the issuer, its keys and all of this are gone when it ends.",
        ))?;
        scene("issuer", format!("{issuer} takes signed assertions, each once, and no shared secret"))?;
        scene(
            "agent",
            format!(
                "{} serves the identities of {}",
                self.file("agent.sock").display(),
                self.file("agent.toml").display()
            ),
        )?;

        let mut workload = self.start(&self.program)?;
        let shop = workload.ask(&format!("errand {api}")).await?;
        let issued = self.find(journey, EventType::CredentialIssue)?;
        let peer = issued.entry.peer.clone().unwrap_or_default();
        let what = issued.entry.credential.clone().unwrap_or_default();
        let sum = peer.exe.and_then(|exe| exe.sha256).unwrap_or_default();
        let who = issued.entry.workload.clone().unwrap_or_default();
        scene(
            "workload",
            format!(
                "pid {} uid {} program sha256 {}.. is attested as {} at level {}",
                peer.pid,
                peer.uid,
                sum.get(..12).unwrap_or_default(),
                paint::bold(&who.id),
                peer.level.unwrap_or_default()
            ),
        )?;
        scene(
            "asked",
            format!(
                "as client {} with an assertion signed by a key that never leaves the agent: {} for {}",
                what.client_id.unwrap_or_default(),
                what.scope_granted.unwrap_or_default().join(" "),
                what.resource.unwrap_or_default()
            ),
        )?;
        let short =
            |hash: &Option<String>| hash.as_deref().and_then(|hash| hash.get(..12).map(str::to_owned));
        scene(
            "got",
            format!(
                "a {} token {}.. bound to the agent's key {}.. until {} ({} s), on record as {} before it was handed out",
                what.binding.unwrap_or_default(),
                short(&what.token_hash).unwrap_or_default(),
                short(&what.thumbprint).unwrap_or_default(),
                what.not_after.unwrap_or_default(),
                what.ttl_s.unwrap_or_default(),
                issued.seq
            ),
        )?;
        expect(
            shop["api_statuses"] == json!([401, 200]),
            "the API should have answered the workload",
            &shop,
        )?;
        let proof = self.find(journey, EventType::ProofMint)?;
        let to = proof.entry.target.unwrap_or_default();
        scene(
            "proved",
            format!(
                "by a proof for one {} to {}, with the nonce that the API wants: on record as {}",
                to.htm, to.origin, proof.seq
            ),
        )?;
        scene(
            "API",
            format!(
                "{} to the workload: {}",
                paint::good("200"),
                shop["api_body"].as_str().unwrap_or_default()
            ),
        )?;
        let certified = workload.ask("get tls").await?;
        let chain = certified["chain"].as_str().unwrap_or_default();
        expect(
            chain.contains("BEGIN CERTIFICATE") && certified["key"] == "",
            "the workload should have got a certificate and no key",
            &certified,
        )?;
        let certificate = self.find_of(journey, "tls")?;
        let what = certificate.entry.credential.clone().unwrap_or_default();
        scene(
            "and",
            format!(
                "a certificate for {NAME}, whose key never left the agent, until {}, on record as {}",
                what.not_after.unwrap_or_default(),
                certificate.seq
            ),
        )?;
        let mut refusals = vec![];
        for scheme in ["DPoP", "Bearer"] {
            let authorization = format!("{scheme} {}", shop["token"].as_str().unwrap_or_default());
            let stolen = call("GET", api, Some(&authorization), None).await?;
            expect(stolen.status == 401, "the API should have refused the thief", &json!(stolen.body))?;
            refusals
                .push(format!("as {scheme} {}", stolen.in_short().replacen("401", &paint::bad("401"), 1)));
        }
        scene("thief", format!("has a copy of the token and no key: {}", refusals.join("; ")))?;

        let stranger = self.start(&self.stranger()?)?.ask(&format!("errand {api}")).await?;
        expect(stranger["error"] == "NOT_ENTITLED", "the stranger should have been refused", &stranger)?;
        let denial = self.find(journey, EventType::Denial)?;
        let missing = denial.entry.policy.map(|policy| policy.missing.join("; ")).unwrap_or_default();
        scene(
            "stranger",
            format!(
                "the same program with one byte added gets {} and learns nothing",
                paint::bad("NOT_ENTITLED")
            ),
        )?;
        scene("why", format!("is in the ledger, for operators: {}", shortened(&missing)))?;

        let report = verify(&journey.ledger().health().directory, None)
            .map_err(|error| Exit::new(Exit::DATA, format!("the ledger does not verify: {error}")))?;
        let records = report.records;
        expect(
            records >= 6,
            "the ledger should hold the start, the key, the token, two proofs and the no",
            &json!(records),
        )?;
        scene(
            "ledger",
            format!("{records} records, each naming the hash of the one before: {}", paint::good("verified")),
        )?;
        scene(
            "honestly",
            "code inside the workload can have proofs made while it runs, and root has the key of demo-shop and what its \
             file is sealed with: `keybearer dev --drill` steals that and more, and shows what each is worth"
                .into(),
        )
    }

    pub(super) fn invite(&self, issuer: &str, api: &str) -> Result<(), Exit> {
        let program = self.program.display();
        let directory = self.directory.display();
        paint::line(&format!(
            "\nIt stays up until Ctrl-C. Try, in another terminal:\n\
             \x20 {program} whoami --socket {directory}/agent.sock\n\
             \x20 {program} get orders --json --socket {directory}/agent.sock\n\
             \x20 {program} get tls --socket {directory}/agent.sock   # a certificate, whose key stays in the agent\n\
             \x20 {program} prove orders GET {api} --socket {directory}/agent.sock | curl -i -H @- {api}   # after 5 minutes: again, with --nonce\n\
             \x20 curl -i -H \"$({program} get orders --header --socket {directory}/agent.sock)\" {api}   # refused: no proof\n\
             \x20 curl --unix-socket {directory}/http.sock -H 'keybearer: v1' http://localhost/v1/credentials/orders   # refused: not that program\n\
             \x20 {program} explain --pid $$ orders --socket {directory}/operator.sock\n\
             \x20 {program} status --socket {directory}/operator.sock\n\
             \x20 {program} audit tail --dir {directory}/state/audit\n\
             \x20 curl -X POST {issuer}/dev/fault -H 'Content-Type: application/json' -d '{{\"fault\":\"unavailable\",\"times\":3}}'"
        ))
    }
}

/// Digests in a sentence are shortened for eyes.
fn shortened(text: &str) -> String {
    let word = |word: &str| {
        let hex = word.trim_end_matches([',', ';']);
        let long = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        if long { format!("{}..{}", &hex[..12], &word[64..]) } else { word.to_owned() }
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}
