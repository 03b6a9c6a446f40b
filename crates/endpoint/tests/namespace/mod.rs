//! Taps of a test's own: the test runs in a network namespace that nobody else sees.

use std::process::Command;

const INSIDE: &str = "VIONET_TEST_NAMESPACE";

/// Runs the test `name` again, in a network namespace of its own; true when this is that run.
/// Where there are no namespaces, it says so and is over.
pub(crate) fn in_namespace(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let able = Command::new("unshare").args(["-rn", "true"]).status();
    if !able.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no network namespace can be made here");
        return false;
    }
    let test = std::env::current_exe().unwrap();
    let mut again = Command::new("unshare");
    again.arg("-rn").arg(test).args([name, "--exact", "--nocapture"]).env(INSIDE, "1");
    assert!(again.status().unwrap().success());
    false
}

/// The program `ip` with these words.
pub(crate) fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().unwrap();
    assert!(status.success(), "ip {words}");
}
