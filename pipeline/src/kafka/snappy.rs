//! Snappy, unpacked as it is read: the crate for it unpacks whole blocks only, and librdkafka's producers make one block
//! of a whole batch. After <https://github.com/google/snappy/blob/main/format_description.txt>.

use std::io::{self, BufRead, Read};

/// How far back copies reach: compressors cut their input into pieces of this length.
const WINDOW: usize = 64 << 10;
/// What Java's clients put before chunks, each a block behind its length; two version numbers follow.
const CHUNKED: &[u8] = b"\x82SNAPPY\0";
const VERSIONS: u64 = 8;

pub struct Snappy<R> {
    packed: R,
    phase: Phase,
    /// Bytes of the block to come.
    left: u64,
    /// Bytes of the literal that is being read.
    literal: u64,
    /// The last [`WINDOW`] bytes, and behind them what is not read yet.
    unpacked: Vec<u8>,
    /// How much of it is read.
    read: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Start,
    /// In the one block that there is.
    Block,
    /// In one of several chunks.
    Chunk,
    End,
}

impl<R: BufRead> Snappy<R> {
    pub fn new(packed: R) -> Self {
        Self { packed, phase: Phase::Start, left: 0, literal: 0, unpacked: Vec::new(), read: 0 }
    }

    fn byte(&mut self) -> io::Result<u8> {
        self.number::<1>().map(|number| number as u8)
    }

    /// A little-endian number of so many bytes.
    fn number<const BYTES: usize>(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.packed.read_exact(&mut bytes[..BYTES])?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Begins a block: its length comes first, seven bits per byte.
    fn begin_block(&mut self) -> io::Result<()> {
        self.left = 0;
        for shift in (0..).step_by(7) {
            let byte = self.byte()?;
            if shift > 28 {
                return Err(broken("a length of more than 32 bits"));
            }
            self.left |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        // Copies reach back within their block.
        self.unpacked.clear();
        self.read = 0;
        Ok(())
    }

    /// Goes on behind the end of a block, or at the start.
    fn next_block(&mut self) -> io::Result<()> {
        let rest = self.packed.fill_buf()?;
        let is_end = rest.is_empty();
        match self.phase {
            Phase::Start if rest.starts_with(CHUNKED) => {
                self.packed.consume(CHUNKED.len());
                self.packed.by_ref().take(VERSIONS).read_to_end(&mut Vec::new())?;
                self.phase = Phase::Chunk;
            }
            Phase::Start => {
                self.phase = Phase::Block;
                self.begin_block()?;
            }
            Phase::Chunk if !is_end => {
                self.number::<4>()?;
                self.begin_block()?;
            }
            Phase::Block | Phase::Chunk | Phase::End => self.phase = Phase::End,
        }
        Ok(())
    }

    /// Unpacks the next element, or a piece of a literal.
    fn element(&mut self) -> io::Result<()> {
        if self.unpacked.len() >= 4 * WINDOW {
            let gone = self.unpacked.len() - WINDOW;
            self.unpacked.drain(..gone);
            self.read -= gone;
        }
        if self.literal == 0 {
            let tag = self.byte()?;
            let length = u64::from(tag >> 2);
            match tag & 3 {
                0 => {
                    self.literal = 1 + match length {
                        60 => self.number::<1>()?,
                        61 => self.number::<2>()?,
                        62 => self.number::<3>()?,
                        63 => self.number::<4>()?,
                        length => length,
                    };
                }
                1 => {
                    let back = (u64::from(tag >> 5) << 8) | self.number::<1>()?;
                    self.copy(back, (length & 7) + 4)?;
                }
                2 => {
                    let back = self.number::<2>()?;
                    self.copy(back, length + 1)?;
                }
                _ => {
                    let back = self.number::<4>()?;
                    self.copy(back, length + 1)?;
                }
            }
        }
        if self.literal > 0 {
            let length = self.literal.min(WINDOW as u64);
            self.take(length)?;
            let found = self.packed.by_ref().take(length).read_to_end(&mut self.unpacked)?;
            if found as u64 != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.literal -= length;
        }
        Ok(())
    }

    /// Counts bytes of the block as unpacked.
    fn take(&mut self, length: u64) -> io::Result<()> {
        self.left = self.left.checked_sub(length).ok_or_else(|| broken("a block longer than it says"))?;
        Ok(())
    }

    fn copy(&mut self, back: u64, length: u64) -> io::Result<()> {
        self.take(length)?;
        let from = usize::try_from(back).ok().filter(|back| *back > 0);
        let from = from.and_then(|back| self.unpacked.len().checked_sub(back));
        let from = from.ok_or_else(|| broken("a copy from before its window"))?;
        // What is copied may be made by the copy itself.
        for at in from..from + length as usize {
            self.unpacked.push(self.unpacked[at]);
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Snappy<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.read == self.unpacked.len() && self.phase != Phase::End {
            match self.left {
                0 if self.literal == 0 => self.next_block()?,
                _ => self.element()?,
            }
        }
        let found = &self.unpacked[self.read..];
        let length = found.len().min(out.len());
        out[..length].copy_from_slice(&found[..length]);
        self.read += length;
        Ok(length)
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("snappy: {what}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut unpacked = Vec::new();
        Snappy::new(packed).read_to_end(&mut unpacked).map(|_| unpacked)
    }

    fn pack(bytes: &[u8]) -> Vec<u8> {
        snap::raw::Encoder::new().compress_vec(bytes).unwrap()
    }

    fn chunked(chunks: &[&[u8]]) -> Vec<u8> {
        let mut packed = [CHUNKED, &[0, 0, 0, 1, 0, 0, 0, 1]].concat();
        for chunk in chunks {
            let block = pack(chunk);
            packed.extend((block.len() as u32).to_be_bytes());
            packed.extend(block);
        }
        packed
    }

    #[test]
    fn chunks_of_java_s_clients_are_put_together() {
        assert_eq!(unpack(&chunked(&[b"one ", &[], b"two"])).unwrap(), b"one two");
    }

    #[test]
    fn a_block_that_ends_early_or_late_is_broken() {
        let packed = pack(&[7; 1000]);
        assert!(unpack(&packed[..packed.len() - 1]).is_err());
        let mut longer = packed.clone();
        longer[0] -= 1;
        assert!(unpack(&longer).is_err());
        assert!(unpack(&[4, 0b1, 9]).is_err(), "a copy of nothing");
    }

    proptest! {
        #[test]
        fn blocks_are_unpacked_as_the_crate_does(
            runs in prop::collection::vec((any::<u8>(), 1..40_000_usize, any::<bool>()), 0..12),
        ) {
            let mut bytes = Vec::new();
            for (seed, length, noisy) in runs {
                bytes.extend((0..length).map(|n| if noisy { (n * n * 31 + n / 7) as u8 ^ seed } else { seed }));
            }
            prop_assert!(unpack(&pack(&bytes)).unwrap() == bytes);
        }

        /// Whatever comes, it ends.
        #[test]
        fn no_bytes_break_it(packed in prop::collection::vec(any::<u8>(), 0..300)) {
            let whole = snap::raw::Decoder::new().decompress_vec(&packed);
            if let Ok(whole) = whole {
                prop_assert!(unpack(&packed).is_ok_and(|unpacked| unpacked == whole));
            } else {
                let _ = Snappy::new(&packed[..]).take(1 << 20).read_to_end(&mut Vec::new());
            }
        }
    }
}
