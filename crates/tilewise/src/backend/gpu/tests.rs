//! Every kernel as Metal gets it: the text that naga makes of it, held to what Apple's compiler and GPUs need.
#![allow(clippy::print_stdout)]

use std::process::{Command, Stdio};

use naga::back::msl;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{ValidationFlags, Validator};

use super::context::Abilities;
use super::pipeline::Specialisation;
use super::spirv::{SubgroupBarrier, translate};
use super::{attention, ceilings, elements, linear, rows, sample, template};

/// Bytes of threadgroup memory on every Apple GPU.
const THREADGROUP_MEMORY: u32 = 32 << 10;

/// The slot of the kernel's arguments; bindings are below it.
const ARGUMENTS: u8 = 20;

/// What an Apple GPU can do.
const APPLE: Abilities = Abilities {
    matrix_tile: Some(8),
    subgroup: Some(32),
    vector_tiles: false,
    elements: None,
    workgroup_memory: THREADGROUP_MEMORY,
    workgroup_threads: 1024,
    binding: 1 << 30,
    busy: 512,
};

/// What an NVIDIA GPU can do by Vulkan.
fn nvidia() -> Abilities {
    let elements = Some(elements::tests::nvidia());
    Abilities { matrix_tile: Some(16), vector_tiles: true, elements, workgroup_memory: 48 << 10, ..APPLE }
}

/// Kernels as they are launched; each module that launches some lists its own.
fn samples_of(abilities: &Abilities) -> Vec<Specialisation> {
    let of_device = [linear::samples(abilities), attention::samples(abilities)].concat();
    let asked = abilities.elements.map(|_| elements::kernel(16, 32));
    let asked: Vec<Specialisation> = asked.into_iter().collect();
    [rows::samples(), of_device, sample::samples(), ceilings::samples(), asked].concat()
}

fn samples() -> Vec<Specialisation> {
    samples_of(&APPLE)
}

/// What naga makes of a kernel.
struct Metal {
    text: String,
    /// Threads of a work group.
    threads: u32,
    /// Bytes of each variable in threadgroup memory.
    memory: Vec<u32>,
}

/// Translates as the backend for Metal does, for trusted kernels.
fn metal(kernel: &Specialisation) -> Metal {
    let (name, source) = (kernel.name, kernel.expand());
    let capabilities = msl::supported_capabilities();
    let options = naga::front::wgsl::Options { parse_doc_comments: false, capabilities };
    let module = naga::front::wgsl::Frontend::new_with_options(options)
        .parse(&source)
        .unwrap_or_else(|error| panic!("{name}: {}\n{source}", error.emit_to_string(&source)));
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .unwrap_or_else(|error| panic!("{name}: {}\n{source}", error.emit_to_string(&source)));
    let mut resources = msl::EntryPointResources {
        immediates_buffer: Some(ARGUMENTS),
        sizes_buffer: Some(ARGUMENTS + 1),
        ..Default::default()
    };
    for (binding, read_only) in template::interface(&source).bindings {
        let target =
            msl::BindTarget { buffer: Some(binding as u8), mutable: !read_only, ..Default::default() };
        resources.resources.insert(naga::ResourceBinding { group: 0, binding }, target);
    }
    let unchecked = BoundsCheckPolicy::Unchecked;
    let options = msl::Options {
        lang_version: (3, 1),
        per_entry_point_map: [("main".to_owned(), resources)].into(),
        fake_missing_bindings: false,
        bounds_check_policies: BoundsCheckPolicies {
            index: unchecked,
            buffer: unchecked,
            image_load: unchecked,
            binding_array: unchecked,
        },
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..Default::default()
    };
    let (text, _) = msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
        .unwrap_or_else(|error| panic!("{name}: {error}\n{source}"));
    let workgroup = module.global_variables.iter().map(|(_, variable)| variable);
    let workgroup = workgroup.filter(|variable| variable.space == naga::AddressSpace::WorkGroup);
    let memory = workgroup.map(|variable| module.types[variable.ty].inner.size(module.to_ctx())).collect();
    Metal { text, threads: module.entry_points[0].workgroup_size.iter().product(), memory }
}

#[test]
fn every_kernel_becomes_metal_that_apples_compiler_and_gpus_can_take() {
    for kernel in samples() {
        let what = format!("{} {:?}", kernel.name, kernel.values);
        let Metal { text, threads, memory } = metal(&kernel);
        let declared = format!("max_total_threads_per_threadgroup({threads})");
        assert!(text.contains(&declared), "{what}: the translation has changed: {text}");
        // Apple's compiler miscompiles matrices in work groups of one simdgroup.
        assert!((64..=1024).contains(&threads), "{what}: {threads} threads");
        // Each variable is an argument of its own, at a multiple of 16 bytes.
        let bytes: u32 = memory.iter().map(|bytes| bytes.next_multiple_of(16)).sum();
        assert!(bytes <= THREADGROUP_MEMORY, "{what}: {bytes} bytes of threadgroup memory");
        let arguments = format!("constant Args& args [[buffer({ARGUMENTS})]]");
        assert!(text.contains(&arguments), "{what}: the arguments are no constant buffer: {text}");
        let source = kernel.expand();
        for (binding, read_only) in template::interface(&source).bindings {
            let line = text.lines().find(|line| line.contains(&format!("[[buffer({binding})]]")));
            // A variant may have no use for a binding that the others have: Metal then has no such argument.
            let Some(line) = line else { continue };
            assert_eq!(line.contains(" const& "), read_only, "{what}: {line}");
        }
        assert_eq!(source.contains("workgroupBarrier"), text.contains("threadgroup_barrier("), "{what}");
    }
}

#[test]
fn matrices_in_kernels_become_simdgroup_matrices() {
    let (mut matrices, mut others) = (0, 0);
    for kernel in samples() {
        let what = format!("{} {:?}", kernel.name, kernel.values);
        let has_matrices = kernel.expand().contains("coop_mat");
        let Metal { text, memory, .. } = metal(&kernel);
        for needed in ["simdgroup_multiply_accumulate(", "simdgroup_load(", "metal::simdgroup_"] {
            assert_eq!(text.contains(needed), has_matrices, "{what}: {needed}");
        }
        if has_matrices {
            // Drivers pack variables, and matrix loads from an address that is no multiple of 16 bytes go wrong.
            assert!(memory.iter().all(|bytes| bytes % 16 == 0), "{what}: variables of {memory:?} bytes");
            matrices += 1;
        } else {
            others += 1;
        }
    }
    println!("{matrices} kernels with matrices, {others} without");
    assert!(others > 0);
}

#[test]
fn a_name_has_one_template() {
    // Kernels are told apart by their names and values.
    let mut templates = std::collections::HashMap::new();
    for kernel in [samples_of(&APPLE), samples_of(&nvidia())].concat() {
        let template = *templates.entry(kernel.name).or_insert(kernel.source);
        assert!(template == kernel.source, "{} has two", kernel.name);
    }
    assert!(templates.len() > 10, "{}", templates.len());
}

#[test]
fn every_kernel_with_matrices_becomes_spirv_that_fits_a_work_group() {
    let mut most = 0;
    for abilities in [APPLE, Abilities { elements: None, ..nvidia() }, nvidia()] {
        for kernel in samples_of(&abilities) {
            let text = kernel.expand();
            if !text.contains("coop_mat") {
                continue;
            }
            let what = format!("{} {:?}", kernel.name, kernel.values);
            let translation = translate(&text, SubgroupBarrier::Waits, abilities.elements.as_ref())
                .unwrap_or_else(|why| panic!("{what}: {why}"));
            let bytes = translation.workgroup_memory;
            assert!(bytes <= abilities.workgroup_memory, "{what}: {bytes} bytes of workgroup memory");
            most = most.max(bytes);
        }
    }
    println!("the most workgroup memory of a kernel: {most} bytes");
    assert!(most > THREADGROUP_MEMORY);
}

/// What a second compiler, Dawn's, says of a text; `None` where it is not installed.
fn tint(text: &str) -> Option<Result<(), String>> {
    let file = std::env::temp_dir().join(format!("tilewise-{}.wgsl", std::process::id()));
    // It wants to be told of subgroups; naga knows no such word.
    std::fs::write(&file, format!("enable subgroups;\n{text}")).unwrap();
    let output = Command::new("tint").args(["--format", "wgsl"]).arg(&file).stdin(Stdio::null()).output();
    std::fs::remove_file(&file).unwrap();
    let output = output.ok()?;
    let why = || String::from_utf8_lossy(&output.stderr).into_owned();
    Some(if output.status.success() { Ok(()) } else { Err(why()) })
}

#[test]
fn every_kernel_without_matrices_passes_a_second_compiler() {
    let (mut passed, mut left) = (0, 0);
    for kernel in samples() {
        let text = kernel.expand();
        // Its matrices have other names than naga's.
        if text.contains("coop_mat") {
            left += 1;
            continue;
        }
        match tint(&text) {
            None => {
                println!("tint: skipped, it is not installed");
                return;
            }
            Some(Err(why)) => panic!("{} {:?}: {why}\n{text}", kernel.name, kernel.values),
            Some(Ok(())) => passed += 1,
        }
    }
    println!("tint: {passed} kernels passed, {left} with matrices are skipped");
    assert!(passed > 0);
}
