//! The runner of `cases/<pass>/*.mlir`: a new case is one file, and its snapshot lies beside it.
//!
//! The first line names the passes (`// pass: t3-split-all-reduce`, several separated by commas). Checked for
//! every case, without a word in the file: the result verifies, prints and parses back to itself, and a
//! second run changes nothing (unless the file says `// once`).

use std::{fs, path::Path};

use t3c_ir::Context;

use crate::{Remark, run_passes};

/// The passes that the case's first line names.
fn passes(source: &str) -> Vec<String> {
    let line = source.lines().next().and_then(|line| line.strip_prefix("// pass:"));
    line.expect("the first line is `// pass: …`").split(',').map(|pass| pass.trim().to_owned()).collect()
}

/// Remarks, then the module after the passes (or the error).
fn run_case(path: &Path) -> String {
    let source = fs::read_to_string(path).expect("the case is readable");
    let file = path.file_name().and_then(|name| name.to_str()).expect("the case has a name");
    let (context, passes) = (Context::new(), passes(&source));
    let mut module = context.parse(&source, file).unwrap_or_else(|error| panic!("{file}: {error}"));
    let mut remarks: Vec<Remark> = Vec::new();
    let outcome = run_passes(&mut module, &passes, &mut remarks);
    let mut text: String = remarks.iter().map(|remark| format!("{remark}\n")).collect();
    if let Err(error) = outcome {
        return format!("{text}error: {error}\n");
    }
    let after = module.text(false);
    let again = context.parse(&after, file).unwrap_or_else(|error| panic!("{file}, printed: {error}"));
    assert_eq!(again.text(false), after, "{file} prints and parses back to itself");
    if !source.contains("// once") {
        run_passes(&mut module, &passes, &mut Vec::new()).expect("a second run succeeds");
        assert_eq!(module.text(false), after, "a second run of {file} changes nothing");
    }
    text.push_str("---\n");
    text.push_str(&after);
    if passes.iter().any(|pass| pass == "t3-schedule") {
        let schedule = crate::schedule(module.op()).expect("the pass made one already");
        text.push_str(&format!("---\n{schedule}"));
    }
    text
}

#[test]
fn every_case_matches_its_snapshot() {
    insta::glob!("../cases", "**/*.mlir", |path| {
        let directory = path.parent().expect("a case lies in a folder").to_owned();
        let name = path.file_name().and_then(|name| name.to_str()).expect("the case has a name").to_owned();
        let text = run_case(path);
        insta::with_settings!({
            snapshot_path => directory,
            prepend_module_to_snapshot => false,
            omit_expression => true,
            snapshot_suffix => "",
        }, {
            insta::assert_snapshot!(name, text);
        });
    });
}
