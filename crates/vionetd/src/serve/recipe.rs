//! The flags that attach a VMM to our socket, ready to paste.

use std::path::Path;

use crate::cli::Mac;

/// What to type, for QEMU and for Cloud Hypervisor.
pub(super) fn text(path: &Path, mac: Mac) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let path = path.display();
    format!(
        "\
Attach a guest (its memory must be shared):

  QEMU
    -object memory-backend-memfd,id=mem0,size=1G,share=on -m 1G -machine q35,memory-backend=mem0 \\
    -chardev socket,id=vu0,path={path} -netdev vhost-user,id=net0,chardev=vu0 \\
    -device virtio-net-pci,netdev=net0,mac={mac}

  Cloud Hypervisor
    --memory size=1G,shared=on \\
    --net vhost_user=true,socket={path},mac={mac},num_queues=2,queue_size=256

"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_names_the_socket_the_address_and_shared_memory() {
        let text = text(Path::new("/run/vm0.sock"), Mac([0x52, 0x54, 0, 1, 2, 3]));
        for part in ["path=/run/vm0.sock", "socket=/run/vm0.sock", "share=on", "shared=on"] {
            assert!(text.contains(part), "{part}");
        }
        assert_eq!(text.matches("mac=52:54:00:01:02:03").count(), 2);
    }
}
