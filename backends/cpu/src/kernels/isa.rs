//! What the host's vector units offer, and the register shape that the generators use on them.
//!
//! Everything comes from LLVM's description of the host, so that a kernel never uses an
//! instruction this machine lacks. A lower instruction set can be forced, which tests use to run
//! every variant that the machine can run.

use inkwell::OptimizationLevel;
use inkwell::attributes::{Attribute, AttributeLoc};
use inkwell::context::Context;
use inkwell::targets::{CodeModel, InitializationConfig, RelocMode, Target, TargetMachine as LlvmTarget};
use inkwell::values::FunctionValue;

use super::Error;
use super::cache::Caches;

/// An instruction set for which the generators have a register shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Whatever the architecture guarantees, with vectors of four floats.
    Portable,
    /// AArch64's Advanced SIMD: 32 registers of four floats.
    Neon,
    /// AVX2 with FMA: 16 registers of eight floats.
    Avx2,
    /// AVX-512 F, BW, DQ and VL: 32 registers of sixteen floats.
    Avx512,
}

impl Isa {
    /// The name that `T3C_ISA` and reports use.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }

    /// Reads [`Isa::name`] back.
    pub fn parse(name: &str) -> Result<Self, Error> {
        [Isa::Portable, Isa::Neon, Isa::Avx2, Isa::Avx512]
            .into_iter()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| Error::UnknownIsa(name.to_owned()))
    }
}

/// The block of C that the micro-kernel keeps in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterTile {
    /// MR: rows of C, one broadcast of A each.
    pub rows: usize,
    /// Vectors of B in a row of C; NR is this times the lanes.
    pub vectors: usize,
    /// Steps of K in one turn of the inner loop.
    pub unroll: usize,
}

/// The machine that kernels are generated for.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The instruction set in use: the best one, or a lower one that was forced.
    pub isa: Isa,
    /// LLVM's name of the CPU that code is scheduled for.
    pub cpu: String,
    /// LLVM's feature string; empty where `cpu` implies all that is used.
    pub features: String,
    /// f32 lanes of a vector register.
    pub lanes: usize,
    /// Vector registers.
    pub registers: usize,
    /// Whether multiply-add is one instruction; where it is not, kernels multiply, then add.
    pub fma: bool,
    /// Shape of the matrix product's micro-kernel.
    pub tile: RegisterTile,
    /// Data caches, from which blocking follows.
    pub caches: Caches,
}

impl Machine {
    /// The host, with the instruction set that `T3C_ISA` names, or its best one.
    pub fn host() -> Result<Self, Error> {
        match std::env::var("T3C_ISA") {
            Ok(name) if !name.is_empty() => Self::with_isa(Isa::parse(&name)?),
            _ => Self::with_isa(Self::best_isa()?),
        }
    }

    /// The best instruction set of this machine.
    pub fn best_isa() -> Result<Isa, Error> {
        initialize()?;
        let features = LlvmTarget::get_host_cpu_features().to_string();
        Ok(best_of(&features, cfg!(target_arch = "aarch64")))
    }

    /// The host, restricted to `isa`.
    pub fn with_isa(isa: Isa) -> Result<Self, Error> {
        let best = Self::best_isa()?;
        let lower = match best {
            Isa::Avx512 => [Isa::Avx2, Isa::Portable].contains(&isa),
            Isa::Avx2 | Isa::Neon => isa == Isa::Portable,
            Isa::Portable => false,
        };
        if isa != best && !lower {
            return Err(Error::IsaUnavailable { wanted: isa.name(), best: best.name() });
        }
        let (cpu, features) = if isa == best && isa != Isa::Portable {
            (LlvmTarget::get_host_cpu_name().to_string(), LlvmTarget::get_host_cpu_features().to_string())
        } else {
            (baseline_cpu(isa).to_owned(), String::new())
        };
        let (lanes, registers, tile) = shape(isa);
        Ok(Machine {
            isa,
            cpu,
            features,
            lanes,
            registers,
            fma: isa != Isa::Portable || cfg!(target_arch = "aarch64"),
            tile,
            caches: Caches::host(),
        })
    }

    /// Width of a vector register in bits.
    pub fn vector_bits(&self) -> usize {
        self.lanes * 32
    }

    /// NR: columns of the micro-kernel's block of C.
    pub fn tile_columns(&self) -> usize {
        self.tile.vectors * self.lanes
    }

    /// LLVM's target machine for this description.
    pub fn llvm_target(&self) -> Result<LlvmTarget, Error> {
        initialize()?;
        let triple = LlvmTarget::get_default_triple();
        let target = Target::from_triple(&triple).map_err(|message| Error::Target(message.to_string()))?;
        target
            .create_target_machine(
                &triple,
                &self.cpu,
                &self.features,
                OptimizationLevel::Aggressive,
                RelocMode::PIC,
                CodeModel::Default,
            )
            .ok_or_else(|| Error::Target(triple.to_string()))
    }

    /// Makes `function` use this machine's instructions, at their full width.
    ///
    /// Both width attributes are needed: with only the preferred width, LLVM splits 512-bit
    /// vectors in halves on CPUs that it tunes for 256 bits.
    pub fn set_target(&self, context: &Context, function: FunctionValue<'_>) {
        let bits = self.vector_bits().to_string();
        for (key, value) in [
            ("target-cpu", self.cpu.as_str()),
            ("target-features", self.features.as_str()),
            ("prefer-vector-width", bits.as_str()),
            ("min-legal-vector-width", bits.as_str()),
        ] {
            if !value.is_empty() {
                let attribute = context.create_string_attribute(key, value);
                function.add_attribute(AttributeLoc::Function, attribute);
            }
        }
        let nounwind = Attribute::get_named_enum_kind_id("nounwind");
        function.add_attribute(AttributeLoc::Function, context.create_enum_attribute(nounwind, 0));
    }
}

fn initialize() -> Result<(), Error> {
    Target::initialize_native(&InitializationConfig::default()).map_err(Error::Target)
}

fn best_of(features: &str, is_aarch64: bool) -> Isa {
    let has = |name: &str| features.split(',').any(|f| f.strip_prefix('+') == Some(name));
    if ["avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"].into_iter().all(has) {
        Isa::Avx512
    } else if has("avx2") && has("fma") {
        Isa::Avx2
    } else if is_aarch64 {
        Isa::Neon
    } else {
        Isa::Portable
    }
}

fn baseline_cpu(isa: Isa) -> &'static str {
    match (isa, cfg!(target_arch = "x86_64")) {
        (Isa::Avx2, true) => "x86-64-v3",
        (_, true) => "x86-64",
        (_, false) => "generic",
    }
}

/// Lanes, registers and micro-kernel of an instruction set.
///
/// The accumulators (`rows × vectors`) leave room for a row of B and a broadcast of A, and are
/// more than latency times throughput of the FMA units (4 cycles × 2 a cycle). On AVX-512, 6×4 was
/// measured ahead of 8×3 and 14×2 (Zen 4, 1024³: 93, 89 and 92 % of the peak).
fn shape(isa: Isa) -> (usize, usize, RegisterTile) {
    match isa {
        Isa::Avx512 => (16, 32, RegisterTile { rows: 6, vectors: 4, unroll: 1 }),
        Isa::Avx2 => (8, 16, RegisterTile { rows: 6, vectors: 2, unroll: 4 }),
        Isa::Neon => (4, 32, RegisterTile { rows: 8, vectors: 3, unroll: 2 }),
        Isa::Portable => (4, 16, RegisterTile { rows: 4, vectors: 2, unroll: 4 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_fits_its_registers() {
        for isa in [Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Portable] {
            let (lanes, registers, tile) = shape(isa);
            assert!(tile.rows * tile.vectors + tile.vectors < registers, "{isa:?}");
            assert!(tile.rows * tile.vectors * lanes <= super::super::gemm::MAX_TILE);
            assert!(tile.rows <= super::super::gemm::MAX_ROWS);
        }
    }

    #[test]
    fn features_choose_the_instruction_set() {
        let avx512 = "+avx2,+fma,+avx512f,+avx512bw,+avx512dq,+avx512vl";
        assert_eq!(best_of(avx512, false), Isa::Avx512);
        assert_eq!(best_of("+avx2,+fma,-avx512f,+avx512bw", false), Isa::Avx2);
        assert_eq!(best_of("+avx2,-fma", false), Isa::Portable);
        assert_eq!(best_of("", true), Isa::Neon);
    }

    #[test]
    fn what_the_host_lacks_is_refused() {
        let other = if cfg!(target_arch = "aarch64") { Isa::Avx2 } else { Isa::Neon };
        assert!(matches!(Machine::with_isa(other), Err(Error::IsaUnavailable { .. })));
        assert!(matches!(Isa::parse("sse9"), Err(Error::UnknownIsa(_))));
    }
}
