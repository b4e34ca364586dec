//! Walking through a directory: listings and leftovers.

use std::io;
use std::path::{Path, PathBuf};

use super::{Directory, is_gone};
use crate::rfc9111::timestamp::Timestamp;
use crate::store::error::StoreError;
use crate::store::place::{Listed, Page};

impl Directory {
    /// Lists everything below the directory `prefix` on one page.
    pub(super) async fn list(&self, prefix: &str, after: &str) -> Result<Page, StoreError> {
        let (root, directory, after) = (self.root.clone(), prefix.to_owned(), after.to_owned());
        self.threads
            .list(prefix, move || {
                let mut listed = Vec::new();
                each_file(&root, &directory, &mut |name, metadata| {
                    if !is_unfinished(&name) {
                        listed.push(Listed { name, size: metadata.len(), modified: modified(metadata) });
                    }
                })?;
                listed.retain(|listed| listed.name > after);
                listed.sort_unstable_by(|a, b| a.name.cmp(&b.name));
                Ok(Page { listed, is_last: true })
            })
            .await
    }

    pub(super) async fn remove_unfinished(
        &self,
        prefix: &str,
        before: Timestamp,
        is_dry: bool,
    ) -> Result<u64, StoreError> {
        let root = self.path(prefix);
        self.threads
            .run("unfinished files", move || {
                let mut found = Vec::new();
                find_leftovers(&root, before, &mut found)?;
                for path in found.iter().filter(|_| !is_dry) {
                    match std::fs::remove_file(path) {
                        Err(error) if !is_gone(&error) => return Err(error),
                        Ok(()) | Err(_) => {}
                    }
                }
                Ok(found.len() as u64)
            })
            .await
    }
}

/// Returns when a file was written, from its date.
fn modified(metadata: &std::fs::Metadata) -> Timestamp {
    metadata.modified().map_or_else(|_| Timestamp::default(), Timestamp::from)
}

/// Returns whether a file's name says that it is still being written.
fn is_unfinished(name: &str) -> bool {
    name.rsplit('/').next().is_some_and(|last| last.starts_with('.'))
}

/// Returns the entries of a directory; none if it does not exist.
fn entries(directory: &Path) -> io::Result<impl Iterator<Item = io::Result<std::fs::DirEntry>>> {
    match std::fs::read_dir(directory) {
        Ok(entries) => Ok(Some(entries).into_iter().flatten()),
        Err(error) if is_gone(&error) => Ok(None.into_iter().flatten()),
        Err(error) => Err(error),
    }
}

/// Calls `with` for each file below `directory`, a name with a slash at its end.
fn each_file(root: &Path, directory: &str, with: &mut dyn FnMut(String, &std::fs::Metadata)) -> io::Result<()> {
    for entry in entries(&root.join(directory))? {
        let entry = entry?;
        let Ok(file_name) = entry.file_name().into_string() else { continue };
        let name = format!("{directory}{file_name}");
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => each_file(root, &format!("{name}/"), with)?,
            Ok(metadata) => with(name, &metadata),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Finds files older than `before` that an interrupted write left.
fn find_leftovers(directory: &Path, before: Timestamp, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in entries(directory)? {
        let entry = entry?;
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            find_leftovers(&entry.path(), before, found)?;
            continue;
        }
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_ours = name.starts_with('.') && name.ends_with(".tmp");
        if is_ours && metadata.modified().is_ok_and(|modified| Timestamp::from(modified) < before) {
            found.push(entry.path());
        }
    }
    Ok(())
}
