//! The list of the passes: one line a pass.

use std::sync::Once;

use t3c_ir::ffi;

use crate::pass::{Pass, PassError, PassId, external};

/// What `--list-passes` shows of a pass.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name in pipelines.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Its options, one `key=default: meaning` each.
    pub options: &'static [&'static str],
    check: fn(&str) -> Result<(), PassError>,
    make: ffi::MakePass,
}

macro_rules! passes {
    ($($pass:ty),* $(,)?) => {
        const PASSES: &[Entry] = &[$(Entry {
            name: <$pass as Pass>::NAME,
            summary: <$pass as Pass>::SUMMARY,
            options: <$pass as Pass>::OPTIONS,
            check: |options| <$pass as Pass>::from_options(options).map(drop),
            make: |options| {
                static ID: PassId = PassId(0);
                <$pass as Pass>::from_options(options).ok().map(|pass| external(pass, &ID, options))
            },
        }),*];
    };
}

passes![
    crate::normalize::Normalize,
    crate::autodiff::Autodiff,
    crate::optimizer::Optimizer,
    crate::shard::Shard,
    crate::simplify::Simplify,
    crate::split_all_reduce::SplitAllReduce,
    crate::find_pairs::FindPairs,
    crate::fuse::Fuse,
    crate::configure_address_space::ConfigureAddressSpace,
    crate::unfuse::Unfuse,
    crate::outline::Outline,
    crate::schedule::CheckSchedule,
];

/// Our passes, in the order of the road.
pub fn list() -> &'static [Entry] {
    PASSES
}

/// Makes our passes known to MLIR by name, once a process.
pub fn register_all() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for entry in PASSES {
            ffi::register_pass(entry.name, entry.summary, entry.make);
        }
    });
}

/// Checks one element of a pipeline, `name` or `name{options}`, if it is one of ours by its `t3-`.
///
/// # Errors
/// An unknown name, or options that do not fit; MLIR itself would only say that they are bad.
pub fn check(element: &str) -> Result<(), PassError> {
    let (name, options) = element.split_once('{').unwrap_or((element, ""));
    let name = name.trim();
    match PASSES.iter().find(|entry| entry.name == name) {
        Some(entry) => (entry.check)(options.trim_end().trim_end_matches('}')),
        None if name.starts_with("t3-") => {
            let nearest = PASSES.iter().map(|entry| (strsim::jaro_winkler(entry.name, name), entry.name));
            let nearest = nearest.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name.to_owned());
            Err(PassError::UnknownPass { name: name.to_owned(), nearest })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_say_whose_they_are() {
        let mut names: Vec<_> = list().iter().map(|entry| entry.name).collect();
        assert!(names.iter().all(|name| name.starts_with("t3-")));
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn a_misspelt_pass_names_the_nearest() {
        let error = check("t3-split-al-reduce").unwrap_err().to_string();
        assert_eq!(error, "no pass is called `t3-split-al-reduce`; did you mean `t3-split-all-reduce`?");
        assert!(check("canonicalize").is_ok());
        assert!(check("t3-split-all-reduce{x=1}").is_err());
    }
}
