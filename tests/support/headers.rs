//! Headers as Kafka has them: names are bytes. rdkafka takes and gives text, and panics on what is none, so this is
//! librdkafka itself.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, c_void},
    ptr,
};

use rdkafka::{
    bindings::{
        RD_KAFKA_MSG_F_COPY, rd_kafka_error_code, rd_kafka_error_destroy, rd_kafka_header_get_all,
        rd_kafka_message_headers, rd_kafka_produceva, rd_kafka_vtype_t as Kind, rd_kafka_vu_s as Part,
        rd_kafka_vu_s__bindgen_ty_1 as Content, rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 as Memory,
        rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_2 as Named,
    },
    error::RDKafkaErrorCode,
    message::BorrowedMessage,
    producer::{Producer, ProducerContext, ThreadedProducer},
};

use super::records::Input;

/// Names, without zero bytes, and values of headers in their order.
pub type Headers = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// The headers of a message that was read.
pub fn of(message: &mut BorrowedMessage<'_>) -> Headers {
    let mut all = ptr::null_mut();
    // SAFETY: the message is alive and nobody else has it, so it may be changed: its headers are parsed now. `all` is a
    // local variable.
    let found = unsafe { rd_kafka_message_headers(message.ptr(), &raw mut all) };
    let mut headers = Headers::new();
    // The only other answer is that there are none.
    while RDKafkaErrorCode::from(found) == RDKafkaErrorCode::NoError {
        let (mut name, mut value, mut length) = (ptr::null(), ptr::null(), 0);
        // SAFETY: `all` was set above and belongs to the message; the other pointers are those of local variables.
        let found =
            unsafe { rd_kafka_header_get_all(all, headers.len(), &raw mut name, &raw mut value, &raw mut length) };
        if RDKafkaErrorCode::from(found) != RDKafkaErrorCode::NoError {
            break;
        }
        // SAFETY: a header was found, so its name is a C string, which lives as long as the message.
        let name = unsafe { CStr::from_ptr(name) }.to_bytes().to_vec();
        let value = (!value.is_null()).then(|| {
            // SAFETY: it is not null, so it points to as many bytes, which live as long as the message.
            unsafe { std::slice::from_raw_parts(value.cast::<u8>(), length) }.to_vec()
        });
        headers.push((name, value));
    }
    headers
}

/// Puts `input` into the producer's queue; `number` comes back with its delivery.
///
/// # Errors
/// The queue is full, or takes no such record.
pub fn send<C: ProducerContext<DeliveryOpaque = usize> + 'static>(
    producer: &ThreadedProducer<C>,
    topic: &str,
    input: &Input,
    number: usize,
) -> Result<(), RDKafkaErrorCode> {
    let topic = CString::new(topic).expect("a topic has no zero byte in its name");
    let names: Vec<CString> =
        input.headers.iter().map(|(name, _)| CString::new(&name[..]).expect("a name has no zero byte")).collect();
    let memory = |bytes: &Option<Vec<u8>>| match bytes {
        Some(bytes) => Memory { ptr: bytes.as_ptr().cast_mut().cast(), size: bytes.len() },
        None => Memory { ptr: ptr::null_mut(), size: 0 },
    };
    let part = |vtype: Kind, u: Content| Part { vtype, u };
    let mut parts = vec![
        part(Kind::RD_KAFKA_VTYPE_TOPIC, Content { cstr: topic.as_ptr() }),
        part(Kind::RD_KAFKA_VTYPE_PARTITION, Content { i32_: input.partition }),
        part(Kind::RD_KAFKA_VTYPE_MSGFLAGS, Content { i: RD_KAFKA_MSG_F_COPY }),
        part(Kind::RD_KAFKA_VTYPE_KEY, Content { mem: memory(&input.key) }),
        part(Kind::RD_KAFKA_VTYPE_VALUE, Content { mem: memory(&input.value) }),
        // 0: now
        part(Kind::RD_KAFKA_VTYPE_TIMESTAMP, Content { i64_: input.timestamp_ms.unwrap_or(0) }),
        // What rdkafka makes of a `usize` that comes back with a delivery.
        part(Kind::RD_KAFKA_VTYPE_OPAQUE, Content { ptr: ptr::without_provenance_mut::<c_void>(number) }),
    ];
    for (name, (_, value)) in names.iter().zip(&input.headers) {
        let Memory { ptr, size } = memory(value);
        let header = Named { name: name.as_ptr(), val: ptr, size: size as isize };
        parts.push(part(Kind::RD_KAFKA_VTYPE_HEADER, Content { header }));
    }
    // SAFETY: the producer is alive. Every part has the content of its kind; all they point to outlives the call, and
    // is copied in it: topic and headers always are, key and value by the flag. The opaque is a `usize`, as the
    // producer's context wants it.
    let error = unsafe { rd_kafka_produceva(producer.client().native_ptr(), parts.as_ptr(), parts.len()) };
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: an error that librdkafka has made, destroyed once, and not used after that.
    let code = unsafe {
        let code = rd_kafka_error_code(error);
        rd_kafka_error_destroy(error);
        code
    };
    Err(code.into())
}
