//! One transformer layer as a schedule, with the operators of the implementation that the paper profiled:
//! attention whose scores go through memory at every elementwise step.
//!
//! The paper takes its break-down from an MLPerf v1.1 BERT, which lacks a fusion of attention, and scales it
//! to each model. A layer here holds the products and the passes over memory that such an implementation
//! makes; the machine and its efficiencies give the times.

use t3c_schedule::{
    Algorithm, Axis, Buffer, BufferId, Collective, CollectiveKind, Compute, Contraction, Element, Fused,
    Grid, Program, Reduction, SCHEMA, Schedule, Step, StepKind, Work, configure_ring_reduce_scatter, connect,
};

use super::Model;

/// What is timed end to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Forward, backward and optimizer.
    Training,
    /// Forward over a whole prompt.
    Prompt,
}

/// The model on `devices`, its layers called as often as there are. The chunks of a sub-layer, by its name, run
/// along `dimension`: rows (0) or columns (1).
pub fn schedule(model: &Model, devices: u32, pass: Pass, dimension: &dyn Fn(&str) -> usize) -> Schedule {
    let mut layer = Layer { model, devices, dimension, buffers: Vec::new(), steps: Vec::new() };
    layer.forward();
    if pass == Pass::Training {
        layer.backward();
    }
    let program = Program {
        name: "layer".to_owned(),
        buffers: layer.buffers,
        arguments: vec![],
        results: vec![],
        steps: layer.steps,
    };
    let call = |id| Step {
        id,
        after: vec![],
        location: "layers".to_owned(),
        kind: StepKind::Call { program: 0, arguments: vec![], results: vec![] },
    };
    let main = Program {
        name: "main".to_owned(),
        buffers: vec![],
        arguments: vec![],
        results: vec![],
        steps: (0..model.layers).map(call).collect(),
    };
    let axes = vec![Axis { name: "tp".to_owned(), size: devices }];
    let mut schedule =
        Schedule { schema: SCHEMA.to_owned(), grid: Grid { axes }, programs: vec![program, main], entry: 1 };
    connect(&mut schedule);
    schedule
}

struct Layer<'m> {
    model: &'m Model,
    devices: u32,
    dimension: &'m dyn Fn(&str) -> usize,
    buffers: Vec<Buffer>,
    steps: Vec<Step>,
}

impl Layer<'_> {
    fn buffer(&mut self, shape: &[u64]) -> BufferId {
        let name = format!("v{}", self.buffers.len());
        self.buffers.push(Buffer { name, element: Element::F16, shape: shape.to_vec() });
        self.buffers.len() - 1
    }

    fn step(&mut self, location: &str, kind: StepKind) {
        let id = self.steps.len();
        self.steps.push(Step { id, after: vec![], location: location.to_owned(), kind });
    }

    /// A product `m × n × k`, `batch` times; its result.
    fn contraction(&mut self, batch: u64, m: u64, n: u64, k: u64) -> Compute {
        let contraction = match batch {
            1 => Contraction { extents: vec![m, n, k], a: vec![0, 2], b: vec![2, 1], c: vec![0, 1] },
            _ => Contraction {
                extents: vec![batch, m, n, k],
                a: vec![0, 1, 3],
                b: vec![0, 3, 2],
                c: vec![0, 1, 2],
            },
        };
        let shape = |map: &[usize]| map.iter().map(|&index| contraction.extents[index]).collect::<Vec<_>>();
        let (a, b, c) = (shape(&contraction.a), shape(&contraction.b), shape(&contraction.c));
        let (a, b, c) = (self.buffer(&a), self.buffer(&b), self.buffer(&c));
        Compute { work: Work::Contraction(contraction), kernel: None, reads: vec![a, b], writes: vec![c] }
    }

    fn product(&mut self, location: &str, batch: u64, m: u64, n: u64, k: u64) {
        let compute = self.contraction(batch, m, n, k);
        self.step(location, StepKind::Compute(compute));
    }

    /// A kernel that reads and writes so many values of `shape`.
    fn passes(&mut self, location: &str, shape: &[u64], reads: usize, writes: usize) {
        let reads = (0..reads).map(|_| self.buffer(shape)).collect();
        let writes = (0..writes).map(|_| self.buffer(shape)).collect();
        let flops = 5 * shape.iter().product::<u64>();
        let work = Work::Loops { flops };
        self.step(location, StepKind::Compute(Compute { work, kernel: None, reads, writes }));
    }

    /// A product whose partial results are reduced, then gathered.
    fn sub_layer(&mut self, location: &str, k: u64) {
        let (tokens, hidden) = (self.model.tokens(), self.model.hidden);
        let producer = self.contraction(1, tokens, hidden, k);
        let partial = producer.writes[0];
        let dimension = (self.dimension)(location).min(1);
        let mut part = [tokens, hidden];
        part[dimension] = part[dimension].div_ceil(u64::from(self.devices));
        let reduced = self.buffer(&part);
        let gathered = self.buffer(&[tokens, hidden]);
        let bytes = self.buffers[partial].bytes();
        let collective = |kind, input, output| Collective {
            kind,
            axes: vec![0],
            dimension,
            concatenate: None,
            reduction: Reduction::Sum,
            bytes,
            algorithm: Algorithm::Ring,
            input,
            output,
        };
        let fused = Fused {
            producers: vec![producer],
            collective: collective(CollectiveKind::ReduceScatter, partial, reduced),
            shape: vec![tokens, hidden],
            dimension,
            block: 128.min(part[dimension]),
            chunks: configure_ring_reduce_scatter(self.devices),
            result: reduced,
        };
        self.step(location, StepKind::Fused(fused));
        let gather = collective(CollectiveKind::AllGather, reduced, gathered);
        self.step(location, StepKind::Collective(gather));
    }

    /// One sequence's heads on one device.
    fn heads(&self) -> u64 {
        self.model.heads.div_ceil(u64::from(self.devices))
    }

    fn forward(&mut self) {
        let Model { hidden, seq, batch, .. } = *self.model;
        let tokens = self.model.tokens();
        let share = hidden / u64::from(self.devices);
        let (tall, scores) = ([tokens, hidden], [batch * self.heads(), seq, seq]);
        self.passes("norm 1", &tall, 1, 1);
        self.product("QKV", 1, tokens, 3 * share, hidden);
        self.product("scores", scores[0], seq, seq, self.model.head());
        for kernel in ["scale", "mask", "softmax", "dropout"] {
            self.passes(kernel, &scores, 1, 1);
        }
        self.product("context", scores[0], seq, self.model.head(), seq);
        self.sub_layer("OP", share);
        self.passes("dropout, residual", &tall, 2, 1);
        self.passes("norm 2", &tall, 1, 1);
        self.product("FC-1", 1, tokens, 4 * share, hidden);
        self.passes("GELU", &[tokens, 4 * share], 1, 1);
        self.sub_layer("FC-2", 4 * share);
        self.passes("dropout, residual", &tall, 2, 1);
    }

    fn backward(&mut self) {
        let Model { hidden, seq, batch, .. } = *self.model;
        let tokens = self.model.tokens();
        let share = hidden / u64::from(self.devices);
        let (tall, scores) = ([tokens, hidden], [batch * self.heads(), seq, seq]);
        let head = self.model.head();
        self.passes("dropout, backward", &tall, 1, 1);
        self.product("FC-2, input", 1, tokens, 4 * share, hidden);
        self.product("FC-2, weight", 1, 4 * share, hidden, tokens);
        self.passes("GELU, backward", &[tokens, 4 * share], 2, 1);
        self.product("FC-1, weight", 1, hidden, 4 * share, tokens);
        self.sub_layer("FC-1", 4 * share);
        self.passes("norm 2, backward", &tall, 3, 1);
        self.passes("dropout, backward", &tall, 1, 1);
        self.product("OP, input", 1, tokens, share, hidden);
        self.product("OP, weight", 1, share, hidden, tokens);
        self.product("context, scores", scores[0], seq, seq, head);
        self.product("context, values", scores[0], seq, head, seq);
        for (kernel, reads) in [("dropout, backward", 1), ("softmax, backward", 2), ("scale, backward", 1)] {
            self.passes(kernel, &scores, reads, 1);
        }
        self.product("scores, queries", scores[0], seq, head, seq);
        self.product("scores, keys", scores[0], seq, head, seq);
        self.product("IP, weight", 1, hidden, 3 * share, tokens);
        self.sub_layer("IP", 3 * share);
        self.passes("norm 1, backward", &tall, 3, 1);
        // AdamW on 16-bit weights with 32-bit master weights and moments: 16 bytes read, 14 written
        // beside the 2 of the gradient, a parameter.
        self.passes("optimizer", &[12 * hidden, share], 8, 7);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::MODELS;

    #[test]
    fn layers_are_well_formed() {
        for model in &MODELS {
            for pass in [Pass::Training, Pass::Prompt] {
                let schedule = schedule(model, model.devices[0], pass, &|name| usize::from(name == "OP"));
                t3c_schedule::verify(&schedule).unwrap();
            }
        }
    }

    #[test]
    fn a_training_step_is_three_times_a_prompt_in_products() {
        let flops = |pass| {
            let schedule = schedule(&MODELS[0], 8, pass, &|_| 0);
            let of = |compute: &Compute| match &compute.work {
                Work::Contraction(contraction) => contraction.gemm_shape().flops(),
                _ => 0,
            };
            schedule.programs[0]
                .steps
                .iter()
                .map(|step| match &step.kind {
                    StepKind::Compute(compute) => of(compute),
                    StepKind::Fused(fused) => fused.producers.iter().map(of).sum(),
                    _ => 0,
                })
                .sum::<u64>()
        };
        assert_eq!(flops(Pass::Training), 3 * flops(Pass::Prompt));
    }
}
