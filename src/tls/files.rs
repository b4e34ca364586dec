//! Reads a chain and its key, and checks that they belong together. Each mistake is a sentence with the file.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::TlsError;
use super::certificate::{Certificate, Facts};
use super::config::CertificateFiles;

impl CertificateFiles {
    /// Reads the pair.
    pub(super) fn load(&self, provider: &CryptoProvider) -> Result<Certificate, TlsError> {
        let chain = read(&self.chain)?;
        let key = read(&self.key)?;
        pair(&Named { chain: &self.chain, key: &self.key }, &chain, &key, provider)
    }
}

/// Where a pair comes from.
pub(super) struct Named<'a> {
    pub(super) chain: &'a Path,
    pub(super) key: &'a Path,
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError(format!("{}: it can't be read: {error}", path.display())))
}

/// Makes a pair of PEM texts.
pub(super) fn pair(
    named: &Named<'_>,
    chain: &[u8],
    key: &[u8],
    provider: &CryptoProvider,
) -> Result<Certificate, TlsError> {
    let of_chain = |why: &str| TlsError(format!("{}: it {why}", named.chain.display()));
    let of_key = |why: &str| TlsError(format!("{}: it {why}", named.key.display()));
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|error| of_chain(&format!("is no sound PEM: {error}")))?;
    let first = chain.first().ok_or_else(|| of_chain("has no certificate"))?;
    let facts = Facts::of(first).map_err(|why| of_chain(&why))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| of_key(&format!("has no private key: {error}")))?;
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|error| of_key(&format!("has a key that can't be used: {error}")))?;
    let key = CertifiedKey::new(chain, key);
    key.keys_match().map_err(|_| {
        of_key(&format!(
            "is not the key of the certificate in {}; name the pair that belongs together",
            named.chain.display()
        ))
    })?;
    Ok(Certificate { source: named.chain.display().to_string(), facts, key: Arc::new(key) })
}
