//! The readable form: one line a step, one line a chunk of a fused step.

use std::fmt::{self, Display, Formatter, Write as _};

use crate::{
    Arrival, Buffer, Chunk, Collective, CollectiveKind, Compute, Element, Op, Program, Schedule, Step,
    StepKind, Store, Trigger, Work, invariants::seen_from,
};

impl Display for Element {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            Element::F64 => "f64",
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::Bf16 => "bf16",
            Element::I64 => "i64",
            Element::I32 => "i32",
            Element::I1 => "i1",
        })
    }
}

impl Display for Op {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            Op::Store => "store",
            Op::Update => "update",
        })
    }
}

impl Display for CollectiveKind {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self {
            CollectiveKind::ReduceScatter => "reduce_scatter",
            CollectiveKind::AllGather => "all_gather",
            CollectiveKind::AllReduce => "all_reduce",
            CollectiveKind::AllToAll => "all_to_all",
            CollectiveKind::AllSlice => "all_slice",
        })
    }
}

impl Display for Arrival {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self.from {
            0 => write!(f, "part d+{}: own", self.relative)?,
            from => write!(f, "part d+{}: from +{from}", self.relative)?,
        }
        let to: Vec<String> = self.sends.iter().map(|to| format!("+{to}")).collect();
        if to.is_empty() { Ok(()) } else { write!(f, ", to {}", to.join(" ")) }
    }
}

impl Display for Chunk {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "chunk d+{}: {} ", self.relative, self.op)?;
        match self.store {
            Store::Local => f.write_str("local")?,
            Store::Remote(k) => write!(f, "remote(+{k})")?,
        }
        match self.trigger {
            Trigger::None => f.write_str(", untracked"),
            Trigger::Dma { to, op } => write!(f, ", at {} dma(+{to}, {op})", self.threshold),
            Trigger::Reduce => write!(f, ", at {} reduce", self.threshold),
            Trigger::Done => write!(f, ", at {} done", self.threshold),
        }
    }
}

impl Display for Schedule {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{} on", self.schema)?;
        for axis in &self.grid.axes {
            write!(f, " {}={}", axis.name, axis.size)?;
        }
        writeln!(f)?;
        for (index, program) in self.programs.iter().enumerate() {
            let entry = if index == self.entry { " entry" } else { "" };
            writeln!(f, "\nprogram {}{entry}", program.name)?;
            writeln!(f, "  arguments {}", list(program, &program.arguments))?;
            writeln!(f, "  results {}", list(program, &program.results))?;
            for step in &program.steps {
                write_step(f, self, program, step)?;
            }
        }
        Ok(())
    }
}

fn write_step(f: &mut Formatter, schedule: &Schedule, program: &Program, step: &Step) -> fmt::Result {
    let after: Vec<String> = step.after.iter().map(|id| id.to_string()).collect();
    write!(f, "  {}", step.id)?;
    if !after.is_empty() {
        write!(f, " after {}", after.join(","))?;
    }
    f.write_str(": ")?;
    match &step.kind {
        StepKind::Compute(work) => writeln!(f, "{} // {}", compute(program, work), step.location),
        StepKind::Collective(c) => {
            writeln!(f, "{} // {}", collective(schedule, program, c), step.location)
        }
        StepKind::Transfer { to, buffer } => {
            writeln!(f, "send {} to +{to} // {}", list(program, &[*buffer]), step.location)
        }
        StepKind::Call { program: callee, arguments, results } => {
            let name = schedule.programs.get(*callee).map_or("?", |callee| callee.name.as_str());
            let (arguments, results) = (list(program, arguments), list(program, results));
            writeln!(f, "{results} = call {name}({arguments}) // {}", step.location)
        }
        StepKind::Fused(fused) => {
            let what = collective(schedule, program, &fused.collective);
            writeln!(f, "track_and_trigger {what}, blocks of {} // {}", fused.block, step.location)?;
            for producer in &fused.producers {
                writeln!(f, "      {}", compute(program, producer))?;
            }
            let sizes = fused.collective.axes.iter().filter_map(|&axis| schedule.grid.axes.get(axis));
            let devices = sizes.fold(1, |product: u32, axis| product.saturating_mul(axis.size)).max(1);
            for chunk in &fused.chunks {
                write!(f, "      {chunk}")?;
                if let Store::Remote(k) = chunk.store {
                    write!(f, ", arrives as d+{}", seen_from(chunk.relative, k, devices))?;
                }
                writeln!(f)?;
            }
            Ok(())
        }
        StepKind::Consume(consume) => {
            let what = collective(schedule, program, &consume.collective);
            write!(f, "consume {what}")?;
            if !consume.arrivals.is_empty() {
                write!(f, ", blocks of {}", consume.block)?;
            }
            writeln!(f, " // {}", step.location)?;
            consume.arrivals.iter().try_for_each(|arrival| writeln!(f, "      {arrival}"))?;
            consume
                .consumers
                .iter()
                .try_for_each(|consumer| writeln!(f, "      {}", compute(program, consumer)))
        }
    }
}

fn compute(program: &Program, compute: &Compute) -> String {
    let what = match &compute.work {
        Work::Contraction(contraction) => {
            let shape = contraction.gemm_shape();
            let batch = if shape.batch > 1 { format!("{} of ", shape.batch) } else { String::new() };
            format!("contraction {batch}{}x{}x{}", shape.m, shape.n, shape.k)
        }
        Work::Unit { name, .. } => format!("unit {name}"),
        Work::Loops { .. } => "loops".to_owned(),
        Work::Copy => "copy".to_owned(),
    };
    format!("{} = {what} {}", list(program, &compute.writes), list(program, &compute.reads))
}

fn collective(schedule: &Schedule, program: &Program, collective: &Collective) -> String {
    let axes: Vec<&str> = collective
        .axes
        .iter()
        .map(|&axis| schedule.grid.axes.get(axis).map_or("?", |axis| axis.name.as_str()))
        .collect();
    let mut to = collective.concatenate.map_or(String::new(), |to| format!(" to {to}"));
    let whole = program.buffers.get(collective.input).map_or(0, Buffer::bytes);
    if collective.kind == CollectiveKind::AllToAll && collective.bytes < whole {
        to += &format!(", {} of {whole} bytes", collective.bytes);
    }
    format!(
        "{} = {} {} over {} along {}{to}",
        list(program, &[collective.output]),
        collective.kind,
        list(program, &[collective.input]),
        axes.join(","),
        collective.dimension
    )
}

fn list(program: &Program, buffers: &[usize]) -> String {
    let mut text = String::new();
    for (index, &buffer) in buffers.iter().enumerate() {
        let comma = if index > 0 { ", " } else { "" };
        let shown = program.buffers.get(buffer).map_or("?".to_owned(), typed);
        // Writing to a string cannot fail.
        let _ = write!(text, "{comma}%{buffer}:{shown}");
    }
    text
}

fn typed(buffer: &Buffer) -> String {
    let mut text = String::new();
    for extent in &buffer.shape {
        text += &format!("{extent}x");
    }
    text + &buffer.element.to_string()
}

#[cfg(test)]
mod tests {
    use crate::testing;

    #[test]
    fn a_sub_layer_reads_like_the_paper() {
        let expected = "\
t3c.schedule/1 on tp=4

program main entry
  arguments %0:8x4xf16, %1:4x6xf16
  results %4:8x6xf16
  0: track_and_trigger %3:2x6xf16 = reduce_scatter %2:8x6xf16 over tp along 0, blocks of 2 // gemm
      %2:8x6xf16 = contraction 8x6x4 %0:8x4xf16, %1:4x6xf16
      chunk d+1: update remote(+3), untracked, arrives as d+2
      chunk d+2: update local, at 2 dma(+3, update)
      chunk d+3: update local, at 2 dma(+3, update)
      chunk d+0: update local, at 2 done
  1 after 0: %4:8x6xf16 = all_gather %3:2x6xf16 over tp along 0 // gemm
";
        assert_eq!(testing::gemm_reduce_scatter(8, 6, 4, 4).to_string(), expected);
    }
}
