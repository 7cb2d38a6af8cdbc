//! What a device under a test's eyes hands on to the real one: all but plans and samples.

macro_rules! pass_on_all_but_plans_and_samples {
    () => {
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
    };
}

macro_rules! pass_on {
    ($(fn $name:ident(&self $(, $argument:ident: $kind:ty)*) -> $answer:ty;)*) => {
        $(fn $name(&self $(, $argument: $kind)*) -> $answer { self.inner.$name($($argument),*) })*
    };
}
