//! Questions to brokers that librdkafka can ask and rdkafka's `AdminClient` cannot: what topics and groups are like,
//! and what we may do with them. They change nothing, and make no topics.

#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, c_char},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext,
    bindings::{self as sys, rd_kafka_AclOperation_t as Operation, rd_kafka_admin_op_t as Question},
    client::Client,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};

/// A topic as the brokers describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// What the brokers call it: another for a topic that was deleted and made again.
    pub id: String,
    /// One for each partition.
    pub partitions: Vec<Partition>,
    pub rights: Rights,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    pub replicas: usize,
    pub in_sync: usize,
}

/// A broker by the address that it advertises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    pub id: i32,
    pub address: String,
}

/// Operations that need a right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

impl Access {
    /// Kafka's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "READ",
            Self::Write => "WRITE",
        }
    }
}

/// What we may do. Without an authorizer on the brokers that is everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights(Vec<u32>);

impl Rights {
    /// Whether this is not allowed. `false` if the brokers do not tell: whoever may describe something has that right
    /// at least.
    pub fn forbid(&self, access: Access) -> bool {
        let operation = match access {
            Access::Read => Operation::RD_KAFKA_ACL_OPERATION_READ,
            Access::Write => Operation::RD_KAFKA_ACL_OPERATION_WRITE,
        };
        !self.0.is_empty() && !self.has(operation)
    }

    /// Of the cluster: only administrators have it, and they may do anything.
    pub fn administrate(&self) -> bool {
        self.has(Operation::RD_KAFKA_ACL_OPERATION_CLUSTER_ACTION)
    }

    fn has(&self, operation: Operation) -> bool {
        self.0.contains(&(operation as u32))
    }
}

/// Describes `topics`, in their order.
///
/// # Errors
/// There is no answer within `timeout`. What is wrong with one topic is its own error.
pub fn topics<C: ClientContext>(
    client: &Client<C>,
    topics: &[&str],
    timeout: Duration,
) -> KafkaResult<Vec<Result<Topic, RDKafkaErrorCode>>> {
    let names = c_strings(topics)?;
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    // SAFETY: `pointers` are as many terminated texts as are said, which librdkafka copies.
    let collection = unsafe { sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len()) };
    let answer = ask(client, Question::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, timeout, |rk, options, queue| {
        // SAFETY: all four live until the call returns; librdkafka copies the names and keeps the queue by itself.
        unsafe { sys::rd_kafka_DescribeTopics(rk, collection, options, queue) };
    });
    // SAFETY: it was made above, and nobody else has it.
    unsafe { sys::rd_kafka_TopicCollection_destroy(collection) };
    let answer = answer?;
    // SAFETY: the event is alive; for an event of another kind the result is null.
    let result = unsafe { sys::rd_kafka_event_DescribeTopics_result(answer.0) };
    if result.is_null() {
        return Err(KafkaError::AdminOp(RDKafkaErrorCode::BadMessage));
    }
    let mut count = 0;
    // SAFETY: `result` is a result of this kind, and `count` is where its length goes.
    let descriptions = unsafe { sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count) };
    let mut found: Vec<Option<Result<Topic, RDKafkaErrorCode>>> = vec![None; topics.len()];
    for at in 0..count {
        // SAFETY: librdkafka says that `count` descriptions lie there, and they live as long as the event.
        let (name, topic) = unsafe {
            let description = *descriptions.add(at);
            (CStr::from_ptr(sys::rd_kafka_TopicDescription_name(description)), describe_topic(description))
        };
        if let Some(place) = names.iter().position(|asked| asked.as_c_str() == name) {
            found[place] = Some(topic);
        }
    }
    Ok(found.into_iter().map(|topic| topic.unwrap_or(Err(RDKafkaErrorCode::UnknownTopic))).collect())
}

/// # Safety
/// `description` is one of librdkafka's, and its event is alive.
unsafe fn describe_topic(description: *const sys::rd_kafka_TopicDescription_t) -> Result<Topic, RDKafkaErrorCode> {
    // SAFETY: as the caller has promised. Arrays have as many elements as librdkafka says, and live as long as the
    // event.
    unsafe {
        check(sys::rd_kafka_TopicDescription_error(description))?;
        let mut count = 0;
        let partitions = sys::rd_kafka_TopicDescription_partitions(description, &raw mut count);
        let partitions = (0..count).map(|at| {
            let partition = *partitions.add(at);
            let (mut replicas, mut in_sync) = (0, 0);
            sys::rd_kafka_TopicPartitionInfo_replicas(partition, &raw mut replicas);
            sys::rd_kafka_TopicPartitionInfo_isr(partition, &raw mut in_sync);
            Partition { replicas, in_sync }
        });
        let partitions = partitions.collect();
        let mut count = 0;
        let operations = sys::rd_kafka_TopicDescription_authorized_operations(description, &raw mut count);
        // The text belongs to the id, and the id to the description.
        let id = CStr::from_ptr(sys::rd_kafka_Uuid_base64str(sys::rd_kafka_TopicDescription_topic_id(description)));
        let id = id.to_string_lossy().into_owned();
        Ok(Topic { id, partitions, rights: rights(operations, count) })
    }
}

/// What we may do with a group. It need not exist.
///
/// # Errors
/// There is no answer within `timeout`, or the group may not even be described.
pub fn group<C: ClientContext>(client: &Client<C>, group: &str, timeout: Duration) -> KafkaResult<Rights> {
    let names = c_strings(&[group])?;
    let mut pointers = [names[0].as_ptr()];
    let answer = ask(client, Question::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS, timeout, |rk, options, queue| {
        // SAFETY: all live until the call returns; librdkafka copies the name and keeps the queue by itself.
        unsafe { sys::rd_kafka_DescribeConsumerGroups(rk, pointers.as_mut_ptr(), pointers.len(), options, queue) };
    })?;
    // SAFETY: the event is alive; for an event of another kind the result is null. Where librdkafka says that there is
    // a group, there is one, and it lives as long as the event.
    unsafe {
        let result = sys::rd_kafka_event_DescribeConsumerGroups_result(answer.0);
        let mut count = 0;
        let groups = match result.is_null() {
            true => std::ptr::null_mut(),
            false => sys::rd_kafka_DescribeConsumerGroups_result_groups(result, &raw mut count),
        };
        if count == 0 {
            return Err(KafkaError::AdminOp(RDKafkaErrorCode::BadMessage));
        }
        let description = *groups;
        check(sys::rd_kafka_ConsumerGroupDescription_error(description)).map_err(KafkaError::AdminOp)?;
        let mut count = 0;
        let operations = sys::rd_kafka_ConsumerGroupDescription_authorized_operations(description, &raw mut count);
        Ok(rights(operations, count))
    }
}

/// The brokers, and what we may do with the cluster.
///
/// # Errors
/// There is no answer within `timeout`.
pub fn cluster<C: ClientContext>(client: &Client<C>, timeout: Duration) -> KafkaResult<(Vec<Broker>, Rights)> {
    let answer = ask(client, Question::RD_KAFKA_ADMIN_OP_DESCRIBECLUSTER, timeout, |rk, options, queue| {
        // SAFETY: all live until the call returns, and librdkafka keeps the queue by itself.
        unsafe { sys::rd_kafka_DescribeCluster(rk, options, queue) };
    })?;
    // SAFETY: the event is alive; for an event of another kind the result is null. Arrays have as many elements as
    // librdkafka says, and live as long as the event, as does what their elements point to.
    unsafe {
        let result = sys::rd_kafka_event_DescribeCluster_result(answer.0);
        if result.is_null() {
            return Err(KafkaError::AdminOp(RDKafkaErrorCode::BadMessage));
        }
        let mut count = 0;
        let nodes = sys::rd_kafka_DescribeCluster_result_nodes(result, &raw mut count);
        let brokers = (0..count).map(|at| {
            let node = *nodes.add(at);
            let host = CStr::from_ptr(sys::rd_kafka_Node_host(node)).to_string_lossy();
            Broker { id: sys::rd_kafka_Node_id(node), address: format!("{host}:{}", sys::rd_kafka_Node_port(node)) }
        });
        let brokers = brokers.collect();
        let mut count = 0;
        let operations = sys::rd_kafka_DescribeCluster_result_authorized_operations(result, &raw mut count);
        Ok((brokers, rights(operations, count)))
    }
}

fn c_strings(texts: &[&str]) -> KafkaResult<Vec<CString>> {
    Ok(texts.iter().map(|text| CString::new(*text)).collect::<Result<_, _>>()?)
}

/// # Safety
/// `operations` are `count` operations, or it is null.
unsafe fn rights(operations: *const Operation, count: usize) -> Rights {
    if operations.is_null() {
        return Rights::default();
    }
    // SAFETY: as the caller has promised. They are read as numbers: brokers to come may send others than the enum has.
    Rights(unsafe { std::slice::from_raw_parts(operations.cast::<u32>(), count) }.to_vec())
}

/// # Safety
/// `error` is librdkafka's, alive, or null.
unsafe fn check(error: *const sys::rd_kafka_error_t) -> Result<(), RDKafkaErrorCode> {
    // SAFETY: as the caller has promised. librdkafka takes null for the code of no error.
    match unsafe { sys::rd_kafka_error_code(error) } {
        sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        code => Err(code.into()),
    }
}

/// An answer of the brokers.
struct Event(*mut sys::rd_kafka_event_t);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: it came from a queue, and nobody else has it.
        unsafe { sys::rd_kafka_event_destroy(self.0) };
    }
}

struct Queue(*mut sys::rd_kafka_queue_t);

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: it was made in `ask`, and nobody else has it.
        unsafe { sys::rd_kafka_queue_destroy(self.0) };
    }
}

struct Options(*mut sys::rd_kafka_AdminOptions_t);

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: it was made in `ask`, and nobody else has it.
        unsafe { sys::rd_kafka_AdminOptions_destroy(self.0) };
    }
}

/// Asks, with the wish to hear of our rights, and waits for the answer.
fn ask<C: ClientContext>(
    client: &Client<C>,
    question: Question,
    timeout: Duration,
    send: impl FnOnce(*mut sys::rd_kafka_t, *const sys::rd_kafka_AdminOptions_t, *mut sys::rd_kafka_queue_t),
) -> KafkaResult<Event> {
    let rk = client.native_ptr();
    let mut why = [0; 256];
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the client lives longer than this call, and its pointer with it. Both setters get the options just made,
    // and the first one a buffer with its size. An error is an object of ours to destroy.
    let (queue, options) = unsafe {
        let (queue, options) =
            (Queue(sys::rd_kafka_queue_new(rk)), Options(sys::rd_kafka_AdminOptions_new(rk, question)));
        let refused = sys::rd_kafka_AdminOptions_set_request_timeout(options.0, millis, why.as_mut_ptr(), why.len());
        if refused != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(KafkaError::AdminOp(refused.into()));
        }
        let refused = sys::rd_kafka_AdminOptions_set_include_authorized_operations(options.0, 1);
        if !refused.is_null() {
            sys::rd_kafka_error_destroy(refused);
        }
        (queue, options)
    };
    send(rk, options.0, queue.0);
    let deadline = Instant::now() + timeout + Duration::from_secs(1);
    loop {
        // SAFETY: the queue is alive.
        let event = unsafe { sys::rd_kafka_queue_poll(queue.0, 100) };
        if event.is_null() {
            if Instant::now() >= deadline {
                return Err(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut));
            }
            continue;
        }
        let event = Event(event);
        // SAFETY: the event is alive.
        return match unsafe { sys::rd_kafka_event_error(event.0) } {
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(event),
            code => Err(KafkaError::AdminOp(code.into())),
        };
    }
}
