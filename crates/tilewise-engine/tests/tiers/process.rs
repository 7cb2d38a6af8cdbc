//! Server processes of the tests.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// More than any server takes to start.
const LONG: Duration = Duration::from_secs(20);

/// A port that was free a moment ago, and is given to nobody else in this process.
pub(crate) fn free_port() -> u16 {
    static GIVEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut given = GIVEN.lock().unwrap();
        if !given.contains(&port) {
            given.push(port);
            return port;
        }
    }
}

/// A server process that goes with this.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
}

impl Server {
    /// Starts a program and waits until it listens; `None`, which is reported, where it is not installed.
    pub(crate) fn start(program: &str, port: u16, arguments: &[&str]) -> Option<Self> {
        let child = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                println!("{program}: skipped, {error}");
                return None;
            }
        };
        let mut server = Self { child, port };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = server.child.try_wait().unwrap() {
                println!("{program}: skipped, it does not start here: {status}");
                return None;
            }
            assert!(start.elapsed() < LONG, "{program} does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        println!("{program}: tested");
        Some(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A RESP server with 64 MB that evicts the least recently used.
pub(crate) struct Redis(pub(crate) Server);

impl Redis {
    pub(crate) fn start() -> Option<Self> {
        Self::start_at(free_port())
    }

    pub(crate) fn start_at(port: u16) -> Option<Self> {
        let digits = port.to_string();
        let arguments = "--bind 127.0.0.1 --save --maxmemory 64mb --maxmemory-policy allkeys-lru --port";
        let mut arguments: Vec<&str> = arguments.split(' ').chain([digits.as_str()]).collect();
        arguments.insert(3, "");
        Server::start("redis-server", port, &arguments).map(Self)
    }

    pub(crate) fn address(&self) -> String {
        format!("redis://127.0.0.1:{}", self.0.port)
    }
}
