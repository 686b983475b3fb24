//! Hugging Face safetensors checkpoints, read tensor by tensor.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::Tensor;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, View};
use sha2::{Digest, Sha256};

use crate::BackboneError;
use crate::weights::{Element, Filling, FloatDtype, FloatValues, Layout, WeightSource};

/// Largest header that is accepted, as in the safetensors crate.
const MAX_HEADER: u64 = 100_000_000;

/// Bytes that are read at a time: all that loading needs beside the tensors themselves.
const PORTION: usize = 1 << 20;

enum Source {
    /// Reading moves the file's one position.
    File(Mutex<File>),
    Bytes(&'static [u8]),
}

struct Shard {
    path: PathBuf,
    source: Source,
    /// Offset of the data section.
    data_start: u64,
    metadata: Metadata,
}

/// An opened checkpoint: headers in memory, tensor data still on disk.
///
/// Tracks which tensors were read, so that [`finish`](Self::finish) can refuse a checkpoint that holds
/// more than the model uses. Reading never needs more memory than the tensor at hand.
pub struct Checkpoint {
    origin: String,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, usize>,
    used: Mutex<BTreeSet<String>>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// Names the file that is missing, damaged or truncated.
    pub fn open(dir: &Path) -> Result<Self, BackboneError> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        let origin = dir.display().to_string();
        if single.exists() {
            let file = File::open(&single).map_err(io(&single))?;
            return Self::from_shards(
                origin,
                vec![Shard::open(single, Source::File(Mutex::new(file)))?],
            );
        }
        if !index.exists() {
            if !dir.is_dir() {
                let source = std::io::Error::from(std::io::ErrorKind::NotFound);
                return Err(BackboneError::Io {
                    path: dir.to_owned(),
                    source,
                });
            }
            return Err(BackboneError::NoWeights {
                dir: dir.to_owned(),
            });
        }
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let Index { weight_map } = read_json(&index)?;
        let names: BTreeSet<&String> = weight_map.values().collect();
        let mut shards = Vec::new();
        for name in &names {
            let path = dir.join(name);
            let file = File::open(&path).map_err(io(&path))?;
            shards.push(Shard::open(path, Source::File(Mutex::new(file)))?);
        }
        let numbers: BTreeMap<&String, usize> = names.into_iter().zip(0..).collect();
        let mut checkpoint = Self::from_shards(origin, shards)?;
        for (tensor, shard) in &weight_map {
            let at = numbers[shard];
            if checkpoint.shards[at].metadata.info(tensor).is_none() {
                return Err(BackboneError::IndexMismatch {
                    index,
                    tensor: tensor.clone(),
                    shard: shard.clone(),
                });
            }
            // Where several shards hold it.
            checkpoint.tensors.insert(tensor.clone(), at);
        }
        Ok(checkpoint)
    }

    /// A checkpoint that is part of the program.
    ///
    /// # Errors
    /// As [`open`](Self::open), with `name` in place of a path.
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self, BackboneError> {
        let shard = Shard::open(PathBuf::from(name), Source::Bytes(bytes))?;
        Self::from_shards(name.to_owned(), vec![shard])
    }

    fn from_shards(origin: String, shards: Vec<Shard>) -> Result<Self, BackboneError> {
        let mut tensors = BTreeMap::new();
        for (at, shard) in shards.iter().enumerate() {
            tensors.extend(shard.metadata.tensors().into_keys().map(|name| (name, at)));
        }
        Ok(Self {
            origin,
            shards,
            tensors,
            used: Mutex::default(),
        })
    }

    /// Where the checkpoint came from.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// SHA-256 over every tensor's name, type, shape and bytes in the order of names, as
    /// `sha256:<hex>`: two checkpoints with the same fingerprint hold the same weights, however they are
    /// split into files.
    ///
    /// # Errors
    /// [`BackboneError::Io`].
    pub fn fingerprint(&self) -> Result<String, BackboneError> {
        let mut hasher = Sha256::new();
        for (name, at) in &self.tensors {
            let shard = &self.shards[*at];
            let Some(info) = shard.metadata.info(name) else {
                continue;
            };
            hasher.update(format!("{name}\0{:?}\0{:?}\0", info.dtype, info.shape));
            shard.read_portions(info, PORTION, &mut |bytes| hasher.update(bytes))?;
        }
        let digest = hasher.finalize();
        Ok(digest
            .iter()
            .fold("sha256:".to_owned(), |hex, byte| format!("{hex}{byte:02x}")))
    }

    /// Refuses tensors that were neither read nor match `ignored`.
    ///
    /// # Errors
    /// [`BackboneError::UnusedTensor`] names the first one.
    pub fn finish(&self, ignored: impl Fn(&str) -> bool) -> Result<(), BackboneError> {
        let used = lock(&self.used);
        let unused: Vec<&String> = self
            .tensors
            .keys()
            .filter(|name| !used.contains(*name) && !ignored(name))
            .collect();
        match unused.first() {
            Some(first) => Err(BackboneError::UnusedTensor {
                origin: self.origin.clone(),
                tensor: (*first).clone(),
                count: unused.len(),
            }),
            None => Ok(()),
        }
    }
}

impl WeightSource for Checkpoint {
    fn is_unordered(&self) -> bool {
        true
    }

    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn tensor(
        &self,
        name: &str,
        shape: &[usize],
        dtype: FloatDtype,
        layout: Layout,
    ) -> Result<FloatValues, BackboneError> {
        match dtype {
            FloatDtype::F32 => self.fill::<f32>(name, shape, layout),
            FloatDtype::F16 => self.fill::<half::f16>(name, shape, layout),
            FloatDtype::Bf16 => self.fill::<half::bf16>(name, shape, layout),
        }
    }
}

impl Checkpoint {
    fn fill<T: Element>(
        &self,
        name: &str,
        shape: &[usize],
        layout: Layout,
    ) -> Result<FloatValues, BackboneError> {
        let missing = || BackboneError::MissingTensor {
            origin: self.origin.clone(),
            tensor: name.to_owned(),
            expected: shape.to_vec(),
        };
        let shard = &self.shards[*self.tensors.get(name).ok_or_else(missing)?];
        let info = shard.metadata.info(name).ok_or_else(missing)?;
        let origin = || shard.path.display().to_string();
        if info.shape != shape {
            return Err(BackboneError::Shape {
                origin: origin(),
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found: info.shape.clone(),
            });
        }
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(BackboneError::Dtype {
                origin: origin(),
                tensor: name.to_owned(),
                found: format!("{:?}", info.dtype),
            });
        }
        let mut filling = Filling::<T>::new(shape, layout);
        let portion = filling.whole_rows(PORTION, info.dtype);
        shard.read_portions(info, portion, &mut |bytes| {
            filling.push(info.dtype, bytes);
        })?;
        lock(&self.used).insert(name.to_owned());
        Ok(filling.finish())
    }
}

impl Shard {
    /// Reads and checks the header: 8 bytes of length, JSON, then exactly the data it describes.
    fn open(path: PathBuf, source: Source) -> Result<Self, BackboneError> {
        let header_error = |reason: String| BackboneError::Header {
            path: path.clone(),
            reason,
        };
        let found = match &source {
            Source::File(file) => lock(file).metadata().map_err(io(&path))?.len(),
            Source::Bytes(bytes) => bytes.len() as u64,
        };
        if found < 8 {
            return Err(header_error(format!(
                "{found} bytes, shorter than the length field"
            )));
        }
        let mut length = [0; 8];
        source.read_at(0, &mut length).map_err(io(&path))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER {
            return Err(header_error(format!(
                "header of {length} bytes, more than {MAX_HEADER}"
            )));
        }
        let data_start = 8 + length;
        if data_start > found {
            return Err(BackboneError::FileLength {
                path,
                expected: data_start,
                found,
            });
        }
        let mut header = vec![0; length as usize];
        source.read_at(8, &mut header).map_err(io(&path))?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| header_error(error.to_string()))?;
        let expected = data_start + metadata.data_len() as u64;
        if expected != found {
            return Err(BackboneError::FileLength {
                path,
                expected,
                found,
            });
        }
        Ok(Self {
            path,
            source,
            data_start,
            metadata,
        })
    }

    /// Hands a tensor's bytes to `take` in order, at most `portion` at a time.
    fn read_portions(
        &self,
        info: &TensorInfo,
        portion: usize,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<(), BackboneError> {
        let (start, end) = info.data_offsets;
        let offset = |at: usize| self.data_start + at as u64;
        if let Source::Bytes(bytes) = &self.source {
            take(&bytes[offset(start) as usize..offset(end) as usize]);
            return Ok(());
        }
        let mut buffer = vec![0; portion.min(end - start)];
        for at in (start..end).step_by(portion.max(1)) {
            let buffer = &mut buffer[..portion.min(end - at)];
            self.source
                .read_at(offset(at), buffer)
                .map_err(io(&self.path))?;
            take(buffer);
        }
        Ok(())
    }
}

impl Source {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        match self {
            Self::File(file) => {
                let mut file = lock(file);
                file.seek(SeekFrom::Start(offset))?;
                file.read_exact(buffer)
            }
            Self::Bytes(bytes) => {
                let offset = offset as usize;
                buffer.copy_from_slice(&bytes[offset..offset + buffer.len()]);
                Ok(())
            }
        }
    }
}

/// A parameter on the host, in PyTorch's orientation.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Name in the checkpoint.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub values: Vec<f32>,
}

impl NamedTensor {
    /// Host copy of a tensor.
    pub fn new<const D: usize>(name: impl Into<String>, tensor: Tensor<D>) -> Self {
        let tensor = tensor.without_autodiff();
        Self {
            name: name.into(),
            shape: tensor.dims().to_vec(),
            values: tensor.into_data().iter::<f32>().collect(),
        }
    }
}

struct StoredTensor {
    tensor: NamedTensor,
    dtype: FloatDtype,
}

impl View for StoredTensor {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            FloatDtype::F32 => Dtype::F32,
            FloatDtype::F16 => Dtype::F16,
            FloatDtype::Bf16 => Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = self.tensor.values.iter();
        match self.dtype {
            FloatDtype::F32 => values
                .flat_map(|v| v.to_le_bytes())
                .collect::<Vec<_>>()
                .into(),
            FloatDtype::F16 => values
                .flat_map(|v| half::f16::from_f32(*v).to_le_bytes())
                .collect::<Vec<_>>()
                .into(),
            FloatDtype::Bf16 => values
                .flat_map(|v| half::bf16::from_f32(*v).to_le_bytes())
                .collect::<Vec<_>>()
                .into(),
        }
    }

    fn data_len(&self) -> usize {
        self.dtype.size() * self.tensor.values.len()
    }
}

/// The bytes of a safetensors file with the given parameters.
///
/// # Errors
/// [`BackboneError::Header`] if names repeat.
pub fn serialize(tensors: Vec<NamedTensor>, dtype: FloatDtype) -> Result<Vec<u8>, BackboneError> {
    let failed = |reason| BackboneError::Header {
        path: PathBuf::from("model.safetensors"),
        reason,
    };
    let mut names = HashSet::new();
    if let Some(twice) = tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
        return Err(failed(format!("tensor `{}` twice", twice.name)));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let views = tensors
        .into_iter()
        .map(|tensor| (tensor.name.clone(), StoredTensor { tensor, dtype }));
    safetensors::serialize(views.collect::<Vec<_>>(), Some(metadata))
        .map_err(|error| failed(error.to_string()))
}

/// A panic elsewhere leaves neither a file nor a set of names in a state that matters.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> BackboneError {
    let path = path.to_owned();
    move |source| BackboneError::Io { path, source }
}

pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, BackboneError> {
    parse_json(path, &std::fs::read(path).map_err(io(path))?)
}

/// Parses the text of the file `path`.
pub(crate) fn parse_json<T: serde::de::DeserializeOwned>(
    path: &Path,
    text: &[u8],
) -> Result<T, BackboneError> {
    let json = |source| BackboneError::Json {
        path: path.to_owned(),
        source,
    };
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let key = error.path().to_string();
        let source = error.into_inner();
        match source.is_data() && key != "." {
            true => BackboneError::JsonValue {
                path: path.to_owned(),
                key,
                source,
            },
            false => json(source),
        }
    })?;
    deserializer.end().map_err(json)?;
    Ok(value)
}

/// Widths and counts that a configuration may have: beyond what any model has, and far from where products of them overflow.
pub(crate) const SIZES: std::ops::RangeInclusive<usize> = 1..=1 << 20;

/// [`SIZES`], in words.
pub(crate) fn size_range() -> String {
    format!("from {} to {}", SIZES.start(), SIZES.end())
}
