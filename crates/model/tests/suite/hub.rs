//! Fetching from a hub that is a thread of this test.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use model::Checkpoint;
use model::hub::{DownloadProgress, HubOptions, fetch};
use serde_json::json;

use crate::support::{checkpoint_dir, fixtures};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const REPOSITORY: &str = "tiny/llama";

/// What the hub holds and how it misbehaves.
#[derive(Default)]
struct Content {
    files: BTreeMap<String, Vec<u8>>,
    /// The next download of this file ends after this many bytes.
    cut: Option<(String, usize)>,
    /// Requests without this token are refused.
    token: Option<String>,
}

/// One request as the hub saw it.
#[derive(Debug, Clone, PartialEq)]
struct Request {
    path: String,
    range: Option<String>,
    authorization: Option<String>,
}

struct FakeHub {
    endpoint: String,
    content: Arc<Mutex<Content>>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl FakeHub {
    fn start(content: Content) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("a bound socket"));
        let content = Arc::new(Mutex::new(content));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (served, seen) = (Arc::clone(&content), Arc::clone(&requests));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let request = read_request(&stream);
                seen.lock()
                    .expect("no panic while locked")
                    .push(request.clone());
                // A client that is gone is not this thread's concern.
                let _ = answer(
                    &stream,
                    &request,
                    &mut served.lock().expect("no panic while locked"),
                );
            }
        });
        Self {
            endpoint,
            content,
            requests,
        }
    }

    /// The ranges in which the file's content was asked for; a first byte alone asks for its size.
    fn ranges(&self, file: &str) -> Vec<String> {
        let requests = self.requests.lock().expect("no panic while locked");
        let of_file = requests
            .iter()
            .filter(|request| request.path.ends_with(&format!("/{file}")));
        let ranges = of_file.filter_map(|request| request.range.clone());
        ranges.filter(|range| range != "bytes=0-0").collect()
    }

    fn num_requests(&self) -> usize {
        self.requests.lock().expect("no panic while locked").len()
    }
}

fn read_request(stream: &TcpStream) -> Request {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    let mut request = Request {
        path: first.split(' ').nth(1).unwrap_or_default().to_owned(),
        range: None,
        authorization: None,
    };
    for line in lines.take_while(|line| !line.is_empty()) {
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("range") => {
                request.range = Some(value.to_owned())
            }
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                request.authorization = Some(value.to_owned());
            }
            _ => {}
        }
    }
    request
}

fn answer(mut stream: &TcpStream, request: &Request, content: &mut Content) -> std::io::Result<()> {
    let mut respond = |status: &str, headers: &str, body: &[u8], len: usize| {
        write!(
            stream,
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len}\r\n{headers}\r\n"
        )?;
        stream.write_all(body)
    };
    let token = request
        .authorization
        .as_ref()
        .and_then(|value| value.strip_prefix("Bearer "));
    if content.token.is_some() && content.token.as_deref() != token {
        return respond("401 Unauthorized", "", b"", 0);
    }
    if request.path == format!("/api/models/{REPOSITORY}/revision/main") {
        let siblings: Vec<_> = content
            .files
            .keys()
            .map(|file| json!({"rfilename": file}))
            .collect();
        let body = json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return respond("200 OK", "", body.as_bytes(), body.len());
    }
    let file = request
        .path
        .strip_prefix(&format!("/{REPOSITORY}/resolve/{COMMIT}/"));
    let Some((file, bytes)) = file.and_then(|file| Some((file, content.files.get(file)?))) else {
        return respond("404 Not Found", "", b"", 0);
    };
    let range = request
        .range
        .as_deref()
        .and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let (start, end) = range.unwrap_or(("0", ""));
    let start: usize = start.parse().unwrap_or(0);
    let end = end
        .parse()
        .map_or(bytes.len(), |last: usize| (last + 1).min(bytes.len()));
    let headers = format!(
        "ETag: \"etag-{file}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {start}-{}/{}\r\n",
        end.saturating_sub(1),
        bytes.len()
    );
    let body = &bytes[start.min(end)..end];
    let sent = match &content.cut {
        Some((cut, len)) if cut == file && body.len() > *len => *len,
        _ => body.len(),
    };
    let is_cut = sent < body.len();
    let result = respond("206 Partial Content", &headers, &body[..sent], body.len());
    if is_cut {
        content.cut = None;
    }
    result
}

/// The files of a fixture as a repository, with some that no model needs.
fn repository() -> Content {
    let dir = checkpoint_dir("llama-tied", "default.tf5.json");
    let mut files: BTreeMap<String, Vec<u8>> = std::fs::read_dir(dir.path())
        .expect("readable")
        .flatten()
        .map(|entry| {
            let bytes = std::fs::read(entry.path()).expect("readable");
            (entry.file_name().to_string_lossy().into_owned(), bytes)
        })
        .collect();
    files.insert("pytorch_model.bin".to_owned(), b"pickle".to_vec());
    files.insert("../escape.json".to_owned(), b"{}".to_vec());
    Content {
        files,
        ..Content::default()
    }
}

fn options(hub: &FakeHub, cache: &Path) -> HubOptions {
    HubOptions {
        endpoint: Some(hub.endpoint.clone()),
        cache_dir: Some(cache.to_owned()),
        max_retries: 0,
        ..HubOptions::default()
    }
}

fn ignore(_: DownloadProgress) {}

const SHARD: &str = "model-00001-of-00002.safetensors";

#[test]
fn a_sharded_model_is_fetched_once_and_found_offline() {
    let hub = FakeHub::start(repository());
    let cache = tempfile::tempdir().expect("a temporary folder");
    let mut options = options(&hub, cache.path());
    let path = fetch(REPOSITORY, &options, &mut ignore).expect("the model is fetched");
    Checkpoint::open(&path).expect("the checkpoint is whole");
    assert_eq!(hub.ranges(SHARD), ["bytes=0-"]);
    assert!(hub.ranges("pytorch_model.bin").is_empty());
    assert!(!path.join("pytorch_model.bin").exists());

    let before = hub.num_requests();
    assert_eq!(
        fetch(REPOSITORY, &options, &mut ignore).expect("again"),
        path
    );
    assert_eq!(
        hub.num_requests(),
        before + 1,
        "only the listing is asked for"
    );

    options.offline = true;
    assert_eq!(
        fetch(REPOSITORY, &options, &mut ignore).expect("offline"),
        path
    );
    assert_eq!(hub.num_requests(), before + 1);
    let error = fetch("tiny/other", &options, &mut ignore).expect_err("never fetched");
    assert!(
        error
            .to_string()
            .contains("tiny/other: is not in the cache"),
        "{error}"
    );
}

#[test]
fn a_cut_download_resumes_where_it_ended() {
    let mut content = repository();
    let whole = content.files[SHARD].clone();
    content.cut = Some((SHARD.to_owned(), 50_000));
    let hub = FakeHub::start(content);
    let cache = tempfile::tempdir().expect("a temporary folder");
    let options = options(&hub, cache.path());
    fetch(REPOSITORY, &options, &mut ignore).expect_err("the download is cut");

    let mut first = None;
    let mut last = (0, 0);
    let path = fetch(REPOSITORY, &options, &mut |progress| {
        if progress.file == SHARD && progress.done > 0 {
            first.get_or_insert(progress.done);
            last = (progress.done, progress.total);
        }
    })
    .expect("the rest is fetched");
    assert_eq!(hub.ranges(SHARD), ["bytes=0-", "bytes=50000-"]);
    assert_eq!(std::fs::read(path.join(SHARD)).expect("readable"), whole);
    assert_eq!(
        (first, last),
        (Some(50_000), (whole.len() as u64, whole.len() as u64))
    );
}

#[test]
fn a_cut_download_continues_within_one_call() {
    let mut content = repository();
    content.cut = Some((SHARD.to_owned(), 50_000));
    let hub = FakeHub::start(content);
    let cache = tempfile::tempdir().expect("a temporary folder");
    let mut options = options(&hub, cache.path());
    options.max_retries = 1;
    let path = fetch(REPOSITORY, &options, &mut ignore).expect("one retry is enough");
    Checkpoint::open(&path).expect("the checkpoint is whole");
    assert_eq!(hub.ranges(SHARD), ["bytes=0-", "bytes=50000-"]);
}

#[test]
fn tokens_are_sent_and_refusals_explained() {
    let mut content = repository();
    content.token = Some("secret".to_owned());
    let hub = FakeHub::start(content);
    let cache = tempfile::tempdir().expect("a temporary folder");
    let mut options = options(&hub, cache.path());
    let error = fetch(REPOSITORY, &options, &mut ignore)
        .expect_err("no token")
        .to_string();
    assert!(error.contains("private or gated"), "{error}");
    options.token = Some("secret".to_owned());
    fetch(REPOSITORY, &options, &mut ignore).expect("the token is sent");

    let error = fetch("tiny/absent", &options, &mut ignore)
        .expect_err("absent")
        .to_string();
    assert!(
        error.contains("hub tiny/absent") && error.contains("no such repository"),
        "{error}"
    );
    options.revision = Some("v2".to_owned());
    let error = fetch(REPOSITORY, &options, &mut ignore)
        .expect_err("absent")
        .to_string();
    assert!(error.contains("no such repository, revision"), "{error}");
    for (name, revision) in [
        ("plain", "main"),
        ("a/b/c", "main"),
        ("../x", "main"),
        (REPOSITORY, "../../x"),
    ] {
        options.revision = Some(revision.to_owned());
        let error = fetch(name, &options, &mut ignore)
            .expect_err(name)
            .to_string();
        assert!(
            error.contains("form owner/name") || error.contains("not a revision"),
            "{error}"
        );
    }
}

#[test]
fn a_silent_hub_leaves_the_cached_model() {
    let hub = FakeHub::start(repository());
    let cache = tempfile::tempdir().expect("a temporary folder");
    let mut options = options(&hub, cache.path());
    let path = fetch(REPOSITORY, &options, &mut ignore).expect("the model is fetched");
    // A port that was free a moment ago refuses connections.
    let closed = TcpListener::bind("127.0.0.1:0")
        .expect("a free port")
        .local_addr()
        .expect("bound");
    options.endpoint = Some(format!("http://{closed}"));
    assert_eq!(
        fetch(REPOSITORY, &options, &mut ignore).expect("from the cache"),
        path
    );
    fetch("tiny/other", &options, &mut ignore).expect_err("not cached");
}

#[test]
fn a_gguf_file_is_chosen_or_named() {
    let gguf = std::fs::read(fixtures().join("gguf/llama.gguf")).expect("the fixture is committed");
    let hub = FakeHub::start(Content {
        files: BTreeMap::from([("a.Q8_0.gguf".to_owned(), gguf.clone())]),
        ..Content::default()
    });
    let cache = tempfile::tempdir().expect("a temporary folder");
    let mut options = options(&hub, cache.path());
    let path = fetch(REPOSITORY, &options, &mut ignore).expect("there is only one");
    Checkpoint::open(&path).expect("the file is whole");
    options.offline = true;
    assert_eq!(
        fetch(REPOSITORY, &options, &mut ignore).expect("offline"),
        path
    );

    options.offline = false;
    hub.content
        .lock()
        .expect("no panic while locked")
        .files
        .insert("b.Q4_0.gguf".to_owned(), gguf);
    let error = fetch(REPOSITORY, &options, &mut ignore)
        .expect_err("two")
        .to_string();
    assert!(
        error.contains("choose one: tiny/llama:a.Q8_0.gguf, tiny/llama:b.Q4_0.gguf"),
        "{error}"
    );
    let path = fetch("tiny/llama:b.Q4_0.gguf", &options, &mut ignore).expect("it is named");
    assert!(path.ends_with("b.Q4_0.gguf"));
}

#[test]
fn all_parts_of_a_split_model_are_fetched() {
    let parts = (1..=3).map(|number| {
        let name = format!("llama-0000{number}-of-00003.gguf");
        let bytes = std::fs::read(fixtures().join("gguf-split").join(&name));
        (name, bytes.expect("the fixture is committed"))
    });
    let hub = FakeHub::start(Content {
        files: parts.collect(),
        ..Content::default()
    });
    let cache = tempfile::tempdir().expect("a temporary folder");
    let mut options = options(&hub, cache.path());
    let first = fetch(REPOSITORY, &options, &mut ignore).expect("there is one model");
    assert!(first.ends_with("llama-00001-of-00003.gguf"));
    Checkpoint::open(&first).expect("the others lie beside it");
    options.offline = true;
    for name in [REPOSITORY, "tiny/llama:llama-00001-of-00003.gguf"] {
        let path = fetch(name, &options, &mut ignore).expect("offline");
        assert_eq!(path, first);
    }
}
