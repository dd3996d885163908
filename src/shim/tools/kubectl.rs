//! The exec plugin of kubectl and of whatever else reads a kubeconfig. In go the variable that it sets and a credential; out comes an
//! `ExecCredential` of the version that was asked for (LEGACY 4.7).

use serde::{Deserialize, Serialize};

use super::{OTHER_VERSION, Place, Tool, ToolError, ends_at, json, place::is_for, usable};
use crate::{
    proto::v1::{Credential, Offer, credential::Kind},
    secret::Secret,
};

/// The versions that are spoken, the usual one first.
const VERSIONS: [&str; 2] = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];

const KIND: &str = "ExecCredential";

/// What kubectl asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    version: &'static str,
    cluster: Option<Cluster>,
}

/// Which cluster it is for, if kubectl says so (provideClusterInfo).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
struct Cluster {
    #[serde(default)]
    server: String,
    #[serde(default, rename = "insecure-skip-tls-verify")]
    unverified: bool,
    #[serde(default, rename = "tls-server-name")]
    other_name: String,
    #[serde(default, rename = "proxy-url")]
    proxy: String,
}

#[derive(Deserialize)]
struct Said {
    #[serde(rename = "apiVersion")]
    version: String,
    kind: String,
    #[serde(default)]
    spec: Spec,
}

#[derive(Default, Deserialize)]
struct Spec {
    cluster: Option<Cluster>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    api_version: &'a str,
    kind: &'a str,
    status: Status<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    expiration_timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_certificate_data: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_key_data: Option<&'a str>,
}

impl Request {
    /// Reads `KUBERNETES_EXEC_INFO`.
    ///
    /// # Errors
    /// [`ToolError::Asked`].
    pub fn read(info: Option<&str>) -> Result<Self, ToolError> {
        let asked = |why| ToolError::Asked { tool: Tool::Kubectl, why };
        let info = info.ok_or_else(|| {
            asked("KUBERNETES_EXEC_INFO is not set: this command is for users[].user.exec of a kubeconfig")
        })?;
        let said: Said = serde_json::from_str(info)
            .map_err(|_| asked("KUBERNETES_EXEC_INFO is not the JSON of an ExecCredential"))?;
        let version = VERSIONS.into_iter().find(|version| *version == said.version);
        let version = version.filter(|_| said.kind == KIND).ok_or_else(|| {
            asked("say apiVersion: client.authentication.k8s.io/v1 in the kubeconfig: other versions are not spoken")
        })?;
        Ok(Self { version, cluster: said.spec.cluster })
    }

    /// Whether this credential is for the cluster that is asked for, and of use there. A token goes to nobody but the servers that
    /// its origins name, so kubectl has to say which one it is; a certificate's key is sent to none.
    ///
    /// # Errors
    /// [`ToolError`].
    pub fn permits(&self, offer: &Offer) -> Result<(), ToolError> {
        usable(Tool::Kubectl, offer)?;
        if offer.binding != "bearer" {
            return Ok(());
        }
        let asked = |why| ToolError::Asked { tool: Tool::Kubectl, why };
        let cluster = self.cluster.as_ref().ok_or_else(|| {
            asked("it does not say for which cluster: set provideClusterInfo: true beside command in the kubeconfig")
        })?;
        // The same file says whom to trust (certificate-authority): with these, the server need not be the one that it names.
        if cluster.unverified {
            return Err(asked(
                "it would send the token to a server that it does not verify: take insecure-skip-tls-verify out",
            ));
        }
        if !cluster.other_name.is_empty() {
            return Err(asked(
                "it would take another server for the one that it names: take tls-server-name out",
            ));
        }
        if !cluster.proxy.is_empty() {
            return Err(asked(
                "it would send the token by way of another server: take proxy-url out, or set HTTPS_PROXY instead",
            ));
        }
        is_for(Tool::Kubectl, offer, Place::of_url(&cluster.server).as_ref())
    }

    /// The answer: a token, a certificate with its key, or both where one binds the other.
    ///
    /// # Errors
    /// [`ToolError::Useless`].
    pub fn answer(&self, credential: &Credential) -> Result<Secret, ToolError> {
        let useless = |why: &str| ToolError::useless(Tool::Kubectl, &credential.name, why);
        let token = match &credential.kind {
            Some(Kind::AccessToken(token)) => Some(token.token.as_str()),
            Some(Kind::X509Certificate(_)) => None,
            _ => return Err(useless("it is neither a token nor a certificate: name a credential that is")),
        };
        let pair = match (&credential.client_certificate, credential.binding.as_str()) {
            (Some(pair), "mtls") if pair.key_pem.is_empty() || pair.chain_pem.is_empty() => {
                return Err(useless(
                    "its key does not leave the agent: say key_export = \"allowed\" for this credential",
                ));
            }
            (Some(pair), "mtls") => Some(pair),
            (None, "bearer") => None,
            _ => {
                return Err(useless(OTHER_VERSION));
            }
        };
        let status = Status {
            expiration_timestamp: ends_at(Tool::Kubectl, credential)?,
            token,
            client_certificate_data: pair.map(|pair| pair.chain_pem.as_str()),
            client_key_data: pair.map(|pair| pair.key_pem.as_str()),
        };
        Ok(json(&Answer { api_version: self.version, kind: KIND, status }))
    }
}
