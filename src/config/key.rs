//! Types of the table's rows: a key, the field that it sets, and what it does.
//!
//! A row has no default: the `Default` of the room's `Config` has it. Its kind (`kinds`) decides what values it takes.

use toml::Value;

use super::Config;
use super::kinds::{Described, Kind};
use super::sources::Given;
use crate::proxy::Rule;
use crate::store::s3::S3Config;
use crate::tls::CertificateFiles;

/// The keys under one `[name]`.
pub(super) struct Section {
    pub(super) name: &'static str,
    /// Says in a sentence what the section is about.
    pub(super) about: &'static str,
    pub(super) keys: &'static [Key<Draft>],
}

/// One setting of `S`: a [`Draft`], a [`Rule`], or [`CertificateFiles`].
pub(super) struct Key<S: 'static> {
    pub(super) name: &'static str,
    pub(super) field: &'static dyn Field<S>,
    /// Says what the key does: sentences, the first with its verb first.
    pub(super) does: &'static str,
}

/// A configuration that is being read.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) config: Config,
    /// Settings for reaching a bucket. Their place in `config` exists only if `durable.url` names a bucket.
    pub(super) s3: S3Config,
}

impl Default for Draft {
    fn default() -> Self {
        let s3 =
            S3Config { bucket: String::new(), endpoint_url: String::new(), region: String::new(), path_style: false };
        Self { config: Config::default(), s3 }
    }
}

/// A field of `S` that a key sets, and the kind of its value.
pub(super) trait Field<S>: Sync {
    /// Writes the value that is given, or returns why it can't be one.
    fn read(&self, given: &Given, into: &mut S) -> Result<(), String>;

    /// Returns the value as a file would give it; `None`: it is not set. Takes `of` mutably because a row names its
    /// field once, by a function that serves reading and writing.
    fn shown(&self, of: &mut S) -> Option<Value>;

    /// Returns what the value may be.
    fn described(&self) -> Described;

    /// Returns the field of a rule that overrides this one, if there is one.
    fn of_rule(&self) -> Option<&dyn Field<Rule>> {
        None
    }
}

/// A field of the sections.
pub(super) struct Of<T: 'static, K> {
    pub(super) at: fn(&mut Draft) -> &mut T,
    pub(super) kind: K,
}

impl<T, K: Kind<T>> Field<Draft> for Of<T, K> {
    fn read(&self, given: &Given, into: &mut Draft) -> Result<(), String> {
        *(self.at)(into) = self.kind.read(given)?;
        Ok(())
    }

    fn shown(&self, of: &mut Draft) -> Option<Value> {
        self.kind.shown((self.at)(of))
    }

    fn described(&self) -> Described {
        self.kind.described()
    }
}

/// A field of the sections that a rule may set as well, under the same name, for its own paths.
pub(super) struct Also<T: 'static, K> {
    pub(super) at: fn(&mut Draft) -> &mut T,
    pub(super) rule: fn(&mut Rule) -> &mut Option<T>,
    pub(super) kind: K,
}

impl<T, K: Kind<T>> Field<Draft> for Also<T, K> {
    fn read(&self, given: &Given, into: &mut Draft) -> Result<(), String> {
        *(self.at)(into) = self.kind.read(given)?;
        Ok(())
    }

    fn shown(&self, of: &mut Draft) -> Option<Value> {
        self.kind.shown((self.at)(of))
    }

    fn described(&self) -> Described {
        self.kind.described()
    }

    fn of_rule(&self) -> Option<&dyn Field<Rule>> {
        Some(self)
    }
}

impl<T, K: Kind<T>> Field<Rule> for Also<T, K> {
    fn read(&self, given: &Given, into: &mut Rule) -> Result<(), String> {
        *(self.rule)(into) = Some(self.kind.read(given)?);
        Ok(())
    }

    fn shown(&self, of: &mut Rule) -> Option<Value> {
        self.kind.shown((self.rule)(of).as_ref()?)
    }

    fn described(&self) -> Described {
        self.kind.described()
    }
}

/// A field that only rules have.
pub(super) struct InRule<T: 'static, K> {
    pub(super) at: fn(&mut Rule) -> &mut T,
    pub(super) kind: K,
}

impl<T, K: Kind<T>> Field<Rule> for InRule<T, K> {
    fn read(&self, given: &Given, into: &mut Rule) -> Result<(), String> {
        *(self.at)(into) = self.kind.read(given)?;
        Ok(())
    }

    fn shown(&self, of: &mut Rule) -> Option<Value> {
        self.kind.shown((self.at)(of))
    }

    fn described(&self) -> Described {
        self.kind.described()
    }
}

/// A field of a `[[tls.certificate]]`.
pub(super) struct InCertificate<T: 'static, K> {
    pub(super) at: fn(&mut CertificateFiles) -> &mut T,
    pub(super) kind: K,
}

impl<T, K: Kind<T>> Field<CertificateFiles> for InCertificate<T, K> {
    fn read(&self, given: &Given, into: &mut CertificateFiles) -> Result<(), String> {
        *(self.at)(into) = self.kind.read(given)?;
        Ok(())
    }

    fn shown(&self, of: &mut CertificateFiles) -> Option<Value> {
        self.kind.shown((self.at)(of))
    }

    fn described(&self) -> Described {
        self.kind.described()
    }
}
