//! The rules as data: a name, how exact it is, what it turns into what, and when.
//!
//! A rule is exact where both sides have the same bits, given that a reduction adds in the order that the
//! collective prescribes and that a scaling stays within the range of its type; others change the order of
//! additions or the place of a rounding and are marked [`Exactness::Reassociates`]. Both sides name the same
//! values. Each rule also says how to make an instance of its left side: `soundness` evaluates both sides on all
//! devices. The tables are in [`moves`] (data only moves), [`elementwise`] and [`reductions`].

pub mod elementwise;
pub mod moves;
pub mod reductions;

use egg::{Applier, Id, Pattern, PatternAst, Rewrite, Subst, Symbol, Var};
use t3c_ir::{ScalarBody, TensorType};

use super::{Cut, Graph, Layout, Tables, Term, is_same, number, type_of};

/// Operands of elementwise work up to which rules look at it.
pub const OPERANDS: usize = 4;

/// How exact a rule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exactness {
    /// Both sides have the same bits.
    Exact,
    /// Both sides are equal as real numbers.
    Reassociates,
}

/// What must hold, and what the right side needs to know that is not on the left: binds those variables.
pub type Given = fn(&mut Match<'_>) -> Option<()>;

/// One rule.
pub struct Rule {
    /// Its name.
    pub name: &'static str,
    /// How exact it is.
    pub exactness: Exactness,
    /// Left and right sides, one pair for each number of operands.
    pub forms: Vec<(String, String)>,
    /// Its side condition.
    pub given: Given,
    /// An instance of its left side that satisfies the condition.
    #[cfg(test)]
    pub sample: super::soundness::Sample,
}

/// A rule; the sample is for tests alone.
macro_rules! rule {
    ($exactness:expr, $name:literal, $forms:expr, $given:expr, $sample:expr $(,)?) => {
        Rule {
            name: $name,
            exactness: $exactness,
            forms: $forms,
            given: $given,
            #[cfg(test)]
            sample: $sample,
        }
    };
}
pub(crate) use rule;

/// The rules, those that reassociate only on request.
///
/// # Errors
/// A rule whose sides are no terms.
pub fn rewrites(reassociate: bool) -> Result<Vec<Rewrite<Term, Tables>>, String> {
    let rules = all().into_iter().filter(|rule| reassociate || rule.exactness == Exactness::Exact);
    rules.map(|rule| rule.rewrites()).collect::<Result<Vec<_>, _>>().map(|rules| rules.concat())
}

/// All rules.
pub fn all() -> Vec<Rule> {
    let mut rules = moves::rules();
    rules.extend(elementwise::rules());
    rules.extend(reductions::rules());
    rules
}

impl Rule {
    /// The rule as egg takes it, one rewrite a form.
    ///
    /// # Errors
    /// When a side is no term.
    pub fn rewrites(&self) -> Result<Vec<Rewrite<Term, Tables>>, String> {
        let pattern = |text: &str| -> Result<Pattern<Term>, String> {
            text.parse().map_err(|error| format!("rule {}: {text}: {error}", self.name))
        };
        self.forms
            .iter()
            .enumerate()
            .map(|(form, (left, right))| {
                let then = Then { given: self.given, right: pattern(right)? };
                Rewrite::new(format!("{}-{form}", self.name), pattern(left)?, then)
            })
            .collect()
    }
}

/// The right side, where the condition holds.
struct Then {
    given: Given,
    right: Pattern<Term>,
}

impl Applier<Term, Tables> for Then {
    fn apply_one(
        &self,
        graph: &mut Graph,
        class: Id,
        found: &Subst,
        left: Option<&PatternAst<Term>>,
        rule: Symbol,
    ) -> Vec<Id> {
        let mut known = found.clone();
        match (self.given)(&mut Match { graph, known: &mut known }) {
            Some(()) => self.right.apply_one(graph, class, &known, left, rule),
            None => vec![],
        }
    }
}

/// A place where the left side matches. Asking for what is not there declines the match.
pub struct Match<'g> {
    graph: &'g mut Graph,
    known: &'g mut Subst,
}

impl Match<'_> {
    fn id(&self, name: &str) -> Option<Id> {
        self.known.get(name.parse::<Var>().ok()?).copied()
    }

    /// The number that a variable stands for.
    pub fn number(&self, name: &str) -> Option<u32> {
        self.id(name).map(|id| number(self.graph, id))
    }

    /// The dimension that a variable stands for.
    pub fn dimension(&self, name: &str) -> Option<usize> {
        self.number(name).map(|number| number as usize)
    }

    /// The type of a tensor.
    pub fn type_of(&self, name: &str) -> Option<TensorType> {
        self.id(name).map(|id| type_of(self.graph, id))
    }

    /// The extent of a tensor's dimension.
    pub fn extent(&self, name: &str, dimension: usize) -> Option<u64> {
        self.type_of(name)?.shape.get(dimension).copied()
    }

    /// The scalar function that a variable stands for.
    pub fn function(&self, name: &str) -> Option<&ScalarBody> {
        self.graph.analysis.functions.get(self.number(name)? as usize)
    }

    /// The layout that a variable stands for.
    pub fn layout(&self, name: &str) -> Option<Layout> {
        self.graph.analysis.layouts.get(self.number(name)? as usize).cloned()
    }

    /// The cut that a variable stands for.
    pub fn cut(&self, name: &str) -> Option<Cut> {
        self.graph.analysis.cuts.get(self.number(name)? as usize).cloned()
    }

    /// The axes of a group.
    pub fn axes(&self, name: &str) -> Option<Vec<usize>> {
        self.graph.analysis.groups.get(self.number(name)? as usize).cloned()
    }

    /// Devices of a group.
    pub fn devices(&self, name: &str) -> Option<u64> {
        self.number(name).map(|group| u64::from(self.graph.analysis.devices(group)))
    }

    /// Requires something.
    pub fn require(&self, condition: bool) -> Option<()> {
        condition.then_some(())
    }

    /// Requires two dimensions, reductions or groups to differ.
    pub fn differ(&self, a: &str, b: &str) -> Option<()> {
        self.require(self.number(a)? != self.number(b)?)
    }

    /// Requires two groups to have no axis in common.
    pub fn disjoint(&self, g: &str, h: &str) -> Option<()> {
        let (g, h) = (self.axes(g)?, self.axes(h)?);
        self.require(g.iter().all(|axis| !h.contains(axis)))
    }

    /// Requires a reduction.
    pub fn is(&self, name: &str, reduction: u32) -> Option<()> {
        self.require(self.number(name)? == reduction)
    }

    /// Requires all devices of a group to hold the same tensor.
    pub fn same(&self, group: &str, tensor: &str) -> Option<()> {
        self.require(is_same(self.graph, self.number(group)?, self.id(tensor)?))
    }

    /// Makes a variable of the right side a number.
    pub fn bind(&mut self, name: &str, number: u32) -> Option<()> {
        let id = self.graph.add(Term::Num(number));
        self.known.insert(name.parse().ok()?, id);
        Some(())
    }

    /// Makes a variable a dimension.
    pub fn bind_dimension(&mut self, name: &str, dimension: usize) -> Option<()> {
        self.bind(name, dimension as u32)
    }

    /// Makes a variable a layout.
    pub fn bind_layout(&mut self, name: &str, layout: Layout) -> Option<()> {
        let number = self.graph.analysis.layout(layout);
        self.bind(name, number)
    }

    /// Makes a variable a cut.
    pub fn bind_cut(&mut self, name: &str, cut: Cut) -> Option<()> {
        let number = self.graph.analysis.cut(cut);
        self.bind(name, number)
    }

    /// Makes a variable a group.
    pub fn bind_group(&mut self, name: &str, axes: &[usize]) -> Option<()> {
        let number = self.graph.analysis.group(axes);
        self.bind(name, number)
    }
}

/// No condition.
pub fn always(_: &mut Match<'_>) -> Option<()> {
    Some(())
}

/// A rule with one form.
pub fn one(left: &str, right: &str) -> Vec<(String, String)> {
    vec![(left.to_owned(), right.to_owned())]
}

/// A form for each number of operands; `{x}` on either side stands for each operand, after what surrounds it up
/// to the brackets: `[slice ?g ?d {x}]` becomes `(slice ?g ?d ?x0) (slice ?g ?d ?x1)`.
pub fn each(left: &str, right: &str) -> Vec<(String, String)> {
    (1..=OPERANDS).map(|count| (expand(left, count), expand(right, count))).collect()
}

fn expand(template: &str, count: usize) -> String {
    let operands = |make: &dyn Fn(&str) -> String| {
        (0..count).map(|index| make(&format!("?x{index}"))).collect::<Vec<_>>().join(" ")
    };
    match (template.find('['), template.find(']')) {
        (Some(from), Some(to)) => {
            let repeated = &template[from + 1..to];
            let text = operands(&|x| format!("({})", repeated.replace("{x}", x)));
            format!("{}{text}{}", &template[..from], &template[to + 1..])
        }
        _ => template.replace("{x}", &operands(&str::to_owned)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_repeat_what_is_in_brackets() {
        assert_eq!(expand("(map ?f {x})", 2), "(map ?f ?x0 ?x1)");
        assert_eq!(expand("(map ?f [slice ?g ?d {x}])", 2), "(map ?f (slice ?g ?d ?x0) (slice ?g ?d ?x1))");
    }

    #[test]
    fn each_rule_has_a_case_of_its_name() {
        let cases = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/simplify");
        for rule in all() {
            let case = cases.join(format!("{}.mlir", rule.name.replace('-', "_")));
            assert!(case.exists(), "{}", case.display());
        }
    }

    #[test]
    fn names_are_distinct_and_sides_are_terms() {
        let mut names: Vec<_> = all().iter().map(|rule| rule.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(rewrites(true).unwrap().len() > rewrites(false).unwrap().len());
    }
}
