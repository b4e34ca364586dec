//! Reads a chain and its key, and checks that they belong together. Each mistake is a sentence with the file.

use std::io::Read as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{PemObject as _, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::TlsError;
use super::certificate::{Certificate, Facts};
use super::config::CertificateFiles;
use super::watched::Hash;

/// The largest file that is read, in bytes.
const MAX_SIZE: u64 = 4 << 20;

/// A PEM section: its kind and its DER.
type Section = (SectionKind, Vec<u8>);

/// Opens a file to read it. A pipe or a device would keep whoever reads it for ever.
fn open(path: &Path) -> std::io::Result<std::fs::File> {
    // Opening a pipe waits for whoever writes to it, unless it is told not to.
    let file = std::fs::File::options().read(true).custom_flags(O_NONBLOCK).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_dir() { Ok(file) } else { Err(std::io::Error::other("it is no regular file")) }
}

/// `O_NONBLOCK` of Linux.
const O_NONBLOCK: i32 = 0o4000;

/// Reads a file of text that is no longer than any certificate.
pub(super) fn read_text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    open(path)?.take(MAX_SIZE).read_to_string(&mut text)?;
    Ok(text)
}

/// The contents of the two files of a pair.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) chain: Vec<u8>,
    pub(super) key: Vec<u8>,
}

impl Contents {
    pub(super) fn hash(&self) -> Hash {
        hash_of(&[&self.chain, &self.key])
    }
}

/// Returns the fingerprint of a file's contents.
pub(super) fn hash(contents: &[u8]) -> Hash {
    hash_of(&[contents])
}

/// Returns the fingerprint of a file that can't be read.
pub(super) fn hash_of_error(error: &TlsError) -> Hash {
    hash_of(&[error.0.as_bytes(), b"", b""])
}

fn hash_of(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&part.len().to_le_bytes());
        context.update(part);
    }
    let mut hash = Hash::default();
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

impl CertificateFiles {
    /// Reads both files.
    pub(super) fn read(&self) -> Result<Contents, TlsError> {
        Ok(Contents { chain: read(&self.chain)?, key: read(&self.key)? })
    }

    /// Makes a pair of what the files have.
    pub(super) fn pair(&self, contents: &Contents, provider: &CryptoProvider) -> Result<Certificate, TlsError> {
        let names = (self.chain.display().to_string(), self.key.display().to_string());
        let mut certificate = pair((&names.0, &names.1), &contents.chain, &contents.key, provider)?;
        if is_open(&self.key) {
            certificate.warnings.push(format!(
                "{}: every user of this machine may read this private key; take that right away: chmod o= {}",
                names.1, names.1
            ));
        }
        Ok(certificate)
    }
}

/// Returns whether everybody may read a file.
fn is_open(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

/// Reads a file of at most [`MAX_SIZE`] bytes.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |why: String| TlsError(format!("{}: {why}", path.display()));
    if path.as_os_str().is_empty() {
        return Err(TlsError("tls.certificate: the path of a file is empty; name the file".into()));
    }
    let file = open(path).map_err(|error| failed(advice(&error)))?;
    let mut bytes = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes).map_err(|error| failed(advice(&error)))?;
    if bytes.is_empty() {
        return Err(failed("it is empty; whatever writes it has not done so yet, or failed".into()));
    }
    if bytes.len() as u64 > MAX_SIZE {
        return Err(failed("it is far too large for PEM; is it the right file?".into()));
    }
    Ok(bytes)
}

fn advice(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file; correct the path, or make the certificate first".into(),
        std::io::ErrorKind::PermissionDenied => {
            "Larder's user may not read it; give it the right to, for the directories above as well".into()
        }
        std::io::ErrorKind::IsADirectory => "it is a directory; name the file in it".into(),
        _ => format!("it can't be read: {error}"),
    }
}

/// Makes a pair of PEM texts. `names` says where chain and key come from.
pub(super) fn pair(
    names: (&str, &str),
    chain: &[u8],
    key: &[u8],
    provider: &CryptoProvider,
) -> Result<Certificate, TlsError> {
    let of_chain = |why: String| TlsError(format!("{}: {why}", names.0));
    let of_key = |why: String| TlsError(format!("{}: {why}", names.1));
    let certificates = certificates(names.0, chain)?;
    let facts = certificates.iter().map(|der| Facts::of(der)).collect::<Result<Vec<_>, _>>().map_err(of_chain)?;
    let key = private_key(names.1, key)?;
    let key = provider.key_provider.load_private_key(key).map_err(|error| {
        of_key(format!(
            "its private key can't be used ({error}): take one of ECDSA (P-256, P-384 or P-521), Ed25519, or RSA of at least 2048 bits"
        ))
    })?;
    let belongs = |place: usize| {
        let alone = CertifiedKey::new(vec![certificates[place].clone()], Arc::clone(&key));
        alone.keys_match()
    };
    match belongs(0) {
        Ok(()) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            if let Some(place) = (1..certificates.len()).find(|place| belongs(*place).is_ok()) {
                return Err(of_chain(format!(
                    "its certificates are in the wrong order: the one for the key is number {}, and must come first, with its issuers behind it",
                    place + 1
                )));
            }
            return Err(of_key(format!(
                "it is not the key of the certificate in {}; name a chain and a key that were made together",
                names.0
            )));
        }
        Err(error) => return Err(of_chain(format!("its certificate can't be used: {error}"))),
    }
    let mut warnings = Vec::new();
    if let Some(place) = facts.windows(2).position(|pair| pair[0].issuer != pair[1].subject) {
        warnings.push(format!(
            "{}: certificate number {} is not of the issuer of the one before it, so that clients may not accept the chain; each must be followed by that of its issuer",
            names.0,
            place + 2
        ));
    }
    let Some(facts) = facts.into_iter().next() else { return Err(of_chain(NO_CERTIFICATE.into())) };
    if facts.names.is_empty() && !facts.has_addresses {
        warnings.push(format!(
            "{}: the certificate is for no name (its subjectAltName has none), so that browsers refuse it; have it issued for the host's name",
            names.0
        ));
    }
    let key = Arc::new(CertifiedKey::new(certificates, key));
    Ok(Certificate { source: names.0.to_owned(), facts, key, warnings })
}

const NO_CERTIFICATE: &str =
    "it has no certificate; it must have one as PEM, which begins with -----BEGIN CERTIFICATE-----";

/// Reads the certificates of a PEM text, at least one.
fn certificates(name: &str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let sections = sections(name, text)?;
    let has_key = sections.iter().any(|(kind, _)| is_key(*kind));
    let found = sections.into_iter().filter(|(kind, _)| *kind == SectionKind::Certificate);
    let found: Vec<CertificateDer<'static>> = found.map(|(_, der)| der.into()).collect();
    if found.is_empty() {
        let why = if has_key {
            "it has a private key and no certificate; are chain and key the wrong way round?"
        } else {
            NO_CERTIFICATE
        };
        return Err(TlsError(format!("{name}: {why}")));
    }
    Ok(found)
}

/// Reads the private key of a PEM text.
fn private_key(name: &str, text: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    let failed = |why: String| TlsError(format!("{name}: {why}"));
    let has = |label: &str| text.windows(label.len()).any(|window| window == label.as_bytes());
    if has("BEGIN ENCRYPTED PRIVATE KEY") || has("Proc-Type: 4,ENCRYPTED") {
        return Err(failed(format!(
            "its key is protected by a passphrase, which Larder can't ask for; write it without: openssl pkey -in {name} -out NEW"
        )));
    }
    if has("BEGIN OPENSSH PRIVATE KEY") {
        return Err(failed("its key is one of SSH in OpenSSH's own form; TLS takes a key as PKCS #8".into()));
    }
    let mut keys = sections(name, text)?.into_iter().filter(|(kind, _)| is_key(*kind));
    let Some((kind, der)) = keys.next() else {
        return Err(failed(if has("BEGIN CERTIFICATE") {
            "it has a certificate and no private key; are chain and key the wrong way round?".into()
        } else {
            "it has no private key; it must have one as PEM, which begins with -----BEGIN PRIVATE KEY-----".into()
        }));
    };
    if keys.next().is_some() {
        return Err(failed("it has more than one private key; leave the one of the certificate".into()));
    }
    PrivateKeyDer::from_pem(kind, der).ok_or_else(|| failed("its key can't be read".into()))
}

fn is_key(kind: SectionKind) -> bool {
    matches!(kind, SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey)
}

/// Takes a PEM text apart.
fn sections(name: &str, text: &[u8]) -> Result<Vec<Section>, TlsError> {
    // DER begins with the tag of a sequence, whose length has more than a byte. PEM is text.
    if text.starts_with(&[0x30, 0x80]) || text.starts_with(&[0x30, 0x81]) || text.starts_with(&[0x30, 0x82]) {
        let command = match Facts::of(text) {
            Ok(_) => format!("openssl x509 -inform der -in {name} -out NEW"),
            Err(_) => {
                format!("openssl pkey -inform der -in {name} -out NEW, or openssl pkcs12 -nodes -in {name} -out NEW")
            }
        };
        return Err(TlsError(format!("{name}: it is binary (DER or PKCS #12), not PEM; turn it into PEM: {command}")));
    }
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    Section::pem_slice_iter(text).collect::<Result<_, _>>().map_err(|error| {
        TlsError(format!("{name}: it is no sound PEM, perhaps cut off: {error}; write it anew from where it came from"))
    })
}

/// Reads the authorities that issue clients' certificates.
pub(super) fn authorities(path: &Path, text: &[u8]) -> Result<RootCertStore, TlsError> {
    let name = path.display().to_string();
    let mut roots = RootCertStore::empty();
    for (n, certificate) in certificates(&name, text)?.into_iter().enumerate() {
        roots
            .add(certificate)
            .map_err(|error| TlsError(format!("{name}: certificate number {} can't be used: {error}", n + 1)))?;
    }
    Ok(roots)
}
