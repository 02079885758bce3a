//! A compressed batch as it is in its topic, and its records, unpacked one at a time: a batch of any size takes the
//! memory of its largest record. After <https://kafka.apache.org/documentation/#messageformat>.

use std::io::{self, BufReader, Read};

use bytes::{Buf, Bytes};

use super::{codec::Codec, headers::Header};

/// Read from a codec at a time.
const PIECE: usize = 64 << 10;

/// What a batch's head says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outline {
    /// The first and the last offset. Compaction may have taken the records there.
    pub first: i64,
    pub last: i64,
    pub records: u32,
    pub codec: Codec,
}

/// When the records of a batch were published, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// Each at a time of its own, from here on.
    From(i64),
    /// All when the broker wrote them.
    Together(i64),
    Unknown,
}

#[derive(Clone, Debug)]
pub struct Batch {
    pub outline: Outline,
    pub published: Published,
    pub packed: Bytes,
}

/// One record of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    pub offset: i64,
    pub timestamp_ms: Option<i64>,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<Header>,
    /// If something was too large to be kept.
    pub oversize: Option<Oversize>,
}

/// A record that is not kept as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oversize {
    /// Of the record.
    pub bytes: u64,
    /// Size and BLAKE3 of the value, if that is left out.
    pub value: Option<(u64, blake3::Hash)>,
}

/// The records of a batch, in their order.
pub struct Records<'p> {
    outline: Outline,
    published: Published,
    unpacked: BufReader<Box<dyn Read + Send + 'p>>,
    seen: u32,
    /// The least offset that the next record may have.
    next: i64,
}

impl Batch {
    /// # Errors
    /// There is no memory for a decoder.
    pub fn records(&self) -> io::Result<Records<'static>> {
        Ok(Records { published: self.published, ..Records::of(self.outline, self.packed.clone().reader(), u64::MAX)? })
    }
}

impl<'p> Records<'p> {
    fn of(outline: Outline, packed: impl io::BufRead + Send + 'p, most: u64) -> io::Result<Self> {
        let unpacked: Box<dyn Read + Send> = Box::new(outline.codec.reader(packed)?.take(most));
        let unpacked = BufReader::with_capacity(PIECE, unpacked);
        Ok(Self { outline, published: Published::Unknown, unpacked, seen: 0, next: outline.first })
    }

    /// The next record at `from` or behind it. A record of more than `keep` bytes is [`Oversize`].
    ///
    /// # Errors
    /// The batch cannot be read from here on.
    pub fn next(&mut self, from: i64, keep: usize) -> io::Result<Option<Unpacked>> {
        while self.seen < self.outline.records {
            let length = natural(varint(&mut self.unpacked)?)?;
            let mut record = (&mut self.unpacked).take(length);
            byte(&mut record)?;
            let (delay, behind) = (varint(&mut record)?, natural(varint(&mut record)?)?);
            let offset = i64::try_from(behind).ok().and_then(|behind| self.outline.first.checked_add(behind));
            let offset = offset.filter(|offset| (self.next..=self.outline.last).contains(offset));
            let offset = offset.ok_or_else(|| broken("offsets that are not in order"))?;
            self.next = offset + 1;
            self.seen += 1;
            if offset < from {
                skip(&mut record)?;
                continue;
            }
            let timestamp_ms = match self.published {
                Published::From(time) => time.checked_add(delay),
                Published::Together(time) => Some(time),
                Published::Unknown => None,
            };
            return body(record, length, keep).map(|body| Some(Unpacked { offset, timestamp_ms, ..body }));
        }
        match self.unpacked.read(&mut [0])? {
            0 => Ok(None),
            _ => Err(broken("bytes behind its last record")),
        }
    }
}

/// Whether a batch unpacks to `most` bytes at most, and is whole.
pub fn fits(outline: Outline, packed: &[u8], most: u64) -> bool {
    let skimmed = Records::of(outline, packed, most).and_then(|mut records| records.next(i64::MAX, 0));
    matches!(skimmed, Ok(None))
}

/// A record behind its offset: key, value and headers.
fn body(mut record: io::Take<impl Read>, length: u64, keep: usize) -> io::Result<Unpacked> {
    let keeps_all = length <= keep as u64;
    let mut oversize = (!keeps_all).then_some(Oversize { bytes: length, value: None });
    let mut room = keep;
    let key = match length_or_null(&mut record)? {
        None => None,
        Some(length) if length <= room as u64 => {
            room -= length as usize;
            Some(bytes(&mut record, length)?)
        }
        Some(length) => {
            skip(&mut (&mut record).take(length))?;
            None
        }
    };
    let value = match (length_or_null(&mut record)?, &mut oversize) {
        (None, _) => None,
        (Some(length), None) => Some(bytes(&mut record, length)?),
        (Some(length), Some(oversize)) => {
            let mut hasher = blake3::Hasher::new();
            let found = io::copy(&mut (&mut record).take(length), &mut hasher)?;
            whole(found, length)?;
            oversize.value = Some((length, hasher.finalize()));
            None
        }
    };
    let mut headers = Vec::new();
    if keeps_all || record.limit() <= room as u64 {
        for _ in 0..natural(varint(&mut record)?)? {
            let name_length = natural(varint(&mut record)?)?;
            let name = bytes(&mut record, name_length)?.into();
            let value = match length_or_null(&mut record)? {
                Some(length) => Some(bytes(&mut record, length)?.into()),
                None => None,
            };
            headers.push(Header { name, value });
            // Headers of two bytes each take many times that.
            if headers.len() > keep / size_of::<Header>() {
                headers.clear();
                oversize.get_or_insert(Oversize { bytes: length, value: None });
                skip(&mut record)?;
                break;
            }
        }
        if record.limit() > 0 {
            return Err(broken("a record longer than its parts"));
        }
    } else {
        skip(&mut record)?;
    }
    Ok(Unpacked { offset: 0, timestamp_ms: None, key, value, headers, oversize })
}

fn bytes(from: &mut io::Take<impl Read>, length: u64) -> io::Result<Bytes> {
    // A length that no record has is none to make room for.
    let known = length.min(from.limit()) as usize;
    let mut bytes = Vec::with_capacity(known);
    let found = from.take(length).read_to_end(&mut bytes)?;
    whole(found as u64, length)?;
    Ok(bytes.into())
}

fn skip(rest: &mut io::Take<impl Read>) -> io::Result<()> {
    let length = rest.limit();
    let found = io::copy(rest, &mut io::sink())?;
    whole(found, length)
}

fn whole(found: u64, length: u64) -> io::Result<()> {
    if found == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn byte(from: &mut impl Read) -> io::Result<u8> {
    let mut byte = [0];
    from.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// Signed numbers alternate: 0, -1, 1, -2, …; seven bits per byte, the lowest first.
fn varint(from: &mut impl Read) -> io::Result<i64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = byte(from)?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok((number >> 1) as i64 ^ -((number & 1) as i64));
        }
    }
    Err(broken("a number of more than 64 bits"))
}

/// The same, written.
pub fn write_varint(number: i64, to: &mut Vec<u8>) {
    let mut rest = ((number << 1) ^ (number >> 63)) as u64;
    while rest >= 0x80 {
        to.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    to.push(rest as u8);
}

fn natural(number: i64) -> io::Result<u64> {
    u64::try_from(number).map_err(|_| broken("a negative length"))
}

fn length_or_null(from: &mut impl Read) -> io::Result<Option<u64>> {
    match varint(from)? {
        -1 => Ok(None),
        length => natural(length).map(Some),
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::{super::codec::tests::pack, *};

    /// The bytes of a record, `behind` the first of its batch.
    pub fn record(behind: i64, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[Header]) -> Vec<u8> {
        let field = |bytes: Option<&[u8]>, to: &mut Vec<u8>| {
            write_varint(bytes.map_or(-1, |bytes| bytes.len() as i64), to);
            to.extend(bytes.unwrap_or_default());
        };
        let mut body = vec![0];
        write_varint(behind * 10, &mut body);
        write_varint(behind, &mut body);
        field(key, &mut body);
        field(value, &mut body);
        write_varint(headers.len() as i64, &mut body);
        for header in headers {
            field(Some(&header.name), &mut body);
            field(header.value.as_deref(), &mut body);
        }
        let mut written = Vec::new();
        write_varint(body.len() as i64, &mut written);
        written.extend(body);
        written
    }

    pub fn batch(codec: Codec, records: &[Vec<u8>]) -> Batch {
        let count = records.len() as u32;
        Batch {
            outline: Outline { first: 100, last: 99 + i64::from(count), records: count, codec },
            published: Published::From(5_000),
            packed: pack(codec, &records.concat()).into(),
        }
    }

    fn all(batch: &Batch, from: i64, keep: usize) -> io::Result<Vec<Unpacked>> {
        let mut records = batch.records()?;
        std::iter::from_fn(|| records.next(from, keep).transpose()).collect()
    }

    #[test]
    fn records_come_as_they_were_packed_from_any_offset_on() {
        let header = Header { name: b"\xff".to_vec(), value: None };
        let records = [
            record(0, Some(b"a"), Some(b"one"), &[Header::new("x", "y"), header.clone()]),
            record(1, None, None, &[]),
            record(2, Some(b""), Some(&[7; 200_000]), &[header]),
        ];
        for codec in Codec::ALL {
            let batch = batch(codec, &records);
            let found = all(&batch, 0, usize::MAX).unwrap();
            assert_eq!(found[0].headers.len(), 2);
            assert_eq!((found[0].key.as_deref(), found[0].value.as_deref()), (Some(&b"a"[..]), Some(&b"one"[..])));
            assert_eq!((&found[1].key, &found[1].value), (&None, &None));
            assert_eq!(found[2].value.as_ref().map(Bytes::len), Some(200_000));
            assert_eq!(found.iter().map(|record| record.offset).collect::<Vec<_>>(), [100, 101, 102]);
            assert_eq!(found[2].timestamp_ms, Some(5_020));
            assert_eq!(all(&batch, 102, usize::MAX).unwrap(), found[2..]);
        }
    }

    #[test]
    fn of_a_record_that_is_too_large_its_key_and_headers_are_kept() {
        let large = vec![9; 50_000];
        let records = [record(0, Some(b"key"), Some(&large), &[Header::new("x", "y")]), record(1, None, None, &[])];
        let found = all(&batch(Codec::Zstd, &records), 0, 1_000).unwrap();
        let oversize = found[0].oversize.clone().unwrap();
        assert_eq!(oversize.value, Some((50_000, blake3::hash(&large))));
        assert_eq!((found[0].key.as_deref(), &found[0].value, found[0].headers.len()), (Some(&b"key"[..]), &None, 1));
        assert_eq!((found[1].offset, &found[1].oversize), (101, &None));
    }

    #[test]
    fn a_batch_that_compaction_thinned_out_is_whole() {
        let mut batch = batch(Codec::Lz4, &[record(1, None, Some(b"x"), &[])]);
        batch.outline.last += 3;
        assert_eq!(all(&batch, 0, 100).unwrap().len(), 1);
        assert!(fits(batch.outline, &batch.packed, 100));
    }

    #[test]
    fn good_records_come_before_an_error() {
        let noise: Vec<u8> = (0..200_000_u32).map(|n| (n.wrapping_mul(n) >> 9) as u8).collect();
        let records: Vec<Vec<u8>> = (0..4).map(|n| record(n, None, Some(&noise), &[])).collect();
        for codec in Codec::ALL {
            let mut broken = batch(codec, &records);
            broken.packed.truncate(broken.packed.len() / 2);
            let mut found = broken.records().unwrap();
            let good = (0..4).map_while(|_| found.next(0, usize::MAX).ok().flatten()).count();
            assert!((0..4).contains(&good), "{}: {good}", codec.name());
            assert!(found.next(0, usize::MAX).is_err(), "{}", codec.name());
            assert!(!fits(broken.outline, &broken.packed, u64::MAX));
        }
    }

    #[test]
    fn a_batch_fits_up_to_its_size() {
        let records = [record(0, None, Some(&[0; 10_000]), &[])];
        let size = records.concat().len() as u64;
        for codec in Codec::ALL {
            let batch = batch(codec, &records);
            assert!(fits(batch.outline, &batch.packed, size));
            assert!(!fits(batch.outline, &batch.packed, size - 1));
        }
    }

    proptest! {
        #[test]
        fn numbers_are_read_as_they_are_written(number in any::<i64>()) {
            let mut written = Vec::new();
            write_varint(number, &mut written);
            prop_assert_eq!(varint(&mut &written[..]).unwrap(), number);
        }

        /// Whatever is in a batch, reading it ends, and holds no more than is kept.
        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..400), count in 0..20_u32) {
            let outline = Outline { first: 0, last: 50, records: count, codec: Codec::Zstd };
            let packed = pack(Codec::Zstd, &bytes).into();
            let batch = Batch { outline, published: Published::Unknown, packed };
            let mut records = batch.records().unwrap();
            while let Ok(Some(record)) = records.next(0, 64) {
                let kept = record.key.map_or(0, |key| key.len()) + record.value.map_or(0, |value| value.len());
                prop_assert!(kept <= 64);
            }
        }
    }
}
