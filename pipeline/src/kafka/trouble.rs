//! What librdkafka reports of connections that fail, turned into causes: what is wrong, where, and what to change.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::{
    handshake::{self, Peer},
    properties::property,
};
use crate::config::Kafka;

/// Why a broker cannot be talked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    #[error("no broker answers at {broker} (kafka.brokers): {reason}")]
    Unreachable { broker: String, reason: String },
    #[error("the host of {broker} (kafka.brokers) is not known: {reason}")]
    UnknownHost { broker: String, reason: String },
    #[error(
        "{broker} (kafka.brokers) refuses the credentials: {reason}; check \"sasl.username\", \"sasl.password\" and \
         \"sasl.mechanism\" (kafka.properties)"
    )]
    Credentials { broker: String, reason: String },
    #[error(
        "{broker} (kafka.brokers) expects a login: \"security.protocol\" (kafka.properties) must be {wanted}, with \
         \"sasl.mechanism\", \"sasl.username\" and \"sasl.password\""
    )]
    LoginExpected { broker: String, wanted: &'static str },
    #[error("{broker} (kafka.brokers) expects no login: \"security.protocol\" (kafka.properties) must be {wanted}")]
    NoLoginExpected { broker: String, wanted: &'static str },
    #[error("{broker} (kafka.brokers) expects TLS: \"security.protocol\" (kafka.properties) must be ssl or sasl_ssl")]
    TlsExpected { broker: String },
    #[error(
        "{broker} (kafka.brokers) does not speak TLS: \"security.protocol\" (kafka.properties) must be plaintext or \
         sasl_plaintext"
    )]
    NoTls { broker: String },
    #[error("the certificate of {broker} (kafka.brokers) {problem}")]
    Certificate { broker: String, problem: String },
    #[error(
        "{broker} (kafka.brokers) refuses our certificate: {reason}; check \"ssl.certificate.location\" and \
         \"ssl.key.location\" (kafka.properties)"
    )]
    OurCertificate { broker: String, reason: String },
    #[error("no TLS connection to {broker} (kafka.brokers): {reason}")]
    Tls { broker: String, reason: String },
}

impl Cause {
    /// Whether it stays until a person has changed something.
    pub fn needs_a_person(&self) -> bool {
        !matches!(self, Self::Unreachable { .. } | Self::UnknownHost { .. })
    }
}

/// What librdkafka has reported of a client's connections since the last [`forget`](Self::forget). A client's context
/// holds it and passes on what it hears.
#[derive(Debug, Default)]
pub struct Troubles(Mutex<Heard>);

#[derive(Debug, Default)]
struct Heard {
    /// The last trouble with each broker.
    troubles: BTreeMap<String, Trouble>,
    all_down: bool,
}

impl Troubles {
    /// For [`ClientContext::error`](rdkafka::ClientContext::error).
    pub fn error(&self, error: &KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => self.heard().all_down = true,
            code => self.hear(code, reason),
        }
    }

    /// For [`ClientContext::log`](rdkafka::ClientContext::log): connections that the broker closes are no errors to
    /// librdkafka. It says so only with `log.connection.close`, at the level of infos.
    pub fn log(&self, facility: &str, message: &str) {
        // librdkafka's log lines start with the client's name: "[thrd:…]: 127.0.0.1:9092/1: Disconnected".
        let message =
            message.strip_prefix("[thrd:").and_then(|rest| rest.split_once("]: ")).map_or(message, |(_, m)| m);
        if facility == "FAIL" {
            self.hear(None, message);
        }
    }

    fn hear(&self, code: Option<RDKafkaErrorCode>, reason: &str) {
        if let Some(trouble) = Trouble::parse(code, reason) {
            let mut heard = self.heard();
            let before = heard.troubles.get(&trouble.broker).filter(|before| before.kind == trouble.kind);
            let times = before.map_or(1, |before| before.times + 1);
            heard.troubles.insert(trouble.broker.clone(), Trouble { times, ..trouble });
        }
    }

    /// To be called once brokers answer again.
    pub fn forget(&self) {
        *self.heard() = Heard::default();
    }

    /// Whether every broker was tried in vain.
    pub fn all_down(&self) -> bool {
        self.heard().all_down
    }

    /// The worst cause: one that needs a person goes before the others. It may ask a broker what it speaks, which takes
    /// seconds if the broker does not answer.
    pub fn cause(&self, kafka: &Kafka) -> Option<Cause> {
        let troubles: Vec<Trouble> = self.heard().troubles.values().cloned().collect();
        let causes: Vec<Cause> = troubles.iter().map(|trouble| trouble.cause(kafka)).collect();
        causes.iter().find(|cause| cause.needs_a_person()).or(causes.first()).cloned()
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One report of librdkafka.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trouble {
    /// Host and port.
    broker: String,
    kind: Kind,
    reason: String,
    /// How often it came in a row.
    times: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Other,
    Resolve,
    Credentials,
    NoLoginExpected,
    /// The broker closed a connection without login when it was first asked for more than its versions.
    ClosedBeforeLogin,
    /// The broker closed a connection without TLS when it was asked for its versions.
    ClosedOnPlain,
    /// What came back was no TLS.
    ClosedOnTls,
    Certificate,
    OurCertificate,
    Tls,
}

impl Trouble {
    /// Reads `ssl://h:1/bootstrap: Connect to ipv4#h:1 failed: Connection refused (after 0ms in state CONNECT)`. `None`
    /// if it is about no broker.
    fn parse(code: Option<RDKafkaErrorCode>, text: &str) -> Option<Self> {
        let (name, text) = text.split_once(": ")?;
        let (address, _) = name.rsplit_once('/')?;
        let (protocol, broker) = address.split_once("://").unwrap_or(("plaintext", address));
        let (text, state) = text.split_once(" (after ").unwrap_or((text, ""));
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        let in_state = |name: &str| state.split_once("in state ").is_some_and(|(_, state)| state.starts_with(name));
        let closed = says(&["Disconnected"]);
        let kind = if code == Some(RDKafkaErrorCode::Resolve) {
            Kind::Resolve
        } else if says(&["Request not valid in current SASL state"]) {
            Kind::NoLoginExpected
        } else if code == Some(RDKafkaErrorCode::Authentication) {
            Kind::Credentials
        } else if closed && in_state("UP") && !protocol.starts_with("sasl") {
            Kind::ClosedBeforeLogin
        } else if (closed && in_state("APIVERSION_QUERY") && !protocol.ends_with("ssl"))
            || says(&["Invalid response size"])
        {
            Kind::ClosedOnPlain
        } else if (closed && in_state("SSL_HANDSHAKE")) || says(&["wrong version number", "unexpected eof"]) {
            Kind::ClosedOnTls
        } else if says(&["certificate verify failed", "verify broker certificate", "did not provide a certificate"]) {
            Kind::Certificate
        } else if says(&["alert"]) && says(&["certificate", "unknown ca"]) {
            Kind::OurCertificate
        } else if code == Some(RDKafkaErrorCode::SSL) {
            Kind::Tls
        } else {
            Kind::Other
        };
        // What stands before the reason says what was tried, which the kind says as well.
        let steps = ["SASL authentication error: ", "SASL authentication failure: ", "': ", " failed: "];
        let reason = steps.iter().find_map(|step| text.split_once(step)).map_or(text, |(_, reason)| reason);
        let reason = if closed { "it closes the connection" } else { reason.trim_end_matches(['.', ' ']) };
        Some(Self { broker: broker.to_owned(), kind, reason: reason.to_owned(), times: 1 })
    }

    fn cause(&self, kafka: &Kafka) -> Cause {
        let (broker, reason) = (self.broker.clone(), self.reason.clone());
        let tls = property(kafka, "security.protocol").is_some_and(|protocol| protocol.to_lowercase().ends_with("ssl"));
        match self.kind {
            Kind::Other => Cause::Unreachable { broker, reason },
            Kind::Resolve => Cause::UnknownHost { broker, reason },
            Kind::Credentials => Cause::Credentials { broker, reason },
            // Once may be a broker that is just stopping.
            Kind::ClosedBeforeLogin if self.times > 1 => {
                Cause::LoginExpected { broker, wanted: if tls { "sasl_ssl" } else { "sasl_plaintext" } }
            }
            Kind::ClosedBeforeLogin => Cause::Unreachable { broker, reason },
            Kind::NoLoginExpected => Cause::NoLoginExpected { broker, wanted: if tls { "ssl" } else { "plaintext" } },
            Kind::OurCertificate => Cause::OurCertificate { broker, reason },
            Kind::Tls => Cause::Tls { broker, reason },
            // These look alike for a broker that is just starting behind a proxy: the broker itself says which it is.
            Kind::ClosedOnPlain => match handshake::look(&broker, kafka) {
                Peer::Tls { .. } => Cause::TlsExpected { broker },
                _ => Cause::Unreachable { broker, reason },
            },
            Kind::ClosedOnTls => match handshake::look(&broker, kafka) {
                Peer::Plain => Cause::NoTls { broker },
                _ => Cause::Unreachable { broker, reason },
            },
            // librdkafka does not say what is wrong with a certificate.
            Kind::Certificate => match handshake::look(&broker, kafka) {
                Peer::Tls { problem: Some(problem) } => Cause::Certificate { broker, problem },
                _ => Cause::Certificate { broker, problem: format!("is not trusted: {reason}") },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use RDKafkaErrorCode::{Authentication, BrokerTransportFailure, Resolve, SSL};

    use super::*;
    use crate::config::{Config, Layers};

    fn parsed(code: Option<RDKafkaErrorCode>, text: &str) -> (Kind, String, String) {
        let trouble = Trouble::parse(code, text).expect("it is about a broker");
        (trouble.kind, trouble.broker, trouble.reason)
    }

    #[test]
    fn reports_of_librdkafka_are_understood() {
        let reports = [
            (
                Some(BrokerTransportFailure),
                "127.0.0.1:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)",
                (Kind::Other, "127.0.0.1:1", "Connection refused"),
            ),
            (
                Some(Resolve),
                "sasl_ssl://nowhere:9092/bootstrap: Failed to resolve 'nowhere:9092': Name or service not known (after 3ms \
                 in state CONNECT)",
                (Kind::Resolve, "nowhere:9092", "Name or service not known"),
            ),
            (
                Some(Authentication),
                "sasl_ssl://h:9093/bootstrap: SASL authentication error: Authentication failed: Invalid username or \
                 password (after 311ms in state AUTH_REQ)",
                (Kind::Credentials, "h:9093", "Authentication failed: Invalid username or password"),
            ),
            (
                Some(SSL),
                "ssl://h:9093/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: \
                 broker certificate could not be verified, verify that ssl.ca.location is correctly configured",
                (
                    Kind::Certificate,
                    "h:9093",
                    "error:0A000086:SSL routines::certificate verify failed: broker certificate could not be verified, \
                     verify that ssl.ca.location is correctly configured",
                ),
            ),
        ];
        for (code, text, (kind, broker, reason)) in reports {
            assert_eq!(parsed(code, text), (kind, broker.to_owned(), reason.to_owned()));
        }
    }

    #[test]
    fn connections_that_are_closed_are_told_apart() {
        for (text, kind) in [
            (
                "h:1/bootstrap: Disconnected: connection closed by peer (after 0ms in state APIVERSION_QUERY)",
                Kind::ClosedOnPlain,
            ),
            (
                "h:1/bootstrap: Invalid response size 352518912 (0..100000000): increase receive.message.max.bytes",
                Kind::ClosedOnPlain,
            ),
            ("h:1/bootstrap: Disconnected: receive 0 after POLLIN (after 96ms in state UP)", Kind::ClosedBeforeLogin),
            (
                "ssl://h:1/bootstrap: Disconnected: SSL connection closed by peer (after 2ms in state SSL_HANDSHAKE)",
                Kind::ClosedOnTls,
            ),
            (
                "ssl://h:1/bootstrap: Disconnected: SSL connection closed by peer (after 0ms in state APIVERSION_QUERY)",
                Kind::Other,
            ),
            ("sasl_ssl://h:1/1: Disconnected (after 9ms in state UP)", Kind::Other),
        ] {
            assert_eq!(parsed(None, text).0, kind, "{text}");
        }
    }

    #[test]
    fn what_needs_a_person_comes_before_what_may_heal() {
        let troubles = Troubles::default();
        let layers = Layers::collect(None, &[]).expect("the defaults");
        let kafka = Config::load(&layers).expect("the defaults are good").kafka;
        let hear = |code, text| troubles.error(&KafkaError::Global(code), text);
        hear(BrokerTransportFailure, "a:1/bootstrap: Connect to a:1 failed: Connection refused");
        assert!(!troubles.cause(&kafka).expect("a cause").needs_a_person());
        hear(Authentication, "b:2/bootstrap: SASL authentication error: no");
        assert!(troubles.cause(&kafka).expect("a cause").needs_a_person());
        troubles.forget();
        assert_eq!(troubles.cause(&kafka), None);
    }

    #[test]
    fn troubles_of_no_broker_are_left_alone() {
        assert_eq!(Trouble::parse(None, "2/2 brokers are down"), None);
    }
}
