//! `credential_process` of the AWS SDKs. In goes a lease with an access key; out comes the JSON that the SDKs read (LEGACY 4.2).

use std::{collections::HashMap, time::Duration};

use serde::Serialize;

use super::{Tool, ToolError, ends_at, json, unbound};
use crate::{
    proto::v1::{Credential, Offer, credential::Kind},
    secret::Secret,
};

/// With less than this left, botocore asks again at every use (LEGACY 4.1).
pub const KEPT: Duration = Duration::from_secs(15 * 60);

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Answer<'a> {
    version: u8,
    access_key_id: &'a str,
    secret_access_key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_token: Option<&'a str>,
    expiration: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_id: Option<&'a str>,
}

/// How long it has to live for an SDK to keep it, if it may live that long at all: otherwise, no matter.
pub fn min_ttl(offer: &Offer) -> Duration {
    let longest = offer.max_ttl.and_then(|ttl| Duration::try_from(ttl).ok()).unwrap_or_default();
    // A credential of just that length is too short a moment after it was made.
    if longest > KEPT + Duration::from_secs(60) { KEPT } else { Duration::ZERO }
}

/// The answer. The values may have the names of OpenBao's AWS engine, of the SDKs, or of their variables.
///
/// # Errors
/// [`ToolError::Useless`].
pub fn answer(credential: &Credential) -> Result<Secret, ToolError> {
    unbound(Tool::Aws, &credential.name, &credential.binding)?;
    let useless = |why: &str| ToolError::useless(Tool::Aws, &credential.name, why);
    let Some(Kind::LeasedValues(leased)) = &credential.kind else {
        return Err(useless(
            "it is no access key. For a token, have the SDK exchange it: put it into a file (`keybearer exec --file \
             AWS_WEB_IDENTITY_TOKEN_FILE=CREDENTIAL.token`) and name the role in AWS_ROLE_ARN",
        ));
    };
    let value = |names: &[&str]| value(&leased.values, names);
    let (Some(access_key_id), Some(secret_access_key)) = (
        value(&["AccessKeyId", "access_key", "access_key_id", "aws_access_key_id", "AWS_ACCESS_KEY_ID"]),
        value(&[
            "SecretAccessKey",
            "secret_key",
            "secret_access_key",
            "aws_secret_access_key",
            "AWS_SECRET_ACCESS_KEY",
        ]),
    ) else {
        return Err(useless(
            "it has no access_key and secret_key: have it read where there are (lease.at, lease.fields)",
        ));
    };
    let session_token = value(&[
        "SessionToken",
        "security_token",
        "session_token",
        "aws_session_token",
        "AWS_SESSION_TOKEN",
        "Token",
    ]);
    // Keys that STS made are of no use without their token.
    if access_key_id.starts_with("ASIA") && session_token.is_none() {
        return Err(useless("it lacks the security_token that goes with its key: add that to lease.fields"));
    }
    let account_id = value(&["AccountId", "account_id", "AWS_ACCOUNT_ID"])
        .filter(|id| id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_digit()));
    let expiration = ends_at(Tool::Aws, credential)?;
    Ok(json(&Answer { version: 1, access_key_id, secret_access_key, session_token, expiration, account_id }))
}

fn value<'a>(values: &'a HashMap<String, String>, names: &[&str]) -> Option<&'a str> {
    names.iter().find_map(|name| values.get(*name)).map(String::as_str).filter(|value| !value.is_empty())
}
