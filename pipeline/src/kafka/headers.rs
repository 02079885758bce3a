//! Headers of records, whatever bytes they are: rdkafka's own reader takes their names for UTF-8 and panics on others.
#![allow(unsafe_code, reason = "librdkafka's functions for headers, each with its proof")]

use std::{
    ffi::{CStr, c_char, c_void},
    ptr, slice,
};

use rdkafka::{
    bindings,
    message::{BorrowedHeaders, BorrowedMessage, OwnedHeaders},
    types::RDKafkaRespErr,
};

/// One header: any bytes in name and value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub name: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

impl Header {
    pub fn new(name: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), value: Some(value.into()) }
    }

    /// What it takes in memory and, about, in a topic.
    pub fn bytes(&self) -> usize {
        self.name.len() + self.value.as_ref().map_or(0, Vec::len)
    }

    /// The value of the last header called `name`, if it is UTF-8 text.
    pub fn text<'a>(headers: &'a [Self], name: &str) -> Option<&'a str> {
        let found = headers.iter().rev().find(|header| header.name == name.as_bytes())?;
        std::str::from_utf8(found.value.as_deref()?).ok()
    }
}

/// Copies a message's headers. A name ends at its first NUL byte, as it does for librdkafka.
pub fn read(message: &BorrowedMessage<'_>) -> Vec<Header> {
    let mut headers = ptr::null_mut();
    // SAFETY: the message is alive as long as it is borrowed; librdkafka parses its headers once, in this thread, and
    // says in its return value whether there are some.
    let found = unsafe { bindings::rd_kafka_message_headers(message.ptr(), &raw mut headers) };
    if found != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR || headers.is_null() {
        return Vec::new();
    }
    let mut copied = Vec::new();
    loop {
        let (mut name, mut value, mut len) = (ptr::null(), ptr::null(), 0);
        // SAFETY: `headers` belongs to the borrowed message; beyond the last index librdkafka answers with an error and
        // leaves the pointers alone.
        let found = unsafe {
            bindings::rd_kafka_header_get_all(headers, copied.len(), &raw mut name, &raw mut value, &raw mut len)
        };
        if found != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return copied;
        }
        // SAFETY: after success `name` is a C string, and `value` null or `len` bytes, both of the message; they are
        // copied while it is borrowed.
        copied.push(unsafe {
            Header {
                name: CStr::from_ptr(name).to_bytes().to_vec(),
                value: (!value.is_null()).then(|| slice::from_raw_parts(value.cast::<u8>(), len).to_vec()),
            }
        });
    }
}

/// Headers as librdkafka sends them.
pub fn write(headers: &[Header]) -> OwnedHeaders {
    let native = OwnedHeaders::new_with_capacity(headers.len());
    let list: *const BorrowedHeaders = native.as_borrowed();
    for Header { name, value } in headers {
        let (bytes, len) = value.as_ref().map_or((ptr::null(), 0), |value| (value.as_ptr(), value.len() as isize));
        // SAFETY: rdkafka's `as_borrowed` is the pointer that `rd_kafka_headers_new` gave (rdkafka 0.39, message.rs),
        // which nothing else uses before this function returns `native`; librdkafka copies name and value.
        unsafe {
            bindings::rd_kafka_header_add(
                list.cast_mut().cast(),
                name.as_ptr().cast::<c_char>(),
                name.len() as isize,
                bytes.cast::<c_void>(),
                len,
            );
        }
    }
    native
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Headers;

    use super::*;

    #[test]
    fn any_bytes_are_written() {
        let headers = [Header::new("plain", "text"), Header { name: b"\xFF\x01".to_vec(), value: None }];
        let written = write(&headers);
        assert_eq!(written.count(), 2);
        let first = written.get(0);
        assert_eq!((first.key, first.value), ("plain", Some(b"text".as_slice())));
    }
}
