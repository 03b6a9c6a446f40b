//! What takes a newer QEMU and a newer Linux than this machine's own.
//!
//! `cargo xtask setup` fetches them; `VIONET_NEWER` names the directory.

use vionetd::vm::Qemu;
use vionetd::vm::kernel::Kernel;

use super::*;

/// The newer QEMU and Linux, with these programs of this machine.
fn newer_parts(names: &[&'static str]) -> Option<(Parts, Vec<GuestFile>)> {
    let Some(directory) = std::env::var_os("VIONET_NEWER").map(PathBuf::from) else {
        skip("VIONET_NEWER is not set; `cargo xtask test` sets it");
        return None;
    };
    let (own, files) = furnished(names)?;
    let qemu = Qemu::at(&directory.join("qemu-system-x86_64")).expect("the newer QEMU runs");
    let kernel = kernel_in(&directory.join("root/usr/lib/modules"));
    Some((Parts { qemu, kernel, busybox: own.busybox }, files))
}

/// Debian keeps a kernel's image beside its modules until the kernel is installed.
fn kernel_in(modules: &Path) -> Kernel {
    let mut entries = modules.read_dir().expect("modules").flatten();
    let modules = entries.next().expect("one kernel").path();
    let version = modules.file_name().and_then(|name| name.to_str()).expect("its release");
    Kernel { version: version.to_owned(), image: modules.join("vmlinuz"), modules }
}

#[test]
fn every_pair_of_a_newer_guest_has_interrupts_of_its_own() {
    let _alone = alone();
    let Some((parts, files)) = newer_parts(&["ethtool"]) else { return };
    several_pairs(&parts, &files, Seen::Interrupts);
}

#[test]
fn a_newer_guest_has_all_its_network_over_vfio_user() {
    let _alone = alone();
    let Some((parts, _)) = newer_parts(&[]) else { return };
    user_network(&parts, "--vfio-user", Backend::VfioUser);
}

#[test]
fn linux_has_every_command_of_its_driver_obeyed() {
    all_commands("--socket-path", Backend::VhostUserWhole);
}

#[test]
fn linux_has_every_command_of_its_driver_obeyed_over_vfio_user() {
    all_commands("--vfio-user", Backend::VfioUser);
}

fn all_commands(option: &str, backend: fn(PathBuf) -> Backend) {
    let _alone = alone();
    let names = ["ethtool", "socat", "ip"];
    let Some((parts, files)) = newer_parts(&names) else { return };
    if !can_tap() {
        return;
    }
    let place = Place::namespace();
    make_tap(&place, &["vnet_hdr", "multi_queue", "user", NOBODY_NAME]);
    let control = place.path("control").display().to_string();
    let pairs = PAIRS.to_string();
    let options = ["--endpoint", "tap:vt0", "--queues", &pairs, "--control", &control];
    let server = Server::start_at(option, &place, &options);
    let mut machine = machine(&parts, backend(server.socket.clone()), &files);
    (machine.cpus, machine.pairs) = (PAIRS, PAIRS);
    let blob = Blob::new(1024 * 1024);
    let peers = Peers::start(&place, &blob);
    let mut guest = place.inside(|| Guest::boot(&machine, BOOT)).expect("boot the guest");
    let inside = settle(&mut guest);
    let addresses = HOST.map(address).to_vec();
    let far = Far { place: &place, peers: &peers, blob: &blob, addresses, guest: inside };
    let nic = ServedNic { socket: &server.socket, control: &control, place: &place };
    let mut commands = Commands { guest: &mut guest, far: &far, nic };
    commands.filters();
    commands.vlans();
    commands.address();
    commands.steering();
    commands.delays();
    commands.announcement();
    commands.link();
    commands.pairs();
    let switches = all_settings(&mut guest, &far, true);
    assert_eq!(switches.len(), 9, "only {switches:?} can be switched");
    let mut commands = Commands { guest: &mut guest, far: &far, nic };
    commands.all_obeyed(60);
    no_complaints(&mut guest);
    guest.reboot(BOOT).expect("reboot");
    settle(&mut guest);
    let mut commands = Commands { guest: &mut guest, far: &far, nic };
    commands.pairs();
    commands.all_obeyed(10);
    guest.end();
    assert!(!server.log().contains("WARN"), "{}", server.log());
    server.terminate();
}
