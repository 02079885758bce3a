//! The part of Python's pickle format (protocol 2, PEP 307) that TorchScript archives are written in.

use std::rc::Rc;

/// A value in an archive.
#[derive(Clone, Debug)]
pub enum Item {
    None,
    Bool,
    Int(i64),
    Float,
    Text(String),
    /// A tuple or a list.
    Sequence(Vec<Item>),
    Dict(Vec<(Item, Item)>),
    /// `module.name`, or what calling it with arguments would give.
    Class(String),
    Call(Rc<(Item, Item)>),
    /// An instance and its state.
    Object(Rc<(Item, Item)>),
    /// A reference to something stored outside, such as a tensor's storage.
    Persistent(Rc<Item>),
}

/// Reads the one value that `bytes` hold.
///
/// # Errors
/// What is not understood, in words.
pub fn read(bytes: &[u8]) -> Result<Item, String> {
    let mut reader = Reader { bytes, stack: Vec::new(), marks: Vec::new(), memo: Vec::new() };
    loop {
        if let Some(item) = reader.step().ok_or("a pickle ends early or breaks its own rules")?? {
            return Ok(item);
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    stack: Vec<Item>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: Vec<Option<Item>>,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(n)?;
        self.bytes = rest;
        Some(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<usize> {
        Some(usize::from(self.take(1)?[0]))
    }

    fn u32(&mut self) -> Option<usize> {
        Some(u32::from_le_bytes(self.take_array()?) as usize)
    }

    fn line(&mut self) -> Option<String> {
        let end = self.bytes.iter().position(|&b| b == b'\n')?;
        let line = String::from_utf8_lossy(self.take(end)?).into_owned();
        self.take(1)?;
        Some(line)
    }

    /// What was put on the stack since the last mark.
    fn since_mark(&mut self) -> Option<Vec<Item>> {
        let mark = self.marks.pop()?;
        (mark <= self.stack.len()).then(|| self.stack.split_off(mark))
    }

    fn remember(&mut self, slot: usize) -> Option<()> {
        // A memo is numbered in order, so its numbers are bounded by the bytes.
        if slot > self.memo.len() {
            return None;
        }
        let top = self.stack.last()?.clone();
        if slot == self.memo.len() {
            self.memo.push(Some(top))
        } else {
            self.memo[slot] = Some(top)
        }
        Some(())
    }

    fn recall(&mut self, slot: usize) -> Option<Item> {
        self.memo.get(slot)?.clone()
    }

    /// Obeys one opcode; `None` if the bytes break the format, the value at the end.
    fn step(&mut self) -> Option<Result<Option<Item>, String>> {
        let opcode = self.take(1)?[0];
        let item = match opcode {
            b'.' => return self.stack.pop().map(|item| Ok(Some(item))),
            // PROTO
            0x80 => {
                self.take(1)?;
                return Some(Ok(None));
            }
            b'(' => {
                self.marks.push(self.stack.len());
                return Some(Ok(None));
            }
            b'q' | b'r' => {
                let slot = if opcode == b'q' { self.byte()? } else { self.u32()? };
                self.remember(slot)?;
                return Some(Ok(None));
            }
            b'h' => {
                let slot = self.byte()?;
                self.recall(slot)?
            }
            b'j' => {
                let slot = self.u32()?;
                self.recall(slot)?
            }
            b'N' => Item::None,
            0x88 | 0x89 => Item::Bool,
            b'K' => Item::Int(self.byte()? as i64),
            b'M' => Item::Int(u16::from_le_bytes(self.take_array()?).into()),
            b'J' => Item::Int(i32::from_le_bytes(self.take_array()?).into()),
            // LONG1
            0x8a => {
                let n = self.byte()?;
                let bytes = self.take(n)?;
                let mut wide = [if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 }; 8];
                wide.get_mut(..n)?.copy_from_slice(bytes);
                Item::Int(i64::from_le_bytes(wide))
            }
            b'G' => {
                self.take(8)?;
                Item::Float
            }
            b'X' => {
                let n = self.u32()?;
                Item::Text(String::from_utf8_lossy(self.take(n)?).into_owned())
            }
            b'c' => {
                let module = self.line()?;
                Item::Class(format!("{module}.{}", self.line()?))
            }
            b']' | b')' => Item::Sequence(Vec::new()),
            b'}' => Item::Dict(Vec::new()),
            b't' | b'l' => Item::Sequence(self.since_mark()?),
            0x85..=0x87 => {
                let at = self.stack.len().checked_sub(usize::from(opcode - 0x84))?;
                Item::Sequence(self.stack.split_off(at))
            }
            b'a' => {
                let item = self.stack.pop()?;
                let Item::Sequence(mut items) = self.stack.pop()? else { return None };
                items.push(item);
                Item::Sequence(items)
            }
            b'e' => {
                let more = self.since_mark()?;
                let Item::Sequence(mut items) = self.stack.pop()? else { return None };
                items.extend(more);
                Item::Sequence(items)
            }
            b's' => {
                let (value, key) = (self.stack.pop()?, self.stack.pop()?);
                let Item::Dict(mut entries) = self.stack.pop()? else { return None };
                entries.push((key, value));
                Item::Dict(entries)
            }
            b'u' => {
                let mut more = self.since_mark()?.into_iter();
                let Item::Dict(mut entries) = self.stack.pop()? else { return None };
                while let (Some(key), Some(value)) = (more.next(), more.next()) {
                    entries.push((key, value));
                }
                Item::Dict(entries)
            }
            b'Q' => Item::Persistent(Rc::new(self.stack.pop()?)),
            b'R' | 0x81 => {
                let (arguments, class) = (self.stack.pop()?, self.stack.pop()?);
                Item::Call(Rc::new((class, arguments)))
            }
            b'b' => {
                let (state, instance) = (self.stack.pop()?, self.stack.pop()?);
                Item::Object(Rc::new((instance, state)))
            }
            other => return Some(Err(format!("pickle opcode {other:#04x} is not known"))),
        };
        self.stack.push(item);
        Some(Ok(None))
    }
}
