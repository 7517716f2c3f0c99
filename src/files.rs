//! Files: written whole or not at all, and tensors in the safetensors format.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use t3c_ir::{Element, TensorType};

use crate::Error;

/// A tensor in memory: its type and its elements' little-endian bytes, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Shape and element type.
    pub r#type: TensorType,
    /// The elements.
    pub bytes: Vec<u8>,
}

impl HostTensor {
    /// A tensor of floats.
    pub fn f32(shape: impl Into<Vec<u64>>, values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { r#type: TensorType::new(shape, Element::F32), bytes }
    }

    /// A tensor of integers.
    pub fn i32(shape: impl Into<Vec<u64>>, values: &[i32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { r#type: TensorType::new(shape, Element::I32), bytes }
    }

    /// Its floats, if it holds f32.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        let numbers = self.bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        (self.r#type.element == Element::F32).then(|| numbers.collect())
    }
}

/// Writes a file by way of a temporary one beside it, so that it is there whole or not at all.
pub fn write(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let fail = |source| Error::file(path, source);
    let mut file = temporary().tempfile_in(folder).map_err(fail)?;
    file.write_all(contents).map_err(fail)?;
    file.persist(path).map_err(|error| Error::file(path, error.error))?;
    Ok(())
}

/// Temporary files are for their owner alone; results are for whoever the process's mask admits.
fn temporary() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
}

/// Reads a text file.
pub fn read_text(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::file(path, source))
}

/// The tensors of a safetensors file or of a checkpoint folder, which may hold several and their index.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, HostTensor>, Error> {
    if !path.is_dir() {
        return read_shard(path);
    }
    let index = path.join("model.safetensors.index.json");
    if !index.is_file() {
        return read_shard(&path.join("model.safetensors"));
    }
    let mut tensors = BTreeMap::new();
    for shard in shards(&index)? {
        tensors.extend(read_shard(&path.join(shard))?);
    }
    Ok(tensors)
}

/// The files that a checkpoint's index names, each once.
fn shards(index: &Path) -> Result<BTreeSet<String>, Error> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let read: Index = serde_json::from_str(&read_text(index)?)
        .map_err(|error| Error::contents(index, format!("not an index of a checkpoint ({error})")))?;
    let shards: BTreeSet<String> = read.weight_map.into_values().collect();
    match shards.iter().find(|name| Path::new(name).file_name() != Some(std::ffi::OsStr::new(name))) {
        Some(name) => Err(Error::contents(index, format!("`{name}` is no file beside the index"))),
        None => Ok(shards),
    }
}

fn read_shard(path: &Path) -> Result<BTreeMap<String, HostTensor>, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::file(path, source))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| {
        Error::contents(
            path,
            format!("not a safetensors file ({error}); expected one written by safetensors"),
        )
    })?;
    file.tensors()
        .into_iter()
        .map(|(name, view)| Ok((name.clone(), host_tensor(path, &name, &view)?)))
        .collect()
}

fn host_tensor(path: &Path, name: &str, view: &TensorView<'_>) -> Result<HostTensor, Error> {
    let shape: Vec<u64> = view.shape().iter().map(|&extent| extent as u64).collect();
    let element = match view.dtype() {
        Dtype::F64 => Element::F64,
        Dtype::F32 => Element::F32,
        Dtype::F16 => Element::F16,
        Dtype::BF16 => Element::Bf16,
        Dtype::I64 => Element::I64,
        Dtype::I32 => Element::I32,
        other => {
            return Err(Error::contents(
                path,
                format!("tensor `{name}` has type {other:?}; expected f64, f32, f16, bf16, i64 or i32"),
            ));
        }
    };
    Ok(HostTensor { r#type: TensorType::new(shape, element), bytes: view.data().to_vec() })
}

/// Writes tensors as a safetensors file.
pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, HostTensor>) -> Result<(), Error> {
    let views = tensors
        .iter()
        .map(|(name, tensor)| Ok((name.as_str(), tensor_view(path, name, tensor)?)))
        .collect::<Result<Vec<_>, Error>>()?;
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    let bytes =
        safetensors::serialize(views, metadata).map_err(|error| Error::contents(path, error.to_string()))?;
    write(path, &bytes)
}

fn tensor_view<'t>(path: &Path, name: &str, tensor: &'t HostTensor) -> Result<TensorView<'t>, Error> {
    let dtype = match tensor.r#type.element {
        Element::F64 => Dtype::F64,
        Element::F32 => Dtype::F32,
        Element::F16 => Dtype::F16,
        Element::Bf16 => Dtype::BF16,
        Element::I64 => Dtype::I64,
        Element::I32 => Dtype::I32,
        Element::I1 => Dtype::BOOL,
    };
    let shape = tensor.r#type.shape.iter().map(|&extent| extent as usize).collect();
    TensorView::new(dtype, shape, &tensor.bytes)
        .map_err(|error| Error::contents(path, format!("tensor `{name}`: {error}")))
}

/// A tensor's elements as f32, from any float type.
pub fn widen_to_f32(tensor: &HostTensor) -> Option<Vec<f32>> {
    let chunks = |size: usize| tensor.bytes.chunks_exact(size);
    Some(match tensor.r#type.element {
        Element::F32 => return tensor.to_f32(),
        Element::F64 => {
            chunks(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap_or_default()) as f32).collect()
        }
        Element::Bf16 => chunks(2)
            .map(|bytes| {
                f32::from_bits(u32::from(u16::from_le_bytes(bytes.try_into().unwrap_or_default())) << 16)
            })
            .collect(),
        Element::F16 => chunks(2)
            .map(|bytes| half::f16::from_le_bytes(bytes.try_into().unwrap_or_default()).to_f32())
            .collect(),
        Element::I64 | Element::I32 | Element::I1 => return None,
    })
}

/// A tensor's elements as i64, from any integer type.
pub fn widen_to_i64(tensor: &HostTensor) -> Option<Vec<i64>> {
    Some(match tensor.r#type.element {
        Element::I64 => {
            tensor.bytes.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
        }
        Element::I32 => tensor
            .bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| i64::from(i32::from_le_bytes(*bytes)))
            .collect(),
        _ => return None,
    })
}

/// The folder of a path, created where it is missing.
pub fn create_folder(path: &Path) -> Result<PathBuf, Error> {
    std::fs::create_dir_all(path).map_err(|source| Error::file(path, source))?;
    Ok(path.to_owned())
}
