//! git's credential helper. In goes what git writes to a helper's standard input; out comes what it reads from its standard output
//! (git-credential(1), LEGACY 4.8). The text has no quoting, and a URL that git was given by anybody stands in it: what holds a
//! character that could end a line is not answered at all.

use super::{Login, Place, Tool, ToolError, ends, token};
use crate::{
    proto::v1::{Credential, Offer, credential::Kind},
    secret::Secret,
};

/// The longest request that is read, in bytes.
pub const LONGEST: u64 = 64 * 1024;

/// Who a token belongs to where nobody says otherwise: most forges take any name, and this one is GitHub's for it.
pub const USUAL_NAME: &str = "x-access-token";

/// That no other helper is asked and no person either.
pub const QUIT: &[u8] = b"quit=1\n";

/// What git asks for.
#[derive(Debug)]
pub struct Request {
    /// Where to.
    pub place: Place,
    username: Option<String>,
    /// What the server did not take, in a request to erase it.
    refused: Option<Secret>,
    /// Whether this git can send something else than a name and a password.
    authtype: bool,
    /// The schemes that the server asks for, if it said so.
    basic: bool,
    bearer: bool,
}

impl Request {
    /// Reads a request up to its blank line; `None` for what is no web server, such as a mail server (git send-email).
    ///
    /// # Errors
    /// [`ToolError::Asked`].
    pub fn read(text: &[u8]) -> Result<Option<Self>, ToolError> {
        let asked = |why| ToolError::Asked { tool: Tool::Git, why };
        let (mut protocol, mut host, mut username, mut refused) = (None, None, None, None);
        let (mut authtype, mut basic, mut bearer) = (false, false, false);
        for line in text.split(|byte| *byte == b'\n').take_while(|line| !line.is_empty()) {
            let at = line
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or_else(|| asked("a line of it is no key=value"))?;
            let (key, value) = (&line[..at], &line[at + 1..]);
            // A tab may stand in a header that the server sent.
            let broken = |byte: &u8| byte.is_ascii_control() && !(*byte == b'\t' && key == b"wwwauth[]");
            if line.iter().any(broken) {
                return Err(asked("a value of it holds a control character: look where that URL comes from"));
            }
            let text = || std::str::from_utf8(value).map_err(|_| asked("a value of it is not UTF-8"));
            let once = |slot: &mut Option<String>| match slot.replace(text()?.to_owned()) {
                None => Ok(()),
                Some(_) => Err(asked("it says the same thing twice: look where that URL comes from")),
            };
            match key {
                b"protocol" => once(&mut protocol)?,
                b"host" => once(&mut host)?,
                b"username" => once(&mut username)?,
                b"password" | b"credential" => refused = Some(Secret::new(value)),
                b"capability[]" => authtype |= value == b"authtype",
                b"wwwauth[]" => {
                    // Several challenges may stand in one header (RFC 9110 11.6.1). A comma in a realm at worst makes one too many.
                    for challenge in value.split(|byte| *byte == b',') {
                        let mut words =
                            challenge.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
                        let scheme = words.next().unwrap_or_default();
                        basic |= scheme.eq_ignore_ascii_case(b"basic");
                        bearer |= scheme.eq_ignore_ascii_case(b"bearer");
                    }
                }
                _ => {}
            }
        }
        match protocol.as_deref() {
            Some("https") => {}
            Some("http") => return Err(ToolError::Plain { tool: Tool::Git }),
            Some(_) => return Ok(None),
            None => return Err(asked("it names no protocol")),
        }
        let host = host.as_deref().and_then(Place::of_host);
        let place = host.ok_or_else(|| {
            asked("its host is none, or could be read in two ways: look where that URL comes from")
        })?;
        Ok(Some(Self { place, username, refused, authtype, basic, bearer }))
    }

    /// Whether git wants the login of somebody else.
    pub fn is_for_another(&self, offer: &Offer) -> bool {
        !offer.username.is_empty() && self.username.as_ref().is_some_and(|named| *named != offer.username)
    }

    /// The answer; empty if git wants the login of somebody else.
    ///
    /// # Errors
    /// [`ToolError::Useless`].
    pub fn answer(&self, offer: &Offer, credential: &Credential) -> Result<Secret, ToolError> {
        let login = Login::of(Tool::Git, offer, credential, self.username.as_deref(), USUAL_NAME)?;
        if self.username.as_ref().is_some_and(|named| *named != login.username) {
            return Ok(Secret::new(""));
        }
        let ends = ends(Tool::Git, credential)?;
        let mut text = Vec::with_capacity(32 * 1024);
        if self.bearer && !self.basic && matches!(credential.kind, Some(Kind::AccessToken(_))) {
            if !self.authtype {
                let why = "the server takes it only as a Bearer token, which git sends from 2.46 on: bring git up to date";
                return Err(ToolError::useless(Tool::Git, &credential.name, why));
            }
            text.extend_from_slice(b"capability[]=authtype\nauthtype=Bearer\nephemeral=1\ncredential=");
            text.extend_from_slice(token(Tool::Git, credential)?.as_bytes());
        } else {
            text.extend_from_slice(b"username=");
            text.extend_from_slice(login.username.as_bytes());
            text.extend_from_slice(b"\npassword=");
            text.extend_from_slice(login.password.expose());
        }
        text.extend_from_slice(format!("\npassword_expiry_utc={ends}\n").as_bytes());
        Ok(Secret::new(text))
    }

    /// Whether what the server did not take is this credential, so that it has to go: what somebody typed, or another helper gave,
    /// is no reason.
    pub fn refuses(&self, offer: &Offer, credential: &Credential) -> bool {
        let Some(refused) = &self.refused else { return false };
        let login = Login::of(Tool::Git, offer, credential, self.username.as_deref(), USUAL_NAME);
        login.is_ok_and(|login| login.password.fingerprint() == refused.fingerprint())
    }
}
