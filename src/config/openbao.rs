//! `[issuers.NAME]` with `kind = "openbao"`, as meant.

use std::{sync::Arc, time::Duration};

use super::reader::Reader;
use crate::issuer::openbao::{self, OpenBaoSettings};

/// Reads one server's settings.
pub(super) fn openbao_issuer(reader: &mut Reader<'_>, name: &Arc<str>, environment: &str) -> OpenBaoSettings {
    let settings = OpenBaoSettings {
        name: Arc::clone(name),
        url: reader.required("url", "url = \"https://bao.example.com:8200\"").unwrap_or_default(),
        namespace: reader.string("namespace"),
        auth_mount: reader.string("auth_mount"),
        audience: reader.string("audience"),
        inline_auth: reader.boolean("inline_auth", false),
        ca_file: reader.path("ca_file"),
        roots: reader.path("roots"),
        dev: reader.boolean("dev", false),
        timeout: reader.duration("timeout", Duration::from_secs(10)),
    };
    if settings.dev && ["prod", "production"].contains(&environment) {
        reader.wrong("dev", "a development issuer is never used in production (S11)");
    }
    for (key, message) in openbao::problems(&settings) {
        // One that is not there has been told already.
        if !settings.url.is_empty() || key != "url" {
            reader.wrong(key, message);
        }
    }
    settings
}
