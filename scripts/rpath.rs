//! Build script of every crate that links libtorch: lets its programs and tests find the library without
//! `LD_LIBRARY_PATH`.

use std::{env, path::Path};

pub fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Some(libtorch) = env::var_os("LIBTORCH") {
        // The link in the checkout may move to another version later: the program keeps the one it was built with.
        let lib = Path::new(&libtorch).join("lib");
        let lib = lib.canonicalize().unwrap_or(lib);
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    }
    // Where the container image and packages put it: /usr/bin/tonearm and /usr/lib/tonearm/*.so.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib/tonearm");
}
