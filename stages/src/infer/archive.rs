//! A TorchScript archive: the text of its methods, its constants and its tree of modules.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, Read},
    rc::Rc,
};

use zip::{CompressionMethod, ZipArchive};

use super::{
    constant::Constant,
    pickle::{self, Item},
    view::View,
};

/// A value that is fixed in an archive.
#[derive(Clone, Debug)]
pub enum Stored {
    Tensor(Constant),
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
    /// Reads an archive; tensors stay in it.
    ///
    /// # Errors
    /// What is not understood, in words.
    pub fn read(file: &Rc<File>) -> Result<Self, String> {
        let mut zip = ZipArchive::new(BufReader::new(&**file)).map_err(|e| e.to_string())?;
        let (mut texts, mut storages) = (HashMap::new(), HashMap::new());
        for index in 0..zip.len() {
            let mut entry = zip.by_index(index).map_err(|e| e.to_string())?;
            // The first folder has the name the file was saved under.
            let name = entry.name().map_err(|e| e.to_string())?.into_owned();
            let Some((_, path)) = name.split_once('/') else { continue };
            if path.starts_with("data/") || path.starts_with("constants/") {
                let stored = entry.compression() == CompressionMethod::Stored;
                let at = entry.data_start().filter(|_| stored).ok_or("its tensors are compressed")?;
                storages.insert(path.to_owned(), Storage { at, values: (entry.size() / 4) as usize });
            } else {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).map_err(|e| e.to_string())?;
                texts.insert(path.to_owned(), content);
            }
        }
        if texts.get("byteorder").is_some_and(|order| order != b"little") {
            return Err("its tensors are not little-endian".to_owned());
        }
        let tensors = Tensors { file: file.clone(), storages };
        let pickled = |folder: &str| texts.get(&format!("{folder}.pkl")).map(|bytes| pickle::read(bytes)).transpose();
        let root = pickled("data")?.ok_or("it has no data.pkl")?;
        let constants = match pickled("constants")? {
            Some(Item::Sequence(items)) => {
                items.iter().map(|item| tensors.store(item, "constants")).collect::<Result<_, _>>()?
            }
            _ => Vec::new(),
        };
        let sources = texts
            .iter()
            .filter_map(|(path, text)| {
                let module = path.strip_prefix("code/")?.strip_suffix(".py")?.replace('/', ".");
                Some((module, String::from_utf8_lossy(text).into_owned()))
            })
            .collect();
        Ok(Self { sources, constants, root: tensors.store(&root, "data")? })
    }
}

/// Where the values of tensors lie, one after the other.
#[derive(Clone, Copy)]
struct Storage {
    /// The first byte in the file.
    at: u64,
    values: usize,
}

struct Tensors {
    file: Rc<File>,
    /// By their paths in the archive.
    storages: HashMap<String, Storage>,
}

impl Tensors {
    /// What an item stands for; its tensors are in `folder`.
    fn store(&self, item: &Item, folder: &str) -> Result<Stored, String> {
        match item {
            Item::Call(call) => match &**call {
                (Item::Class(name), Item::Sequence(arguments)) if name == "torch._utils._rebuild_tensor_v2" => {
                    Ok(self.tensor(arguments, folder)?.map_or(Stored::Other, Stored::Tensor))
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
                        attributes.insert(key.clone(), self.store(value, folder)?);
                    }
                }
                Ok(Stored::Module { class: class.clone(), attributes: Rc::new(attributes) })
            }
            _ => Ok(Stored::Other),
        }
    }

    /// A tensor of float32; `None` for other kinds.
    fn tensor(&self, arguments: &[Item], folder: &str) -> Result<Option<Constant>, String> {
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
        let Storage { at, values } = *self.storages.get(&format!("{folder}/{key}")).ok_or_else(missing)?;
        let offset = usize::try_from(*offset).map_err(|_| missing())?;
        if shape.len() != strides.len() {
            return Err("a tensor is stored in an unknown way".to_owned());
        }
        let count = shape.iter().try_fold(1_usize, |all, &n| all.checked_mul(n)).ok_or_else(missing)?;
        let last: usize = shape.iter().zip(&strides).map(|(&n, &stride)| n.saturating_sub(1) * stride).sum();
        let span = if count == 0 { 0 } else { last + 1 };
        // Bounds the work by the file's size: no stride of zero, no overlap.
        if values.checked_sub(offset).is_none_or(|rest| span.max(count) > rest) {
            return Err(missing());
        }
        Ok(Some(Constant::new(self.file.clone(), at, View { offset, shape, strides })))
    }
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
