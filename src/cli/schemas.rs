//! JSON Schemas of what `--format json` and `--remarks-file` write.
//!
//! They are pages of the book; a test keeps them as the types are (`INSTA_UPDATE=always` writes them anew).

mod tests {
    use schemars::{JsonSchema, schema_for};
    use serde::Serialize;
    use t3c_passes::Remark;

    use crate::cli::summary::Report as CompileReport;

    /// The file of `--remarks-file FILE.json`.
    #[derive(Serialize, JsonSchema)]
    #[allow(dead_code)]
    struct RemarksFile {
        /// Always `t3c.remarks/1`.
        schema: String,
        /// In the order in which passes made them.
        remarks: Vec<Remark>,
    }

    #[test]
    fn the_schemas_in_the_book_are_those_of_the_types() {
        let pages = [
            ("compile", schema_for!(CompileReport)),
            ("simulate", schema_for!(t3c_sim::Report)),
            ("bench", schema_for!(t3c_cpu::bench::Report)),
            ("remarks", schema_for!(RemarksFile)),
        ];
        for (name, schema) in pages {
            let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
            let path = root.join(format!("docs/src/reference/{name}.schema.json"));
            let text = format!("{:#}\n", schema.to_value());
            if std::env::var("INSTA_UPDATE").is_ok_and(|mode| mode == "always") {
                std::fs::write(&path, text).expect("written");
            } else {
                let found = std::fs::read_to_string(&path).expect("a page");
                assert!(found == text, "{name}.schema.json is out of date: run with INSTA_UPDATE=always");
            }
        }
    }
}
