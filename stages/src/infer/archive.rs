//! A TorchScript archive: the text of its methods, its constants and its tree of modules.

use std::{
    collections::HashMap,
    io::{Cursor, Read},
    rc::Rc,
};

use zip::ZipArchive;

use super::pickle::{self, Item};

/// A tensor of float32 as it is stored: row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// A value that is fixed in an archive.
#[derive(Clone, Debug)]
pub enum Stored {
    Tensor(Rc<Constant>),
    /// A module: its class, `__torch__.a.B`, and its attributes.
    Module {
        class: String,
        attributes: Rc<HashMap<String, Stored>>,
    },
    /// Anything else; no known operation takes it.
    Other,
}

pub struct Archive {
    /// Text by the module that holds it: `__torch__.a` for `code/__torch__/a.py`.
    pub sources: HashMap<String, String>,
    /// What the text calls `CONSTANTS.c0`, `CONSTANTS.c1`, …
    pub constants: Vec<Stored>,
    pub root: Stored,
}

impl Archive {
    /// Reads an archive.
    ///
    /// # Errors
    /// What is not understood, in words.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(|e| e.to_string())?;
        let mut files = HashMap::new();
        for index in 0..zip.len() {
            let mut file = zip.by_index(index).map_err(|e| e.to_string())?;
            // The first folder has the name the file was saved under.
            let name = file.name().map_err(|e| e.to_string())?.into_owned();
            let Some((_, path)) = name.split_once('/') else { continue };
            let mut content = Vec::new();
            file.read_to_end(&mut content).map_err(|e| e.to_string())?;
            files.insert(path.to_owned(), content);
        }
        if files.get("byteorder").is_some_and(|order| order != b"little") {
            return Err("its tensors are not little-endian".to_owned());
        }
        let sources = files
            .iter()
            .filter_map(|(path, text)| {
                let module = path.strip_prefix("code/")?.strip_suffix(".py")?.replace('/', ".");
                Some((module, String::from_utf8_lossy(text).into_owned()))
            })
            .collect();
        let stored = |pickle: &str, folder: &str| {
            let bytes = files.get(pickle).ok_or_else(|| format!("it has no {pickle}"))?;
            store(&pickle::read(bytes)?, &|key| files.get(&format!("{folder}/{key}")).map(Vec::as_slice))
        };
        let constants = match files.get("constants.pkl").map(|bytes| pickle::read(bytes)).transpose()? {
            Some(Item::Sequence(items)) => items
                .iter()
                .map(|item| store(item, &|key| files.get(&format!("constants/{key}")).map(Vec::as_slice)))
                .collect::<Result<_, _>>()?,
            _ => Vec::new(),
        };
        Ok(Self { sources, constants, root: stored("data.pkl", "data")? })
    }
}

/// What an item stands for; `storage` gives the bytes of a tensor.
fn store<'a>(item: &Item, storage: &impl Fn(&str) -> Option<&'a [u8]>) -> Result<Stored, String> {
    match item {
        Item::Call(call) => match &**call {
            (Item::Class(name), Item::Sequence(arguments)) if name == "torch._utils._rebuild_tensor_v2" => {
                Ok(tensor(arguments, storage)?.map_or(Stored::Other, |tensor| Stored::Tensor(Rc::new(tensor))))
            }
            (Item::Class(class), _) => Ok(Stored::Module { class: class.clone(), attributes: Rc::default() }),
            _ => Ok(Stored::Other),
        },
        Item::Object(object) => {
            let (Item::Call(call), Item::Dict(entries)) = &**object else { return Ok(Stored::Other) };
            let (Item::Class(class), _) = &**call else { return Ok(Stored::Other) };
            let mut attributes = HashMap::new();
            for (key, value) in entries {
                if let Item::Text(key) = key {
                    attributes.insert(key.clone(), store(value, storage)?);
                }
            }
            Ok(Stored::Module { class: class.clone(), attributes: Rc::new(attributes) })
        }
        _ => Ok(Stored::Other),
    }
}

/// A tensor of float32; `None` for other kinds.
fn tensor<'a>(arguments: &[Item], storage: &impl Fn(&str) -> Option<&'a [u8]>) -> Result<Option<Constant>, String> {
    let [Item::Persistent(key), Item::Int(offset), Item::Sequence(sizes), Item::Sequence(strides), ..] = arguments
    else {
        return Err("a tensor is stored in an unknown way".to_owned());
    };
    let (Item::Sequence(key), Some(shape), Some(strides)) = (&**key, extents(sizes), extents(strides)) else {
        return Err("a tensor is stored in an unknown way".to_owned());
    };
    let [_, Item::Class(kind), Item::Text(key), ..] = key.as_slice() else {
        return Err("a tensor is stored in an unknown way".to_owned());
    };
    if kind != "torch.FloatStorage" {
        return Ok(None);
    }
    let missing = || format!("the storage {key} of a tensor is missing or too short");
    let storage = storage(key).ok_or_else(missing)?.as_chunks::<4>().0;
    let count = shape.iter().try_fold(1_usize, |all, &n| all.checked_mul(n)).ok_or_else(missing)?;
    // Bounds the work by the file's size: no stride of zero, no overlap.
    if count > storage.len() {
        return Err(missing());
    }
    let mut values = Vec::with_capacity(count);
    for index in 0..count {
        let (mut rest, mut at) = (index, usize::try_from(*offset).map_err(|_| missing())?);
        for (&n, &stride) in shape.iter().zip(&strides).rev() {
            at += rest % n * stride;
            rest /= n;
        }
        values.push(f32::from_le_bytes(*storage.get(at).ok_or_else(missing)?));
    }
    Ok(Some(Constant { shape, values }))
}

/// Sizes or strides; `None` if one is not a small count.
fn extents(items: &[Item]) -> Option<Vec<usize>> {
    items
        .iter()
        .map(|item| match item {
            Item::Int(n) => u32::try_from(*n).ok().map(|n| n as usize),
            _ => None,
        })
        .collect()
}
