//! Reads a sorted string table in LevelDB's format (leveldb/doc/table_format.md), uncompressed, as TensorFlow writes
//! it.
//!
//! The crates for this format take an empty key for the end of the table, and TensorFlow's first key is empty.

/// Ends every table.
const MAGIC: u64 = 0xdb47_7524_8b80_fb57;
const FOOTER_LEN: usize = 48;

/// A key and its value.
type Row = (Vec<u8>, Vec<u8>);

/// Where a table breaks the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SstableError {
    #[error("it does not end with a table's footer")]
    Footer,
    #[error("a block of it is cut off or damaged at byte {at}")]
    Block { at: usize },
    #[error("a block of it is compressed (type {kind}), only plain blocks are read")]
    Compressed { kind: u8 },
}

/// All keys and values of a table, in order.
///
/// # Errors
/// The bytes are not a whole, uncompressed table.
pub fn entries(table: &[u8]) -> Result<Vec<Row>, SstableError> {
    let footer = table.len().checked_sub(FOOTER_LEN).and_then(|at| table.get(at..)).ok_or(SstableError::Footer)?;
    if !footer.ends_with(&MAGIC.to_le_bytes()) {
        return Err(SstableError::Footer);
    }
    let mut reader = Reader { bytes: footer, at: 0 };
    // The metaindex comes first; it names no data.
    let index = reader.handle().and_then(|_| reader.handle()).ok_or(SstableError::Footer)?;
    let mut all = Vec::new();
    for (_, handle) in block(table, index)? {
        let data = Reader { bytes: &handle, at: 0 }.handle().ok_or(SstableError::Block { at: index.0 })?;
        all.extend(block(table, data)?);
    }
    Ok(all)
}

/// The entries of the block at `(offset, length)`.
fn block(table: &[u8], (offset, length): (usize, usize)) -> Result<Vec<Row>, SstableError> {
    let damaged = SstableError::Block { at: offset };
    let end = offset.checked_add(length).ok_or(damaged)?;
    let bytes = table.get(offset..end).ok_or(damaged)?;
    match table.get(end) {
        Some(0) => {}
        Some(&kind) => return Err(SstableError::Compressed { kind }),
        None => return Err(damaged),
    }
    // The block ends with the offsets of its restart points and their number, which only a search needs.
    let restarts = bytes.last_chunk().map(|count| u32::from_le_bytes(*count) as usize).ok_or(damaged)?;
    let tail = restarts.checked_add(1).and_then(|words| words.checked_mul(4)).ok_or(damaged)?;
    let rows = bytes.len().checked_sub(tail).and_then(|len| bytes.get(..len)).ok_or(damaged)?;

    let mut reader = Reader { bytes: rows, at: 0 };
    let mut entries: Vec<Row> = Vec::new();
    while reader.at < rows.len() {
        let mut entry = || {
            let (shared, rest, value) = (reader.varint()?, reader.varint()?, reader.varint()?);
            // A key starts with as many bytes of the key before it.
            let before = entries.last().map_or(&[][..], |(key, _)| key);
            let key = [before.get(..shared)?, reader.take(rest)?].concat();
            Some((key, reader.take(value)?.to_vec()))
        };
        let entry = entry().ok_or(damaged)?;
        entries.push(entry);
    }
    Ok(entries)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    /// Seven bits a byte, lowest first.
    fn varint(&mut self) -> Option<usize> {
        let mut value = 0u64;
        for shift in (0..63).step_by(7) {
            let &[byte] = self.take(1)? else { return None };
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return usize::try_from(value).ok();
            }
        }
        None
    }

    /// Offset and length of a block.
    fn handle(&mut self) -> Option<(usize, usize)> {
        Some((self.varint()?, self.varint()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One data block, one index block, as LevelDB lays them out.
    fn table() -> Vec<u8> {
        let mut table = Vec::new();
        // "" → "h", "conv/bias" → "1", "conv/kernel" → "22"; restart point 0, one restart.
        let rows: [&[u8]; 3] = [b"\x00\x00\x01h", b"\x00\x09\x01conv/bias1", b"\x05\x06\x02kernel22"];
        let data = [rows.concat(), vec![0, 0, 0, 0, 1, 0, 0, 0]].concat();
        table.extend_from_slice(&data);
        table.extend_from_slice(&[0; 5]);
        let index_at = table.len();
        let index = [b"\x00\x01\x02z\x00".to_vec(), vec![data.len() as u8], vec![0, 0, 0, 0, 1, 0, 0, 0]].concat();
        table.extend_from_slice(&index);
        table.extend_from_slice(&[0; 5]);
        let mut footer = vec![0, 0, index_at as u8, index.len() as u8];
        footer.resize(FOOTER_LEN - 8, 0);
        table.extend_from_slice(&footer);
        table.extend_from_slice(&MAGIC.to_le_bytes());
        table
    }

    #[test]
    fn keys_are_put_together_from_what_they_share() {
        let keys: Vec<String> =
            entries(&table()).unwrap().into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect();
        assert_eq!(keys, ["", "conv/bias", "conv/kernel"]);
    }

    #[test]
    fn any_damage_is_an_error_or_other_entries_but_no_panic() {
        let good = table();
        for cut in 0..good.len() {
            assert!(entries(&good[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..good.len() {
            for byte in [0x00, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = byte;
                let _ = entries(&bad);
            }
        }
    }
}
