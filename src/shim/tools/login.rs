//! What goes as user name and password, where a client knows nothing else. In go what is offered and the credential; out come the two.

use super::{Tool, ToolError, token, unbound};
use crate::{
    proto::v1::{Credential, Offer, credential::Kind},
    secret::Secret,
};

/// What a client sends that knows only names and passwords (RFC 7617).
#[derive(Debug)]
pub struct Login {
    /// The user name.
    pub username: String,
    /// The password.
    pub password: Secret,
}

impl Login {
    /// Of leased values: `username` and `password`, or `token` for want of that. Of a token: the token, under the name that the
    /// settings give (`username`), or else the one that the client named, or else `usual`.
    ///
    /// # Errors
    /// [`ToolError::Useless`].
    pub fn of(
        tool: Tool,
        offer: &Offer,
        credential: &Credential,
        named: Option<&str>,
        usual: &str,
    ) -> Result<Self, ToolError> {
        unbound(tool, &credential.name, &credential.binding)?;
        let name = || match offer.username.as_str() {
            "" => named.unwrap_or(usual).to_owned(),
            set => set.to_owned(),
        };
        let (username, password) = match &credential.kind {
            Some(Kind::LeasedValues(leased)) => {
                let value = |field: &str| leased.values.get(field).filter(|value| !value.is_empty());
                let Some(password) = value("password").or_else(|| value("token")) else {
                    let why = "it has neither a password nor a token among its values: have it read where there is one (lease.at)";
                    return Err(ToolError::useless(tool, &credential.name, why));
                };
                (value("username").cloned().unwrap_or_else(name), password.as_str())
            }
            _ => (name(), token(tool, credential)?),
        };
        // Neither contract can carry these, and git would read them as lines of its own.
        let broken = |text: &str| text.is_empty() || text.chars().any(char::is_control);
        if broken(&username) || broken(password) {
            let why = "its user name or password is empty or holds a control character: have its issuer make another";
            return Err(ToolError::useless(tool, &credential.name, why));
        }
        Ok(Self { username, password: Secret::new(password) })
    }
}
