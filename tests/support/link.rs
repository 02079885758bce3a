//! A link to a broker that carries only so many bytes a second upwards.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// What is taken from a connection at a time.
const PIECE_BYTES: usize = 16 << 10;

/// As long as it is not [led](Self::lead) anywhere, connections wait.
pub struct Link {
    listener: TcpListener,
    upwards: Arc<Upwards>,
}

/// What all connections share.
#[derive(Default)]
struct Upwards {
    /// 0 for no limit.
    bytes_per_s: AtomicU64,
    /// When what was let through has been carried.
    free: Mutex<Option<Instant>>,
}

impl Upwards {
    /// Returns once so many bytes have been carried.
    fn carry(&self, bytes: usize) {
        let rate = self.bytes_per_s.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let mut free = self.free.lock().expect("no connection panics");
        let (now, takes) = (Instant::now(), Duration::from_secs_f64(bytes as f64 / rate as f64));
        let until = free.map_or(now, |free| free.max(now)) + takes;
        *free = Some(until);
        drop(free);
        thread::sleep(until.duration_since(now));
    }
}

impl Link {
    pub fn new() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").expect("a port"), upwards: Arc::default() }
    }

    pub fn port(&self) -> u16 {
        self.listener.local_addr().expect("it is bound").port()
    }

    /// Limits what all connections carry together from now on.
    pub fn limit(&self, bytes_per_s: u64) {
        self.upwards.bytes_per_s.store(bytes_per_s, Ordering::Relaxed);
    }

    /// Leads to the broker at this address from now on.
    pub fn lead(&self, address: &str) {
        let broker: SocketAddr = address.parse().expect("an address of one broker");
        let listener = self.listener.try_clone().expect("a second handle");
        let upwards = Arc::clone(&self.upwards);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A broker that is gone closes the connection.
                let Ok(broker) = TcpStream::connect(broker) else { continue };
                let [up, down] = [(&client, &broker), (&broker, &client)]
                    .map(|(from, to)| Some((from.try_clone().ok()?, to.try_clone().ok()?)));
                let (Some(up), Some(down)) = (up, down) else { continue };
                let upwards = Arc::clone(&upwards);
                thread::spawn(move || pass(up, |bytes| upwards.carry(bytes)));
                thread::spawn(move || pass(down, |_| ()));
            }
        });
    }
}

impl Default for Link {
    fn default() -> Self {
        Self::new()
    }
}

/// Passes on what comes until one end is closed, and closes both.
fn pass((mut from, mut to): (TcpStream, TcpStream), carry: impl Fn(usize)) {
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(taken @ 1..) = from.read(&mut piece) {
        carry(taken);
        if to.write_all(&piece[..taken]).is_err() {
            break;
        }
    }
    // They may be closed already.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
