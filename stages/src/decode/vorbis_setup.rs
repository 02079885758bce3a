//! The Vorbis setup header (Vorbis I §4.2.4), as far as it says how long packets are and whether they are decoded
//! right.

use super::{Fault, corrupt};

/// Of all codebooks together. Encoders need a hundredth of it; a few bytes could claim 2^48.
const MAX_VALUES: u64 = 1 << 22;

/// What is needed of the setup header.
pub struct Setup {
    /// For every mode, whether its block is the long one.
    pub modes: Vec<bool>,
    /// Whether symphonia decodes streams of this form right.
    pub symphonia: bool,
}

struct Residue {
    kind: u32,
    begin: u32,
    end: u32,
    partition: u32,
    classbook: u32,
    passes: u32,
}

/// Bits of a packet, least significant first. Past the end they read as zero and `overrun` says so.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    /// The next `count` ≤ 32 bits.
    fn read(&mut self, count: u32) -> u32 {
        let bit = |at: usize| self.bytes.get(at / 8).map_or(0, |byte| u32::from(byte >> (at % 8) & 1));
        let value = (0..count).fold(0, |value, i| value | bit(self.at + i as usize) << i);
        self.at += count as usize;
        value
    }

    fn flag(&mut self) -> bool {
        self.read(1) == 1
    }

    fn check(&self) -> Result<(), Fault> {
        match self.at > self.bytes.len() * 8 {
            true => Err(corrupt("Vorbis setup header is cut short")),
            false => Ok(()),
        }
    }
}

/// Bits that a number up to `x` takes (Vorbis I §9.2.1).
fn ilog(x: u32) -> u32 {
    u32::BITS - x.leading_zeros()
}

impl Setup {
    /// `block_sizes`: frames of the short and of the long block.
    pub fn read(packet: &[u8], channels: u32, block_sizes: [u32; 2]) -> Result<Self, Fault> {
        let body = packet.strip_prefix(b"\x05vorbis").ok_or_else(|| corrupt("Vorbis has no setup header"))?;
        let mut bits = Bits { bytes: body, at: 0 };
        let mut values = 0;
        let dimensions = repeat(&mut bits, 8, |bits| codebook(bits, &mut values))?;
        // Time domain transforms: a placeholder of the format.
        repeat(&mut bits, 6, |bits| Ok(bits.read(16)))?;
        repeat(&mut bits, 6, floor)?;
        let residues = repeat(&mut bits, 6, |bits| Ok(residue(bits)))?;
        let mappings = repeat(&mut bits, 6, |bits| mapping(bits, channels, block_sizes, &residues, &dimensions))?;
        let symphonia = mappings.into_iter().all(|right| right);
        let modes = repeat(&mut bits, 6, |bits| {
            let long = bits.flag();
            bits.read(32);
            bits.read(8);
            Ok(long)
        })?;
        Ok(Self { modes, symphonia })
    }
}

/// A list: its length − 1 in `count_bits`, then its items.
fn repeat<T>(
    bits: &mut Bits<'_>,
    count_bits: u32,
    mut item: impl FnMut(&mut Bits<'_>) -> Result<T, Fault>,
) -> Result<Vec<T>, Fault> {
    let count = bits.read(count_bits) + 1;
    let mut items = Vec::new();
    for _ in 0..count {
        items.push(item(bits)?);
        bits.check()?;
    }
    Ok(items)
}

/// Gives the codebook's dimensions (§3.2.1). `values`: how many all codebooks so far unfold to.
fn codebook(bits: &mut Bits<'_>, values: &mut u64) -> Result<u32, Fault> {
    if bits.read(24) != 0x56_43_42 {
        return Err(corrupt("Vorbis setup header has a codebook without its mark"));
    }
    let (dimensions, entries) = (bits.read(16), bits.read(24));
    *values += u64::from(entries) * u64::from(dimensions.max(1));
    if *values > MAX_VALUES {
        return Err(corrupt(format!("Vorbis codebooks unfold to {values} values; up to {MAX_VALUES} are allowed")));
    }
    if bits.flag() {
        bits.read(5);
        let mut entry = 0;
        while entry < entries {
            let run = bits.read(ilog(entries - entry));
            bits.check()?;
            entry += run;
        }
    } else {
        let sparse = bits.flag();
        for _ in 0..entries {
            if !sparse || bits.flag() {
                bits.read(5);
            }
            bits.check()?;
        }
    }
    let lookup = bits.read(4);
    if lookup == 1 || lookup == 2 {
        bits.read(32);
        bits.read(32);
        let value_bits = bits.read(4) + 1;
        bits.flag();
        let values = match lookup {
            1 => lookup1_values(entries, dimensions),
            _ => u64::from(entries) * u64::from(dimensions),
        };
        bits.at = bits.at.saturating_add((values * u64::from(value_bits)) as usize);
    }
    Ok(dimensions)
}

/// The greatest number whose power of `dimensions` is at most `entries` (§9.2.3).
fn lookup1_values(entries: u32, dimensions: u32) -> u64 {
    let fits = |base: u64| base.checked_pow(dimensions.max(1)).is_some_and(|power| power <= entries.into());
    (1..=u64::from(entries)).take_while(|&base| fits(base)).last().unwrap_or(0)
}

fn floor(bits: &mut Bits<'_>) -> Result<(), Fault> {
    match bits.read(16) {
        0 => {
            bits.read(8 + 16);
            bits.read(16 + 6 + 8);
            for _ in 0..=bits.read(4) {
                bits.read(8);
            }
        }
        1 => {
            let partitions = bits.read(5);
            let classes: Vec<u32> = (0..partitions).map(|_| bits.read(4)).collect();
            let mut dimensions = Vec::new();
            for _ in 0..classes.iter().max().map_or(0, |max| max + 1) {
                dimensions.push(bits.read(3) + 1);
                let subclasses = bits.read(2);
                if subclasses > 0 {
                    bits.read(8);
                }
                for _ in 0..1 << subclasses {
                    bits.read(8);
                }
            }
            bits.read(2);
            let range_bits = bits.read(4);
            let mut positions = vec![0, 1 << range_bits];
            for class in classes {
                for _ in 0..dimensions[class as usize] {
                    positions.push(bits.read(range_bits));
                }
            }
            positions.sort_unstable();
            if positions.windows(2).any(|two| two[0] == two[1]) {
                return Err(corrupt("Vorbis has a floor with two points at one position"));
            }
        }
        kind => return Err(corrupt(format!("Vorbis has a floor of type {kind}; 0 and 1 are defined"))),
    }
    Ok(())
}

fn residue(bits: &mut Bits<'_>) -> Residue {
    let (kind, begin, end, partition) = (bits.read(16), bits.read(24), bits.read(24), bits.read(24) + 1);
    let (classes, classbook) = (bits.read(6) + 1, bits.read(8));
    let cascades: Vec<u32> =
        (0..classes).map(|_| bits.read(3) | if bits.flag() { bits.read(5) << 3 } else { 0 }).collect();
    for cascade in &cascades {
        for _ in 0..cascade.count_ones() {
            bits.read(8);
        }
    }
    let passes = cascades.iter().map(|&cascade| ilog(cascade)).max().unwrap_or(0);
    Residue { kind, begin, end, partition, classbook, passes }
}

/// Whether symphonia decodes this mapping right.
fn mapping(
    bits: &mut Bits<'_>,
    channels: u32,
    block_sizes: [u32; 2],
    residues: &[Residue],
    dimensions: &[u32],
) -> Result<bool, Fault> {
    if bits.read(16) != 0 {
        return Err(corrupt("Vorbis has a mapping of a type that is not defined"));
    }
    let submaps = if bits.flag() { bits.read(4) + 1 } else { 1 };
    let mut symphonia = true;
    let mut coupled = 0u32;
    if bits.flag() {
        for _ in 0..=bits.read(8) {
            for _ in 0..2 {
                let channel = bits.read(ilog(channels - 1));
                symphonia &= coupled >> channel & 1 == 0;
                coupled |= 1 << channel;
            }
        }
    }
    bits.read(2);
    let submap_of: Vec<u32> = (0..channels).map(|_| if submaps > 1 { bits.read(4) } else { 0 }).collect();
    for submap in 0..submaps {
        bits.read(16);
        let index = bits.read(8) as usize;
        let residue =
            residues.get(index).ok_or_else(|| corrupt("Vorbis has a mapping to a residue that is not there"))?;
        let members = submap_of.iter().filter(|&&of| of == submap).count();
        let words = dimensions.get(residue.classbook as usize).copied().unwrap_or(0);
        // symphonia 0.6.1 writes the classes of a last, partly used word over those of the next channel.
        let spills = residue.kind < 2
            && members > 1
            && residue.passes > 1
            && block_sizes.iter().any(|size| {
                let length = residue.end.min(size / 2).saturating_sub(residue.begin);
                words > 0 && !(length / residue.partition).is_multiple_of(words)
            });
        symphonia &= !spills;
    }
    Ok(symphonia)
}
