//! A device that works until it is told otherwise.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tilewise::dispatch::DispatchPolicy;
use tilewise::{
    AttentionParams, AttentionPlan, BatchLayout, Ceilings, DType, Device, DeviceCaps, Draw, HeadSpan,
    HostTensor, Kv, KvCache, KvCacheConfig, KvLayer, Linear, LogitChange, Logprobs, LogprobsOf, NotFinite,
    PageLayout, Result, Sampled, Tensor, TokenView,
};

/// What it does when tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Error,
    Panic,
}

/// Passes everything on to another device.
pub(crate) struct FaultyDevice {
    inner: Arc<dyn Device>,
    fault: AtomicU8,
}

impl FaultyDevice {
    pub(crate) fn new(inner: Arc<dyn Device>) -> Self {
        Self { inner, fault: AtomicU8::new(Fault::None as u8) }
    }

    pub(crate) fn set(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::SeqCst);
    }
}

macro_rules! pass_on {
    ($(fn $name:ident(&self $(, $argument:ident: $kind:ty)*) -> $answer:ty;)*) => {
        $(fn $name(&self $(, $argument: $kind)*) -> $answer { self.inner.$name($($argument),*) })*
    };
}

impl Device for FaultyDevice {
    fn sample(&self, logits: &Tensor, draws: &[Draw]) -> Result<Vec<Result<Sampled, NotFinite>>> {
        match self.fault.load(Ordering::SeqCst) {
            fault if fault == Fault::Error as u8 => Err(tilewise::Error::Device {
                device: "faulty".to_owned(),
                why: "it is unplugged".to_owned(),
            }),
            fault if fault == Fault::Panic as u8 => panic!("it is on fire"),
            _ => self.inner.sample(logits, draws),
        }
    }

    pass_on! {
        fn caps(&self) -> &DeviceCaps;
        fn policy(&self) -> &DispatchPolicy;
        fn ceilings(&self) -> Result<Ceilings>;
        fn alloc(&self, shape: &[usize], dtype: DType) -> Result<Tensor>;
        fn upload(&self, host: HostTensor<'_>) -> Result<Tensor>;
        fn write(&self, host: HostTensor<'_>, tensor: &mut Tensor) -> Result<()>;
        fn download(&self, tensor: &Tensor) -> Result<Vec<f32>>;
        fn alloc_kv(&self, config: &KvCacheConfig) -> Result<KvCache>;
        fn page_layout(&self, config: &KvCacheConfig) -> PageLayout;
        fn download_page(&self, kv: &KvCache, page: u32, bytes: &mut Vec<u8>) -> Result<()>;
        fn upload_page(&self, kv: &mut KvCache, page: u32, bytes: &[u8]) -> Result<()>;
        fn copy_pages(&self, kv: &mut KvCache, copies: &[(u32, u32)]) -> Result<()>;
        fn pack_linear(&self, parts: &[HostTensor<'_>], bias: Option<&[f32]>, dtype: DType) -> Result<Linear>;
        fn plan_attention(
            &self, params: &AttentionParams, layout: &Arc<BatchLayout>, forced: Option<&str>
        ) -> Result<AttentionPlan>;
        fn append_kv(
            &self, plan: &AttentionPlan, keys: TokenView<'_>, values: TokenView<'_>, layer: &mut KvLayer
        ) -> Result<()>;
        fn attention(
            &self, plan: &AttentionPlan, q: TokenView<'_>, kv: Kv<'_>, out: &mut Tensor, lse: Option<&mut Tensor>
        ) -> Result<()>;
        fn linear(&self, weight: &Linear, x: &Tensor, out: &mut Tensor) -> Result<()>;
        fn linear_add(&self, weight: &Linear, x: &Tensor, out: &mut Tensor) -> Result<()>;
        fn embed(&self, table: &Linear, ids: &Tensor, out: &mut Tensor) -> Result<()>;
        fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32, out: &mut Tensor) -> Result<()>;
        fn rms_norm_heads(&self, x: &mut Tensor, span: HeadSpan, weight: &Tensor, eps: f32) -> Result<()>;
        fn rope(&self, x: &mut Tensor, span: HeadSpan, table: &Tensor, positions: &Tensor) -> Result<()>;
        fn silu_mul(&self, gate_up: &Tensor, out: &mut Tensor) -> Result<()>;
        fn gather_rows(&self, x: &Tensor, rows: &[u32], out: &mut Tensor) -> Result<()>;
        fn adjust_logits(&self, logits: &mut Tensor, changes: &[LogitChange]) -> Result<()>;
        fn mask_logits(&self, logits: &mut Tensor, rows: &[u32], allowed: &[u32]) -> Result<()>;
        fn logprobs(&self, logits: &Tensor, asked: &[LogprobsOf]) -> Result<Vec<Result<Logprobs, NotFinite>>>;
    }
}
