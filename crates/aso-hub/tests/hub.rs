//! Downloads over a real socket, from a Hub that misbehaves in every way we know of.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use aso_hub::{Hub, HubConfig, HubError, ModelId, Progress, Token};
use support::{COMMIT, Cut, ID, Reply, Repo, Server, noise};

const WEIGHTS: &str = "model.safetensors";
const SIZE: usize = 400_000;

/// A cache folder and what uses it.
struct Client {
    cache: tempfile::TempDir,
    config: HubConfig,
}

impl Client {
    fn new(server: &Server) -> Self {
        let cache = tempfile::tempdir().unwrap();
        let mut config = HubConfig::new(cache.path());
        config.endpoint = server.url();
        config.retry_delay = Duration::ZERO;
        Self { cache, config }
    }

    fn snapshot(&self, revision: &str) -> Result<PathBuf, HubError> {
        self.snapshot_with(revision, &mut |_| {})
    }

    fn snapshot_with(
        &self,
        revision: &str,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PathBuf, HubError> {
        Hub::new(self.config.clone())?.snapshot(&id(), revision, progress)
    }

    fn repo(&self) -> PathBuf {
        self.cache.path().join("models--org--name")
    }

    fn blobs(&self) -> PathBuf {
        self.repo().join("blobs")
    }

    /// Files in `blobs`, which are whole and verified unless they end in `.incomplete`.
    fn blob_names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.blobs()).into_iter().flatten();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

fn id() -> ModelId {
    ID.parse().unwrap()
}

#[track_caller]
fn assert_content(folder: &Path, repo: &Repo, files: &[&str]) {
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, files);
    for file in files {
        assert_eq!(
            fs::read(folder.join(file)).unwrap(),
            repo.content(file),
            "{file}"
        );
    }
}

const SINGLE: [&str; 4] = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
];

#[test]
fn a_single_file_model() {
    let repo = Repo::single(SIZE);
    let server = repo.clone().serve();
    let client = Client::new(&server);
    let mut events = Vec::new();
    let folder = client
        .snapshot_with("main", &mut |progress| events.push(format!("{progress:?}")))
        .unwrap();

    assert_eq!(folder, client.repo().join("snapshots").join(COMMIT));
    assert_content(&folder, &repo, &SINGLE);
    assert_eq!(
        fs::read_to_string(client.repo().join("refs/main")).unwrap(),
        COMMIT
    );
    let blob = client.blobs().join(repo.etag(WEIGHTS));
    assert_eq!(fs::read(&blob).unwrap(), repo.content(WEIGHTS));
    assert!(
        client
            .repo()
            .join(".no_exist")
            .join(COMMIT)
            .join("tokenizer_config.json")
            .exists()
    );
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(folder.join(WEIGHTS)).unwrap(),
        Path::new("../../blobs").join(repo.etag(WEIGHTS))
    );
    assert_eq!(client.blob_names().len(), 4);
    let total: usize = SINGLE.iter().map(|file| repo.content(file).len()).sum();
    assert_eq!(server.body_bytes(), total);
    assert_eq!(events[0], format!("Planned {{ files: 4, bytes: {total} }}"));
    assert!(
        events.iter().any(|event| event.starts_with("Advanced")),
        "{events:?}"
    );
    assert!(events.last().unwrap().starts_with("Finished"), "{events:?}");

    // The branch is looked up again, and nothing else is asked.
    let before = server.requests().len();
    assert_eq!(client.snapshot("main").unwrap(), folder);
    assert_eq!(server.requests().len(), before + 1);
}

#[test]
fn a_sharded_model() {
    let repo = Repo::sharded().with("chat_template.jinja", "{{ messages }}");
    let server = repo.clone().serve();
    let client = Client::new(&server);
    let files = [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model-1-of-2.safetensors",
        "model-2-of-2.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_content(&client.snapshot("main").unwrap(), &repo, &files);
    assert_eq!(server.gets("model-1-of-2.safetensors").len(), 1);
}

#[test]
fn every_file_is_of_the_commit_the_branch_stood_for() {
    let repo = Repo::single(10);
    let server = repo.serve();
    Client::new(&server).snapshot("main").unwrap();
    let requests = server.requests();
    let by_branch = requests
        .iter()
        .filter(|r| r.path.contains("/main/"))
        .count();
    assert_eq!(by_branch, 1, "{requests:?}");
}

#[test]
fn a_complete_commit_costs_no_request() {
    let server = Repo::single(10).serve();
    let client = Client::new(&server);
    client.snapshot("main").unwrap();
    let before = server.requests().len();
    client.snapshot(COMMIT).unwrap();
    assert_eq!(server.requests().len(), before);
}

#[test]
fn a_broken_connection_is_resumed() {
    let repo = Repo::single(SIZE);
    let server = repo
        .clone()
        .serve_with(WEIGHTS, |count, _, reply| match count {
            1 => reply.cut(150_000, Cut::Close),
            2 => reply.cut(100_000, Cut::Close),
            _ => reply,
        });
    let client = Client::new(&server);
    let folder = client.snapshot("main").unwrap();
    assert_content(&folder, &repo, &SINGLE);

    let gets = server.gets(WEIGHTS);
    let offsets: Vec<_> = gets.iter().map(|get| get.offset()).collect();
    assert_eq!(offsets, [None, Some(150_000), Some(250_000)]);
    let others: usize = SINGLE
        .iter()
        .filter(|f| **f != WEIGHTS)
        .map(|f| repo.content(f).len())
        .sum();
    assert_eq!(server.body_bytes(), SIZE + others, "no byte is sent twice");
}

#[test]
fn a_download_that_advances_is_never_given_up() {
    let repo = Repo::single(SIZE);
    let server = repo.serve_with(WEIGHTS, |_, _, reply| reply.cut(10_000, Cut::Close));
    let mut client = Client::new(&server);
    client.config.max_retries = 1;
    client.snapshot("main").unwrap();
    assert_eq!(server.gets(WEIGHTS).len(), SIZE / 10_000);
}

#[test]
fn a_stalled_connection_is_resumed() {
    let repo = Repo::single(SIZE);
    let server = repo
        .clone()
        .serve_with(WEIGHTS, |count, _, reply| match count {
            1 => reply.cut(150_000, Cut::Stall),
            _ => reply,
        });
    let mut client = Client::new(&server);
    client.config.download_timeout = Duration::from_millis(300);
    let folder = client.snapshot("main").unwrap();
    assert_content(&folder, &repo, &SINGLE);
    assert_eq!(server.gets(WEIGHTS)[1].offset(), Some(150_000));
}

#[test]
fn a_server_that_only_stalls_times_out() {
    let server = Repo::single(SIZE).serve_with(WEIGHTS, |_, _, reply| reply.cut(0, Cut::Stall));
    let mut client = Client::new(&server);
    client.config.download_timeout = Duration::from_millis(500);
    client.config.max_retries = 1;
    let error = client.snapshot("main").unwrap_err();
    assert!(matches!(error, HubError::Timeout { .. }), "{error}");
    assert_eq!(server.gets(WEIGHTS).len(), 2);
    for part in [
        ID,
        COMMIT,
        WEIGHTS,
        &server.host(),
        "HF_HUB_DOWNLOAD_TIMEOUT",
    ] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn a_server_that_cannot_resume_starts_over() {
    let repo = Repo::single(SIZE);
    let original = repo.clone();
    let server = repo.serve_with(WEIGHTS, move |count, _, _| {
        let whole = Reply::new(200, original.content(WEIGHTS));
        if count == 1 {
            whole.cut(150_000, Cut::Close)
        } else {
            whole
        }
    });
    let client = Client::new(&server);
    let folder = client.snapshot("main").unwrap();
    assert_eq!(server.gets(WEIGHTS)[1].offset(), Some(150_000));
    assert_content(&folder, &Repo::single(SIZE), &SINGLE);
}

#[test]
fn a_server_that_starts_over_and_breaks_each_time_is_given_up() {
    let repo = Repo::single(SIZE);
    let original = repo.clone();
    let server = repo.serve_with(WEIGHTS, move |_, _, _| {
        Reply::new(200, original.content(WEIGHTS)).cut(150_000, Cut::Close)
    });
    let mut client = Client::new(&server);
    client.config.max_retries = 2;
    let error = client.snapshot("main").unwrap_err();
    assert!(matches!(error, HubError::Network { .. }), "{error}");
    assert_eq!(server.gets(WEIGHTS).len(), 3);
}

#[test]
fn a_part_from_elsewhere_in_the_file_is_refused() {
    let server = Repo::single(SIZE).serve_with(WEIGHTS, |count, _, reply| match count {
        1 => reply.cut(150_000, Cut::Close),
        _ => Reply::new(206, vec![0; 10]).header("Content-Range", format!("bytes 7-16/{SIZE}")),
    });
    let client = Client::new(&server);
    let error = client.snapshot("main").unwrap_err();
    assert!(matches!(error, HubError::BadResponse { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("asked for byte 150000, got byte 7"),
        "{error}"
    );
}

#[test]
fn a_later_process_resumes() {
    let repo = Repo::single(SIZE);
    let server = repo.clone().serve();
    let client = Client::new(&server);
    // What a killed process leaves behind.
    fs::create_dir_all(client.blobs()).unwrap();
    let partial = client
        .blobs()
        .join(format!("{}.incomplete", repo.etag(WEIGHTS)));
    fs::write(&partial, &repo.content(WEIGHTS)[..300_000]).unwrap();

    let mut offset = None;
    let folder = client
        .snapshot_with("main", &mut |progress| {
            if let Progress::Started {
                file: WEIGHTS,
                offset: found,
                ..
            } = progress
            {
                offset = Some(found);
            }
        })
        .unwrap();
    assert_content(&folder, &repo, &SINGLE);
    assert_eq!(offset, Some(300_000));
    assert_eq!(server.gets(WEIGHTS)[0].offset(), Some(300_000));
    assert!(!partial.exists());
}

#[test]
fn a_whole_leftover_is_verified_and_used() {
    let repo = Repo::single(SIZE);
    let server = repo.clone().serve();
    let client = Client::new(&server);
    fs::create_dir_all(client.blobs()).unwrap();
    let partial = client
        .blobs()
        .join(format!("{}.incomplete", repo.etag(WEIGHTS)));
    fs::write(&partial, repo.content(WEIGHTS)).unwrap();
    client.snapshot("main").unwrap();
    assert!(server.gets(WEIGHTS).is_empty());
}

#[test]
fn a_wrong_leftover_is_thrown_away() {
    for size in [1000, SIZE, SIZE + 1000] {
        let repo = Repo::single(SIZE);
        let server = repo.clone().serve();
        let client = Client::new(&server);
        fs::create_dir_all(client.blobs()).unwrap();
        let partial = client
            .blobs()
            .join(format!("{}.incomplete", repo.etag(WEIGHTS)));
        fs::write(&partial, vec![0; size]).unwrap();
        let folder = client.snapshot("main").unwrap();
        assert_content(&folder, &repo, &SINGLE);
        assert_eq!(client.blob_names().len(), 4);
    }
}

#[test]
fn an_error_page_never_enters_the_cache() {
    let page = "<html>Please log in to the airport's network</html>";
    let server =
        Repo::single(SIZE).serve_with(WEIGHTS, move |_, _, _| Reply::new(200, page.as_bytes()));
    let client = Client::new(&server);
    let error = client.snapshot("main").unwrap_err();
    let HubError::SizeMismatch {
        expected, found, ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!((expected, found), (SIZE as u64, page.len() as u64));
    let weights = Repo::single(SIZE).etag(WEIGHTS);
    assert!(!client.blob_names().contains(&weights));
    assert!(
        !client
            .repo()
            .join("snapshots")
            .join(COMMIT)
            .join(WEIGHTS)
            .exists()
    );
}

#[test]
fn a_page_of_unknown_length_never_enters_the_cache() {
    let size = SIZE + 10;
    let body = [
        format!("{size:x}\r\n").into_bytes(),
        noise(size),
        b"\r\n0\r\n\r\n".to_vec(),
    ];
    let server = Repo::single(SIZE).serve_with(WEIGHTS, move |_, _, _| {
        // No header gives the length away.
        Reply::new(200, body.concat()).header("Transfer-Encoding", "chunked")
    });
    let error = Client::new(&server).snapshot("main").unwrap_err();
    assert!(matches!(error, HubError::SizeMismatch { .. }), "{error}");
}

#[test]
fn wrong_bytes_are_fetched_once_more() {
    let repo = Repo::single(SIZE);
    let server = repo.clone().serve_with(WEIGHTS, |count, _, mut reply| {
        if count == 1 {
            reply.body[SIZE / 2] ^= 1;
        }
        reply
    });
    let client = Client::new(&server);
    let folder = client.snapshot("main").unwrap();
    assert_content(&folder, &repo, &SINGLE);
    assert_eq!(server.gets(WEIGHTS)[1].offset(), None);
}

#[test]
fn wrong_bytes_twice_are_an_error() {
    for file in [WEIGHTS, "tokenizer.json"] {
        let repo = Repo::single(SIZE);
        let server = repo.clone().serve_with(file, |_, _, mut reply| {
            reply.body[0] ^= 1;
            reply
        });
        let client = Client::new(&server);
        let error = client.snapshot("main").unwrap_err();
        assert!(matches!(error, HubError::HashMismatch { .. }), "{error}");
        for part in [ID, COMMIT, file, &server.host(), &repo.etag(file)] {
            assert!(error.to_string().contains(part), "{error}");
        }
        assert_eq!(server.gets(file).len(), 2);
        assert!(
            !client
                .blob_names()
                .iter()
                .any(|name| name.starts_with(&repo.etag(file)))
        );
    }
}

#[test]
fn a_damaged_blob_of_another_program_is_replaced() {
    let repo = Repo::single(SIZE);
    let server = repo.clone().serve();
    let client = Client::new(&server);
    fs::create_dir_all(client.blobs()).unwrap();
    fs::write(client.blobs().join(repo.etag(WEIGHTS)), "<html>").unwrap();
    assert_content(&client.snapshot("main").unwrap(), &repo, &SINGLE);
}

#[test]
fn not_found_says_what_is_not_found() {
    let server = Repo::single(10).without("tokenizer.json").serve();
    let client = Client::new(&server);

    let error = client.snapshot("main").unwrap_err();
    let HubError::FileNotFound { at } = &error else {
        panic!("{error}")
    };
    assert_eq!(
        (at.file.as_str(), at.host.as_str()),
        ("tokenizer.json", &*server.host())
    );

    let error = client.snapshot("v9").unwrap_err();
    let HubError::RevisionNotFound { at } = &error else {
        panic!("{error}")
    };
    assert_eq!(at.revision, "v9");

    let hub = Hub::new(client.config.clone()).unwrap();
    let other = "org/other".parse().unwrap();
    let error = hub.snapshot(&other, "main", &mut |_| {}).unwrap_err();
    let HubError::RepoNotFound {
        at,
        token_sent: false,
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(at.repo, other);
    assert!(error.to_string().contains("HF_TOKEN"), "{error}");
}

#[test]
fn a_model_without_safetensors_says_so() {
    let server = Repo::config_files().serve();
    let error = Client::new(&server).snapshot("main").unwrap_err();
    assert!(matches!(error, HubError::NoWeights { .. }), "{error}");
    for part in [WEIGHTS, "model.safetensors.index.json", ID, "main"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn an_index_cannot_leave_the_folder() {
    let index = r#"{"weight_map": {"w": "../../../../evil.safetensors"}}"#;
    let server = Repo::config_files()
        .with("model.safetensors.index.json", index)
        .serve();
    let client = Client::new(&server);
    let error = client.snapshot("main").unwrap_err();
    assert!(matches!(error, HubError::BadIndex { .. }), "{error}");
    assert!(
        server
            .requests()
            .iter()
            .all(|request| !request.path.contains("evil"))
    );
}

#[test]
fn an_etag_cannot_leave_the_folder() {
    let server = Server::start(|_| {
        Reply::new(200, "x")
            .header("X-Repo-Commit", COMMIT)
            .header("ETag", "\"../../evil\"")
    });
    let client = Client::new(&server);
    let error = client.snapshot("main").unwrap_err();
    assert!(matches!(error, HubError::BadResponse { .. }), "{error}");
    assert!(!client.repo().exists());
}

#[test]
fn a_server_that_is_no_hub() {
    let server = Server::start(|_| Reply::new(200, "<html>welcome</html>"));
    let error = Client::new(&server).snapshot("main").unwrap_err();
    assert!(matches!(error, HubError::BadResponse { .. }), "{error}");
    assert!(error.to_string().contains("X-Repo-Commit"), "{error}");
}

#[test]
fn a_gated_model_needs_a_token() {
    const SECRET: &str = "hf_very_secret";
    let repo = Repo::single(10);
    let served = repo.clone();
    let server = Server::start(move |request| match request.header("authorization") {
        Some("Bearer hf_very_secret") => served.reply(request),
        Some(_) => Reply::new(403, "").header("X-Error-Message", "not on the list"),
        None => Reply::new(401, "").header("X-Error-Code", "GatedRepo"),
    });
    let mut client = Client::new(&server);

    let error = client.snapshot("main").unwrap_err();
    let HubError::AccessDenied {
        status,
        gated,
        token_sent,
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!((status, gated, token_sent), (401, true, false));
    assert!(error.to_string().contains("HF_TOKEN"), "{error}");

    client.config.token = Token::new("hf_wrong");
    let error = client.snapshot("main").unwrap_err();
    let HubError::AccessDenied {
        status, token_sent, ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!((status, token_sent), (403, true));
    assert!(error.to_string().contains("HF_TOKEN"), "{error}");
    assert!(
        !format!("{error} {error:?}").contains("hf_wrong"),
        "{error:?}"
    );

    client.config.token = Token::new(SECRET);
    assert_content(&client.snapshot("main").unwrap(), &repo, &SINGLE);
}

#[test]
fn the_token_stays_with_the_endpoint() {
    let repo = Repo::single(SIZE);
    let content = repo.content(WEIGHTS).to_vec();
    let storage = Server::start(move |request| {
        let offset = request.offset().unwrap_or(0);
        match request.offset() {
            None => Reply::new(200, content.clone()).cut(150_000, Cut::Close),
            Some(_) => Reply::new(206, &content[offset..]).header(
                "Content-Range",
                format!("bytes {offset}-{}/{SIZE}", SIZE - 1),
            ),
        }
    });
    let location = format!("{}/blob?signature=secret-signature", storage.url());
    let served = repo.clone();
    let server = Server::start(move |request| {
        let reply = served.reply(request);
        if !request.path.ends_with(WEIGHTS) {
            return reply;
        }
        // As the Hub answers for files in large-file storage.
        Reply {
            status: 302,
            body: b"Found".to_vec(),
            ..reply
        }
        .header("Location", &location)
    });
    let mut client = Client::new(&server);
    client.config.token = Token::new("hf_secret");
    let folder = client.snapshot("main").unwrap();
    assert_content(&folder, &repo, &SINGLE);

    let (to_hub, to_storage) = (server.requests(), storage.requests());
    assert!(
        to_hub
            .iter()
            .all(|r| r.header("authorization") == Some("Bearer hf_secret"))
    );
    assert!(
        to_storage
            .iter()
            .all(|r| r.header("authorization").is_none()),
        "{to_storage:?}"
    );
    // The HEAD stays at the Hub; the interrupted GET asks the Hub for a fresh place to resume at.
    let seen: Vec<_> = to_storage
        .iter()
        .map(|r| (r.method.as_str(), r.offset()))
        .collect();
    assert_eq!(seen, [("GET", None), ("GET", Some(150_000))]);
    assert_eq!(server.gets(WEIGHTS).len(), 2);
}

#[test]
fn errors_of_the_storage_name_its_host_and_hide_the_signature() {
    let storage = Server::start(|_| Reply::new(403, "expired"));
    let location = format!("{}/blob?signature=secret", storage.url());
    let repo = Repo::single(10);
    let server = Server::start(move |request| match request.path.ends_with(WEIGHTS) {
        true => Reply {
            status: 302,
            ..repo.reply(request)
        }
        .header("Location", &location),
        false => repo.reply(request),
    });
    let error = Client::new(&server).snapshot("main").unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(
        text.contains(&storage.host()) && !text.contains("secret"),
        "{text}"
    );
}

#[test]
fn a_renamed_repository_is_followed_with_the_token() {
    let repo = Repo::single(10);
    let served = repo.clone();
    let server = Server::start(
        move |request| match request.path.strip_prefix("/org/name/") {
            Some(rest) if !request.path.contains("moved") => {
                Reply::new(307, "").header("Location", format!("/moved/org/name/{rest}"))
            }
            _ => {
                let path = request.path.replacen("/moved", "", 1);
                served.reply(&support::Request {
                    path,
                    ..request.clone()
                })
            }
        },
    );
    let mut client = Client::new(&server);
    client.config.token = Token::new("hf_secret");
    assert_content(&client.snapshot("main").unwrap(), &repo, &SINGLE);
    assert!(
        server
            .requests()
            .iter()
            .all(|request| request.header("authorization").is_some())
    );
}

#[test]
fn a_redirect_loop_ends() {
    let server = Server::start(|request| Reply::new(302, "").header("Location", &request.path));
    let error = Client::new(&server).snapshot("main").unwrap_err();
    assert!(error.to_string().contains("redirects"), "{error}");
}

#[test]
fn a_busy_server_is_asked_again() {
    for (status, code) in [(503, None), (429, Some(("Retry-After", "0"))), (500, None)] {
        let repo = Repo::single(10);
        let served = repo.clone();
        let failures = std::sync::Mutex::new(2);
        let server = Server::start(move |request| {
            let mut failures = failures.lock().unwrap();
            if *failures > 0 {
                *failures -= 1;
                let reply = Reply::new(status, "busy");
                return code
                    .iter()
                    .fold(reply, |reply, (name, value)| reply.header(name, value));
            }
            served.reply(request)
        });
        let client = Client::new(&server);
        let mut attempts = Vec::new();
        let folder = client
            .snapshot_with("main", &mut |progress| {
                if let Progress::Retrying { attempt, .. } = progress {
                    attempts.push(attempt);
                }
            })
            .unwrap();
        assert_content(&folder, &repo, &SINGLE);
        assert_eq!(attempts, [1, 2], "{status}");
    }
}

#[test]
fn a_server_that_stays_busy_is_given_up() {
    let server = Server::start(|_| Reply::new(503, "").header("X-Error-Message", "maintenance"));
    let mut client = Client::new(&server);
    client.config.max_retries = 2;
    let error = client.snapshot("main").unwrap_err();
    assert!(
        matches!(error, HubError::Status { status: 503, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("maintenance"), "{error}");
    assert_eq!(server.requests().len(), 3);
    client.config.max_retries = 0;
    client.snapshot("main").unwrap_err();
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn offline_with_a_complete_cache() {
    let repo = Repo::sharded();
    let server = repo.serve();
    let mut client = Client::new(&server);
    let folder = client.snapshot("main").unwrap();
    let before = server.requests().len();
    client.config.offline = true;
    assert_eq!(client.snapshot("main").unwrap(), folder);
    assert_eq!(client.snapshot(COMMIT).unwrap(), folder);
    assert_eq!(server.requests().len(), before);
}

#[test]
fn offline_names_the_files_that_are_missing() {
    let server = Repo::sharded().serve();
    let mut client = Client::new(&server);
    client.config.offline = true;

    let error = client.snapshot("main").unwrap_err();
    let HubError::NotCached {
        missing, folder, ..
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(missing, &["config.json", "tokenizer.json", WEIGHTS]);
    assert_eq!(folder, &client.repo());
    assert!(server.requests().is_empty());

    client.config.offline = false;
    let folder = client.snapshot("main").unwrap();
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    // A dangling link counts as missing too.
    let shard = folder.join("model-2-of-2.safetensors");
    fs::remove_file(fs::canonicalize(&shard).unwrap()).unwrap();
    client.config.offline = true;
    let error = client.snapshot("main").unwrap_err();
    let HubError::NotCached { missing, .. } = &error else {
        panic!("{error}")
    };
    #[cfg(unix)]
    assert_eq!(missing, &["tokenizer.json", "model-2-of-2.safetensors"]);
    let text = error.to_string();
    for part in [
        "HF_HUB_OFFLINE",
        "tokenizer.json",
        ID,
        "main",
        folder.to_str().unwrap(),
    ] {
        assert!(text.contains(part), "{text}");
    }

    // Online, exactly these are fetched again.
    client.config.offline = false;
    let before = server.body_bytes();
    client.snapshot("main").unwrap();
    #[cfg(unix)]
    assert_eq!(
        server.body_bytes() - before,
        2000,
        "the tokenizer's blob was still there"
    );
    assert!(!missing.is_empty());
}

#[test]
fn without_a_network_the_cached_model_does() {
    let repo = Repo::single(10);
    let down = Arc::new(AtomicBool::new(false));
    let (served, is_down) = (repo.clone(), down.clone());
    let server = Server::start(move |request| match is_down.load(Ordering::SeqCst) {
        true => Reply::new(503, ""),
        false => served.reply(request),
    });
    let mut client = Client::new(&server);
    let folder = client.snapshot("main").unwrap();

    down.store(true, Ordering::SeqCst);
    let before = server.requests().len();
    assert_eq!(client.snapshot("main").unwrap(), folder);
    assert_eq!(
        server.requests().len(),
        before + 1,
        "no patience where the cache will do"
    );

    // Nobody listens at a port that was just closed.
    let gone = Repo::single(10).serve().url();
    client.config.endpoint = gone;
    assert_eq!(client.snapshot("main").unwrap(), folder);

    client.config.max_retries = 0;
    let error = client.snapshot("other-branch").unwrap_err();
    assert!(matches!(error, HubError::Network { .. }), "{error}");
}

#[test]
fn an_interrupted_update_leaves_the_old_snapshot_in_use() {
    let server = Repo::single(10).serve();
    let mut client = Client::new(&server);
    let old = client.snapshot("main").unwrap();

    let newer = "f".repeat(40);
    let repo = Repo::single(20);
    let update = Server::start(move |request| {
        if request.method == "GET" && request.path.ends_with(WEIGHTS) {
            return Reply::new(503, "");
        }
        let path = request.path.replace(&newer, COMMIT);
        let mut reply = repo.reply(&support::Request {
            path,
            ..request.clone()
        });
        for (name, value) in &mut reply.headers {
            if name == "X-Repo-Commit" {
                *value = newer.clone();
            }
        }
        reply
    });
    client.config.endpoint = update.url();
    client.config.max_retries = 0;
    assert_eq!(client.snapshot("main").unwrap(), old);
    client.config.offline = true;
    assert_eq!(client.snapshot("main").unwrap(), old);
}

#[test]
fn two_threads_fetch_the_same_model_once() {
    let repo = Repo::single(SIZE);
    let server = repo.clone().serve_with(WEIGHTS, |_, _, reply| {
        // Long enough for the other thread to arrive at the lock.
        thread::sleep(Duration::from_millis(50));
        reply
    });
    let client = Client::new(&server);
    thread::scope(|scope| {
        let fetch = || assert_content(&client.snapshot("main").unwrap(), &repo, &SINGLE);
        scope.spawn(fetch);
        scope.spawn(fetch);
    });
    assert_eq!(server.gets(WEIGHTS).len(), 1);
    assert_eq!(client.blob_names().len(), 4);
}
