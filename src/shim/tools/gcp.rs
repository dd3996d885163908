//! The executable credential source of Google's auth libraries (`external_account`; AIP-4117). In go the variables that the library
//! sets and a JWT; out comes the JSON that it reads, an error too: whatever else were printed, on either stream, would break it
//! (LEGACY 4.6). No file is ever written (GOOGLE_EXTERNAL_ACCOUNT_OUTPUT_FILE): the library does without, and the agent keeps the
//! token where it does not lie about.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Tool, ToolError, ends, json, token, unbound};
use crate::{proto::v1::Credential, secret::Secret};

const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";

/// What the library asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Request {
    /// A token of this type.
    Token(&'static str),
    /// To give it back.
    Revoke,
}

#[derive(Serialize)]
struct Answer<'a> {
    version: u8,
    success: bool,
    token_type: &'a str,
    id_token: &'a str,
    expiration_time: i64,
}

#[derive(Serialize)]
struct Failure<'a> {
    version: u8,
    success: bool,
    code: &'a str,
    message: &'a str,
}

impl Request {
    /// Reads the variables. By hand, without them, a JWT is what is asked for.
    ///
    /// # Errors
    /// [`ToolError::Asked`].
    pub fn read(environment: &BTreeMap<String, String>) -> Result<Self, ToolError> {
        let said =
            |name: &str| environment.get(&format!("GOOGLE_EXTERNAL_ACCOUNT_{name}")).map(String::as_str);
        let asked = |why| ToolError::Asked { tool: Tool::Gcp, why };
        if said("REVOKE") == Some("1") {
            return Ok(Self::Revoke);
        }
        if said("INTERACTIVE") == Some("1") {
            return Err(asked(
                "interactive mode hands tokens over in files: take interactive_timeout_millis out",
            ));
        }
        match said("TOKEN_TYPE") {
            None | Some(JWT) => Ok(Self::Token(JWT)),
            Some(ID_TOKEN) => Ok(Self::Token(ID_TOKEN)),
            Some(_) => Err(asked(
                "say \"subject_token_type\": \"urn:ietf:params:oauth:token-type:jwt\" in its configuration",
            )),
        }
    }
}

/// The answer to a request for a token of this type.
///
/// # Errors
/// [`ToolError::Useless`].
pub fn answer(token_type: &str, credential: &Credential) -> Result<Secret, ToolError> {
    unbound(Tool::Gcp, &credential.name, &credential.binding)?;
    let id_token = token(Tool::Gcp, credential)?;
    if !(id_token.starts_with("eyJ") && id_token.matches('.').count() == 2) {
        let why = "it is no JWT, which is all that Google's token service takes from elsewhere: have the issuer make one";
        return Err(ToolError::useless(Tool::Gcp, &credential.name, why));
    }
    let expiration_time = ends(Tool::Gcp, credential)?;
    Ok(json(&Answer { version: 1, success: true, token_type, id_token, expiration_time }))
}

/// That it was given back.
pub fn revoked() -> Secret {
    json(&serde_json::json!({"version": 1, "success": true}))
}

/// What the library shows a person, with the code of HTTP that says the same.
pub fn failure(code: &str, message: &str) -> Secret {
    json(&Failure { version: 1, success: false, code, message })
}
