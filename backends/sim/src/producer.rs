//! The producer: work-groups in waves over the compute units.
//!
//! A wave is as many work-groups as there are compute units; they advance together through the
//! reduction dimension in steps, each step's operands being loaded while the step before multiplies.
//! Work-groups are ordered along rows, chunk after chunk in the order in which the schedule produces
//! them. Tiles never straddle chunks.

use std::ops::Range;

use t3c_schedule::Chunk;

use crate::{
    cache::Cache,
    system::System,
    units::{Picoseconds, duration},
    workload::{Output, Producer, Work},
};

/// Rows and columns to which the matrix pipelines pad a tile.
const MATRIX_GRANULE: u64 = 16;

/// One work-group's part of the output.
#[derive(Clone, Debug)]
pub(crate) struct Tile {
    /// Position of its chunk in production order.
    pub chunk: usize,
    /// Rows, counted from the start of the output.
    pub rows: Range<u64>,
    pub columns: u64,
    row_panel: usize,
    column_panel: usize,
}

/// A chunk as the producer sees it.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    /// Its entry in the address space; `None` for plain local stores.
    pub chunk: Option<Chunk>,
    /// Indices of the chunked dimension.
    pub range: Range<u64>,
}

/// One step of a wave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// Bytes that must come from memory.
    pub missing: u64,
    /// Time of the arithmetic, or of the cache where that is longer.
    pub time: Picoseconds,
}

/// The cache items of one work: a panel's steps lie next to each other.
#[derive(Clone, Copy)]
struct Panels {
    rows: usize,
    columns: usize,
    steps: usize,
}

/// What the work-groups of a wave read in each step, per reduction index.
#[derive(Default)]
struct WaveReads {
    wave: Option<usize>,
    /// Row panels with their rows, each once.
    rows: Vec<(usize, u64)>,
    /// Column panels with their columns, each once.
    columns: Vec<(usize, u64)>,
    /// Rows and columns of all tiles together.
    requested: u64,
    /// Elements of the largest tile, as the matrix pipelines pad it.
    padded: u64,
}

impl WaveReads {
    fn of(wave: usize, tiles: &[Tile]) -> Self {
        let mut reads = WaveReads { wave: Some(wave), ..WaveReads::default() };
        for tile in tiles {
            let rows = tile.rows.end - tile.rows.start;
            reads.rows.push((tile.row_panel, rows));
            reads.columns.push((tile.column_panel, tile.columns));
            reads.requested += rows + tile.columns;
            let padded =
                rows.next_multiple_of(MATRIX_GRANULE) * tile.columns.next_multiple_of(MATRIX_GRANULE);
            reads.padded = reads.padded.max(padded);
        }
        for panels in [&mut reads.rows, &mut reads.columns] {
            panels.sort_unstable();
            panels.dedup();
        }
        reads
    }
}

/// The whole plan of one device's producer, and the cache it reads through.
pub(crate) struct Plan {
    works: Vec<Work>,
    output: Output,
    tiles: Vec<Tile>,
    steps: Vec<(usize, u64)>,
    cache: Cache,
    /// Where each work's panels are among the cache's items.
    panels: Vec<Panels>,
    /// What the last loaded wave reads.
    current: WaveReads,
    first_tile_item: usize,
    /// Elements that each streaming work has passed.
    streamed: Vec<u64>,
    wave_size: usize,
}

impl Plan {
    pub fn new(producer: &Producer, sections: &[Section], system: &System, units: u64) -> Self {
        let size = tile_size(producer, sections, system, units.max(1));
        let tiles = tiles(&producer.output, sections, size);
        let row_panels = tiles.iter().map(|tile| tile.row_panel + 1).max().unwrap_or(0);
        let column_panels = tiles.iter().map(|tile| tile.column_panel + 1).max().unwrap_or(0);
        let mut items = 0;
        let mut steps = Vec::new();
        let mut panels = Vec::new();
        for (index, work) in producer.works.iter().enumerate() {
            let count = match work {
                Work::Product { k, .. } => k.div_ceil(system.compute.k_step).max(1),
                Work::Stream { .. } => 1,
            };
            steps.extend((0..count).map(|step| (index, step)));
            let rows = items;
            let columns = rows + row_panels * count as usize;
            items = columns + column_panels * count as usize;
            panels.push(Panels { rows, columns, steps: count as usize });
        }
        if steps.is_empty() {
            steps.push((usize::MAX, 0));
        }
        Self {
            works: producer.works.clone(),
            output: producer.output,
            cache: Cache::new(system.cache.capacity, system.cache.replacement, items + tiles.len()),
            panels,
            first_tile_item: items,
            steps,
            current: WaveReads::default(),
            streamed: vec![0; producer.works.len()],
            wave_size: units.max(1) as usize,
            tiles,
        }
    }

    pub fn waves(&self) -> usize {
        self.tiles.len().div_ceil(self.wave_size)
    }

    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    pub fn wave(&self, wave: usize) -> &[Tile] {
        let start = (wave * self.wave_size).min(self.tiles.len());
        &self.tiles[start..(start + self.wave_size).min(self.tiles.len())]
    }

    /// Output tiles that stay in the cache after their store (write-allocate).
    pub fn keep_outputs(&mut self, wave: usize) {
        let start = wave * self.wave_size;
        for index in start..start + self.wave(wave).len() {
            let tile = &self.tiles[index];
            let bytes = (tile.rows.end - tile.rows.start) * tile.columns * self.output.element_bytes;
            self.cache.touch(self.first_tile_item + index, bytes);
        }
    }

    /// Loads the operands of `step` of `wave` through the cache.
    pub fn load(&mut self, wave: usize, step: usize, system: &System) -> Step {
        let (work, part) = self.steps[step];
        match self.works.get(work) {
            Some(&Work::Product { k, element }) => {
                if self.current.wave != Some(wave) {
                    self.current = WaveReads::of(wave, self.wave(wave));
                }
                let indices = system.compute.k_step.min(k - (part * system.compute.k_step).min(k));
                let index_bytes = indices * element.bytes();
                let missing = self.miss(work, part as usize, index_bytes);
                let reads = &self.current;
                let flops = 2 * reads.padded * indices;
                let cycles = flops.div_ceil(system.compute.matrix_flops_per_cycle(element));
                let arithmetic = duration(cycles, system.compute.clock);
                let requested = duration(reads.requested * index_bytes, system.cache.bandwidth);
                Step { missing, time: arithmetic.max(requested) }
            }
            Some(&Work::Stream { flops, read_bytes, matrix }) => {
                let total = self.output.elements().max(1);
                let before = self.streamed[work];
                let elements: u64 =
                    self.wave(wave).iter().map(|t| (t.rows.end - t.rows.start) * t.columns).sum();
                self.streamed[work] = (before + elements) % total;
                let share = |amount: u64, elements: u64| {
                    (u128::from(amount) * u128::from(elements) / u128::from(total)) as u64
                };
                let missing = share(read_bytes, before + elements) - share(read_bytes, before);
                let rate = match matrix {
                    Some(element) => system.matrix_flops_per_second(element),
                    None => system.vector_flops_per_second(),
                };
                let time = duration(share(flops, elements), rate);
                Step { missing, time }
            }
            None => Step { missing: 0, time: Picoseconds(0) },
        }
    }

    /// Touches what the current wave reads in one step; returns the bytes that the cache lacks.
    fn miss(&mut self, work: usize, part: usize, index_bytes: u64) -> u64 {
        let Panels { rows, columns, steps } = self.panels[work];
        let mut missing = 0;
        for (first, panels) in [(rows, &self.current.rows), (columns, &self.current.columns)] {
            for &(panel, extent) in panels {
                let bytes = extent * index_bytes;
                if bytes > 0 && !self.cache.touch(first + panel * steps + part, bytes) {
                    missing += bytes;
                }
            }
        }
        missing
    }
}

/// The least rows and columns of a tile.
const LEAST_TILE: u64 = 32;

/// Rows and columns of a tile: the system's, unless they leave units idle. A library then takes a kernel with
/// smaller tiles, as long as it gains: smaller tiles load more for what they multiply.
fn tile_size(producer: &Producer, sections: &[Section], system: &System, units: u64) -> (u64, u64) {
    let full = (system.compute.tile_rows, system.compute.tile_columns);
    let element = producer.works.iter().find_map(|work| match work {
        Work::Product { element, .. } => Some(*element),
        Work::Stream { .. } => None,
    });
    let Some(element) = element else { return full };
    let Output { inner, columns, layers, .. } = producer.output;
    let count = |(rows, width): (u64, u64)| {
        let height = |section: &Section| ((section.range.end - section.range.start) * inner).div_ceil(rows);
        sections.iter().map(height).sum::<u64>() * columns.div_ceil(width) * layers
    };
    // Time of one reduction index of the whole output.
    let time = |size: (u64, u64)| {
        let (waves, busy) = (count(size).div_ceil(units), count(size).min(units));
        let cycles = (2 * size.0 * size.1).div_ceil(system.compute.matrix_flops_per_cycle(element));
        let loaded = busy * (size.0 + size.1) * element.bytes();
        let step = duration(cycles, system.compute.clock).max(duration(loaded, system.cache.bandwidth));
        step.0.saturating_mul(waves)
    };
    let mut best = full;
    let mut size = full;
    while count(size) < units && size.0.max(size.1) > LEAST_TILE {
        if size.0 > size.1 {
            size.0 = size.0.div_ceil(2)
        } else {
            size.1 = size.1.div_ceil(2)
        }
        if time(size) < time(best) {
            best = size;
        }
    }
    best
}

/// The tiles in work-group order.
fn tiles(output: &Output, sections: &[Section], (tile_rows, tile_columns): (u64, u64)) -> Vec<Tile> {
    let column_tiles = output.columns.div_ceil(tile_columns);
    let mut tiles = Vec::new();
    let mut row_panel = 0;
    for (chunk, section) in sections.iter().enumerate() {
        let rows = section.range.start * output.inner..section.range.end * output.inner;
        for start in rows.clone().step_by(tile_rows as usize) {
            let rows = start..(start + tile_rows).min(rows.end);
            for layer in 0..output.layers {
                for column in 0..column_tiles {
                    let columns = tile_columns.min(output.columns - column * tile_columns);
                    let column_panel = (layer * column_tiles + column) as usize;
                    tiles.push(Tile { chunk, rows: rows.clone(), columns, row_panel, column_panel });
                }
                row_panel += 1;
            }
        }
    }
    tiles
}

#[cfg(test)]
mod tests {
    use t3c_schedule::Element;

    use super::*;

    fn plan(rows: u64, columns: u64, k: u64) -> (Plan, System) {
        let system = System::open("t3-80cu").unwrap();
        let output = Output { extent: rows, inner: 1, columns, layers: 1, element_bytes: 2 };
        let producer = Producer { works: vec![Work::Product { k, element: Element::F16 }], output };
        let sections = [Section { chunk: None, range: 0..rows }];
        (Plan::new(&producer, &sections, &system, system.compute.units), system)
    }

    fn reads(mut plan: Plan, system: &System) -> u64 {
        let mut total = 0;
        for wave in 0..plan.waves() {
            for step in 0..plan.steps() {
                total += plan.load(wave, step, system).missing;
            }
        }
        total
    }

    #[test]
    fn operands_that_fit_the_cache_are_read_once() {
        let (plan, system) = plan(8192, 4256, 532);
        assert_eq!(plan.waves(), 28);
        assert_eq!(reads(plan, &system), (8192 + 4256) * 532 * 2);
    }

    #[test]
    fn operands_that_do_not_fit_are_read_again() {
        let (plan, system) = plan(8192, 4256, 2128);
        assert!(reads(plan, &system) > 4 * (8192 + 4256) * 2128 * 2);
    }

    #[test]
    fn a_full_tile_runs_at_the_peak() {
        let (mut plan, system) = plan(1280, 1024, 64);
        let time = plan.load(0, 0, &system).time;
        let flops = 80 * 2 * 128 * 128 * 64;
        assert!(time >= duration(flops, system.matrix_flops_per_second(Element::F16)));
    }

    #[test]
    fn few_tiles_become_smaller_ones() {
        let (whole, _) = plan(1280, 1024, 64);
        assert_eq!(whole.tiles.len(), 80, "as many as units");
        let (small, _) = plan(256, 512, 64);
        assert!(small.tiles.len() > 8 && small.tiles.len() <= 160, "{}", small.tiles.len());
    }

    #[test]
    fn tiles_cover_ragged_outputs_once() {
        let (plan, _) = plan(1000, 300, 7);
        let elements: u64 = (0..plan.waves())
            .flat_map(|wave| plan.wave(wave))
            .map(|tile| (tile.rows.end - tile.rows.start) * tile.columns)
            .sum();
        assert_eq!(elements, 300_000);
    }
}
