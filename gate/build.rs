//! Makes an undefined symbol an error, which a shared library otherwise may have.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-cdylib=-Wl,-z,defs");
    // `memcpy` and its like, which the compiler itself calls.
    println!("cargo::rustc-link-arg-cdylib=-lc");
}
