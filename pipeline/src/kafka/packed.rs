//! Compressed batches stay packed on their way through librdkafka, which would unpack each as a whole, whatever that
//! takes: kilobytes may become gigabytes, and only for zstd it has a bound, which stops the partition for good.
//!
//! librdkafka's calls of its own decoders come here (`--wrap` of the linker, see build.rs). A batch that is about as
//! large unpacked is left to it. Any other becomes one message at the batch's last offset, which carries the batch as it
//! is; [`batch`] finds it there, for whoever reads the topic to unpack.
#![allow(unsafe_code, reason = "functions that librdkafka calls, each with its proof")]

use std::{
    cell::RefCell,
    ffi::{c_char, c_int, c_void},
    hash::{BuildHasher, RandomState},
    panic, slice,
    sync::OnceLock,
};

use bytes::Bytes;
use rdkafka::{Message, Timestamp, message::BorrowedMessage, types::RDKafkaRespErr};

pub use super::batch::{Batch, Oversize, Records, Unpacked};
use super::{
    batch::{self, Outline, Published},
    codec::Codec,
};

/// A batch is left to librdkafka if it unpacks to so many times its size.
const LEFT_ALONE: u64 = 2;
/// The head of a batch of format 2, the only one that brokers with transactions write.
const HEAD_BYTES: usize = 61;
/// Its parts that are needed here.
mod head {
    use std::ops::Range;
    pub const FIRST: Range<usize> = 0..8;
    /// Bytes behind this field.
    pub const LENGTH: Range<usize> = 8..12;
    pub const FORMAT: usize = 16;
    pub const CODEC: usize = 22;
    pub const LAST_DELTA: Range<usize> = 23..27;
    pub const RECORDS: Range<usize> = 57..61;
}

/// What a value begins with that is a batch: no producer knows it. Without it, everything is left to librdkafka.
static MARK: OnceLock<[u8; 32]> = OnceLock::new();
/// Behind it: codec, number of records, how far the last offset is behind the first.
const MARK_BYTES: usize = 32 + 1 + 4 + 4;

/// From now on all consumers of this process get batches as they are: whoever reads values has to ask for
/// [`batch`] first.
pub fn keep_packed() {
    let random = RandomState::new();
    MARK.get_or_init(|| {
        let mut mark = [0; 32];
        mark.chunks_exact_mut(8).zip(0..).for_each(|(part, n)| part.copy_from_slice(&random.hash_one(n).to_ne_bytes()));
        mark
    });
}

/// The batch that a message stands for, if it is none itself.
pub fn batch(message: &BorrowedMessage<'_>) -> Option<Batch> {
    let published = match message.timestamp() {
        Timestamp::CreateTime(time) => Published::From(time),
        Timestamp::LogAppendTime(time) => Published::Together(time),
        Timestamp::NotAvailable => Published::Unknown,
    };
    let (mut outline, packed) = unmark(MARK.get()?, message.payload()?)?;
    let reach = outline.last;
    (outline.first, outline.last) = (message.offset() - reach, message.offset());
    Some(Batch { outline, published, packed: Bytes::copy_from_slice(packed) })
}

/// A record list of one record, which has the whole batch for its value.
fn mark(mark: &[u8; 32], outline: Outline, packed: &[u8]) -> Vec<u8> {
    let reach = outline.last - outline.first;
    let mut record = vec![0];
    batch::write_varint(0, &mut record);
    batch::write_varint(reach, &mut record);
    batch::write_varint(-1, &mut record);
    batch::write_varint((MARK_BYTES + packed.len()) as i64, &mut record);
    record.extend(mark);
    record.push(outline.codec as u8);
    record.extend(outline.records.to_be_bytes());
    record.extend((reach as u32).to_be_bytes());
    let mut list = Vec::with_capacity(record.len() + packed.len() + 8);
    batch::write_varint((record.len() + packed.len() + 1) as i64, &mut list);
    list.extend(record);
    list.extend(packed);
    // No headers.
    batch::write_varint(0, &mut list);
    list
}

/// The batch in a marked value; its offsets are counted from its first.
fn unmark<'v>(mark: &[u8; 32], value: &'v [u8]) -> Option<(Outline, &'v [u8])> {
    let (head, packed) = value.split_at_checked(MARK_BYTES)?;
    let numbers = head.strip_prefix(mark)?;
    let number = |at: usize| numbers.get(at..at + 4).map(|bytes| bytes.iter().fold(0, |n, b| n << 8 | u32::from(*b)));
    let outline = Outline { first: 0, codec: Codec::of(numbers[0])?, records: number(1)?, last: i64::from(number(5)?) };
    Some((outline, packed))
}

/// What a batch's head says, if it is one of `packed` bytes behind it.
fn outline(head: &[u8; HEAD_BYTES], codec: Codec, packed: usize) -> Option<Outline> {
    let number =
        |range: std::ops::Range<usize>| head[range].iter().fold(0_i64, |number, byte| number << 8 | i64::from(*byte));
    let length = number(head::LENGTH) as usize + head::LENGTH.end - HEAD_BYTES;
    let is_one = head[head::FORMAT] == 2 && head[head::CODEC] & 7 == codec as u8 && length == packed;
    let (first, reach) = (number(head::FIRST), number(head::LAST_DELTA));
    let records = u32::try_from(number(head::RECORDS)).ok();
    records.filter(|_| is_one && i32::try_from(reach).is_ok() && first >= 0).map(|records| Outline {
        first,
        last: first.saturating_add(reach),
        records,
        codec,
    })
}

/// What librdkafka is to read in place of a batch's records. `None` if it may unpack them itself.
///
/// # Safety
/// `packed` is what librdkafka's reader of fetch responses hands to a decoder: `length` bytes within a response.
unsafe fn in_its_place(codec: Codec, packed: *const u8, length: usize) -> Option<Vec<u8>> {
    let is_marked = MARK.get()?;
    // SAFETY: the reader gives a pointer into its response (rdkafka_msgset_reader.c: `rd_slice_ensure_contig`), which is
    // one segment of memory (rdkafka_broker.c: `rd_buf_write_ensure_contig`). In format 2 the head is directly before
    // it. In formats 0 and 1 there are 26 bytes of a message, and before them at least 45 of the response (versions 4
    // and later, which all brokers with transactions have): these bytes can be read too, and are no head then.
    let (head, packed) =
        unsafe { (&*packed.sub(HEAD_BYTES).cast::<[u8; HEAD_BYTES]>(), slice::from_raw_parts(packed, length)) };
    let outline = outline(head, codec, length)?;
    // A panic of a decoder is a batch that it cannot read, and must not go through C.
    let fits = panic::catch_unwind(|| batch::fits(outline, packed, LEFT_ALONE * length as u64)).unwrap_or(false);
    (!fits).then(|| mark(is_marked, outline, packed))
}

/// A copy that C may free. Null if there is no memory.
fn to_c(bytes: &[u8]) -> *mut c_void {
    // SAFETY: malloc gives at least as many bytes as are copied, or null.
    unsafe {
        let copy = libc::malloc(bytes.len().max(1));
        if !copy.is_null() {
            copy.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        copy
    }
}

unsafe extern "C" {
    fn __real_rd_kafka_zstd_decompress(
        broker: *mut c_void,
        packed: *mut c_char,
        length: usize,
        out: *mut *mut c_void,
        out_length: *mut usize,
    ) -> c_int;
    fn __real_rd_kafka_lz4_decompress(
        broker: *mut c_void,
        proper_checksum: c_int,
        offset: i64,
        packed: *mut c_char,
        length: usize,
        out: *mut *mut c_void,
        out_length: *mut usize,
    ) -> c_int;
    fn __real_rd_gz_decompress(packed: *const c_void, length: c_int, out_length: *mut u64) -> *mut c_void;
    fn __real_rd_kafka_snappy_java_uncompress(
        packed: *const c_char,
        length: usize,
        out_length: *mut usize,
        error: *mut c_char,
        error_length: usize,
    ) -> *mut c_char;
    fn __real_rd_kafka_snappy_uncompressed_length(packed: *const c_char, length: usize, out_length: *mut usize)
    -> bool;
    fn __real_rd_kafka_snappy_uncompress(packed: *const c_char, length: usize, out: *mut c_char) -> c_int;
}

/// # Safety
/// Called by librdkafka's reader in place of its own: `packed` is `length` bytes of a response, `out` and `out_length`
/// may be written; so with all of these.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_kafka_zstd_decompress(
    broker: *mut c_void,
    packed: *mut c_char,
    length: usize,
    out: *mut *mut c_void,
    out_length: *mut usize,
) -> c_int {
    // SAFETY: as above; what is handed over is freed by librdkafka, and its own function gets what was meant for it.
    unsafe {
        match in_its_place(Codec::Zstd, packed.cast(), length) {
            Some(list) => hand_over(&list, out, out_length),
            None => __real_rd_kafka_zstd_decompress(broker, packed, length, out, out_length),
        }
    }
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_kafka_lz4_decompress(
    broker: *mut c_void,
    proper_checksum: c_int,
    offset: i64,
    packed: *mut c_char,
    length: usize,
    out: *mut *mut c_void,
    out_length: *mut usize,
) -> c_int {
    // SAFETY: as above.
    unsafe {
        match in_its_place(Codec::Lz4, packed.cast(), length) {
            Some(list) => hand_over(&list, out, out_length),
            None => __real_rd_kafka_lz4_decompress(broker, proper_checksum, offset, packed, length, out, out_length),
        }
    }
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_gz_decompress(
    packed: *const c_void,
    length: c_int,
    out_length: *mut u64,
) -> *mut c_void {
    // SAFETY: as above.
    unsafe {
        match in_its_place(Codec::Gzip, packed.cast(), length as usize) {
            Some(list) => {
                *out_length = list.len() as u64;
                to_c(&list)
            }
            None => __real_rd_gz_decompress(packed, length, out_length),
        }
    }
}

/// # Safety
/// As above; `error` has room for `error_length` bytes of text.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_kafka_snappy_java_uncompress(
    packed: *const c_char,
    length: usize,
    out_length: *mut usize,
    error: *mut c_char,
    error_length: usize,
) -> *mut c_char {
    // SAFETY: as above, once the head of chunks is in it again that the reader has gone past (rdkafka_msgset_reader.c:
    // `snappy_java_hdrlen`).
    unsafe {
        let whole = packed.sub(CHUNKED_HEAD).cast();
        match in_its_place(Codec::Snappy, whole, length + CHUNKED_HEAD) {
            Some(list) => {
                *out_length = list.len();
                to_c(&list).cast()
            }
            None => __real_rd_kafka_snappy_java_uncompress(packed, length, out_length, error, error_length),
        }
    }
}

/// What Java's clients put before chunks of Snappy.
const CHUNKED_HEAD: usize = 16;

thread_local! {
    /// For a block of Snappy librdkafka asks for the length first, and for the bytes right behind, on the same thread.
    static SNAPPY: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// # Safety
/// As above.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_kafka_snappy_uncompressed_length(
    packed: *const c_char,
    length: usize,
    out_length: *mut usize,
) -> bool {
    // SAFETY: as above.
    unsafe {
        let list = in_its_place(Codec::Snappy, packed.cast(), length);
        let found = match &list {
            Some(list) => {
                *out_length = list.len();
                true
            }
            None => __real_rd_kafka_snappy_uncompressed_length(packed, length, out_length),
        };
        SNAPPY.set(list);
        found
    }
}

/// # Safety
/// As above; `out` has room for as many bytes as the last answer on this thread said.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_rd_kafka_snappy_uncompress(
    packed: *const c_char,
    length: usize,
    out: *mut c_char,
) -> c_int {
    // SAFETY: as above.
    unsafe {
        match SNAPPY.take() {
            Some(list) => {
                out.cast::<u8>().copy_from_nonoverlapping(list.as_ptr(), list.len());
                0
            }
            None => __real_rd_kafka_snappy_uncompress(packed, length, out),
        }
    }
}

/// # Safety
/// `out` and `out_length` may be written.
unsafe fn hand_over(list: &[u8], out: *mut *mut c_void, out_length: *mut usize) -> c_int {
    let copy = to_c(list);
    if copy.is_null() {
        return RDKafkaRespErr::RD_KAFKA_RESP_ERR__CRIT_SYS_RESOURCE as c_int;
    }
    // SAFETY: the caller's.
    unsafe {
        *out = copy;
        *out_length = list.len();
    }
    0
}

#[cfg(test)]
mod tests {
    use super::{
        super::{batch::tests as packing, codec::tests::pack},
        *,
    };

    #[test]
    fn a_batch_comes_back_from_its_message() {
        let batch = packing::batch(Codec::Lz4, &[packing::record(0, None, Some(b"x"), &[])]);
        let list = mark(&[7; 32], batch.outline, &batch.packed);
        // The list is one record whose value has the mark in it.
        let carrier = Batch {
            outline: Outline { records: 1, ..batch.outline },
            published: batch.published,
            packed: pack(Codec::Lz4, &list).into(),
        };
        let message = carrier.records().unwrap().next(0, usize::MAX).unwrap().unwrap();
        assert_eq!((message.offset, message.headers.len()), (batch.outline.last, 0));
        let value = message.value.unwrap();
        let (found, packed) = unmark(&[7; 32], &value).unwrap();
        assert_eq!(packed, &batch.packed[..]);
        assert_eq!(Outline { first: 100, last: 100 + found.last, ..found }, batch.outline);
        assert!(unmark(&[8; 32], &value).is_none(), "anybody could have written it");
    }

    #[test]
    fn a_head_is_one_of_the_bytes_behind_it() {
        let mut bytes = [0; HEAD_BYTES];
        bytes[head::FIRST].copy_from_slice(&7_i64.to_be_bytes());
        bytes[head::LENGTH].copy_from_slice(&(49 + 1000_i32).to_be_bytes());
        bytes[head::FORMAT] = 2;
        bytes[head::CODEC] = 0b1_0100;
        bytes[head::LAST_DELTA].copy_from_slice(&9_i32.to_be_bytes());
        bytes[head::RECORDS].copy_from_slice(&10_i32.to_be_bytes());
        let found = Outline { first: 7, last: 16, records: 10, codec: Codec::Zstd };
        assert_eq!(outline(&bytes, Codec::Zstd, 1000), Some(found));
        assert_eq!(outline(&bytes, Codec::Zstd, 1001), None);
        assert_eq!(outline(&bytes, Codec::Lz4, 1000), None);
        bytes[head::FORMAT] = 1;
        assert_eq!(outline(&bytes, Codec::Zstd, 1000), None);
    }
}
