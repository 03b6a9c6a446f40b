//! This machine's own programs, for the guest: each with the libraries it needs.

use std::path::Path;
use std::process::Command;

use vionetd::vm::initramfs::GuestFile;

/// The programs of these names, in `usr/bin` of the guest.
///
/// `Err` names the one that is not here.
pub fn programs(names: &[&'static str]) -> Result<Vec<GuestFile>, &'static str> {
    let mut files: Vec<GuestFile> = Vec::new();
    for name in names {
        let places = ["/usr/bin", "/usr/sbin"].map(|place| Path::new(place).join(name));
        let path = places.iter().find(|path| path.is_file()).ok_or(*name)?;
        add(&mut files, path, &format!("usr/bin/{name}"));
        let output = Command::new("ldd").arg(path).output().expect("run ldd");
        // "libmnl.so.0 => /lib/libmnl.so.0 (0x7f..)", "/lib64/ld-linux-x86-64.so.2 (0x7f..)"
        for word in String::from_utf8_lossy(&output.stdout).split_whitespace() {
            if let Some(inside) = word.strip_prefix('/') {
                add(&mut files, Path::new(word), inside);
            }
        }
    }
    Ok(files)
}

fn add(files: &mut Vec<GuestFile>, from: &Path, to: &str) {
    if files.iter().all(|file| file.path != to) {
        let content = std::fs::read(from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        files.push(GuestFile { path: to.to_owned(), mode: 0o755, content });
    }
}
