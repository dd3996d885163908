//! docker's credential helper, as docker, podman and others run it. In goes the name of a registry; out comes JSON. Errors are words
//! on standard output, with exit code 1 (LEGACY 4.9).

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Login, Place, Tool, ToolError, git, json, usable};
use crate::{
    proto::v1::{Credential, Offer},
    secret::Secret,
};

/// What docker knows as "there is none": it goes on without.
pub const NOT_FOUND: &str = "credentials not found in native keychain";

/// Why nothing is stored.
pub const KEEPS_NOTHING: &str = "keybearer keeps no passwords: a credential for this registry is declared in agent.toml (docs/tools.md); do not log in";

/// The longest name of a registry that is read, in bytes.
pub const LONGEST: u64 = 4096;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Answer<'a> {
    #[serde(rename = "ServerURL")]
    server: &'a str,
    username: &'a str,
    secret: &'a str,
}

/// What docker asks for: its own words, and the place they name.
///
/// # Errors
/// [`ToolError::Asked`].
pub fn read(text: &[u8]) -> Result<(&str, Place), ToolError> {
    let asked = |why| ToolError::Asked { tool: Tool::Docker, why };
    let text = std::str::from_utf8(text).map_err(|_| asked("the registry's name is not UTF-8"))?;
    let server = text.strip_suffix('\n').unwrap_or(text);
    let place = match server.split_once("://") {
        Some(("https", _)) => Place::of_url(server),
        Some(_) => return Err(ToolError::Plain { tool: Tool::Docker }),
        // A name without a scheme is what docker calls its registries by; what is behind a slash is in the registry.
        None => Place::of_url(&format!("https://{server}")),
    };
    let place = place.ok_or_else(|| asked("the registry's name is none, or could be read in two ways"))?;
    Ok((server, place))
}

/// The answer to `get`.
///
/// # Errors
/// [`ToolError::Useless`].
pub fn answer(server: &str, offer: &Offer, credential: &Credential) -> Result<Secret, ToolError> {
    let login = Login::of(Tool::Docker, offer, credential, None, git::USUAL_NAME)?;
    let secret = login.password.expose_str().unwrap_or_default();
    Ok(json(&Answer { server, username: &login.username, secret }))
}

/// The answer to `list`: the registries there is something for, and under which name.
pub fn list(offers: &[Offer]) -> String {
    let usable = offers.iter().filter(|offer| usable(Tool::Docker, offer).is_ok());
    let listed: BTreeMap<String, &str> = usable
        .flat_map(|offer| {
            offer.origins.iter().filter_map(move |origin| Some((Place::of_url(origin)?, offer)))
        })
        .map(|(place, offer)| {
            let name = if offer.username.is_empty() { git::USUAL_NAME } else { &offer.username };
            (place.to_string(), name)
        })
        .collect();
    serde_json::to_string(&listed).expect("names are strings")
}
