//! What an issuer that trusts a CA knows a client by (RFC 8705 2.1.2). In goes a certificate; out comes the one name of it
//! that is registered: the more it says about a workload, the better (MT-04).

use std::net::IpAddr;

use x509_parser::{
    asn1_rs::ToDer as _,
    certificate::X509Certificate,
    extensions::GeneralName,
    x509::{AttributeTypeAndValue, X509Name},
};

use crate::secret::hex;

/// One name of a certificate, and the client metadata that holds it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Name {
    /// The member of the client metadata, as `tls_client_auth_san_uri`.
    pub member: &'static str,
    /// Its value.
    pub value: String,
}

impl Name {
    /// A URI if there is one, then a DNS name, an address, a mail address, and the subject last.
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Self {
        let alternative = certificate.subject_alternative_name().ok().flatten();
        let names = alternative.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        // Of several of one kind, the first.
        match names.iter().filter_map(known).min_by_key(|(rank, _)| *rank) {
            Some((_, name)) => name,
            None => {
                Self { member: "tls_client_auth_subject_dn", value: distinguished(certificate.subject()) }
            }
        }
    }
}

/// A name that a client can be registered by, and how late it is taken.
fn known(name: &GeneralName<'_>) -> Option<(u8, Name)> {
    let (rank, member, value) = match name {
        GeneralName::URI(uri) => (0, "tls_client_auth_san_uri", (*uri).to_owned()),
        GeneralName::DNSName(host) => (1, "tls_client_auth_san_dns", (*host).to_owned()),
        GeneralName::IPAddress(bytes) => (2, "tls_client_auth_san_ip", address(bytes)?),
        GeneralName::RFC822Name(mail) => (3, "tls_client_auth_san_email", (*mail).to_owned()),
        _ => return None,
    };
    Some((rank, Name { member, value }))
}

fn address(bytes: &[u8]) -> Option<String> {
    let address = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some(address.to_string())
}

/// The string form of a distinguished name: most specific part first, short names for the types of RFC 4514 3.
fn distinguished(name: &X509Name<'_>) -> String {
    let parts: Vec<String> =
        name.iter_rdn().map(|part| part.iter().map(attribute).collect::<Vec<_>>().join("+")).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    const SHORT: [(&str, &str); 9] = [
        ("2.5.4.3", "CN"),
        ("2.5.4.7", "L"),
        ("2.5.4.8", "ST"),
        ("2.5.4.10", "O"),
        ("2.5.4.11", "OU"),
        ("2.5.4.6", "C"),
        ("2.5.4.9", "STREET"),
        ("0.9.2342.19200300.100.1.25", "DC"),
        ("0.9.2342.19200300.100.1.1", "UID"),
    ];
    let oid = attribute.attr_type().to_id_string();
    match (SHORT.iter().find(|(known, _)| *known == oid), attribute.as_str()) {
        (Some((_, short)), Ok(text)) => format!("{short}={}", escaped(text)),
        // RFC 4514 2.4: a type without a short name has its value as the hexadecimal of its encoding.
        (short, _) => {
            let name = short.map_or(&*oid, |(_, short)| short);
            format!("{name}=#{}", hex(&attribute.attr_value().to_der_vec().unwrap_or_default()))
        }
    }
}

/// RFC 4514 2.4.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let last = text.chars().count().saturating_sub(1);
    for (at, c) in text.chars().enumerate() {
        let at_an_end = (at == 0 && matches!(c, ' ' | '#')) || (at == last && c == ' ');
        match c {
            '\0' => out.push_str("\\00"),
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => out.extend(['\\', c]),
            c if at_an_end => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}
