//! The Hub's protocol against a server of our own: no test touches the network.
#![cfg(feature = "hub")]
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use vit::{Checkpoint, Hints, Hub, LoadOptions};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server answers, by path; `Some(status)` first as often as given.
#[derive(Default)]
struct Site {
    files: HashMap<String, Vec<u8>>,
    /// Statuses that GET gives before it behaves, by file.
    trouble: HashMap<String, Vec<u16>>,
    /// Sends half of the bytes, this often.
    cut: HashMap<String, usize>,
    token: Option<&'static str>,
    requests: Vec<String>,
}

struct Server {
    endpoint: String,
    site: Arc<Mutex<Site>>,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/checkpoints")
        .join(name)
}

impl Server {
    /// Serves the files of a fixture as `org/name`.
    fn new(fixture: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let mut site = Site::default();
        for entry in std::fs::read_dir(folder(fixture)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            site.files.insert(name, std::fs::read(&path).unwrap());
        }
        let site = Arc::new(Mutex::new(site));
        let shared = site.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, site) = (stream.unwrap(), shared.clone());
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    let (mut first, mut token) = (String::new(), false);
                    let _ = reader.read_line(&mut first);
                    loop {
                        let mut line = String::new();
                        if reader.read_line(&mut line).unwrap_or(0) <= 2 {
                            break;
                        }
                        token |= line
                            .to_lowercase()
                            .starts_with("authorization: bearer secret");
                    }
                    let answer = answer(&mut site.lock().unwrap(), &first, token);
                    let _ = stream.write_all(&answer);
                });
            }
        });
        Self { endpoint, site }
    }

    fn hub(&self, cache: &Path, token: Option<&str>) -> Hub {
        Hub::new(&self.endpoint, cache, token, false).unwrap()
    }

    fn edit(&self) -> std::sync::MutexGuard<'_, Site> {
        self.site.lock().unwrap()
    }
}

fn answer(site: &mut Site, request: &str, token: bool) -> Vec<u8> {
    let mut words = request.split_whitespace();
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    site.requests.push(format!("{method} {path}"));
    let reply = |status: &str, headers: &str, body: &[u8]| {
        let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n");
        [head.as_bytes(), if method == "HEAD" { b"" } else { body }].concat()
    };
    if site.token.is_some() && !token {
        return reply("401 Unauthorized", "Content-Length: 0\r\n", b"");
    }
    // Renamed repositories redirect, relatively.
    if let Some(rest) = path.strip_prefix("/org/old/") {
        let to = format!("Location: /org/name/{rest}\r\nContent-Length: 0\r\n");
        return reply("307 Temporary Redirect", &to, b"");
    }
    let file = ["main", "v1", COMMIT]
        .iter()
        .find_map(|rev| path.strip_prefix(&format!("/org/name/resolve/{rev}/")));
    let Some(body) = file.and_then(|f| site.files.get(f)).cloned() else {
        let code = match (path.starts_with("/org/name/resolve/"), file) {
            (true, Some(_)) => "EntryNotFound",
            (true, None) => "RevisionNotFound",
            _ => "RepoNotFound",
        };
        let headers =
            format!("X-Error-Code: {code}\r\nX-Repo-Commit: {COMMIT}\r\nContent-Length: 0\r\n");
        return reply("404 Not Found", &headers, b"");
    };
    let file = file.unwrap_or_default();
    if method == "GET" {
        if let Some(status) = site.trouble.get_mut(file).and_then(Vec::pop) {
            return reply(
                &format!("{status} Trouble"),
                "Content-Length: 4\r\n",
                b"oops",
            );
        }
    }
    let hash: String = Sha256::digest(&body)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let headers = format!(
        "ETag: \"{hash}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Length: {}\r\n",
        body.len()
    );
    let mut full = reply("200 OK", &headers, &body);
    if method == "GET" && site.cut.get(file).is_some_and(|n| *n > 0) {
        *site.cut.get_mut(file).unwrap() -= 1;
        // As long as promised, but other bytes: only the checksum can tell.
        let at = full.len() - 100;
        full[at] ^= 1;
    }
    full
}

fn quiet() -> vit::OnProgress {
    Arc::new(|_, _, _| {})
}

#[test]
fn fetches_checks_and_caches() {
    let server = Server::new("hf_deit");
    let cache = tempfile::tempdir().unwrap();
    let seen = Arc::new(AtomicU64::new(0));
    let most = seen.clone();
    let progress: vit::OnProgress = Arc::new(move |_, done, total| {
        assert!(total == 0 || done <= total);
        most.fetch_max(done, Ordering::Relaxed);
    });
    let hub = server.hub(cache.path(), None);
    let fetched = hub.fetch("hf://org/name", progress).unwrap();
    assert!(fetched.ends_with(COMMIT));
    let size = server.edit().files["model.safetensors"].len() as u64;
    assert_eq!(seen.load(Ordering::Relaxed), size);
    let checkpoint = Checkpoint::open_path("hf://org/name", &fetched, &Hints::default()).unwrap();
    checkpoint.load(&LoadOptions::default()).unwrap();

    // A second time nothing is downloaded.
    server.edit().requests.clear();
    hub.fetch("hf://org/name", quiet()).unwrap();
    let gets: Vec<String> = server
        .edit()
        .requests
        .iter()
        .filter(|r| r.starts_with("GET"))
        .cloned()
        .collect();
    assert!(gets.is_empty(), "{gets:?}");

    // Offline, from the cache alone; an empty cache says so.
    server.edit().requests.clear();
    let offline = Hub::new(&server.endpoint, cache.path(), None, true).unwrap();
    assert_eq!(offline.fetch("hf://org/name", quiet()).unwrap(), fetched);
    let empty = tempfile::tempdir().unwrap();
    let offline = Hub::new(&server.endpoint, empty.path(), None, true).unwrap();
    let error = offline
        .fetch("hf://org/name", quiet())
        .unwrap_err()
        .to_string();
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
    assert!(server.edit().requests.is_empty());
}

#[test]
fn shards_redirects_revisions() {
    let server = Server::new("hf_dinov2_registers");
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path(), None);
    let fetched = hub.fetch("hf://org/old@v1", quiet()).unwrap();
    let checkpoint = Checkpoint::open_path("hf://org/old@v1", &fetched, &Hints::default()).unwrap();
    checkpoint.load(&LoadOptions::default()).unwrap();
    server
        .edit()
        .files
        .remove("model-00003-of-00004.safetensors");
    let other = tempfile::tempdir().unwrap();
    let error = server
        .hub(other.path(), None)
        .fetch("hf://org/name", quiet());
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("model-00003-of-00004.safetensors"),
        "{error}"
    );
}

#[test]
fn errors_say_what_to_do() {
    let server = Server::new("hf_deit");
    let cache = tempfile::tempdir().unwrap();
    let fails = |origin: &str, token: Option<&str>| {
        let error = server.hub(cache.path(), token).fetch(origin, quiet());
        let text = error.unwrap_err().to_string();
        assert!(!text.contains('\n') && text.starts_with("hf://"), "{text}");
        text
    };
    assert!(fails("hf://org", None).contains("hf://org/name"));
    assert!(fails("hf://org/../x", None).contains("expected"));
    assert!(fails("hf://org/missing", None).contains("HF_TOKEN"));
    assert!(fails("hf://org/name@nope", None).contains("after @"));
    server.edit().token = Some("secret");
    assert!(fails("hf://org/name", Some("wrong")).contains("HF_TOKEN"));
    let hub = server.hub(cache.path(), Some("secret"));
    hub.fetch("hf://org/name", quiet()).unwrap();
}

#[test]
fn trouble_on_the_way() {
    let server = Server::new("hf_deit");
    let file = "model.safetensors".to_owned();
    // 500 twice, then success.
    server.edit().trouble.insert(file.clone(), vec![500, 500]);
    let cache = tempfile::tempdir().unwrap();
    server
        .hub(cache.path(), None)
        .fetch("hf://org/name", quiet())
        .unwrap();
    // A damaged download is noticed and fetched again.
    let cache = tempfile::tempdir().unwrap();
    server.edit().cut.insert(file.clone(), 1);
    server
        .hub(cache.path(), None)
        .fetch("hf://org/name", quiet())
        .unwrap();
    // Damaged again and again: an error, and the cache does not keep it.
    let cache = tempfile::tempdir().unwrap();
    server.edit().cut.insert(file.clone(), 100);
    let error = server
        .hub(cache.path(), None)
        .fetch("hf://org/name", quiet());
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("SHA-256") && error.contains("twice"),
        "{error}"
    );
    server.edit().cut.clear();
    let hub = server.hub(cache.path(), None);
    let fetched = hub.fetch("hf://org/name", quiet()).unwrap();
    let bytes = std::fs::read(fetched.join(&file)).unwrap();
    assert_eq!(bytes, server.edit().files[&file]);
}
