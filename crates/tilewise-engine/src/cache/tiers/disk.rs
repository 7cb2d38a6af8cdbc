//! Values as files of a folder.
//!
//! A value is `{folder}/{2 hex digits}/{62 hex digits}` of its key's digest. It is written beside its place, synced and
//! renamed, so that a file under such a name is whole. Nothing else in the folder is read or removed.
//!
//! Keys and values of a prompt give the prompt back: files are for their owner alone, unless the folder is shared on
//! purpose.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::lru::{Digest, Lru};
use super::regular;
use super::{CacheTier, Source, TierError, Value};
use crate::cache::keys::{ChunkKey, hex};
use crate::{Error, Result};

/// Ends the names of files that are being written.
const PARTIAL: &str = ".partial";

/// What other processes wrote is looked at after so many parts of the bound have been written here.
const PARTS: u64 = 16;

/// Numbers the files that are being written, over all tiers of the process.
static NEXT_PARTIAL: AtomicU64 = AtomicU64::new(0);

/// Files up to a number of bytes; those that were not used for longest go first, in an order that survives a restart.
///
/// Processes may share a folder. Each looks at what the others did after a sixteenth of the bound of its own, so that
/// many may exceed it by that much each.
#[derive(Debug)]
pub struct DiskTier {
    folder: PathBuf,
    max_bytes: u64,
    mode: u32,
    uses: Lru<SystemTime>,
    last_use: SystemTime,
    written_since_scan: u64,
}

impl DiskTier {
    /// As [`DiskTier::with_mode`], with files for their owner alone.
    ///
    /// # Errors
    /// Likewise.
    pub fn open(folder: &Path, max_bytes: u64) -> Result<Self> {
        Self::with_mode(folder, max_bytes, PRIVATE)
    }

    /// Opens a folder or makes it, removes what writers that are gone left half written, and evicts what is above
    /// `max_bytes`. Files get `mode`, such as [`PRIVATE`], and folders may be listed by whoever may read those.
    ///
    /// # Errors
    /// [`Error::File`] if the folder cannot be made or listed, or is another user's although nobody else may read its
    /// files. One that cannot be written to is opened, and refuses stores.
    pub fn with_mode(folder: &Path, max_bytes: u64, mode: u32) -> Result<Self> {
        let failed = |e| Error::file(folder.display().to_string(), e);
        if !folder.is_dir() {
            make_folders(folder, mode).map_err(failed)?;
        }
        check_owner(folder, mode)?;
        fs::read_dir(folder).map_err(failed)?;
        let mut tier = Self {
            folder: folder.to_owned(),
            max_bytes,
            mode,
            uses: Lru::new(),
            last_use: SystemTime::UNIX_EPOCH,
            written_since_scan: 0,
        };
        tier.partial_files().iter().for_each(|path| remove_if_left(path));
        tier.scan();
        tier.evict_to(max_bytes);
        Ok(tier)
    }

    /// Learns what is in the folder now.
    fn scan(&mut self) {
        self.uses = Lru::new();
        self.written_since_scan = 0;
        for (prefix, entry) in self.entries() {
            let name = entry.file_name();
            let digest = name.to_str().and_then(|rest| digest_of(&prefix, rest));
            let file = entry.metadata().ok().filter(fs::Metadata::is_file);
            if let (Some(digest), Some(file)) = (digest, file) {
                self.hide(&entry.path(), &file);
                let used = file.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                self.uses.insert(digest, file.len(), used);
                self.last_use = self.last_use.max(used);
            }
        }
    }

    /// Takes from others what an earlier version let them read.
    #[cfg(unix)]
    fn hide(&self, path: &Path, file: &fs::Metadata) {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        if self.mode == PRIVATE && file.mode() & 0o077 != 0 {
            // Another's file is not here, or cannot be helped.
            let _ = fs::set_permissions(path, fs::Permissions::from_mode(PRIVATE));
        }
    }

    #[cfg(not(unix))]
    fn hide(&self, _path: &Path, _file: &fs::Metadata) {}

    /// The entries of the folders of two digits, with those digits.
    fn entries(&self) -> impl Iterator<Item = (String, fs::DirEntry)> + use<> {
        let folder = self.folder.clone();
        (0..=u8::MAX).flat_map(move |byte| {
            let prefix = hex(&[byte]);
            let entries = fs::read_dir(folder.join(&prefix)).into_iter().flatten().flatten();
            entries.map(move |entry| (prefix.clone(), entry))
        })
    }

    fn partial_files(&self) -> Vec<PathBuf> {
        let paths = self.entries().map(|(_, entry)| entry.path());
        paths.filter(|path| path.to_str().is_some_and(|path| path.ends_with(PARTIAL))).collect()
    }

    /// Removes what was not used for longest until at most `bytes` are left.
    fn evict_to(&mut self, bytes: u64) {
        while self.uses.bytes() > bytes
            && let Some(oldest) = self.uses.oldest()
        {
            // What cannot be removed here will be found again by the next scan.
            let _ = fs::remove_file(self.path(&oldest));
            self.uses.remove(&oldest);
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let name = hex(digest);
        self.folder.join(&name[..2]).join(&name[2..])
    }

    /// The time of a use: later than all before, also where the clock is coarse or goes back.
    fn now(&mut self) -> SystemTime {
        let next = self.last_use.checked_add(Duration::from_micros(1)).unwrap_or(self.last_use);
        self.last_use = SystemTime::now().max(next);
        self.last_use
    }

    /// Notes a use here and, for later and for others, at the file.
    fn touch(&mut self, digest: Digest, file: &File) -> io::Result<()> {
        let now = self.now();
        self.uses.insert(digest, file.metadata()?.len(), now);
        // In a folder that cannot be written to, and where another user wrote the file, the others do not see it.
        let _ = file.set_modified(now);
        Ok(())
    }

    /// The file of a key, if there is one.
    fn file(&mut self, digest: &Digest) -> Result<Option<File>, TierError> {
        let file = regular::open(&self.path(digest)).map_err(|error| refused(&error))?;
        if file.is_none() {
            self.uses.remove(digest);
        }
        Ok(file)
    }

    fn write(&mut self, digest: &Digest, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(digest);
        if let Some(folder) = path.parent() {
            make_folders(folder, self.mode)?;
        }
        let number = NEXT_PARTIAL.fetch_add(1, Ordering::Relaxed);
        let partial = path.with_extension(format!("{}-{number}{PARTIAL}", std::process::id()));
        let now = self.now();
        let written =
            write_whole(&partial, bytes, now, self.mode).and_then(|_locked| fs::rename(&partial, &path));
        if written.is_err() {
            let _ = fs::remove_file(&partial);
        }
        written?;
        self.uses.insert(*digest, bytes.len() as u64, now);
        self.written_since_scan += bytes.len() as u64;
        Ok(())
    }
}

impl CacheTier for DiskTier {
    fn source(&self) -> Source {
        Source::Disk
    }

    fn store(&mut self, key: &ChunkKey, value: &Value) -> Result<(), TierError> {
        let bytes = value.as_bytes();
        let len = bytes.len() as u64;
        if len > self.max_bytes {
            return Err(TierError::Refused(format!("{len} bytes into {}", self.max_bytes)));
        }
        if self.written_since_scan + len > self.max_bytes / PARTS {
            self.scan();
        }
        let digest = key.digest();
        self.evict_to(self.max_bytes - len);
        self.write(&digest, bytes).map_err(|error| refused(&error))
    }

    fn load(&mut self, key: &ChunkKey) -> Result<Option<Value>, TierError> {
        let digest = key.digest();
        let Some(file) = self.file(&digest)? else { return Ok(None) };
        // A file that is longer than it may be is read to where that shows.
        let limit = Value::sealed_len(key) as u64 + 1;
        let len = file.metadata().map_err(|error| refused(&error))?.len().min(limit);
        let mut bytes = Vec::with_capacity(len as usize);
        (&file).take(limit).read_to_end(&mut bytes).map_err(|error| refused(&error))?;
        self.touch(digest, &file).map_err(|error| refused(&error))?;
        Ok(Some(Value::from_bytes(bytes)))
    }

    fn contains(&mut self, key: &ChunkKey) -> Result<bool, TierError> {
        let digest = key.digest();
        let Some(file) = self.file(&digest)? else { return Ok(false) };
        self.touch(digest, &file).map_err(|error| refused(&error))?;
        Ok(true)
    }

    fn remove(&mut self, key: &ChunkKey) -> Result<(), TierError> {
        let digest = key.digest();
        self.uses.remove(&digest);
        match fs::remove_file(self.path(&digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(refused(&error)),
            _ => Ok(()),
        }
    }

    fn held_bytes(&self) -> Option<u64> {
        Some(self.uses.bytes())
    }
}

/// Writes and syncs a file that stays locked as long as it is open, so that nobody takes it for a leftover.
fn write_whole(path: &Path, bytes: &[u8], modified: SystemTime, mode: u32) -> io::Result<File> {
    let mut file = create(path, mode)?;
    // Where there are no locks, it may be taken for a leftover, and the rename fails.
    let _ = file.try_lock();
    file.write_all(bytes)?;
    file.set_modified(modified)?;
    file.sync_all()?;
    Ok(file)
}

/// Files for their owner alone.
pub const PRIVATE: u32 = 0o600;

#[cfg(unix)]
fn create(path: &Path, mode: u32) -> io::Result<File> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let file = OpenOptions::new().write(true).create_new(true).mode(mode & PRIVATE).open(path)?;
    if mode != PRIVATE {
        // Whatever the process's mask takes away.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    Ok(file)
}

#[cfg(not(unix))]
fn create(path: &Path, _mode: u32) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

/// Makes a folder, and those above it that are missing, for those who may read its files.
#[cfg(unix)]
fn make_folders(folder: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent().filter(|above| !above.as_os_str().is_empty()) {
        make_folders(above, mode)?;
    }
    // Whoever reads a folder looks into it.
    let mode = mode | (mode & 0o444) >> 2;
    match fs::DirBuilder::new().mode(mode & 0o700).create(folder) {
        // Another process was quicker.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Ok(()) if mode & 0o077 != 0 => set_mode(folder, mode),
        made => made,
    }
}

/// Sets permissions, whatever the process's mask takes away, and leaves what a folder hands down to those below it.
#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let kept = fs::metadata(path)?.permissions().mode() & 0o7000;
    fs::set_permissions(path, fs::Permissions::from_mode(mode | kept))
}

#[cfg(not(unix))]
fn make_folders(folder: &Path, _mode: u32) -> io::Result<()> {
    fs::create_dir_all(folder)
}

/// Refuses a folder of another user, and takes from others the right to write into one's own, unless it is shared.
#[cfg(unix)]
fn check_owner(folder: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    if mode & 0o077 != 0 {
        return Ok(());
    }
    let failed = |why: &dyn std::fmt::Display| Error::file(folder.display().to_string(), why);
    let found = fs::metadata(folder).map_err(|error| failed(&error))?;
    let (owner, own) = (found.uid(), rustix::process::geteuid().as_raw());
    if owner != own {
        return Err(failed(&format!(
            "belongs to user {owner}, not to {own}; take a folder of your own, or share this one by its mode"
        )));
    }
    if found.mode() & 0o022 != 0 {
        set_mode(folder, found.mode() & 0o755).map_err(|error| failed(&error))?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_owner(_folder: &Path, _mode: u32) -> Result<()> {
    Ok(())
}

/// Removes a file that was being written, if its writer is gone: a lock goes with the process that held it.
fn remove_if_left(path: &Path) {
    if let Ok(Some(file)) = regular::open(path)
        && file.try_lock().is_ok()
    {
        let _ = fs::remove_file(path);
    }
}

/// The digest that two and 62 hexadecimal digits spell.
fn digest_of(prefix: &str, rest: &str) -> Option<Digest> {
    let digits: Vec<u8> = prefix.chars().chain(rest.chars()).map(digit).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect();
    (digits.len() == 64).then_some(bytes)?.try_into().ok()
}

/// Lower case only: one file has one name.
fn digit(c: char) -> Option<u8> {
    if c.is_ascii_uppercase() { None } else { c.to_digit(16).map(|digit| digit as u8) }
}

/// A disk answers in time; what it refuses now it may take later.
fn refused(error: &io::Error) -> TierError {
    TierError::Refused(error.to_string())
}
