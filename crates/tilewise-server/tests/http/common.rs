//! A server in this process, and a client that knows no more than the protocol.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tilewise_engine::model::ModelSource;
use tilewise_engine::worker::Worker;
use tilewise_engine::{Engine, EngineConfig, KvBudget};
use tilewise_server::{Server, ServerConfig, ServerError};

/// What no test should ever wait for.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// The trained model of the repository.
pub(crate) fn demo() -> ModelSource {
    ModelSource::Folder(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/demo"))
}

/// A folder that is deleted with this.
pub(crate) struct Folder {
    pub(crate) source: ModelSource,
    _folder: tempfile::TempDir,
}

/// The demo model with another chat template.
pub(crate) fn folder(template: &str) -> Folder {
    folder_with(&[("chat_template.jinja", template)])
}

/// The demo model with other files.
pub(crate) fn folder_with(files: &[(&str, &str)]) -> Folder {
    let folder = tempfile::tempdir().unwrap();
    let demo = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    for file in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        std::fs::copy(demo.join(file), folder.path().join(file)).unwrap();
    }
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    Folder { source: ModelSource::Folder(folder.path().to_owned()), _folder: folder }
}

/// A server that runs.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), ServerError>>>,
}

/// Starts a server of the demo model, on a cache of 8192 tokens and a thread.
pub(crate) fn start(configure: impl FnOnce(&mut ServerConfig, &mut EngineConfig)) -> Running {
    start_model(&demo(), configure)
}

pub(crate) fn start_model(
    source: &ModelSource,
    configure: impl FnOnce(&mut ServerConfig, &mut EngineConfig),
) -> Running {
    let mut config = ServerConfig::new("127.0.0.1:0".parse().unwrap(), "demo");
    let mut engine = EngineConfig { kv: KvBudget::Tokens(8192), ..EngineConfig::default() };
    configure(&mut config, &mut engine);
    let (source, loaded) = (source.clone(), source.clone());
    let (tell, told) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let thread = std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async move {
            let load = move || {
                Engine::new(
                    tilewise::open("cpu", Some(1))?,
                    &loaded,
                    &engine,
                    &mut tilewise_engine::model::unwatched,
                )
            };
            let server = Server::bind(config, &source, Worker::start(load, None)?).await?;
            let (address, loaded) = (server.address(), server.loaded());
            let serving = tokio::spawn(server.serve(async {
                let _ = stopped.await;
            }));
            loaded.await?;
            tell.send(address).unwrap();
            serving.await.unwrap()
        })
    });
    let address = told.recv_timeout(LONG).expect("the server starts");
    Running::new(address, stop, thread)
}

/// The server that most tests share.
pub(crate) fn server() -> &'static Running {
    static SERVER: OnceLock<Running> = OnceLock::new();
    SERVER.get_or_init(|| start(|_, _| {}))
}

impl Running {
    pub(crate) fn new(
        address: SocketAddr,
        stop: tokio::sync::oneshot::Sender<()>,
        thread: JoinHandle<Result<(), ServerError>>,
    ) -> Self {
        Self { address, stop: Some(stop), thread: Some(thread) }
    }

    /// Tells the server to end.
    pub(crate) fn stop(&mut self) {
        self.stop.take().map(|stop| stop.send(()));
    }

    /// Waits until it has ended.
    pub(crate) fn ended(&mut self) -> Result<(), ServerError> {
        self.thread.take().unwrap().join().unwrap()
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        stream
    }

    /// Sends a request as it stands and reads the answer's head.
    pub(crate) fn raw(&self, request: &[u8]) -> Incoming {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        Incoming::read(stream).unwrap()
    }

    pub(crate) fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Incoming {
        self.raw(&request(method, path, headers, body))
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"").whole()
    }

    /// Posts JSON and reads the whole answer.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.open(path, body).whole()
    }

    /// Posts JSON and reads the answer's head.
    pub(crate) fn open(&self, path: &str, body: &Value) -> Incoming {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    /// Posts JSON, which must be answered well.
    #[track_caller]
    pub(crate) fn ask(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 200, "{body}: {}", answer.text());
        answer.json()
    }

    /// Posts JSON, which must be refused with 400 for this field.
    #[track_caller]
    pub(crate) fn refused(&self, path: &str, body: &Value, param: &str) -> Value {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
        let error = answer.json()["error"].clone();
        assert_eq!(error["param"], json!(param), "{error}");
        error
    }

    /// The data of a stream's events, up to its end.
    #[track_caller]
    pub(crate) fn stream(&self, path: &str, body: &Value) -> Vec<String> {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let answer = self.open(path, &body);
        assert_eq!(answer.status, 200, "{body}");
        assert_eq!(answer.header("content-type"), Some("text/event-stream"));
        answer.whole().events()
    }

    /// The only entry of `/v1/loads`.
    pub(crate) fn load(&self) -> Value {
        self.get("/v1/loads").json()["loads"][0].clone()
    }

    /// Waits until nothing runs and all pages are free.
    #[track_caller]
    pub(crate) fn wait_idle(&self) {
        self.wait_for("all pages to be free", |load| {
            ["num_running_reqs", "num_waiting_reqs", "num_used_tokens"].iter().all(|name| load[name] == 0)
        });
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, is_so: impl Fn(&Value) -> bool) {
        let start = Instant::now();
        loop {
            let load = self.load();
            if is_so(&load) {
                return;
            }
            assert!(start.elapsed() < LONG, "waiting for {what}: {load}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A request's bytes.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += &format!("content-length: {}\r\n\r\n", body.len());
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// An answer whose head was read.
pub(crate) struct Incoming {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    reader: BufReader<TcpStream>,
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

impl Incoming {
    pub(crate) fn read(stream: TcpStream) -> std::io::Result<Self> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| std::io::Error::other(format!("no status: {line:?}")))?;
        let mut headers = Vec::new();
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            match line.trim_end().split_once(':') {
                Some((name, value)) => headers.push((name.to_lowercase(), value.trim().to_owned())),
                None => return Ok(Self { status, headers, reader }),
            }
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// One piece of a body that comes in chunks; `None` after the last.
    pub(crate) fn chunk(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?;
        let mut chunk = vec![0; size + 2];
        self.reader.read_exact(&mut chunk)?;
        chunk.truncate(size);
        Ok((size > 0).then_some(chunk))
    }

    pub(crate) fn whole(mut self) -> Answer {
        let mut body = Vec::new();
        if self.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk().unwrap() {
                body.extend(chunk);
            }
        } else if let Some(length) = self.header("content-length") {
            body.resize(length.parse().unwrap(), 0);
            self.reader.read_exact(&mut body).unwrap();
        }
        Answer { status: self.status, headers: self.headers, body }
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn events(&self) -> Vec<String> {
        let text = self.text();
        text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
    }
}

/// The events of a stream but the last, which must be `[DONE]`.
#[track_caller]
pub(crate) fn chunks(events: &[String]) -> Vec<Value> {
    let (last, chunks) = events.split_last().expect("a stream has events");
    assert_eq!(last, "[DONE]");
    chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect()
}
