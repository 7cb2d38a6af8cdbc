//! WGSL to SPIR-V, with what the translation leaves out: the order of workgroup memory.
//!
//! Under the Vulkan memory model, which cooperative matrices need, accesses to workgroup memory are private to an
//! invocation unless said otherwise, and a barrier orders the kinds of memory that it names. naga 30 says neither of
//! accesses, and a `subgroupBarrier` of its names no workgroup memory. (Metal's `simdgroup_barrier` does.)
//!
//! Buffers are not said to be only read, though they are: NVIDIA's compiler moves a load of one that is down to its use,
//! behind the work and the barrier that should have hidden its latency (bench/records/2026-11-24-h200.csv: 164 TFLOP/s
//! so, 189 without).

mod elements;

use std::collections::{HashMap, HashSet};

use naga::back::spv;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{ValidationFlags, Validator};

use super::elements::Elements;

/// A kernel as Vulkan takes it.
pub(super) struct Translation {
    pub words: Vec<u32>,
    pub workgroup_size: [u32; 3],
    /// Bytes of workgroup memory: no one else checks a module that is taken as it is.
    pub workgroup_memory: u32,
}

/// What becomes of a subgroup's barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SubgroupBarrier {
    /// It waits for the subgroup, and orders its memory.
    Waits,
    /// It orders memory. Mesa's software adapters run a subgroup in step, and take every barrier for one of the work
    /// group, which subgroups with other keys to look at do not reach.
    Orders,
}

/// Translates a kernel without bounds checks, its workgroup memory ordered by its barriers.
///
/// # Errors
/// What the compiler says of the text.
pub(super) fn translate(
    text: &str,
    barrier: SubgroupBarrier,
    of_threads: Option<&Elements>,
) -> Result<Translation, String> {
    let capabilities = spv::supported_capabilities();
    let options = naga::front::wgsl::Options { parse_doc_comments: false, capabilities };
    let module = naga::front::wgsl::Frontend::new_with_options(options)
        .parse(text)
        .map_err(|error| error.emit_to_string(text))?;
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .map_err(|error| error.emit_to_string(text))?;
    let unchecked = BoundsCheckPolicy::Unchecked;
    let options = spv::Options {
        lang_version: (1, 6),
        flags: spv::WriterFlags::DEBUG,
        bounds_check_policies: BoundsCheckPolicies {
            index: unchecked,
            buffer: unchecked,
            image_load: unchecked,
            binding_array: unchecked,
        },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..Default::default()
    };
    let entry = spv::PipelineOptions {
        shader_stage: naga::ShaderStage::Compute,
        entry_point: module.entry_points[0].name.clone(),
    };
    let words = spv::write_vec(&module, &info, &options, Some(&entry)).map_err(|error| error.to_string())?;
    let shared = module.global_variables.iter().filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
    let sizes = shared.map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx()).next_multiple_of(16));
    Ok(Translation {
        words: halved(&ordered(&elements::elementwise(&words, of_threads)?, barrier))?,
        workgroup_size: module.entry_points[0].workgroup_size,
        workgroup_memory: sizes.sum(),
    })
}

// Numbers of the SPIR-V specification, version 1.6, and of SPV_KHR_cooperative_matrix.
const CAPABILITY: u32 = 17;
const FLOAT16: u32 = 9;
const TYPE_FLOAT: u32 = 22;
const TYPE_POINTER: u32 = 32;
const CONSTANT: u32 = 43;
const FUNCTION: u32 = 54;
const VARIABLE: u32 = 59;
const LOAD: u32 = 61;
const STORE: u32 = 62;
const ACCESS_CHAIN: u32 = 65;
const DECORATE: u32 = 71;
const MEMBER_DECORATE: u32 = 72;
const NON_WRITABLE: u32 = 24;
const CONTROL_BARRIER: u32 = 224;
const MEMORY_BARRIER: u32 = 225;
const TYPE_MATRIX: u32 = 4456;
/// The use of a matrix that is added to; A and B are below it.
const MATRIX_C: u32 = 2;
const MATRIX_LOAD: u32 = 4457;
const MATRIX_STORE: u32 = 4458;
const WORKGROUP_CLASS: u32 = 4;
const SUBGROUP_SCOPE: u32 = 3;
const NON_PRIVATE: u32 = 0x20;
/// The semantics `AcquireRelease`, `WorkgroupMemory`, `MakeAvailable` and `MakeVisible`.
const ORDERS_WORKGROUP: u32 = 0x8 | 0x100 | 0x2000 | 0x4000;
const WORKGROUP_MEMORY: u32 = 0x100;
/// Words before the first instruction; the fourth is above every id.
const HEADER: usize = 5;

/// A module whose accesses to workgroup memory are not private and whose barriers order them.
fn ordered(words: &[u32], barrier: SubgroupBarrier) -> Vec<u32> {
    let instructions = || Instructions(&words[HEADER..]);
    let mut constants = HashMap::new();
    let mut pointers = HashSet::new();
    let mut shared = HashSet::new();
    let mut word_type = None;
    for instruction in instructions() {
        match (instruction[0] & 0xffff, instruction) {
            (TYPE_POINTER, [_, id, WORKGROUP_CLASS, ..]) => _ = pointers.insert(*id),
            (VARIABLE | ACCESS_CHAIN, [_, kind, id, ..]) if pointers.contains(kind) => _ = shared.insert(*id),
            (CONSTANT, [_, kind, id, value]) => _ = constants.insert(*id, (*kind, *value)),
            (CONTROL_BARRIER, [_, _, _, semantics]) => word_type = constants.get(semantics).map(|c| c.0),
            _ => {}
        }
    }
    // Without a barrier there is nothing to order.
    let Some(word_type) = word_type else { return words.to_vec() };
    let semantics = words[3];
    let mut out = words[..HEADER].to_vec();
    out[3] += 1;
    let mut declared = false;
    for instruction in instructions() {
        let mut instruction = instruction.to_vec();
        let operation = instruction[0] & 0xffff;
        if matches!(
            (operation, &instruction[..]),
            (DECORATE, [_, _, NON_WRITABLE]) | (MEMBER_DECORATE, [_, _, _, NON_WRITABLE])
        ) {
            continue;
        }
        if operation == FUNCTION && !declared {
            out.extend([4 << 16 | CONSTANT, word_type, semantics, ORDERS_WORKGROUP]);
            declared = true;
        }
        // Where the pointer is, and how long the instruction is without memory operands.
        let access = match operation {
            LOAD => Some((3, 4)),
            STORE => Some((1, 3)),
            MATRIX_LOAD => Some((3, 6)),
            MATRIX_STORE => Some((1, 5)),
            _ => None,
        };
        match access {
            Some((pointer, len)) if instruction.len() == len && shared.contains(&instruction[pointer]) => {
                instruction.push(NON_PRIVATE);
                instruction[0] += 1 << 16;
            }
            _ => {}
        }
        if operation == CONTROL_BARRIER {
            let value = |id: u32| constants.get(&id).map_or(0, |c| c.1);
            let is_of_subgroup = value(instruction[1]) == SUBGROUP_SCOPE;
            if is_of_subgroup || value(instruction[3]) & WORKGROUP_MEMORY != 0 {
                instruction[3] = semantics;
            }
            if is_of_subgroup && barrier == SubgroupBarrier::Orders {
                instruction = vec![3 << 16 | MEMORY_BARRIER, instruction[2], instruction[3]];
            }
        }
        out.extend(instruction);
    }
    out
}

/// A module whose matrices A and B are of f16. naga takes a matrix to be of the type of the memory that it is loaded from.
/// Where that is words of f32 which hold pairs of f16, the matrix is said here to be what it is: no device has matrices A
/// and B of f32.
fn halved(words: &[u32]) -> Result<Vec<u32>, String> {
    let instructions = || Instructions(&words[HEADER..]);
    let float =
        |bits: u32| instructions().find(|i| i[0] & 0xffff == TYPE_FLOAT && i[2] == bits).map(|i| i[1]);
    let (half, single) = (float(16).unwrap_or(words[3]), float(32));
    let factors: HashSet<u32> =
        instructions().filter(|i| i[0] & 0xffff == CONSTANT && i[3] < MATRIX_C).map(|i| i[2]).collect();
    let is_factor =
        |i: &[u32], of| i[0] & 0xffff == TYPE_MATRIX && Some(i[2]) == of && factors.contains(&i[6]);
    if !instructions().any(|i| is_factor(i, single)) {
        return Ok(words.to_vec());
    }
    // A type may be declared only once.
    let uses = |of| instructions().filter(move |i| is_factor(i, of)).map(|i| i[6]);
    if uses(single).any(|own| uses(Some(half)).any(|other| own == other)) {
        return Err("matrices of f16, and the same in words".to_owned());
    }
    let mut out = words[..HEADER].to_vec();
    if half == words[3] {
        out[3] += 1;
        out.extend([2 << 16 | CAPABILITY, FLOAT16]);
    }
    let mut declared = false;
    for instruction in instructions() {
        let is_half = instruction[0] & 0xffff == TYPE_FLOAT && instruction[1] == half;
        if is_factor(instruction, single) {
            if !declared {
                out.extend([3 << 16 | TYPE_FLOAT, half, 16]);
            }
            out.extend(&instruction[..2]);
            out.push(half);
            out.extend(&instruction[3..]);
            declared = true;
        } else if !(is_half && declared) {
            out.extend(instruction);
        }
        declared |= is_half;
    }
    Ok(out)
}

/// The instructions of a module, each with its first word: its length and its number.
struct Instructions<'a>(&'a [u32]);

impl<'a> Iterator for Instructions<'a> {
    type Item = &'a [u32];

    fn next(&mut self) -> Option<Self::Item> {
        let len = (*self.0.first()? >> 16) as usize;
        let (instruction, rest) = self.0.split_at_checked(len.max(1))?;
        self.0 = rest;
        Some(instruction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: &str = "
enable f16;
enable wgpu_cooperative_matrix;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
var<workgroup> tile: array<f16, 64>;
var<workgroup> sums: array<f32, 64>;
@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) thread: u32) {
    tile[thread] = f16(thread);
    workgroupBarrier();
    let a = coopLoadT<coop_mat8x8<f16, A>>(&tile[0], 8u);
    let b = coopLoadT<coop_mat8x8<f16, B>>(&tile[0], 8u);
    coopStoreT(coopMultiplyAdd(a, b, coop_mat8x8<f32, C>()), &sums[0], 8u);
    subgroupBarrier();
    out[thread] = sums[thread] + x[thread];
}";

    #[test]
    fn every_barrier_orders_workgroup_memory_and_every_access_to_it_is_visible() {
        let Translation { words, workgroup_size, workgroup_memory } =
            translate(KERNEL, SubgroupBarrier::Waits, None).unwrap();
        assert_eq!((workgroup_size, workgroup_memory), ([64, 1, 1], 64 * 2 + 64 * 4));
        let values: HashMap<u32, u32> = Instructions(&words[HEADER..])
            .filter(|i| i[0] & 0xffff == CONSTANT)
            .map(|i| (i[2], i[3]))
            .collect();
        let scopes: Vec<(u32, u32)> = Instructions(&words[HEADER..])
            .filter(|i| i[0] & 0xffff == CONTROL_BARRIER)
            .map(|i| (values[&i[1]], values[&i[3]]))
            .collect();
        assert_eq!(scopes, [(2, ORDERS_WORKGROUP), (SUBGROUP_SCOPE, ORDERS_WORKGROUP)]);
        let marked = |operation: u32, len: usize| {
            let of_kind = Instructions(&words[HEADER..]).filter(move |i| i[0] & 0xffff == operation);
            of_kind.filter(|i| i.len() == len + 1 && i[len] == NON_PRIVATE).count()
        };
        // Two loads of matrices and one of an element; a store of each.
        assert_eq!([marked(MATRIX_LOAD, 6), marked(LOAD, 4)], [2, 1]);
        assert_eq!([marked(MATRIX_STORE, 5), marked(STORE, 3)], [1, 1]);
        assert!(words[3] > *values.keys().max().unwrap());
    }

    #[test]
    fn a_barrier_that_only_orders_waits_for_nobody() {
        let Translation { words, .. } = translate(KERNEL, SubgroupBarrier::Orders, None).unwrap();
        let count = |operation| Instructions(&words[HEADER..]).filter(|i| i[0] & 0xffff == operation).count();
        assert_eq!([count(CONTROL_BARRIER), count(MEMORY_BARRIER)], [1, 1]);
    }

    #[test]
    fn no_buffer_is_said_to_be_only_read() {
        let Translation { words, .. } = translate(KERNEL, SubgroupBarrier::Waits, None).unwrap();
        let said = Instructions(&words[HEADER..]).filter(|i| {
            matches!(i[0] & 0xffff, DECORATE | MEMBER_DECORATE) && i.last() == Some(&NON_WRITABLE)
        });
        assert_eq!(said.count(), 0);
    }

    #[test]
    fn matrices_that_are_loaded_from_words_are_of_f16() {
        let kernel = KERNEL
            .replace("var<workgroup> tile: array<f16, 64>", "var<workgroup> tile: array<f32, 32>")
            .replace("tile[thread] = f16(thread)", "tile[thread / 2u] = bitcast<f32>(thread)")
            .replace("<f16, ", "<f32, ");
        for text in [&kernel, KERNEL] {
            let Translation { words, .. } = translate(text, SubgroupBarrier::Waits, None).unwrap();
            let of = |operation| Instructions(&words[HEADER..]).filter(move |i| i[0] & 0xffff == operation);
            let floats: HashMap<u32, u32> = of(TYPE_FLOAT).map(|i| (i[1], i[2])).collect();
            let values: HashMap<u32, u32> = of(CONSTANT).map(|i| (i[2], i[3])).collect();
            let mut matrices: Vec<_> = of(TYPE_MATRIX).map(|i| (values[&i[6]], floats[&i[2]])).collect();
            matrices.sort_unstable();
            assert_eq!(matrices, [(0, 16), (1, 16), (2, 32)], "use and bits");
            assert_eq!(of(TYPE_FLOAT).count(), floats.len(), "each type is declared once");
            assert!(of(CAPABILITY).any(|i| i[1] == FLOAT16));
            assert!(floats.keys().all(|id| *id < words[3]));
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused_with_its_line() {
        let why = translate("fn main() { x }", SubgroupBarrier::Waits, None).err().unwrap();
        assert!(why.contains("wgsl:1"), "{why}");
    }
}
