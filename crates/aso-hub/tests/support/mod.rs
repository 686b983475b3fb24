//! A Hub on a loopback socket: real requests and answers, and every fault a network has.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// One request as the server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(&name.to_lowercase()).map(String::as_str)
    }

    /// The first byte of a `Range: bytes=N-`.
    pub(crate) fn offset(&self) -> Option<usize> {
        self.header("range")?
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    }
}

/// One answer. `Content-Length` is that of `body`, and absent from a chunked answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Send only so many bytes of the body, and then ...
    pub(crate) cut: Option<(usize, Cut)>,
}

/// How a body ends early.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// The connection is closed.
    Close,
    /// The connection stays open and silent.
    Stall,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            body: body.into(),
            ..Self::default()
        }
    }

    pub(crate) fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(crate) fn cut(mut self, at: usize, how: Cut) -> Self {
        self.cut = Some((at, how));
        self
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

#[derive(Default)]
struct Shared {
    requests: Mutex<Vec<Request>>,
    /// Connections kept open by [`Cut::Stall`].
    stalled: Mutex<Vec<TcpStream>>,
    body_bytes: Mutex<usize>,
    stop: AtomicBool,
}

/// A server that lives as long as this value.
pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let handler: Arc<Handler> = Arc::new(handler);
        let server = Self {
            address,
            shared: shared.clone(),
        };
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stop.load(Ordering::SeqCst) {
                    break;
                }
                let (handler, shared) = (handler.clone(), shared.clone());
                // A client may hang up at any point, which is not this side's error.
                thread::spawn(move || stream.and_then(|s| serve(s, &*handler, &shared)));
            }
        });
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The requests for bodies whose path ends in `file`.
    pub(crate) fn gets(&self, file: &str) -> Vec<Request> {
        let mut requests = self.requests();
        requests.retain(|r| r.method == "GET" && r.path.ends_with(file));
        requests
    }

    /// How many bytes of bodies were sent.
    pub(crate) fn body_bytes(&self) -> usize {
        *self.shared.body_bytes.lock().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.stalled.lock().unwrap().clear();
        // Wakes the listener, which then sees the flag.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(mut stream: TcpStream, handler: &Handler, shared: &Shared) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    if path.is_empty() {
        return Ok(());
    }
    let request = Request {
        method,
        path,
        headers,
    };
    shared.requests.lock().unwrap().push(request.clone());

    let reply = handler(&request);
    let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", reply.status);
    if !reply
        .headers
        .iter()
        .any(|(name, _)| name == "Transfer-Encoding")
    {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    let end = reply
        .cut
        .map_or(reply.body.len(), |(at, _)| at.min(reply.body.len()));
    *shared.body_bytes.lock().unwrap() += end;
    stream.write_all(&reply.body[..end])?;
    stream.flush()?;
    if let Some((_, Cut::Stall)) = reply.cut {
        shared.stalled.lock().unwrap().push(stream);
    }
    Ok(())
}

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(crate) const ID: &str = "org/name";

/// What a repository holds, and how a Hub answers for it.
#[derive(Clone, Default)]
pub(crate) struct Repo {
    files: BTreeMap<String, Vec<u8>>,
}

impl Repo {
    /// A model whose weights are one file of `size` bytes.
    pub(crate) fn single(size: usize) -> Self {
        Self::config_files().with("model.safetensors", noise(size))
    }

    /// A model whose weights are two shards.
    pub(crate) fn sharded() -> Self {
        let (one, two) = ("model-1-of-2.safetensors", "model-2-of-2.safetensors");
        let index = format!(r#"{{"weight_map": {{"a": "{one}", "b": "{two}", "c": "{one}"}}}}"#);
        Self::config_files()
            .with("model.safetensors.index.json", index)
            .with(one, noise(1000))
            .with(two, noise(2000))
    }

    pub(crate) fn config_files() -> Self {
        Self::default()
            .with("config.json", r#"{"model_type": "llama"}"#)
            .with("tokenizer.json", "{}")
            .with("generation_config.json", r#"{"eos_token_id": 2}"#)
            .with("README.md", "not needed")
            .with("pytorch_model.bin", "not needed")
    }

    pub(crate) fn with(mut self, file: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.insert(file.to_owned(), content.into());
        self
    }

    pub(crate) fn without(mut self, file: &str) -> Self {
        self.files.remove(file);
        self
    }

    pub(crate) fn content(&self, file: &str) -> &[u8] {
        &self.files[file]
    }

    pub(crate) fn etag(&self, file: &str) -> String {
        let content = self.content(file);
        let hash = if is_large(file) {
            Sha256::digest(content).to_vec()
        } else {
            let mut hasher = Sha1::new_with_prefix(format!("blob {}\0", content.len()));
            hasher.update(content);
            hasher.finalize().to_vec()
        };
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The answer of a Hub that works.
    pub(crate) fn reply(&self, request: &Request) -> Reply {
        let Some((revision, file)) = request
            .path
            .strip_prefix(&format!("/{ID}/resolve/"))
            .and_then(|rest| rest.split_once('/'))
        else {
            return Reply::new(401, "").header("X-Error-Code", "RepoNotFound");
        };
        if !["main", COMMIT].contains(&revision) {
            return Reply::new(404, "").header("X-Error-Code", "RevisionNotFound");
        }
        let Some(content) = self.files.get(file) else {
            return Reply::new(404, "Entry not found").header("X-Error-Code", "EntryNotFound");
        };
        let reply = match request.offset() {
            Some(offset) if request.method == "GET" => {
                let range = format!("bytes {offset}-{}/{}", content.len() - 1, content.len());
                Reply::new(206, &content[offset..]).header("Content-Range", range)
            }
            _ => Reply::new(200, content.clone()),
        };
        let reply = reply.header("X-Repo-Commit", COMMIT);
        if is_large(file) {
            reply
                .header("ETag", "\"of-the-storage\"")
                .header("X-Linked-Etag", format!("\"{}\"", self.etag(file)))
                .header("X-Linked-Size", content.len())
        } else {
            reply.header("ETag", format!("W/\"{}\"", self.etag(file)))
        }
    }

    /// A Hub with this one repository.
    pub(crate) fn serve(self) -> Server {
        Server::start(move |request| self.reply(request))
    }

    /// A Hub whose answers to GETs for `file` are those of `faults`, by count, and right after.
    pub(crate) fn serve_with(
        self,
        file: &'static str,
        faults: impl Fn(usize, &Request, Reply) -> Reply + Send + Sync + 'static,
    ) -> Server {
        let count = Mutex::new(0);
        Server::start(move |request| {
            let reply = self.reply(request);
            if request.method != "GET" || !request.path.ends_with(file) {
                return reply;
            }
            let mut count = count.lock().unwrap();
            *count += 1;
            faults(*count, request, reply)
        })
    }
}

fn is_large(file: &str) -> bool {
    file.ends_with(".safetensors")
}

/// Bytes no two positions of which look alike.
pub(crate) fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let step = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(step).take(size).collect()
}
