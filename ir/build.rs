//! Runs `mlir-tblgen` on the dialect and compiles its C++.

use std::{env, path::PathBuf, process::Command};

fn main() {
    let prefix = env::var("MLIR_SYS_220_PREFIX").unwrap_or_else(|_| "/usr/lib/llvm-22".into());
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let generated = [
        ("-gen-dialect-decls", "T3Base", "T3Dialect.h.inc"),
        ("-gen-dialect-defs", "T3Base", "T3Dialect.cpp.inc"),
        ("-gen-enum-decls", "T3Base", "T3Enums.h.inc"),
        ("-gen-enum-defs", "T3Base", "T3Enums.cpp.inc"),
        ("-gen-attrdef-decls", "T3Base", "T3Attrs.h.inc"),
        ("-gen-attrdef-defs", "T3Base", "T3Attrs.cpp.inc"),
        ("-gen-op-decls", "T3Ops", "T3Ops.h.inc"),
        ("-gen-op-defs", "T3Ops", "T3Ops.cpp.inc"),
    ];
    for (generator, source, file) in generated {
        let status = Command::new(format!("{prefix}/bin/mlir-tblgen"))
            .args([generator, &format!("dialect/{source}.td"), "-I", "dialect"])
            .args(["-I", &format!("{prefix}/include"), "-o"])
            .arg(out.join(file))
            .status()
            .expect("mlir-tblgen (package mlir-22-tools) must be installed: run `make setup`");
        assert!(status.success(), "mlir-tblgen {generator} on {source}.td failed");
    }
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .files(["dialect/T3.cpp", "dialect/Shim.cpp"])
        .include("dialect")
        .include(&out)
        .include(format!("{prefix}/include"))
        .flag("-fno-exceptions")
        .flag("-w")
        .opt_level(1)
        .compile("t3dialect");
    println!(
        "cargo:rustc-env=T3_DIALECT_DIR={}/dialect",
        env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")
    );
    println!("cargo:rerun-if-changed=dialect");
}
