//! Running a testkit case on a device.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::print_stdout)]

use std::sync::{Arc, OnceLock};

use testkit::cases::{AttentionCase, Data, Layout};
use testkit::oracle::Visible;
use testkit::random::Random;
use testkit::tolerance::Precision;
use tilewise::backend::cpu::CpuDevice;
use tilewise::{
    AttentionParams, BatchLayout, DType, Device, HostTensor, Kv, KvCacheConfig, Mask, PageTable, Result,
    Tensor, TokenView,
};

/// A device under test.
pub struct Tested {
    /// What to call it in failures: the instruction set, or the adapter and its arithmetic.
    pub name: String,
    pub device: Box<dyn Device>,
    pub gpu: bool,
    /// Whether it is a processor that plays a GPU: such a one compiles and runs slowly.
    pub software: bool,
    /// Whether matrix units multiply its 16-bit elements.
    pub matrices: bool,
}

impl Tested {
    pub fn cpu(name: &str, device: CpuDevice) -> Self {
        let (name, device) = (name.to_owned(), Box::new(device));
        Self { name, device, gpu: false, software: false, matrices: false }
    }
}

/// Every instruction set of this machine's processor, on two threads.
pub fn cpus() -> Vec<Tested> {
    let open = |set| Tested::cpu(set, CpuDevice::with_instruction_set(Some(2), set).unwrap());
    CpuDevice::instruction_sets().into_iter().map(open).collect()
}

/// Every GPU: without its matrix units, with them, and with the elements of their matrices. A processor that plays a GPU
/// with matrix units comes with them only. The tests of a file share the devices, and with them the compiled kernels.
pub fn gpus() -> &'static [Tested] {
    static GPUS: OnceLock<Vec<Tested>> = OnceLock::new();
    GPUS.get_or_init(|| {
        let gpus = open_gpus();
        if gpus.is_empty() {
            println!("gpu: skipped, this machine has no adapter or this build no GPU backend");
        }
        gpus
    })
}

#[cfg(feature = "gpu")]
fn open_gpus() -> Vec<Tested> {
    use tilewise::backend::gpu::GpuDevice;
    let mut all = Vec::new();
    for (index, adapter) in GpuDevice::adapters().into_iter().enumerate() {
        let software = adapter.software;
        let name = format!("{} {}", adapter.name, adapter.description);
        let full = match GpuDevice::new(index) {
            Ok(full) => full,
            Err(error) => {
                println!("{name}: skipped, {error}");
                continue;
            }
        };
        let matrices = full.matrix_tile().is_some();
        if matrices && !software {
            let device = Box::new(GpuDevice::without_matrices(index).unwrap());
            all.push(Tested { name: name.clone(), device, gpu: true, software, matrices: false });
        }
        if matrices {
            let device = Box::new(GpuDevice::without_elements(index).unwrap());
            let name = format!("{name} with matrices");
            all.push(Tested { name, device, gpu: true, software, matrices });
        }
        assert!(
            full.computes_with_elements() || !matrices || !software,
            "{name} does not say who has which element"
        );
        if full.computes_with_elements() || !matrices {
            let name = if matrices { format!("{name} with elements of matrices") } else { name };
            all.push(Tested { name, device: Box::new(full), gpu: true, software, matrices });
        }
    }
    all
}

#[cfg(not(feature = "gpu"))]
fn open_gpus() -> Vec<Tested> {
    Vec::new()
}

pub fn dtype(precision: Precision) -> DType {
    match precision {
        Precision::F32 => DType::F32,
        Precision::F16 => DType::F16,
        Precision::Bf16 => DType::Bf16,
    }
}

pub fn mask(visible: Visible) -> Mask {
    match visible {
        Visible::Full => Mask::Full,
        Visible::Causal => Mask::Causal,
        Visible::Window(left, right, causal) => Mask::Window { left, right, causal },
    }
}

pub fn params(case: &AttentionCase) -> AttentionParams {
    AttentionParams::new(case.num_qo_heads, case.num_kv_heads, case.head_dim)
        .value_dim(case.value_dim)
        .mask(mask(case.visible))
        .dtypes(dtype(case.q_precision()), dtype(case.precision))
}

/// Uploads f32 values as the given type.
pub fn upload(device: &dyn Device, shape: &[usize], values: &[f32], precision: Precision) -> Tensor {
    let bytes: Vec<u8> = match precision {
        Precision::F32 => values.iter().flat_map(|x| x.to_ne_bytes()).collect(),
        Precision::F16 => values.iter().flat_map(|x| half::f16::from_f32(*x).to_ne_bytes()).collect(),
        Precision::Bf16 => values.iter().flat_map(|x| half::bf16::from_f32(*x).to_ne_bytes()).collect(),
    };
    device.upload(HostTensor::new(shape, dtype(precision), &bytes).unwrap()).unwrap()
}

/// Interleaves per-head arrays `[tokens, dim]` of all sequences to `[total tokens, heads, dim]`.
pub fn ragged(sequences: &[Vec<Vec<f32>>], dim: usize) -> Vec<f32> {
    let mut all = Vec::new();
    for heads in sequences {
        for token in 0..heads[0].len() / dim {
            for head in heads {
                all.extend_from_slice(&head[token * dim..(token + 1) * dim]);
            }
        }
    }
    all
}

/// Outputs and lse by `[sequence][qo head]`, each `[queries, value_dim]` and `[queries]`.
pub struct Outcome {
    pub out: Vec<Vec<Vec<f32>>>,
    pub lse: Vec<Vec<Vec<f32>>>,
}

/// Runs a case with a forced kernel, or the chosen one.
pub fn run(device: &dyn Device, case: &AttentionCase, data: &Data, kernel: Option<&str>) -> Result<Outcome> {
    let lens = &case.lens;
    let total_q: usize = lens.iter().map(|lens| lens.0).sum();
    let total_k: usize = lens.iter().map(|lens| lens.1).sum();
    let (hq, hk, d, dv) = (case.num_qo_heads, case.num_kv_heads, case.head_dim, case.value_dim);
    let layout = Arc::new(layout(case));
    let plan = device.plan_attention(&params(case), &layout, kernel)?;
    let q_type = case.q_precision();
    let dense = case.layout == Layout::Dense;
    let flat =
        |sequences: &Vec<Vec<Vec<f32>>>| sequences.iter().flatten().flatten().copied().collect::<Vec<f32>>();
    let (b, n, s) = (lens.len(), lens[0].0, lens[0].1);
    let q = if dense {
        upload(device, &[b, hq, n, d], &flat(&data.q), q_type)
    } else {
        upload(device, &[total_q, hq, d], &ragged(&data.q, d), q_type)
    };
    let (k, v) = if dense {
        let k = upload(device, &[b, hk, s, d], &flat(&data.k), case.precision);
        (k, upload(device, &[b, hk, s, dv], &flat(&data.v), case.precision))
    } else {
        let k = upload(device, &[total_k, hk, d], &ragged(&data.k, d), case.precision);
        (k, upload(device, &[total_k, hk, dv], &ragged(&data.v, dv), case.precision))
    };
    let (out_shape, lse_shape) =
        if dense { (vec![b, hq, n, dv], vec![b, hq, n]) } else { (vec![total_q, hq, dv], vec![total_q, hq]) };
    let mut out = upload(device, &out_shape, &vec![f32::NAN; total_q * hq * dv], q_type);
    let mut lse = upload(device, &lse_shape, &vec![f32::NAN; total_q * hq], Precision::F32);
    let q_view = if dense { TokenView::dense(&q)? } else { TokenView::ragged(&q)? };
    if let Layout::Paged(page_size) = case.layout {
        let cache = fill_pages(device, case, data, page_size)?;
        device.attention(&plan, q_view, Kv::Paged(&cache.layers[0]), &mut out, Some(&mut lse))?;
    } else {
        let view = |tensor| if dense { TokenView::dense(tensor) } else { TokenView::ragged(tensor) };
        let kv = Kv::Contiguous { keys: view(&k)?, values: view(&v)? };
        device.attention(&plan, q_view, kv, &mut out, Some(&mut lse))?;
    }
    let (out, lse) = (device.download(&out)?, device.download(&lse)?);
    let place = |sequence: usize, first: usize, head: usize, query: usize| {
        if dense { (sequence * hq + head) * n + query } else { (first + query) * hq + head }
    };
    let mut outcome = Outcome { out: Vec::new(), lse: Vec::new() };
    let mut first = 0;
    for (sequence, (queries, _)) in lens.iter().enumerate() {
        let rows = |head| (0..*queries).map(move |query| place(sequence, first, head, query));
        let out_of = |head| rows(head).flat_map(|row| out[row * dv..(row + 1) * dv].to_vec()).collect();
        outcome.out.push((0..hq).map(out_of).collect());
        outcome.lse.push((0..hq).map(|head| rows(head).map(|row| lse[row]).collect()).collect());
        first += queries;
    }
    Ok(outcome)
}

fn layout(case: &AttentionCase) -> BatchLayout {
    let indptr = |tokens: &dyn Fn(&(usize, usize)) -> usize| {
        let mut sum = 0;
        let ends = case.lens.iter().map(|lens| {
            sum += tokens(lens) as u32;
            sum
        });
        std::iter::once(0).chain(ends.collect::<Vec<_>>()).collect::<Vec<u32>>()
    };
    let kv_len = case.lens.iter().map(|lens| lens.1 as u32).collect();
    let qo_indptr = indptr(&|lens| lens.0);
    match case.layout {
        Layout::Paged(page_size) => {
            let table = share(case, page_table(case, page_size));
            BatchLayout::paged(qo_indptr, kv_len, table).unwrap()
        }
        _ => BatchLayout::ragged(qo_indptr, kv_len).unwrap(),
    }
}

/// Pages in an order that depends on the case but on nothing else.
fn page_table(case: &AttentionCase, page_size: usize) -> PageTable {
    let mut indptr = vec![0];
    for lens in &case.lens {
        indptr.push(indptr[indptr.len() - 1] + lens.1.div_ceil(page_size) as u32);
    }
    let mut pages: Vec<u32> = (0..indptr[indptr.len() - 1]).collect();
    let mut random = Random::new(page_size as u64);
    for i in (1..pages.len()).rev() {
        pages.swap(i, random.below(i + 1));
    }
    PageTable { page_size, indptr, pages }
}

/// Gives all sequences the first one's pages of the keys that they share, where those fill pages.
fn share(case: &AttentionCase, mut table: PageTable) -> PageTable {
    let count = case.shared / table.page_size;
    let first = table.pages[..count].to_vec();
    for start in &table.indptr[..case.lens.len()] {
        table.pages[*start as usize..][..count].copy_from_slice(&first);
    }
    table
}

/// A cache that holds the case's keys and values, and NaN in every slot it does not use.
fn fill_pages(
    device: &dyn Device,
    case: &AttentionCase,
    data: &Data,
    page_size: usize,
) -> Result<tilewise::KvCache> {
    // All sequences write pages of their own, even those that are read from others.
    let table = page_table(case, page_size);
    let num_pages = table.pages.len().max(1);
    let mut cache = device.alloc_kv(&KvCacheConfig {
        num_layers: 1,
        num_pages,
        page_size,
        num_kv_heads: case.num_kv_heads,
        head_dim: case.head_dim,
        value_dim: case.value_dim,
        dtype: dtype(case.precision),
    })?;
    let (hk, d, dv) = (case.num_kv_heads, case.head_dim, case.value_dim);
    let mut append = |table: PageTable, lens: Vec<u32>, k: Vec<f32>, v: Vec<f32>| {
        let tokens = k.len() / (hk * d);
        let mut indptr = vec![0];
        lens.iter().for_each(|len| indptr.push(indptr[indptr.len() - 1] + len));
        let layout = Arc::new(BatchLayout::paged(indptr, lens, table)?);
        let plan = device.plan_attention(&params(case), &layout, None)?;
        let k = upload(device, &[tokens, hk, d], &k, Precision::F32);
        let v = upload(device, &[tokens, hk, dv], &v, Precision::F32);
        device.append_kv(&plan, TokenView::ragged(&k)?, TokenView::ragged(&v)?, &mut cache.layers[0])
    };
    let whole =
        PageTable { page_size, indptr: vec![0, num_pages as u32], pages: (0..num_pages as u32).collect() };
    let slots = num_pages * page_size;
    append(whole, vec![slots as u32], vec![f32::NAN; slots * hk * d], vec![f32::NAN; slots * hk * dv])?;
    let lens = case.lens.iter().map(|lens| lens.1 as u32).collect();
    append(table, lens, ragged(&data.k, d), ragged(&data.v, dv))?;
    Ok(cache)
}
