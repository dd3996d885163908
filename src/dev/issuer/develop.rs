//! What only a development issuer has: clients that register themselves, issuers to believe, faults, the diary. In goes a request below
//! `/dev/`; out comes an answer, and nothing in the diary.

use http::{Method, StatusCode, header};
use serde_json::json;

use super::{desk::Desk, faults::Fault, register::Client};
use crate::dev::http::{Answer, Ask, NOTE, allow, json, refuse};

impl Desk {
    /// What only a development issuer has. JSON must be named as such: a web page cannot send that here
    /// without asking first, and it would be told no.
    pub(super) fn develop(&self, ask: &Ask) -> Answer {
        let path = ask.uri().path();
        if path == "/dev/diary" {
            if ask.method() != Method::GET {
                return allow("GET");
            }
            // The diary is strings and numbers, which always serialize.
            let diary = serde_json::to_value(&self.books().diary).expect("the diary serializes");
            return json(StatusCode::OK, &diary);
        }
        if !["/dev/clients", "/dev/fault", "/dev/trust"].contains(&path) {
            return refuse(
                StatusCode::NOT_FOUND,
                "there are /dev/clients, /dev/diary, /dev/fault and /dev/trust",
            );
        }
        if ask.method() != Method::POST {
            return allow("POST");
        }
        if ask.headers().get(header::CONTENT_TYPE).is_none_or(|value| value != "application/json") {
            return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send Content-Type: application/json");
        }
        if path == "/dev/fault" {
            return match Fault::from_json(ask.body()) {
                Ok((fault, times)) => {
                    let set = json!({"fault": fault.as_str(), "times": times, "note": NOTE});
                    self.books().knob.set(fault, times);
                    json(StatusCode::OK, &set)
                }
                Err(error) => refuse(StatusCode::BAD_REQUEST, &error.to_string()),
            };
        }
        if path == "/dev/trust" {
            return match self.books().trust.add_json(ask.body()) {
                Ok(issuer) => json(StatusCode::CREATED, &json!({"trusted": issuer, "note": NOTE})),
                Err(error) => refuse(StatusCode::BAD_REQUEST, &error.to_string()),
            };
        }
        match Client::from_json(ask.body()).and_then(|client| self.register(client)) {
            Ok(client_id) => {
                let (uri, right) = self.right(&client_id).unwrap_or_default();
                let answer = json!({
                    "client_id": client_id, "issuer": self.url, "note": NOTE,
                    "registration_client_uri": uri, "registration_access_token": right,
                });
                json(StatusCode::CREATED, &answer)
            }
            Err(error) => refuse(StatusCode::BAD_REQUEST, &error.to_string()),
        }
    }
}
