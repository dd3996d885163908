//! Certificates in the order in which TLS shows them. In go those that a CA sent, in whatever order, and the request they
//! answer; out comes a chain that begins with the certificate for the key of the request. Nothing of it is believed here.

use rustls_pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate, certification_request::X509CertificationRequest, prelude::FromDer as _,
};

use super::{
    super::{IssueError, Rejected},
    rejected,
};

/// The chain for `csr` out of `sent`: the leaf, then whoever signed each. A certificate that signed itself is left out, as TLS
/// leaves it out, and so is whatever belongs to no chain.
///
/// # Errors
/// X5-02: none of them is for the key of the request, or one of them cannot be read.
pub(super) fn for_request(
    csr: &[u8],
    sent: Vec<CertificateDer<'static>>,
) -> Result<Vec<CertificateDer<'static>>, IssueError> {
    let (_, request) = X509CertificationRequest::from_der(csr)
        .map_err(|_| rejected(Rejected::Form, "the request that was sent cannot be read"))?;
    let ours = request.certification_request_info.subject_pki.raw;
    let read = sent.iter().map(|one| X509Certificate::from_der(one).map(|(_, one)| one));
    let read = read.collect::<Result<Vec<_>, _>>();
    let read = read
        .map_err(|_| rejected(Rejected::Form, "the CA sent something that is no certificate (RFC 5280)"))?;
    let Some(leaf) = read.iter().position(|one| one.public_key().raw == ours) else {
        let what = format!(
            "none of the {} certificates that the CA sent is for the key that was asked for",
            read.len()
        );
        return Err(rejected(if read.is_empty() { Rejected::Form } else { Rejected::Key }, what));
    };
    let mut order = vec![leaf];
    while let Some(last) = order.last().map(|at| &read[*at]) {
        let signs = |(at, one): &(usize, &X509Certificate<'_>)| {
            one.subject().as_raw() == last.issuer().as_raw()
                && one.subject().as_raw() != one.issuer().as_raw()
                && !order.contains(at)
        };
        let Some((next, _)) = read.iter().enumerate().find(signs) else { break };
        order.push(next);
    }
    Ok(order.into_iter().map(|at| sent[at].clone()).collect())
}
