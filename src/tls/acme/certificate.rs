//! Certificates as ACME needs them: requests for them, what a new one says, and those that answer tls-alpn-01.

use std::fmt;

use instant_acme::CertificateIdentifier;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::plan::Validity;
use crate::rfc9111::timestamp::Timestamp;

/// A certificate with its key, ready to be used.
pub(super) struct Issued {
    /// The names that it is for, in lower case.
    pub(super) names: Vec<String>,
    pub(super) validity: Validity,
    /// The name by which the CA knows it (RFC 9773 §4.1), if it says enough for one.
    pub(super) id: Option<String>,
    /// The chain and its private key, as PEM.
    pub(super) chain: String,
    pub(super) key: String,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("names", &self.names).field("validity", &self.validity).finish_non_exhaustive()
    }
}

impl Issued {
    /// Reads a chain and a key, both PEM, and checks that they belong together.
    pub(super) fn read(chain_pem: &str, key_pem: &str) -> Result<Self, String> {
        let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("the chain is no sound PEM: {error}"))?;
        let leaf = chain.first().ok_or("the chain is empty")?;
        let (_, parsed) =
            X509Certificate::from_der(leaf).map_err(|error| format!("the certificate can't be read: {error}"))?;
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        });
        let names: Vec<String> = names.collect();
        let validity = Validity {
            from: Timestamp::from_secs(parsed.validity().not_before.timestamp()),
            until: Timestamp::from_secs(parsed.validity().not_after.timestamp()),
        };
        let id = CertificateIdentifier::try_from(leaf).ok().map(|id| id.to_string());
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|error| format!("the private key is no sound PEM: {error}"))?;
        CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
            .map_err(|error| format!("the certificate and the key can't be used together: {error}"))?;
        Ok(Self { names, validity, id, chain: chain_pem.to_owned(), key: key_pem.to_owned() })
    }

    /// Returns whether it is for all of these names.
    pub(super) fn is_for(&self, names: &[String]) -> bool {
        names.iter().all(|name| self.names.contains(name))
    }
}

/// Makes a private key, as PEM.
pub(super) fn new_key() -> Result<String, String> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| format!("no key can be made: {error}"))?;
    Ok(key.serialize_pem())
}

/// Makes the request for a certificate (CSR), as DER.
pub(super) fn request(names: &[String], key: &str) -> Result<Vec<u8>, String> {
    let failed = |error: rcgen::Error| format!("no request for a certificate can be made: {error}");
    let key = KeyPair::from_pem(key).map_err(failed)?;
    let mut params = CertificateParams::new(names.to_vec()).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(&key).map_err(failed)?.der().to_vec())
}

/// Makes the certificate that answers the challenge tls-alpn-01 for `name` (RFC 8737 §3). `digest` is the SHA-256 of the key
/// authorization.
pub(super) fn of_challenge(name: &str, digest: &[u8]) -> Result<CertifiedKey, String> {
    let failed = |error: rcgen::Error| format!("no certificate for the challenge can be made: {error}");
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key).map_err(failed)?;
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = aws_lc_rs::default_provider().key_provider.load_private_key(der);
    let key = key.map_err(|error| format!("the key for the challenge can't be used: {error}"))?;
    // Not compared with the key: that would fail at the extension, which is critical.
    Ok(CertifiedKey::new(vec![certificate.der().clone()], key))
}

#[cfg(test)]
pub(super) mod tests {
    use rcgen::{BasicConstraints, IsCa, Issuer, KeyUsagePurpose, date_time_ymd};
    use x509_parser::extensions::ParsedExtension;

    use super::*;

    /// A chain and a key for `names`, valid for the year 2030, as PEM.
    pub(in crate::tls::acme) fn issued(names: &[&str]) -> (String, String) {
        let authority = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = Issuer::new(params, authority);
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.not_before = date_time_ymd(2030, 1, 1);
        params.not_after = date_time_ymd(2030, 12, 31);
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn a_chain_is_believed_only_with_its_own_key() {
        let (chain, key) = issued(&["A.example", "b.example"]);
        let read = Issued::read(&chain, &key).expect("a pair");
        assert!(read.is_for(&["b.example".into(), "a.example".into()]) && !read.is_for(&["c.example".into()]));
        assert_eq!(read.validity.from.to_rfc3339(), "2030-01-01T00:00:00Z");
        let (key_id, serial) = read.id.as_deref().and_then(|id| id.split_once('.')).expect("an id");
        assert!(key_id.len() >= 26 && !serial.is_empty(), "{key_id}.{serial}");
        for (chain, key) in
            [(chain.as_str(), new_key().expect("a key").as_str()), ("", &key), (&key, &key), (&chain, "")]
        {
            assert!(Issued::read(chain, key).is_err());
        }
    }

    #[test]
    fn a_request_has_the_names_and_nothing_else_of_us() {
        let der = request(&["a.example".into(), "b.example".into()], &new_key().expect("a key")).expect("a request");
        let (_, parsed) = x509_parser::certification_request::X509CertificationRequest::from_der(&der).expect("a CSR");
        let extensions: Vec<_> = parsed.requested_extensions().expect("extensions").collect();
        let [ParsedExtension::SubjectAlternativeName(names)] = extensions[..] else { panic!("{extensions:?}") };
        let expected = ["a.example", "b.example"].map(GeneralName::DNSName);
        assert_eq!(names.general_names, expected);
        assert_eq!(parsed.certification_request_info.subject.iter().count(), 0);
    }

    #[test]
    fn the_answer_to_tls_alpn_01_is_critical_and_for_one_name() {
        let key = of_challenge("a.example", &[7; 32]).expect("a certificate");
        let (_, parsed) = X509Certificate::from_der(&key.cert[0]).expect("a certificate");
        let extension = parsed.extensions().iter().find(|one| one.oid.to_id_string() == "1.3.6.1.5.5.7.1.31");
        let extension = extension.expect("id-pe-acmeIdentifier");
        assert!(extension.critical);
        assert_eq!(extension.value, [&[4, 32][..], &[7; 32]].concat());
    }
}
