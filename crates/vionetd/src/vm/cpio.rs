//! Writes a "newc" cpio archive, the form the Linux kernel unpacks as its first root filesystem.
//!
//! Every entry is a header of `070701` and 13 numbers of 8 hexadecimal digits, the path with its
//! NUL, and the content; path and content each padded to 4 bytes. An entry named `TRAILER!!!`
//! ends the archive. (Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`.)

use std::collections::BTreeSet;
use std::fmt;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// A file or path is longer than the 32 bits the format has for its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too long for a cpio archive (4 GiB at most)")
    }
}

impl std::error::Error for TooLong {}

/// An archive that grows entry by entry. Paths are relative to the root, without a leading slash;
/// directories above an entry are made when they are not there yet.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    directories: BTreeSet<String>,
}

impl Archive {
    /// An archive with nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory that all may enter.
    ///
    /// # Errors
    /// When the path is too long.
    pub fn directory(&mut self, path: &str) -> Result<(), TooLong> {
        if !self.directories.insert(path.to_owned()) {
            return Ok(());
        }
        self.parents(path)?;
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// Adds a regular file; `mode` holds its permission bits.
    ///
    /// # Errors
    /// When path or content are too long.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<(), TooLong> {
        self.parents(path)?;
        self.entry(path, REGULAR | (mode & 0o7777), (0, 0), content)
    }

    /// Adds a symbolic link at `path` that points to `target`.
    ///
    /// # Errors
    /// When path or target are too long.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<(), TooLong> {
        self.parents(path)?;
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device node with its (major, minor) number.
    ///
    /// # Errors
    /// When the path is too long.
    pub fn device(&mut self, path: &str, mode: u32, number: (u32, u32)) -> Result<(), TooLong> {
        self.parents(path)?;
        self.entry(path, CHARACTER | (mode & 0o7777), number, &[])
    }

    /// The finished archive.
    ///
    /// # Errors
    /// Never in practice: the trailer's name is short.
    pub fn finish(mut self) -> Result<Vec<u8>, TooLong> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn parents(&mut self, path: &str) -> Result<(), TooLong> {
        match path.rsplit_once('/') {
            Some((above, _)) if !above.is_empty() => self.directory(above),
            Some(_) | None => Ok(()),
        }
    }

    fn entry(
        &mut self,
        path: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> Result<(), TooLong> {
        let name_len = path.len().checked_add(1).ok_or(TooLong)?;
        let name_len = u32::try_from(name_len).map_err(|_| TooLong)?;
        let size = u32::try_from(content.len()).map_err(|_| TooLong)?;
        let inode = self.inode;
        self.inode = inode.checked_add(1).ok_or(TooLong)?;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        // inode mode uid gid links mtime size, the archive's device, this node's device,
        // length of the name, checksum (not used by newc)
        let (major, minor) = device;
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_len, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        let whole = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(whole, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn an_entry_is_a_header_a_padded_name_and_a_padded_content() {
        let mut archive = Archive::new();
        archive.file("a", 0o644, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(&bytes[..14], b"07070100000000");
        assert_eq!(&bytes[14..22], b"000081a4");
        assert_eq!(&bytes[54..62], b"00000005", "the file's size");
        assert_eq!(&bytes[94..102], b"00000002", "the name with its NUL");
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(&bytes[112..120], b"hello\0\0\0");
        assert_eq!(&bytes[120..126], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn directories_above_an_entry_are_made_once_and_before_it() {
        let mut archive = Archive::new();
        archive.file("x/y/one", 0o600, b"").unwrap();
        archive.file("x/y/two", 0o600, b"").unwrap();
        let text = String::from_utf8(archive.finish().unwrap()).unwrap();
        assert_eq!(text.matches("x/y\0").count(), 1);
        assert!(text.find("x\0").unwrap() < text.find("x/y\0").unwrap());
        assert!(text.find("x/y\0").unwrap() < text.find("x/y/one\0").unwrap());
    }

    #[test]
    fn the_cpio_of_busybox_reads_what_we_write() {
        let Some(busybox) = crate::vm::initramfs::find_busybox() else {
            assert!(std::env::var_os("CI").is_none(), "busybox-static is not installed");
            eprintln!("SKIPPED: no busybox on this machine");
            return;
        };
        let mut archive = Archive::new();
        archive.file("etc/name", 0o644, b"odd").unwrap();
        archive.symlink("bin/sh", "busybox").unwrap();
        archive.device("dev/console", 0o600, (5, 1)).unwrap();
        let bytes = archive.finish().unwrap();
        let mut child = Command::new(busybox)
            .args(["cpio", "-tv"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = child.wait_with_output().unwrap();
        let listing = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success());
        assert!(listing.contains("bin/sh -> busybox"), "{listing}");
        assert!(listing.contains("etc/name"), "{listing}");
        let console = listing.lines().find(|line| line.ends_with("dev/console")).unwrap();
        assert!(console.starts_with("crw-------"), "{listing}");
    }
}
