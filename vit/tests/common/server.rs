//! A server that speaks the Hub's protocol, and can be in trouble in every way that we know.
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use sha1::Sha1;
use sha2::{Digest, Sha256};
use vit::Hub;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the server treats `Range`.
#[derive(Clone, Copy, Default, PartialEq)]
pub enum Ranges {
    #[default]
    Given,
    /// The whole file, with status 200.
    Ignored,
    /// Status 416.
    Refused,
    /// Status 206, but from the start.
    Wrong,
}

/// What the server has, and how it behaves.
#[derive(Default)]
pub struct Site {
    pub files: HashMap<String, Vec<u8>>,
    /// Statuses that GET gives before it behaves, by file.
    pub trouble: HashMap<String, Vec<u16>>,
    /// Changes a byte of the body, so often.
    pub spoil: HashMap<String, usize>,
    /// Closes the connection after so many bytes of the body, once for each number.
    pub cut: HashMap<String, Vec<usize>>,
    /// Sends no more after so many bytes, and keeps the connection open.
    pub stall: Option<usize>,
    pub ranges: Ranges,
    /// In the place of the content's hash.
    pub etag: Option<String>,
    pub commit: String,
    pub token: Option<&'static str>,
    /// Where weights are stored, if elsewhere.
    pub storage: Option<String>,
    pub requests: Vec<Request>,
}

/// What was asked for, and how much of the body was sent.
#[derive(Clone, Debug)]
pub struct Request {
    pub line: String,
    pub range: Option<u64>,
    pub authorized: bool,
    pub sent: usize,
}

pub struct Server {
    pub endpoint: String,
    site: Arc<Mutex<Site>>,
}

impl Server {
    /// Serves the files of a fixture as `org/name`.
    pub fn new(fixture: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let mut site = Site {
            commit: COMMIT.to_owned(),
            ..Site::default()
        };
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/checkpoints")
            .join(fixture);
        for entry in std::fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            site.files.insert(name, std::fs::read(&path).unwrap());
        }
        let site = Arc::new(Mutex::new(site));
        let shared = site.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, site) = (stream.unwrap(), shared.clone());
                std::thread::spawn(move || serve(stream, &site));
            }
        });
        Self { endpoint, site }
    }

    pub fn hub(&self, cache: &Path, token: Option<&str>) -> Hub {
        Hub::new(&self.endpoint, cache, token, false).unwrap()
    }

    pub fn edit(&self) -> MutexGuard<'_, Site> {
        self.site.lock().unwrap()
    }

    /// The GETs of files whose path ends like this, so far.
    pub fn gets(&self, end: &str) -> Vec<Request> {
        let site = self.edit();
        let is = |r: &&Request| r.line.starts_with("GET ") && r.line.ends_with(end);
        site.requests.iter().filter(is).cloned().collect()
    }
}

fn serve(mut stream: TcpStream, site: &Mutex<Site>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut first = String::new();
    let _ = reader.read_line(&mut first);
    let mut words = first.split_whitespace();
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let mut request = Request {
        line: format!("{method} {path}"),
        range: None,
        authorized: false,
        sent: 0,
    };
    let mut token = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) <= 2 {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or_default();
        match (name.to_lowercase().as_str(), value.trim()) {
            ("authorization", value) => token = value.to_owned(),
            ("range", value) => {
                let start = value.strip_prefix("bytes=").unwrap();
                request.range = Some(start.trim_end_matches('-').parse().unwrap());
            }
            _ => {}
        }
    }
    request.authorized = !token.is_empty();
    let mut site = site.lock().unwrap();
    let (mut head, mut body, stall) = answer(&mut site, &request, &token);
    if method == "HEAD" {
        body.clear();
    }
    request.sent = body.len();
    site.requests.push(request);
    drop(site);
    head.extend(body);
    let _ = stream.write_all(&head);
    if stall {
        std::thread::sleep(std::time::Duration::from_secs(600));
    }
}

/// Head and body of an answer, and whether the connection is left open without a word.
fn answer(site: &mut Site, request: &Request, token: &str) -> (Vec<u8>, Vec<u8>, bool) {
    let (method, path) = request.line.split_once(' ').unwrap();
    let reply = |status: &str, headers: &str, body: &[u8]| {
        let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n");
        (head.into_bytes(), body.to_vec(), false)
    };
    let empty = "Content-Length: 0\r\n";
    let stored = path.strip_prefix("/storage/");
    let secret = site.token.map(|secret| format!("Bearer {secret}"));
    if stored.is_none() && secret.is_some_and(|secret| secret != token) {
        return reply("401 Unauthorized", empty, b"");
    }
    // Renamed repositories redirect, relatively.
    if let Some(rest) = path.strip_prefix("/org/old/") {
        let to = format!("Location: /org/name/{rest}\r\n{empty}");
        return reply("307 Temporary Redirect", &to, b"");
    }
    if path.starts_with("/api/models/org/name/tree/") {
        let entry = |(path, body): (&String, &Vec<u8>)| {
            let size = body.len();
            format!(r#"{{"type":"file","oid":"1","size":{size},"path":"{path}"}}"#)
        };
        let entries: Vec<String> = site.files.iter().map(entry).collect();
        let body = format!("[{}]", entries.join(","));
        let length = body.len();
        let headers = format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
        return reply("200 OK", &headers, body.as_bytes());
    }
    let commit = site.commit.clone();
    let revisions = ["main", "v1", "refs%2Fpr%2F1", COMMIT];
    let named = revisions
        .iter()
        .find_map(|rev| path.strip_prefix(&format!("/org/name/resolve/{rev}/")));
    let name = stored.or(named).unwrap_or_default().to_owned();
    let Some(body) = site.files.get(&name).cloned() else {
        let code = match (path.starts_with("/org/name/resolve/"), named) {
            (true, Some(_)) => "EntryNotFound",
            (true, None) => "RevisionNotFound",
            _ => "RepoNotFound",
        };
        let headers = format!("X-Error-Code: {code}\r\nX-Repo-Commit: {commit}\r\n{empty}");
        return reply("404 Not Found", &headers, b"");
    };
    let size = body.len();
    let hex = |hash: &[u8]| hash.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let etag = site
        .etag
        .clone()
        .unwrap_or_else(|| match name.ends_with(".json") {
            true => hex(&Sha1::digest(
                [format!("blob {size}\0").as_bytes(), &body].concat(),
            )),
            false => hex(&Sha256::digest(&body)),
        });
    let about = format!("X-Repo-Commit: {commit}\r\n");
    if let (Some(to), None, false) = (&site.storage, stored, name.ends_with(".json")) {
        let headers = format!(
            "{about}X-Linked-ETag: \"{etag}\"\r\nX-Linked-Size: {size}\r\nLocation: {to}/storage/{name}\r\n{empty}"
        );
        return reply("302 Found", &headers, b"");
    }
    if method == "GET" {
        if let Some(status) = site.trouble.get_mut(&name).and_then(Vec::pop) {
            let status = format!("{status} Trouble");
            return reply(&status, "Content-Length: 4\r\n", b"oops");
        }
    }
    let (status, range, start) = match (request.range, site.ranges) {
        (None, _) | (_, Ranges::Ignored) => ("200 OK", String::new(), 0),
        (Some(_), Ranges::Refused) => {
            let headers = format!("Content-Range: bytes */{size}\r\n{empty}");
            return reply("416 Range Not Satisfiable", &headers, b"");
        }
        (Some(start), kind) => {
            let start = if kind == Ranges::Wrong {
                0
            } else {
                start as usize
            };
            let range = format!("Content-Range: bytes {start}-{}/{size}\r\n", size - 1);
            ("206 Partial Content", range, start)
        }
    };
    let etag = match stored {
        None => format!("{about}ETag: \"{etag}\"\r\n"),
        Some(_) => "ETag: \"of the storage\"\r\n".into(),
    };
    let headers = format!("{etag}{range}Content-Length: {}\r\n", size - start);
    let (head, mut body, _) = reply(status, &headers, &body[start..]);
    let mut stall = false;
    if method == "GET" {
        if let Some(left) = site.spoil.get_mut(&name).filter(|n| **n > 0) {
            *left -= 1;
            let last = body.len() - 1;
            body[last] ^= 1;
        }
        if let Some(at) = site.cut.get_mut(&name).and_then(Vec::pop) {
            body.truncate(at);
        }
        if let Some(at) = site.stall.filter(|_| !name.ends_with(".json")) {
            body.truncate(at);
            stall = true;
        }
    }
    (head, body, stall)
}
