//! A Secret of Kubernetes (core/v1), for `kubectl apply -f`. In goes a value; out comes its member of `data`, in base64, so that any
//! bytes can be carried. The manifest is JSON, which kubectl reads as it reads YAML and which can be misread in no way of YAML's.

use std::{fmt, str::FromStr};

use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::json::put_string;

/// What all values of a Secret may have together (MaxSecretSize of its API): 1 MiB.
pub(super) const MOST: usize = 1024 * 1024;

/// Which Secret.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Manifest {
    /// Its name.
    pub name: ObjectName,
    /// Its namespace; whichever kubectl is in, if there is none.
    pub namespace: Option<ObjectName>,
}

/// The name of an object: a DNS name of small letters, digits, `-` and `.` (RFC 1123).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ObjectName(String);

impl Manifest {
    pub(super) fn open(&self, out: &mut Vec<u8>) {
        out.extend(b"{\n  \"apiVersion\": \"v1\",\n  \"kind\": \"Secret\",\n  \"type\": \"Opaque\",\n  \"metadata\": {\"name\": ");
        put_string(&self.name.0, out);
        if let Some(namespace) = &self.namespace {
            out.extend(b", \"namespace\": ");
            put_string(&namespace.0, out);
        }
        out.extend(b"},\n  \"data\": {");
    }
}

pub(super) fn put(name: &str, value: &[u8], first: bool, out: &mut Vec<u8>) {
    out.extend(if first { b"\n    ".as_slice() } else { b",\n    " });
    put_string(name, out);
    out.extend(b": \"");
    let start = out.len();
    out.resize(start + value.len().div_ceil(3) * 4, b'=');
    BASE64_STANDARD.encode_slice(value, &mut out[start..]).expect("there is room for exactly this");
    out.push(b'"');
}

impl FromStr for ObjectName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let part = |part: &str| {
            !part.is_empty() && part.bytes().all(inner) && !part.starts_with('-') && !part.ends_with('-')
        };
        if name.len() > 253 || !name.split('.').all(part) {
            return Err("it has to be small letters, digits, - and ., as Kubernetes names its objects".into());
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
