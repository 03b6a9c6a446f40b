//! Has the flat guest compiled: C, for a machine of 32 bits with nothing around it.
//!
//! The compiler is the one that Rust links with, so it is there.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::{Command, ExitCode};

/// No floating point: nobody has switched it on. No calls to a library: there is none.
const FLAGS: &[&str] = &[
    "-m32",
    "-march=i686",
    "-O1",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffreestanding",
    "-fno-pic",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    "-mgeneral-regs-only",
    "-nostdlib",
    "-static",
    "-Wl,--build-id=none",
    "-Wl,--oformat=binary",
];

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=guest");
    println!("cargo::rerun-if-env-changed=CC");
    let target = ["ARCH", "OS"].map(|of| std::env::var(format!("CARGO_CFG_TARGET_{of}")));
    if target != [Ok("x86_64".into()), Ok("linux".into())] {
        println!(
            "cargo::error=mini-vmm is a PC on KVM: for Linux on x86-64, leave it out on others"
        );
        return ExitCode::FAILURE;
    }
    let out = std::env::var_os("OUT_DIR").unwrap_or_default();
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut compile = Command::new(&compiler);
    compile.args(FLAGS).args(["-Wl,-T,guest/flat.ld", "guest/flat.c", "-o"]);
    compile.arg(Path::new(&out).join("flat.bin"));
    let why = match compile.status() {
        Ok(status) if status.success() => return ExitCode::SUCCESS,
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    let compiler = compiler.to_string_lossy();
    println!("cargo::error={compiler} does not compile the flat guest: {why}; it is to be gcc");
    ExitCode::FAILURE
}
