//! Rich authorization requests (RFC 9396). In goes `authorization_details`; out comes what may be granted of it, which is all
//! or nothing, or `invalid_authorization_details`.

use serde_json::{Value, json};

use super::{faults::Fault, form::Form, refusal::Refusal, register::Client};

/// The details of `form`, within the types that are registered for `client`; none if it has none.
pub(super) fn read(form: &Form, client: &Client) -> Result<Option<Value>, Refusal> {
    let Some(text) = form.one("authorization_details") else { return Ok(None) };
    let invalid = |why: &str| Refusal::new("invalid_authorization_details", why);
    let details: Vec<Value> = serde_json::from_str(text)
        .map_err(|_| invalid("authorization_details must be a JSON array of objects"))?;
    if details.is_empty() {
        return Err(invalid("authorization_details must hold at least one object"));
    }
    for detail in &details {
        let kind = detail.get("type").and_then(Value::as_str);
        let kind =
            kind.ok_or_else(|| invalid("each of authorization_details must be an object with a type"))?;
        if !client.authorization_details_types.iter().any(|known| known == kind) {
            return Err(invalid("a type of authorization_details is not registered for this client"));
        }
    }
    Ok(Some(Value::Array(details)))
}

/// What is granted of `details`: all of it, and more if the fault says so.
pub(super) fn granted(details: Option<Value>, fault: &Fault) -> Option<Value> {
    let mut details = details?;
    if *fault == Fault::WiderDetails {
        for detail in details.as_array_mut().into_iter().flatten() {
            match detail.get_mut("actions").and_then(Value::as_array_mut) {
                Some(actions) => actions.push(json!("admin")),
                None => detail["actions"] = json!(["admin"]),
            }
        }
    }
    Some(details)
}
