//! Whom to ask for what, so that a secret becomes dynamic. In go proposals; out come sentences.

use super::{
    Kind, Plan,
    group::{Proposal, Way},
};

/// A wish to somebody who runs an issuer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ask {
    /// Who can do it.
    pub whom: String,
    /// What to ask, in sentences.
    pub what: String,
}

impl Plan {
    /// The list, in the order of the proposals.
    pub fn asks(&self) -> Vec<Ask> {
        self.proposals.iter().map(|one| ask(&self.identity, one)).collect()
    }
}

fn ask(identity: &str, proposal: &Proposal) -> Ask {
    let variables: Vec<&str> = proposal.from.iter().map(|from| from.variable.as_str()).collect();
    let variables = variables.join(", ");
    let (whom, what) = match (proposal.way, proposal.kind) {
        (Way::Lease, _) => (
            "whoever runs the database and OpenBao".to_owned(),
            format!(
                "a role database/creds/{identity} whose users may do what this program does and end by themselves, and a role {identity} at \
                 the JWT or certificate login for this agent (keybearer keys export {identity}); afterwards, that the old user behind \
                 {variables} is dropped"
            ),
        ),
        (Way::Client, _) => (
            format!("whoever runs the authorization server of {}", proposal.name),
            format!(
                "a client with private_key_jwt and the key that keybearer keys export {identity} prints, for the one API that the program \
                 calls; afterwards, that the client secret is deleted. Whether the API checks DPoP: then the token need not be a bearer's"
            ),
        ),
        (Way::Role, _) => (
            "whoever runs the AWS account".to_owned(),
            "an IAM identity provider for your issuer with the audience https://sts.amazonaws.com, and a role that trusts exactly its sub and \
             aud, with the permissions of this program; its ARN for AWS_ROLE_ARN. Or, with a certificate, an IAM Roles Anywhere trust anchor \
             and profile. Afterwards, that the access key is deleted"
                .to_owned(),
        ),
        (Way::Certificate, _) => (
            "whoever runs the CA".to_owned(),
            format!("a provisioner, or a role of OpenBao's PKI, that gives this identity certificates of a day for its own name, proved by its key (keybearer keys export {identity})"),
        ),
        (Way::Sealed, Kind::GithubToken) => (
            "an owner of the GitHub organisation".to_owned(),
            "a GitHub App with the permissions of this token, whose installation tokens end after an hour; in Actions its own GITHUB_TOKEN, or \
             OIDC. Then the personal token is deleted"
                .to_owned(),
        ),
        (Way::Sealed, Kind::GitlabToken) => (
            "a maintainer of the GitLab project".to_owned(),
            "in pipelines id_tokens (OIDC) or CI_JOB_TOKEN; elsewhere a project access token with the least scope and an end date, which \
             whoever answers for it renews"
                .to_owned(),
        ),
        (Way::Sealed, Kind::VaultToken) => (
            "whoever runs OpenBao or Vault".to_owned(),
            format!(
                "a login role {identity} for this agent (jwt or cert), with the policy of this token. Then each path that the program reads \
                 becomes a credential with lease = {{ at = \"..\" }}, and {variables} is gone"
            ),
        ),
        (Way::Sealed, Kind::GoogleServiceAccount) => (
            "whoever runs the Google Cloud project".to_owned(),
            "a workload identity pool that trusts your issuer, so that a token in a file takes the place of the key. Then the key is deleted"
                .to_owned(),
        ),
        (Way::Sealed, Kind::AzureKey) => (
            "whoever runs the Azure subscription".to_owned(),
            "a federated credential for your issuer on a managed identity or app, and that shared keys are turned off for the account"
                .to_owned(),
        ),
        (Way::Sealed, Kind::RegistryToken) => (
            "whoever owns the package or registry".to_owned(),
            "trusted publishing from the pipeline (OIDC); for reading, a token that can read only and has an end date".to_owned(),
        ),
        (Way::Sealed, Kind::VendorKey(vendor)) => (
            vendor.to_owned(),
            "a key that is restricted to what this program does and to this host's addresses, with an end date; and whether there is OAuth with \
             private_key_jwt or mTLS by now"
                .to_owned(),
        ),
        (Way::Sealed, Kind::Jwt) => (
            format!("whoever issues {variables}"),
            "a client for this identity (private_key_jwt), so that the agent fetches tokens that end within minutes".to_owned(),
        ),
        (Way::Sealed, Kind::PrivateKey | Kind::AgeKey) => (
            format!("whoever uses what {variables} makes"),
            "whether the key can be made on this host and stay there, with its public half registered; for SSH, certificates of an SSH CA"
                .to_owned(),
        ),
        (Way::Sealed, _) => (
            format!("whoever runs what {variables} opens"),
            "whether it takes tokens by OAuth (private_key_jwt), client certificates, or users made by OpenBao; if none of them, when it will"
                .to_owned(),
        ),
    };
    Ask { whom, what }
}
