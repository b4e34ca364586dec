//! Watches the files that an application is made of: code, templates, static files.
//!
//! Looks at the time and the size of each, again and again. Does not look at what applications and editors write while
//! they run, such as databases, logs and byte code.

use std::collections::HashMap;
use std::fs::{DirEntry, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::base::Stopwatch;

/// The most files that are watched.
const MAX_FILES: usize = 20_000;
/// The shortest pause between two looks.
const MIN_PAUSE: Duration = Duration::from_millis(100);
/// A pause is so many times as long as the look before it, so that looking takes a twentieth of a core at most.
const PAUSE_FACTOR: u32 = 20;

/// Directories that hold nothing that a person writes. Hidden ones and virtual environments are left out as well.
const LEFT_OUT: [&str; 5] = ["__pycache__", "node_modules", "instance", "target", "larder-cache"];
/// Endings of files that programs write by themselves.
const WRITTEN: [&str; 12] = [
    ".pyc",
    ".db",
    ".sqlite",
    ".sqlite3",
    ".db-journal",
    ".sqlite-journal",
    "-wal",
    "-shm",
    "-journal",
    ".log",
    ".pid",
    "~",
];

/// The files below a directory, as they were at the last look.
#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    known: HashMap<PathBuf, (SystemTime, u64)>,
    /// Device and inode of the files that Larder's own output goes to: each line about a change would be a change.
    outputs: Vec<(u64, u64)>,
    pause: Duration,
}

impl Files {
    /// Takes a first look below `root`.
    pub(super) fn new(root: PathBuf) -> Self {
        let mut files = Self { root, known: HashMap::new(), outputs: outputs(), pause: MIN_PAUSE };
        files.changed();
        files
    }

    /// Returns the directory.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the number of files that are watched, if there are more.
    pub(super) fn limit(&self) -> Option<usize> {
        (self.known.len() >= MAX_FILES).then_some(MAX_FILES)
    }

    /// Returns the pause before the next look.
    pub(super) fn pause(&self) -> Duration {
        self.pause
    }

    /// Looks again. Returns a file that was changed, made or removed since the last look, from the directory on.
    pub(super) fn changed(&mut self) -> Option<PathBuf> {
        let watch = Stopwatch::start();
        let mut found = HashMap::with_capacity(self.known.len());
        self.collect(&mut found);
        self.pause = MIN_PAUSE.max(watch.elapsed() * PAUSE_FACTOR);
        let changed = found.iter().find(|(path, seen)| self.known.get(*path) != Some(*seen)).map(|(path, _)| path);
        let changed = changed.or_else(|| self.known.keys().find(|path| !found.contains_key(*path))).cloned();
        self.known = found;
        changed.map(|path| path.strip_prefix(&self.root).map(Path::to_path_buf).unwrap_or(path))
    }

    /// Adds the files below the directory. What can't be read is left out.
    fn collect(&self, found: &mut HashMap<PathBuf, (SystemTime, u64)>) {
        let mut waiting = vec![self.root.clone()];
        while let Some(directory) = waiting.pop() {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                if found.len() >= MAX_FILES {
                    return;
                }
                let Some((path, metadata)) = looked_at(&entry) else { continue };
                if metadata.is_dir() {
                    // A link to a directory may lead back to where it is: only real ones are entered.
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !path.join("pyvenv.cfg").exists() {
                        waiting.push(path);
                    }
                } else if metadata.is_file() && !self.outputs.contains(&(metadata.dev(), metadata.ino())) {
                    let changed = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    found.insert(path, (changed, metadata.len()));
                }
            }
        }
    }
}

/// Returns what standard output and standard error are, where that is known.
fn outputs() -> Vec<(u64, u64)> {
    let (output, error) = (std::io::stdout(), std::io::stderr());
    let known = [output.as_fd(), error.as_fd()].map(|file| {
        let metadata = std::fs::File::from(file.try_clone_to_owned().ok()?).metadata().ok()?;
        Some((metadata.dev(), metadata.ino()))
    });
    known.into_iter().flatten().collect()
}

/// Returns the path of an entry and what is behind it, unless it is left out.
fn looked_at(entry: &DirEntry) -> Option<(PathBuf, Metadata)> {
    let name = entry.file_name();
    let name = name.to_string_lossy();
    let is_left_out = name.starts_with('.')
        || LEFT_OUT.iter().any(|left_out| name == *left_out)
        || WRITTEN.iter().any(|ending| name.ends_with(ending));
    if is_left_out {
        return None;
    }
    let path = entry.path();
    let metadata = std::fs::metadata(&path).ok()?;
    Some((path, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_writes_is_seen_and_what_programs_write_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path();
        for name in ["templates", "instance", "__pycache__", "env", ".git"] {
            std::fs::create_dir(root.join(name)).expect("a directory");
        }
        std::fs::write(root.join("env/pyvenv.cfg"), "").expect("a file");
        std::fs::write(root.join("app.py"), "a").expect("a file");
        let mut files = Files::new(root.to_path_buf());
        assert_eq!(files.changed(), None);
        for (name, is_seen) in [
            ("app.py", true),
            ("templates/page.html", true),
            ("shop.db", false),
            ("shop.db-wal", false),
            ("instance/uploads.txt", false),
            ("__pycache__/app.pyc", false),
            ("env/lib.py", false),
            (".git/HEAD", false),
            ("app.log", false),
            ("style.css", true),
        ] {
            std::fs::write(root.join(name), "longer than before").expect("a file");
            assert_eq!(files.changed(), is_seen.then(|| PathBuf::from(name)), "{name}");
            assert_eq!(files.changed(), None, "{name}");
        }
        std::fs::remove_file(root.join("style.css")).expect("it is there");
        assert_eq!(files.changed(), Some(PathBuf::from("style.css")));
    }

    #[test]
    fn a_link_that_leads_back_is_not_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink(directory.path(), directory.path().join("again")).expect("a link");
        std::fs::write(directory.path().join("app.py"), "a").expect("a file");
        assert_eq!(Files::new(directory.path().to_path_buf()).known.len(), 1);
    }
}
