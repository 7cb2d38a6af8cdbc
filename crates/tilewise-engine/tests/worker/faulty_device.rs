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
        fn plan_attention(
            &self, params: &AttentionParams, layout: &Arc<BatchLayout>, forced: Option<&str>
        ) -> Result<AttentionPlan>;
    }

    pass_on_all_but_plans_and_samples!();
}
