//! What a broker speaks, asked by hand if librdkafka only knows that it did not work.

use std::{
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    path::Path,
    time::Duration,
};

use openssl::{
    error::ErrorStack,
    ssl::{HandshakeError, SslConnector, SslMethod, SslVerifyMode},
    x509::{X509, X509VerifyResult},
};

use super::properties::property;
use crate::config::Kafka;

/// How long a connection, and each answer, may take.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, PartialEq, Eq)]
pub enum Peer {
    /// TLS, and what is wrong with its certificate.
    Tls {
        problem: Option<String>,
    },
    /// Kafka without TLS.
    Plain,
    Unknown,
}

/// Asks `broker`, a host and port, what it speaks.
pub fn look(broker: &str, kafka: &Kafka) -> Peer {
    if let Ok(problem) = certificate(broker, kafka) {
        return Peer::Tls { problem };
    }
    if speaks_plain(broker).unwrap_or(false) { Peer::Plain } else { Peer::Unknown }
}

/// # Errors
/// There is no connection to `broker` within the time it may take.
pub fn connect(broker: &str) -> std::io::Result<TcpStream> {
    let mut refused = std::io::Error::other("the host has no address");
    for address in broker.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// What is wrong with the broker's certificate, with the options that librdkafka has. An error if there was no
/// handshake.
fn certificate(broker: &str, kafka: &Kafka) -> Result<Option<String>, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let mut connector = SslConnector::builder(SslMethod::tls_client()).map_err(|e| text(&e))?;
    // The handshake goes on with any certificate: it is looked at afterwards.
    connector.set_verify(SslVerifyMode::NONE);
    let property = |name: &str| property(kafka, name);
    let trust = |connector: &mut openssl::ssl::SslConnectorBuilder| -> Result<(), ErrorStack> {
        match property("ssl.ca.location") {
            Some(path) if Path::new(path).is_dir() => connector.load_verify_locations(None, Some(Path::new(path)))?,
            Some(path) if path != "probe" => connector.set_ca_file(path)?,
            _ => {}
        }
        for certificate in
            property("ssl.ca.pem").map(|pem| X509::stack_from_pem(pem.as_bytes())).transpose()?.into_iter().flatten()
        {
            connector.cert_store_mut().add_cert(certificate)?;
        }
        Ok(())
    };
    trust(&mut connector).map_err(|e| text(&e))?;
    let host = broker.rsplit_once(':').map_or(broker, |(host, _)| host).trim_matches(['[', ']']);
    let checks_host = property("ssl.endpoint.identification.algorithm") != Some("none");
    let handshake = connector
        .build()
        .configure()
        .map_err(|e| text(&e))?
        .verify_hostname(checks_host)
        .connect(host, connect(broker).map_err(|e| text(&e))?);
    let tls = match handshake {
        Ok(stream) => stream,
        // A broker that wants a certificate of ours has shown its own by then.
        Err(HandshakeError::Failure(stream)) if stream.ssl().peer_certificate().is_some() => {
            return Ok(problem(stream.ssl().verify_result(), stream.ssl().peer_certificate().as_ref()));
        }
        Err(error) => return Err(error.to_string()),
    };
    Ok(problem(tls.ssl().verify_result(), tls.ssl().peer_certificate().as_ref()))
}

/// The end of a sentence that begins with "the certificate of …".
fn problem(found: X509VerifyResult, certificate: Option<&X509>) -> Option<String> {
    let date = |end: bool| {
        let date = certificate.map(|c| if end { c.not_after().to_string() } else { c.not_before().to_string() });
        date.unwrap_or_else(|| "a date it does not say".to_owned())
    };
    // openssl's X509_V_ERR_*.
    Some(match found.as_raw() {
        0 => return None,
        9 => format!("is valid from {} on; compare the clocks", date(false)),
        10 => format!("has expired on {}; renew it on the broker", date(true)),
        62 | 64 => format!(
            "is for another host ({}); kafka.brokers and the brokers' advertised.listeners must use a name that it has",
            found.error_string()
        ),
        _ => format!(
            "is not trusted ({}); \"ssl.ca.location\" (kafka.properties) must name the file of the CA that signed it",
            found.error_string()
        ),
    })
}

/// Asks for the versions of Kafka's protocol, as every client does first.
fn speaks_plain(broker: &str) -> std::io::Result<bool> {
    // Length 10; ApiVersions (18), version 0; correlation id; no client id.
    const QUESTION: [u8; 14] = [0, 0, 0, 10, 0, 18, 0, 0, b't', b'o', b'n', b'e', 0xff, 0xff];
    let mut stream = connect(broker)?;
    stream.write_all(&QUESTION)?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    // Behind the length stands the correlation id.
    Ok(answer[4..] == QUESTION[8..12])
}
