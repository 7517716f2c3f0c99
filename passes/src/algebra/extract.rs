//! Chooses a term for each class so that all roots together cost least, what is shared counted once.
//!
//! The best tree is not the best graph: a tree counts a shared gather at every use, and would rather compute
//! twice. So several whole choices compete (the program as it stands, the best trees, the best graphs of each
//! class alone) and the cheapest is improved by changing one class at a time while that helps.

use std::collections::{HashMap, HashSet};

use egg::{Id, Language};

use super::{Graph, Term, cost::Costs};

/// Classes costed after which improving stops.
const COSTED: usize = 200_000;
/// Classes, times those that the program needs, up to which each class's own best graph is sought.
const SETS: usize = 200_000;
/// What a change must save.
const LEAST: f64 = 1e-6;

/// A term for each class.
pub type Choice = HashMap<Id, Term>;

/// The cheapest choice found, and its cost. `given` is the program as it stands: where nothing costs less, it stays.
pub fn cheapest(graph: &Graph, roots: &[Id], given: &Choice) -> Option<(Choice, f64)> {
    let roots: Vec<Id> = roots.iter().map(|root| graph.find(*root)).collect();
    let search = Search { graph, roots, costs: Costs(graph) };
    let trees = search.trees();
    let mut standing = trees.clone();
    standing.extend(given.iter().map(|(class, term)| (graph.find(*class), term.clone())));
    let mut candidates = vec![standing, trees];
    if graph.number_of_classes() * given.len() <= SETS {
        candidates.push(search.graphs());
    }
    let costed = candidates.into_iter().filter_map(|choice| search.cost(&choice).map(|cost| (choice, cost)));
    let improved = costed.map(|(choice, cost)| search.improve(choice, cost));
    improved.reduce(|best, other| if other.1 < best.1 - LEAST { other } else { best })
}

/// The best tree of each class.
#[cfg(test)]
pub(super) fn trees(graph: &Graph) -> Choice {
    Search { graph, roots: vec![], costs: Costs(graph) }.trees()
}

struct Search<'g> {
    graph: &'g Graph,
    roots: Vec<Id>,
    costs: Costs<'g>,
}

impl Search<'_> {
    /// All classes, in the order in which they were made: operands mostly before their users.
    fn classes(&self) -> Vec<Id> {
        let mut ids: Vec<Id> = self.graph.classes().map(|class| class.id).collect();
        ids.sort_unstable();
        ids
    }

    /// The best tree of each class, from the leaves up until nothing changes.
    fn trees(&self) -> Choice {
        let whole = |operand: Id| operand;
        let terms: Vec<(Id, &Term, f64)> = self
            .classes()
            .into_iter()
            .flat_map(|class| self.graph[class].nodes.iter().map(move |term| (class, term)))
            .map(|(class, term)| (class, term, self.costs.of(term, &whole)))
            .collect();
        let mut best: HashMap<Id, (f64, &Term)> = HashMap::new();
        let mut changed = true;
        while changed {
            changed = false;
            for (class, term, own) in &terms {
                let operands = term.children().iter().map(|child| best.get(&self.graph.find(*child)));
                let below: Option<f64> = operands.map(|known| known.map(|(cost, _)| cost)).sum();
                let Some(cost) = below.map(|below| below + own) else { continue };
                if best.get(class).is_none_or(|(known, _)| cost < known - LEAST) {
                    best.insert(*class, (cost, *term));
                    changed = true;
                }
            }
        }
        best.into_iter().map(|(class, (_, term))| (class, term.clone())).collect()
    }

    /// The best graph of each class on its own, from the leaves up until nothing changes.
    fn graphs(&self) -> Choice {
        let mut best: HashMap<Id, (f64, HashMap<Id, f64>, Term)> = HashMap::new();
        let ids = self.classes();
        let mut changed = true;
        while changed {
            changed = false;
            for class in &ids {
                for term in &self.graph[*class].nodes {
                    let Some((cost, below)) = self.graph_of(*class, term, &best) else { continue };
                    if best.get(class).is_none_or(|(known, ..)| cost < known - LEAST) {
                        best.insert(*class, (cost, below, term.clone()));
                        changed = true;
                    }
                }
            }
        }
        best.into_iter().map(|(class, (_, _, term))| (class, term)).collect()
    }

    /// The cost of a class through `term`, and that of each class below; `None` while one is unknown.
    fn graph_of(
        &self,
        class: Id,
        term: &Term,
        best: &HashMap<Id, (f64, HashMap<Id, f64>, Term)>,
    ) -> Option<(f64, HashMap<Id, f64>)> {
        let mut below = HashMap::new();
        for child in term.children() {
            let (_, set, _) = best.get(&self.graph.find(*child))?;
            below.extend(set.iter().map(|(class, cost)| (*class, *cost)));
        }
        (!below.contains_key(&class)).then(|| {
            below.insert(class, self.costs.of(term, &|operand| operand));
            (below.values().sum(), below)
        })
    }

    /// The cost of all that the roots need; `None` where a class needs itself.
    fn cost(&self, choice: &Choice) -> Option<f64> {
        let order = self.needed(choice)?;
        let through = |operand: Id| match choice.get(&self.graph.find(operand)) {
            Some(Term::View([_, x])) => *x,
            _ => operand,
        };
        // A view costs nothing unless somebody other than elementwise work reads it.
        let mut stored: HashSet<Id> = self.roots.iter().copied().collect();
        for class in &order {
            if let Some(term) = choice.get(class).filter(|term| !matches!(term, Term::Map(_))) {
                stored.extend(term.children().iter().map(|child| self.graph.find(*child)));
            }
        }
        let one = |class: &Id| match &choice[class] {
            Term::View(_) if !stored.contains(class) => 0.0,
            term => self.costs.of(term, &through),
        };
        Some(order.iter().map(one).sum())
    }

    /// The classes that the roots need, operands first; `None` where a class needs itself.
    fn needed(&self, choice: &Choice) -> Option<Vec<Id>> {
        let mut order = Vec::new();
        // Whether a class is finished.
        let mut seen: HashMap<Id, bool> = HashMap::new();
        let mut open: Vec<(Id, bool)> = self.roots.iter().rev().map(|root| (*root, false)).collect();
        while let Some((class, operands_done)) = open.pop() {
            if operands_done {
                seen.insert(class, true);
                order.push(class);
                continue;
            }
            match seen.get(&class) {
                Some(true) => continue,
                Some(false) => return None,
                None => {}
            }
            seen.insert(class, false);
            open.push((class, true));
            for child in choice.get(&class)?.children() {
                let child = self.graph.find(*child);
                match seen.get(&child) {
                    Some(true) => {}
                    Some(false) => return None,
                    None => open.push((child, false)),
                }
            }
        }
        Some(order)
    }

    /// Changes one class at a time while that helps.
    fn improve(&self, mut choice: Choice, mut cost: f64) -> (Choice, f64) {
        let mut costed = 0;
        loop {
            let before = cost;
            let needed = self.needed(&choice).unwrap_or_default();
            let count = needed.len();
            for class in needed {
                let terms = &self.graph[class].nodes;
                if terms.len() < 2 {
                    continue;
                }
                for term in terms {
                    costed += count;
                    if costed > COSTED {
                        return (choice, cost);
                    }
                    let Some(known) = choice.insert(class, term.clone()) else { continue };
                    match self.cost(&choice) {
                        Some(other) if other < cost - LEAST => cost = other,
                        _ => drop(choice.insert(class, known)),
                    }
                }
            }
            if cost >= before - LEAST {
                return (choice, cost);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use t3c_ir::{Element, Ref, ScalarBody, ScalarOp, TensorType};

    use super::*;
    use crate::algebra::{Leaf, Tables, rules::rewrites};

    fn tables() -> Tables {
        let unary = |op, element| {
            let mut body = ScalarBody::new([Element::F32, element]);
            let value = body.push(op, &[Ref::Arg(0)], element);
            body.yield_(value)
        };
        let mut tables = Tables { axes: vec![4], groups: vec![vec![0]], ..Tables::default() };
        tables.function(unary(ScalarOp::FloatCast, Element::Bf16));
        tables.function(unary(ScalarOp::Exp, Element::F32));
        tables.values.push(Leaf { r#type: TensorType::new([2, 6], Element::F32), same: 0 });
        tables
    }

    /// Saturates with these roots; the roots and the program as it stands.
    fn saturated(roots: &[&str]) -> (Graph, Vec<Id>, Choice) {
        let mut graph = Graph::new(tables());
        let roots: Vec<Id> = roots.iter().map(|root| graph.add_expr(&root.parse().unwrap())).collect();
        graph.rebuild();
        let standing: Choice = graph.classes().map(|class| (class.id, class.nodes[0].clone())).collect();
        let runner = egg::Runner::<Term, Tables>::new(Tables::default())
            .with_egraph(graph)
            .run(&rewrites(false).unwrap());
        (runner.egraph, roots, standing)
    }

    fn gathers(search: &Search<'_>, choice: &Choice) -> usize {
        let needed = search.needed(choice).unwrap();
        needed.iter().filter(|class| matches!(choice[class], Term::Gather(_))).count()
    }

    #[test]
    fn a_shared_gather_stays_one_where_trees_would_gather_twice() {
        // Alone, the cast is cheaper before the gather; but the whole is gathered for another anyway.
        let (graph, roots, standing) =
            saturated(&["(map 0 (gather 0 0 (value 0)))", "(gather 0 0 (value 0))"]);
        let roots: Vec<Id> = roots.iter().map(|root| graph.find(*root)).collect();
        let search = Search { graph: &graph, roots: roots.clone(), costs: Costs(&graph) };
        assert_eq!(gathers(&search, &search.trees()), 2, "or the test shows nothing");
        let (choice, cost) = cheapest(&graph, &roots, &standing).unwrap();
        assert_eq!(gathers(&search, &choice), 1);
        assert!(cost < search.cost(&search.trees()).unwrap());
    }

    #[test]
    fn work_alone_moves_to_the_part() {
        let (graph, roots, standing) = saturated(&["(map 0 (map 1 (gather 0 0 (value 0))))"]);
        let (choice, cost) = cheapest(&graph, &roots, &standing).unwrap();
        assert!(matches!(choice[&graph.find(roots[0])], Term::Gather(_)));
        let search = Search { graph: &graph, roots, costs: Costs(&graph) };
        assert_eq!(search.cost(&choice), Some(cost));
    }

    #[test]
    fn a_choice_that_needs_itself_costs_nothing_sensible() {
        let (graph, roots, _) = saturated(&["(slice 0 0 (gather 0 0 (value 0)))"]);
        let root = graph.find(roots[0]);
        let mut choice: Choice = graph.classes().map(|class| (class.id, class.nodes[0].clone())).collect();
        let slice = graph[root].nodes.iter().find(|term| matches!(term, Term::Slice(_))).unwrap();
        choice.insert(root, slice.clone());
        let search = Search { graph: &graph, roots: vec![root], costs: Costs(&graph) };
        assert_eq!(search.cost(&choice), None);
    }
}
