//! The flags that attach a VMM to our socket, ready to paste.

use std::path::Path;

use crate::cli::{Mac, NicArgs};

/// What to type for a device that listens at a path.
pub(super) fn of(args: &NicArgs, mac: Mac) -> Option<String> {
    let path = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (&args.socket_path, &args.vfio_user) {
        (Some(given), _) => Some(vhost_user(&path(given), mac, args.queues)),
        (None, Some(given)) => Some(vfio_user(&path(given))),
        (None, None) => None,
    }
}

/// For a whole function: all that is to be known of it the VMM asks for itself.
fn vfio_user(path: &Path) -> String {
    let name = serde_json::Value::from(path.display().to_string());
    let path = path.display();
    format!(
        "\
Attach a guest (its memory must be shared):

  QEMU 10.1 or newer
    -object memory-backend-memfd,id=mem0,size=1G,share=on -m 1G -machine q35,memory-backend=mem0 \\
    -device '{{\"driver\":\"vfio-user-pci\",\"socket\":{{\"type\":\"unix\",\"path\":{name}}}}}'

  Cloud Hypervisor
    --memory size=1G,shared=on --user-device socket={path}

"
    )
}

/// For QEMU and for Cloud Hypervisor, which have the rest of the device.
fn vhost_user(path: &Path, mac: Mac, pairs: u16) -> String {
    let path = path.display();
    let queues = pairs.saturating_mul(2);
    let (net, nic) = if pairs > 1 {
        // An MSI-X vector for each queue, the control queue and the configuration.
        let vectors = queues.saturating_add(2);
        (format!(",queues={pairs}"), format!(",mq=on,vectors={vectors}"))
    } else {
        (String::new(), String::new())
    };
    format!(
        "\
Attach a guest (its memory must be shared):

  QEMU
    -object memory-backend-memfd,id=mem0,size=1G,share=on -m 1G -machine q35,memory-backend=mem0 \\
    -chardev socket,id=vu0,path={path} \\
    -netdev vhost-user,id=net0,chardev=vu0{net} \\
    -device virtio-net-pci,netdev=net0,mac={mac}{nic}

  Cloud Hypervisor
    --memory size=1G,shared=on \\
    --net vhost_user=true,socket={path},mac={mac},num_queues={queues},queue_size=256

"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_names_the_socket_the_address_and_shared_memory() {
        let text = vhost_user(Path::new("/run/vm0.sock"), Mac([0x52, 0x54, 0, 1, 2, 3]), 1);
        for part in
            ["num_queues=2,", "path=/run/vm0.sock", "socket=/run/vm0.sock", "share=on", "shared=on"]
        {
            assert!(text.contains(part), "{part}");
        }
        assert_eq!(text.matches("mac=52:54:00:01:02:03").count(), 2);
        assert!(!text.contains("mq=on"));
    }

    #[test]
    fn a_recipe_for_several_queue_pairs_has_queues_and_vectors_for_them() {
        let text = vhost_user(Path::new("/run/vm0.sock"), Mac([0x52, 0x54, 0, 1, 2, 3]), 4);
        for part in [",queues=4 ", ",mq=on,vectors=10\n", "num_queues=8,"] {
            assert!(text.contains(part), "{part}");
        }
    }

    #[test]
    fn a_recipe_for_a_function_names_the_socket_and_shared_memory() {
        let text = vfio_user(Path::new("/run/a \"b\".sock"));
        for part in [r#""path":"/run/a \"b\".sock"}}'"#, "share=on", "shared=on"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
