//! Authorization details that came back, held against those that were asked for (RFC 9396, OA-27). In go both; out comes
//! nothing, or a refusal: less is a shorter arm, anything else is somebody else's.

use serde_json::Value;

use crate::issuer::{IssueError, Reason};

/// Holds what `granted` says against `asked`. `None` is an answer that says nothing.
pub(super) fn check(granted: Option<&Value>, asked: &[Value]) -> Result<(), IssueError> {
    let listed = match granted.filter(|granted| !granted.is_null()) {
        None if asked.is_empty() => return Ok(()),
        None => {
            return Err(escalated(
                "the answer does not say which authorization_details the token has (RFC 9396 7)",
            ));
        }
        Some(Value::Array(listed)) => listed,
        Some(_) => return Err(escalated("the authorization_details that came back are not a list")),
    };
    // An empty list could be read as no limit at all.
    let fits = |detail: &Value| asked.iter().any(|asked| within(detail, asked));
    if listed.is_empty() != asked.is_empty() || !listed.iter().all(fits) {
        return Err(escalated(
            "the token has other or wider authorization_details than were asked for: have the issuer grant these or fewer",
        ));
    }
    Ok(())
}

/// The same, with fewer entries in its lists at most. A member that is gone could mean a limit that is gone.
fn within(granted: &Value, asked: &Value) -> bool {
    match (granted, asked) {
        (Value::Object(granted), Value::Object(asked)) => {
            granted.len() == asked.len()
                && granted
                    .iter()
                    .all(|(name, value)| asked.get(name).is_some_and(|asked| within(value, asked)))
        }
        (Value::Array(granted), Value::Array(asked)) => {
            granted.is_empty() == asked.is_empty()
                && granted.iter().all(|value| asked.iter().any(|asked| within(value, asked)))
        }
        (granted, asked) => granted == asked,
    }
}

fn escalated(detail: &str) -> IssueError {
    IssueError::Refused { reason: Reason::RarEscalated, detail: detail.into() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_same_or_less_is_taken_and_nothing_else() {
        // OA-27
        let asked = [
            json!({"type": "account", "actions": ["read", "list"], "limit": {"amount": 10, "currencies": ["EUR", "SEK"]}}),
            json!({"type": "payment", "to": "x"}),
        ];
        let account = |actions: Value, amount: Value, currencies: Value| json!([{"type": "account", "actions": actions, "limit": {"amount": amount, "currencies": currencies}}]);
        for (granted, taken) in [
            (json!(asked), true),
            (json!([asked[1]]), true),
            (account(json!(["list"]), json!(10), json!(["SEK"])), true),
            (account(json!(["list", "write"]), json!(10), json!(["SEK"])), false),
            (account(json!([]), json!(10), json!(["SEK"])), false),
            (account(json!("read"), json!(10), json!(["SEK"])), false),
            (account(json!(["read"]), json!(9), json!(["SEK"])), false),
            (account(json!(["read"]), json!(10), json!(["USD"])), false),
            (json!([{"type": "account", "actions": ["read"]}]), false),
            (json!([{"type": "payment", "to": "x", "more": true}]), false),
            (json!([{"type": "Payment", "to": "x"}]), false),
            (json!([]), false),
            (json!({"type": "payment", "to": "x"}), false),
            (json!("all"), false),
            (json!(null), false),
        ] {
            let done = check(Some(&granted), &asked);
            assert_eq!(done.is_ok(), taken, "{granted}");
            assert!(done.is_ok() || done.is_err_and(|error| error.reason() == Reason::RarEscalated));
        }
        assert!(check(None, &asked).is_err());
        for (granted, taken) in [(None, true), (Some(json!([])), true), (Some(json!([asked[1]])), false)] {
            assert_eq!(check(granted.as_ref(), &[]).is_ok(), taken, "{granted:?}");
        }
    }
}
