//! `hf://datasets/org/name` against a server of our own: no test touches the network.
#![cfg(all(feature = "hub", feature = "parquet"))]
mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};

use common::{fails, ok, vitfreeze};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const SHARDS: [&str; 3] = [
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet",
    "data/validation-00000-of-00001.parquet",
];

#[derive(Default)]
struct Site {
    files: BTreeMap<String, Vec<u8>>,
    /// Answers GETs of shards, and HEADs too if it is no success, with this status.
    status: Option<&'static str>,
    /// Answers GETs of shards with an error page, though HEAD was fine.
    only_get: bool,
    requests: Vec<String>,
}

struct Server {
    endpoint: String,
    site: Arc<Mutex<Site>>,
}

impl Server {
    /// Twelve images in each shard.
    fn new() -> Self {
        let shard = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../datasets/tests/fixtures/sources/pyarrow.parquet");
        let shard = std::fs::read(shard).unwrap();
        let mut site = Site::default();
        for name in SHARDS {
            site.files.insert(name.into(), shard.clone());
        }
        site.files.insert("README.md".into(), b"# data".to_vec());
        let site = Arc::new(Mutex::new(site));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shared = site.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, site) = (stream.unwrap(), shared.clone());
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    let mut first = String::new();
                    let _ = reader.read_line(&mut first);
                    let mut line = String::new();
                    while reader.read_line(&mut line).unwrap_or(0) > 2 {
                        line.clear();
                    }
                    let answer = answer(&mut site.lock().unwrap(), &first);
                    let _ = stream.write_all(&answer);
                });
            }
        });
        Self { endpoint, site }
    }

    fn site(&self) -> MutexGuard<'_, Site> {
        self.site.lock().unwrap()
    }

    /// What was fetched since the last time.
    fn fetched(&self) -> Vec<String> {
        let requests = std::mem::take(&mut self.site().requests);
        let files = requests.iter().filter_map(|r| {
            let (_, file) = r.strip_prefix("GET ")?.split_once("/resolve/")?;
            Some(file.split_once('/')?.1.to_owned())
        });
        files.collect()
    }

    fn data(&self, cache: &Path, args: &[&str]) -> Command {
        let mut command = vitfreeze(["data"]);
        command.args(args).env("HF_ENDPOINT", &self.endpoint);
        command.env("HF_HUB_CACHE", cache).env_remove("HF_TOKEN");
        command.env_remove("HF_HUB_OFFLINE").env("HF_HOME", cache);
        command
    }
}

fn answer(site: &mut Site, request: &str) -> Vec<u8> {
    let mut words = request.split_whitespace();
    let (method, url) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    site.requests.push(format!("{method} {url}"));
    let path = url.split('?').next().unwrap_or("");
    let reply = |status: &str, headers: &str, body: &[u8]| {
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
        );
        [head.as_bytes(), if method == "HEAD" { b"" } else { body }].concat()
    };
    let json = |body: String| {
        reply(
            "200 OK",
            "Content-Type: application/json\r\n",
            body.as_bytes(),
        )
    };
    // hf-hub asks for datasets under /api, and for files elsewhere.
    let Some(api) = path.strip_prefix("/api/datasets/org/name") else {
        let file = path.strip_prefix(&format!("/datasets/org/name/resolve/{COMMIT}/"));
        let Some((file, body)) = file.and_then(|f| Some((f, site.files.get(f)?))) else {
            return reply("404 Not Found", "X-Error-Code: RepoNotFound\r\n", b"");
        };
        return match site.status {
            Some(status) if !site.only_get || method == "GET" => {
                reply(status, "X-Error-Code: GatedRepo\r\n", b"no access")
            }
            _ => {
                // No hash of the content, so not in hexadecimal.
                let etag: String = file.bytes().map(|b| format!("x{b:02x}")).collect();
                let headers = format!("ETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\n");
                reply("200 OK", &headers, body)
            }
        };
    };
    let revision = api.rsplit('/').next().unwrap_or("");
    if !["", "main", "v1", COMMIT].contains(&revision) {
        return reply("404 Not Found", "X-Error-Code: RevisionNotFound\r\n", b"{}");
    }
    if api.starts_with("/tree/") {
        let entries = site.files.iter().map(|(path, body)| {
            let size = body.len();
            format!(r#"{{"type":"file","oid":"1","size":{size},"path":"{path}"}}"#)
        });
        let entries: Vec<String> = entries.collect();
        return json(format!(
            r#"[{{"type":"directory","oid":"2","path":"data"}},{}]"#,
            entries.join(",")
        ));
    }
    json(format!(r#"{{"id":"org/name","_id":"1","sha":"{COMMIT}"}}"#))
}

#[test]
fn fetches_the_shards_of_the_split_once() {
    let (server, cache) = (Server::new(), tempfile::tempdir().unwrap());
    let inspect = |split: &str| {
        let split = format!("--split={split}");
        let args = ["inspect", "hf://datasets/org/name", &split, "--check"];
        server.data(cache.path(), &args)
    };
    let said = ok(inspect("train"));
    assert!(
        said.starts_with("Parquet, 24 images, 3 classes\n"),
        "{said}"
    );
    assert_eq!(server.fetched(), SHARDS[..2]);
    // A second time nothing is.
    ok(inspect("train"));
    assert!(server.fetched().is_empty());
    // val is called validation there.
    assert!(ok(inspect("val")).starts_with("Parquet, 12 images"));
    assert_eq!(server.fetched(), SHARDS[2..]);

    // A file that is cut short in the cache is fetched again.
    let snapshot = cache
        .path()
        .join("datasets--org--name/snapshots")
        .join(COMMIT);
    let shard = std::fs::canonicalize(snapshot.join(SHARDS[1])).unwrap();
    std::fs::write(&shard, b"PAR1").unwrap();
    ok(inspect("train"));
    assert_eq!(server.fetched(), SHARDS[1..2]);

    // Offline from the cache alone.
    let offline = |split: &str| {
        let mut command = inspect(split);
        command.env("HF_HUB_OFFLINE", "1");
        command
    };
    assert!(ok(offline("train")).starts_with("Parquet, 24 images"));
    let message = fails(offline("extra"), 2);
    assert!(
        message.contains("no split 'extra' here, only train, validation"),
        "{message}"
    );
    std::fs::remove_file(snapshot.join(SHARDS[0])).unwrap();
    let message = fails(offline("train"), 2);
    assert!(
        message.contains("1 of 2 files are missing: train-00000-of-00002"),
        "{message}"
    );
    let empty = tempfile::tempdir().unwrap();
    let mut command = server.data(empty.path(), &["inspect", "hf://datasets/org/name"]);
    let message = fails(
        std::mem::replace(command.env("HF_HUB_OFFLINE", "1"), Command::new("")),
        1,
    );
    assert!(
        message.contains("not in the cache, and HF_HUB_OFFLINE is set"),
        "{message}"
    );
    assert!(server.site().requests.is_empty());
}

#[test]
fn revisions_folders_and_runs() {
    let (server, cache) = (Server::new(), tempfile::tempdir().unwrap());
    let out = cache.path().join("name.cache");
    let to = format!("--out={}", out.display());
    let origin = "hf://datasets/org/name@v1/data";
    ok(server.data(cache.path(), &["cache", origin, &to]));
    let said = ok(server.data(cache.path(), &["inspect", out.to_str().unwrap()]));
    let expected = format!("cache of Parquet, 24 images, 3 classes, from {origin} (train)\n");
    assert!(said.starts_with(&expected), "{said}");
    let other = ["inspect", "hf://datasets/org/name/other"];
    let message = fails(server.data(cache.path(), &other), 2);
    assert!(message.contains("no Parquet files there"), "{message}");
}

#[test]
fn errors_say_what_to_do() {
    let (server, cache) = (Server::new(), tempfile::tempdir().unwrap());
    let fails = |origin: &str, code| fails(server.data(cache.path(), &["inspect", origin]), code);
    let message = fails("hf://datasets/org/none", 1);
    assert!(
        message.contains("hf://datasets/org/none: no such dataset"),
        "{message}"
    );
    assert!(message.contains("check the name"), "{message}");
    let message = fails("hf://datasets/org/name@nope", 1);
    assert!(message.contains("after @"), "{message}");
    for origin in [
        "hf://datasets/org",
        "hf://datasets/org/../x",
        "hf://datasets/org/name@../x",
    ] {
        let message = fails(origin, 1);
        assert!(
            message.contains("expected hf://datasets/org/name"),
            "{message}"
        );
    }
    // Gated: the list may be seen, the files not.
    for status in ["401 Unauthorized", "403 Forbidden"] {
        server.site().status = Some(status);
        let message = fails("hf://datasets/org/name", 1);
        let advice =
            "accept the terms on https://huggingface.co/datasets/org/name, then set HF_TOKEN";
        assert!(message.contains(advice), "{message}");
    }
    // HEAD was fine, GET is refused: the page must not pass for a shard, nor stay in the cache.
    server.site().only_get = true;
    let message = fails("hf://datasets/org/name", 1);
    assert!(
        message.starts_with("error: hf://datasets/org/name: "),
        "{message}"
    );
    server.site().status = None;
    let said = ok(server.data(cache.path(), &["inspect", "hf://datasets/org/name"]));
    assert!(said.starts_with("Parquet, 24 images"), "{said}");
    // A name that leads out of the cache is nobody's shard.
    let evil = server.site().files[SHARDS[0]].clone();
    server.site().files.clear();
    server
        .site()
        .files
        .insert("../../train.parquet".into(), evil);
    assert!(fails("hf://datasets/org/name", 2).contains("no Parquet files there"));
}
