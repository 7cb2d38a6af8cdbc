//! Weights: mapped from safetensors files, inside the program, or random.

mod dummy;
mod header;
mod loader;
mod names;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use tilewise::{DType, MappedFile};

use super::{ModelConfig, files};
use crate::{Error, Result};
use dummy::Dummy;
pub(super) use header::read_index;
pub use loader::{Loader, Progress, Report, unwatched};

/// Tensors by name, none of which is read before it is asked for.
pub struct Weights {
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
    dummy: Option<Dummy>,
}

/// What a header says of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its element type as the file writes it: `F32`, `BF16`, `I64`.
    pub dtype: String,
    /// Its extents.
    pub shape: &'a [usize],
    /// Its size in the file.
    pub bytes: usize,
}

struct Shard {
    file: String,
    bytes: Bytes,
}

enum Bytes {
    Mapped(MappedFile),
    Static(&'static [u8]),
}

struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// The file that holds a model's weights, where it is one.
pub(super) const SINGLE: &str = "model.safetensors";
/// The file that says which of several files holds which tensor.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The files that hold the weights of a folder, in the order of their names.
///
/// # Errors
/// [`Error::File`] for an index that cannot be read.
pub(crate) fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let index = folder.join(INDEX);
    if files::is_there(&folder.join(SINGLE)) || !files::is_there(&index) {
        return Ok(vec![folder.join(SINGLE)]);
    }
    let shards = read_index(&index.display().to_string(), &files::read(&index)?)?;
    Ok(shards.keys().map(|shard| folder.join(shard)).collect())
}

impl Weights {
    /// The `model.safetensors` of a folder, or the shards that its `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Tensor`], which name what is missing, truncated or contradicts itself.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut weights = Self { shards: Vec::new(), tensors: BTreeMap::new(), dummy: None };
        let single = folder.join(SINGLE);
        let index = folder.join(INDEX);
        if files::is_there(&single) {
            weights.map_shard(&single, |_| true)?;
        } else if files::is_there(&index) {
            weights.map_shards(folder, &index)?;
        } else {
            return Err(files::not_a_model(folder, &format!("has neither {SINGLE} nor {INDEX}")));
        }
        names::make_plain(&mut weights.tensors);
        Ok(weights)
    }

    /// A safetensors file inside the program.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub fn from_bytes(file: &str, bytes: &'static [u8]) -> Result<Self> {
        let mut weights = Self { shards: Vec::new(), tensors: BTreeMap::new(), dummy: None };
        weights.add_shard(Shard { file: file.to_owned(), bytes: Bytes::Static(bytes) }, |_| true)?;
        names::make_plain(&mut weights.tensors);
        Ok(weights)
    }

    /// Random weights of any shape that is asked for: norms are 1, all else is bf16 near N(0, 0.02).
    pub fn dummy() -> Self {
        Self { shards: Vec::new(), tensors: BTreeMap::new(), dummy: Some(Dummy::new()) }
    }

    /// Bytes of all tensors; 0 for random weights.
    pub fn total_bytes(&self) -> usize {
        self.tensors.values().map(|entry| entry.range.len()).sum()
    }

    /// The element type of the largest tensor, if it is one that models may have; bf16 for random weights.
    pub fn dtype(&self) -> Option<DType> {
        if self.dummy.is_some() {
            return Some(DType::Bf16);
        }
        let largest = self.tensors.values().max_by_key(|entry| entry.range.len())?;
        supported(largest.dtype)
    }

    /// What the headers say, in order of the names.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.tensors.iter().map(|(name, entry)| TensorInfo {
            name,
            dtype: format!("{:?}", entry.dtype),
            shape: &entry.shape,
            bytes: entry.range.len(),
        })
    }

    /// Checks that every tensor of a model is here, in the shape that its configuration asks for; random weights are.
    ///
    /// # Errors
    /// [`Error::Tensor`] that names the first that is not.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        if self.dummy.is_some() {
            return Ok(());
        }
        let tensors = (config.family.tensors)(config);
        tensors.iter().try_for_each(|(name, shape)| self.tensor(name, shape).map(|_| ()))
    }

    /// Whether there is an output matrix of the embedding's shape that is not the embedding.
    pub(super) fn has_own_head(&self, config: &ModelConfig) -> bool {
        let shape = [config.vocab_size, config.hidden_size];
        let (head, embedding) = (self.tensor(names::HEAD, &shape), self.tensor(names::EMBEDDING, &shape));
        let (Ok(head), Ok(embedding)) = (head, embedding) else { return false };
        let differs = head != embedding;
        if !differs {
            self.release(names::HEAD);
        }
        differs
    }

    /// Type and bytes of a tensor, which must have the shape that the model's configuration asks for.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<(DType, &[u8])> {
        let Some(entry) = self.tensors.get(name) else {
            return Err(self.error(name, None, "is missing; fetch the model again"));
        };
        if entry.shape != shape {
            let found = &entry.shape;
            let why = format!("the configuration asks for the shape {shape:?}, the file has {found:?}");
            return Err(self.error(name, Some(entry), why));
        }
        let Some(dtype) = supported(entry.dtype) else {
            let why = format!("has the type {:?}; give weights in F32, F16 or BF16", entry.dtype);
            return Err(self.error(name, Some(entry), why));
        };
        Ok((dtype, &self.shards[entry.shard].bytes()[entry.range.clone()]))
    }

    /// Lets the system take back the memory of a tensor that has been copied.
    fn release(&self, name: &str) {
        if let Some(entry) = self.tensors.get(name)
            && let Bytes::Mapped(file) = &self.shards[entry.shard].bytes
        {
            file.release(entry.range.clone());
        }
    }

    fn error(&self, tensor: &str, entry: Option<&Entry>, why: impl Into<String>) -> Error {
        let file = match entry {
            Some(entry) => self.shards[entry.shard].file.clone(),
            None => self.shards.iter().map(|shard| shard.file.as_str()).collect::<Vec<_>>().join(", "),
        };
        Error::Tensor { file, tensor: tensor.to_owned(), why: why.into() }
    }

    fn map_shards(&mut self, folder: &Path, index: &Path) -> Result<()> {
        let name = index.display().to_string();
        let json = files::read(index)?;
        let shards = header::read_index(&name, &json)?;
        for (file, tensors) in &shards {
            self.map_shard(&folder.join(file), |tensor| tensors.contains(tensor))?;
            if let Some(missing) = tensors.iter().find(|tensor| !self.tensors.contains_key(*tensor)) {
                let why = format!("{name} says that it is here, but it is not; fetch the model again");
                let file = folder.join(file).display().to_string();
                return Err(Error::Tensor { file, tensor: missing.clone(), why });
            }
        }
        Ok(())
    }

    fn map_shard(&mut self, path: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let file = path.display().to_string();
        let mapped = MappedFile::open(path).map_err(|e| files::unreadable(path, &e))?;
        files::refuse_pointer(path, mapped.bytes())?;
        self.add_shard(Shard { file, bytes: Bytes::Mapped(mapped) }, wanted)
    }

    fn add_shard(&mut self, shard: Shard, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let (data, metadata) = header::read(&shard.file, shard.bytes())?;
        let index = self.shards.len();
        for (name, info) in metadata.tensors() {
            if wanted(&name) {
                let range = data + info.data_offsets.0..data + info.data_offsets.1;
                let entry = Entry { shard: index, dtype: info.dtype, shape: info.shape.clone(), range };
                self.tensors.insert(name, entry);
            }
        }
        self.shards.push(shard);
        Ok(())
    }
}

impl Shard {
    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(file) => file.bytes(),
            Bytes::Static(bytes) => bytes,
        }
    }
}

fn supported(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::Bf16),
        _ => None,
    }
}
