//! Models by their name on the Hub, against a server on loopback. How downloads survive broken connections
//! and wrong bytes is tested in `aso-hub`; here is what a user of the commands sees.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aso_tests::root;
use common::{aso, text};
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves `/org/tiny/resolve/*/FILE` from a folder, and counts requests.
struct Server {
    url: String,
    requests: Arc<AtomicUsize>,
}

impl Server {
    fn start(folder: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                counter.fetch_add(1, Ordering::SeqCst);
                answer(&stream.unwrap(), &folder);
            }
        });
        Self { url, requests }
    }
}

fn answer(mut stream: &TcpStream, folder: &Path) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    lines.take_while(|line| !line.is_empty()).for_each(drop);
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap_or_default());
    let file = path
        .strip_prefix("/org/tiny/resolve/")
        .and_then(|rest| rest.split_once('/'))
        .and_then(|(_, file)| fs::read(folder.join(file)).ok());
    let mut head = String::new();
    let body = match file {
        Some(body) => {
            let hash = Sha256::digest(&body);
            let hash = hash.iter().fold(String::new(), |mut hex, byte| {
                write!(hex, "{byte:02x}").unwrap();
                hex
            });
            write!(head, "HTTP/1.1 200 OK\r\nX-Repo-Commit: {COMMIT}\r\n").unwrap();
            write!(head, "X-Linked-Etag: \"{hash}\"\r\nETag: \"{hash}\"\r\n").unwrap();
            write!(head, "X-Linked-Size: {}\r\n", body.len()).unwrap();
            body
        }
        None => {
            head.push_str("HTTP/1.1 404 Not Found\r\nX-Error-Code: EntryNotFound\r\n");
            b"no such file".to_vec()
        }
    };
    write!(
        head,
        "Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )
    .unwrap();
    // A client that hangs up early is no matter of the test.
    let _ = stream.write_all(head.as_bytes());
    if method == "GET" {
        let _ = stream.write_all(&body);
    }
}

/// The program in `dir` with the given Hub settings.
fn aso_in(dir: &Path, variables: &[(&str, &str)]) -> Command {
    let mut command = aso();
    for variable in [
        "HF_HOME",
        "HF_TOKEN",
        "HF_HUB_OFFLINE",
        "HTTP_PROXY",
        "http_proxy",
    ] {
        command.env_remove(variable);
    }
    command.env("HF_HUB_CACHE", dir.join("cache"));
    command.envs(variables.iter().copied());
    command.current_dir(dir);
    command
}

/// Runs `aso predict --model MODEL` with the given Hub settings.
fn predict(model: &str, dir: &Path, variables: &[(&str, &str)]) -> Output {
    let input = dir.join("in.jsonl");
    fs::write(&input, "{\"input\": \"the\"}\n").unwrap();
    let mut command = aso_in(dir, variables);
    let output = dir.join("out.jsonl");
    let arguments = [
        "predict",
        "--model",
        model,
        "--input",
        text(&input),
        "--output",
        text(&output),
    ];
    command.args(arguments).args(["--max-new-tokens", "2"]);
    command.output().unwrap()
}

/// A model folder: the built-in causal model.
fn folder(dir: &Path) -> PathBuf {
    let folder = dir.join("served");
    fs::create_dir(&folder).unwrap();
    let demo = root().join("crates/aso-trainer/assets/demo-llama");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(demo.join(file), folder.join(file)).unwrap();
    }
    fs::write(
        folder.join("generation_config.json"),
        r#"{"eos_token_id": [1, 2]}"#,
    )
    .unwrap();
    folder
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_model_is_downloaded_once_and_then_found_offline() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(folder(dir.path()));
    let first = predict("org/tiny", dir.path(), &[("HF_ENDPOINT", &server.url)]);
    assert!(first.status.success(), "{}", stderr(&first));
    assert!(
        stderr(&first).contains("model.safetensors"),
        "{}",
        stderr(&first)
    );
    let answer = fs::read(dir.path().join("out.jsonl")).unwrap();
    let blob = dir
        .path()
        .join("cache/models--org--tiny/snapshots")
        .join(COMMIT);
    assert!(blob.join("model.safetensors").exists());

    let requests = server.requests.load(Ordering::SeqCst);
    let offline = [
        ("HF_ENDPOINT", server.url.as_str()),
        ("HF_HUB_OFFLINE", "1"),
    ];
    let second = predict("org/tiny", dir.path(), &offline);
    assert!(second.status.success(), "{}", stderr(&second));
    assert_eq!(fs::read(dir.path().join("out.jsonl")).unwrap(), answer);
    assert_eq!(server.requests.load(Ordering::SeqCst), requests);

    // A run that is started where a folder has the model's name; its adapters name the model by its id.
    fs::create_dir_all(dir.path().join("org/tiny")).unwrap();
    let configs = dir.path().join("configs");
    fs::create_dir(&configs).unwrap();
    let config = configs.join("run.toml");
    fs::write(
        &config,
        "[model]\npath = \"org/tiny\"\n[data]\nmax_train = 8\nmax_eval = 1\n\
         [stream]\ntasks = [\"topic-news\"]\n[train]\nbatch_size = 8\n\
         [eval]\nmax_new_tokens = 1\nzero_shot = false\n",
    )
    .unwrap();
    let mut command = aso_in(dir.path(), &offline);
    command.args(["run", text(&config), "--out", "out"]);
    let run = command.output().unwrap();
    assert!(run.status.success(), "{}", stderr(&run));
    let adapter = "out/adapters/00-topic-news/adapter_config.json";
    let adapter = fs::read_to_string(dir.path().join(adapter)).unwrap();
    assert!(adapter.contains("\"org/tiny\""), "{adapter}");
}

#[test]
fn a_folder_of_that_name_never_touches_the_network() {
    let dir = tempfile::tempdir().unwrap();
    let served = folder(dir.path());
    fs::create_dir(dir.path().join("org")).unwrap();
    fs::rename(served, dir.path().join("org/tiny")).unwrap();
    let server = Server::start(dir.path().join("nothing"));
    let output = predict("org/tiny", dir.path(), &[("HF_ENDPOINT", &server.url)]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(server.requests.load(Ordering::SeqCst), 0);
}

#[test]
fn what_cannot_be_had_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = predict("hub:tiny", dir.path(), &[]);
    assert_eq!(wrong.status.code(), Some(2), "{}", stderr(&wrong));
    assert!(
        stderr(&wrong).contains("`tiny` is not a model id"),
        "{}",
        stderr(&wrong)
    );
    let offline = predict("org/tiny", dir.path(), &[("HF_HUB_OFFLINE", "1")]);
    let message = stderr(&offline);
    assert_eq!(offline.status.code(), Some(2), "{message}");
    for part in [
        "`org/tiny`: no such folder here, and on the Hub:",
        "config.json",
        "tokenizer.json",
        "HF_HUB_OFFLINE",
    ] {
        assert!(message.contains(part), "no `{part}` in {message}");
    }
    let served = folder(dir.path());
    fs::remove_file(served.join("model.safetensors")).unwrap();
    let server = Server::start(served);
    let missing = predict("org/tiny", dir.path(), &[("HF_ENDPOINT", &server.url)]);
    let message = stderr(&missing);
    assert_eq!(missing.status.code(), Some(2), "{message}");
    assert!(message.contains("model.safetensors"), "{message}");
}
