//! Downloads that are interrupted, damaged, changed or met by a strange server.
#![cfg(feature = "hub")]
mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::server::{Ranges, Server};
use sha2::{Digest, Sha256};

const WEIGHTS: &str = "model.safetensors";

fn fetch(server: &Server, cache: &Path) -> Result<PathBuf, String> {
    let hub = server.hub(cache, None);
    hub.fetch("hf://org/name", Arc::new(|_, _, _| {}))
        .map_err(|e| e.to_string())
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

fn weights(server: &Server) -> Vec<u8> {
    server.edit().files[WEIGHTS].clone()
}

/// Where the cache keeps what has come of a content.
fn partial(cache: &Path, content: &[u8]) -> PathBuf {
    let blobs = cache.join("models--org--name/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    blobs.join(format!("{}.incomplete", hash(content)))
}

/// Fetches and expects the weights to be whole, and nothing left over.
fn whole(server: &Server, cache: &Path) {
    let folder = fetch(server, cache).unwrap();
    let content = weights(server);
    assert!(std::fs::read(folder.join(WEIGHTS)).unwrap() == content);
    assert!(!partial(cache, &content).exists());
    let link = std::fs::read_link(folder.join(WEIGHTS)).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(hash(&content)));
}

#[test]
fn goes_on_after_a_cut() {
    let server = Server::new("hf_deit");
    let cache = tempfile::tempdir().unwrap();
    let size = weights(&server).len();
    let (first, second) = (size / 2, 1000);
    server
        .edit()
        .cut
        .insert(WEIGHTS.into(), vec![second, first]);
    let told = Arc::new(Mutex::new(Vec::new()));
    let all = told.clone();
    let hub = server.hub(cache.path(), None);
    hub.fetch(
        "hf://org/name",
        Arc::new(move |name, done, total| {
            if name == WEIGHTS {
                assert_eq!(total, size as u64);
                all.lock().unwrap().push(done);
            }
        }),
    )
    .unwrap();
    let asked = server.gets(WEIGHTS);
    let ranges: Vec<_> = asked.iter().map(|r| r.range).collect();
    let (half, more) = (first as u64, (first + second) as u64);
    assert_eq!(ranges, [None, Some(half), Some(more)]);
    assert_eq!(asked.iter().map(|r| r.sent).sum::<usize>(), size);
    assert!(told.lock().unwrap().is_sorted());
    whole(&server, cache.path());
}

/// Not a test: what the next one starts and kills.
#[test]
#[ignore]
fn child() {
    let get = |name| std::env::var(name).unwrap();
    let hub = vit::Hub::new(
        &get("TEST_ENDPOINT"),
        get("TEST_CACHE").as_ref(),
        None,
        false,
    );
    let _ = hub.unwrap().fetch("hf://org/name", Arc::new(|_, _, _| {}));
}

#[test]
fn goes_on_after_a_killed_process() {
    let server = Server::new("hf_deit");
    let cache = tempfile::tempdir().unwrap();
    let content = weights(&server);
    let half = content.len() / 2;
    server.edit().stall = Some(half);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored"])
        .env("TEST_ENDPOINT", &server.endpoint)
        .env("TEST_CACHE", cache.path())
        .spawn()
        .unwrap();
    let partial = partial(cache.path(), &content);
    let length = || std::fs::metadata(&partial).map_or(0, |m| m.len());
    for _ in 0..600 {
        if length() == half as u64 {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(length(), half as u64);
    server.edit().stall = None;
    server.edit().requests.clear();
    whole(&server, cache.path());
    let asked = server.gets(WEIGHTS);
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].range, Some(half as u64));
    assert_eq!(asked[0].sent, content.len() - half);
}

#[test]
fn another_version_starts_over() {
    let server = Server::new("hf_deit");
    let cache = tempfile::tempdir().unwrap();
    let old = weights(&server);
    let partial = partial(cache.path(), &old);
    std::fs::write(&partial, &old[..old.len() / 2]).unwrap();
    server.edit().files.get_mut(WEIGHTS).unwrap()[9] ^= 1;
    whole(&server, cache.path());
    let asked = server.gets(WEIGHTS);
    assert_eq!((asked.len(), asked[0].range), (1, None));
}

#[test]
fn servers_without_ranges_start_over() {
    for ranges in [Ranges::Ignored, Ranges::Refused, Ranges::Wrong] {
        let server = Server::new("hf_deit");
        let cache = tempfile::tempdir().unwrap();
        let content = weights(&server);
        std::fs::write(partial(cache.path(), &content), &content[..5000]).unwrap();
        server.edit().ranges = ranges;
        whole(&server, cache.path());
        let asked = server.gets(WEIGHTS);
        assert_eq!(asked[0].range, Some(5000));
        assert_eq!(asked.last().unwrap().sent, content.len());
        let last = (ranges != Ranges::Ignored).then_some(None);
        assert_eq!(asked.get(1).map(|r| r.range), last);
    }
}

#[test]
fn what_is_there_may_be_wrong_or_whole() {
    let server = Server::new("hf_deit");
    let content = weights(&server);
    let (size, half) = (content.len(), content.len() / 2);
    // Other bytes, too many bytes: from the start. All bytes: nothing is asked for.
    for (there, requests) in [
        (vec![7; half], vec![Some(half as u64), None]),
        (vec![7; size], vec![None]),
        (vec![7; size + 9], vec![None]),
        (content.clone(), vec![]),
    ] {
        let cache = tempfile::tempdir().unwrap();
        std::fs::write(partial(cache.path(), &content), there).unwrap();
        server.edit().requests.clear();
        whole(&server, cache.path());
        let asked: Vec<_> = server.gets(WEIGHTS).iter().map(|r| r.range).collect();
        assert_eq!(asked, requests);
    }
}

#[test]
fn two_at_once_fetch_once() {
    let server = Server::new("hf_deit");
    let cache = tempfile::tempdir().unwrap();
    server.edit().cut.insert(WEIGHTS.into(), vec![10, 10, 10]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| fetch(&server, cache.path()).unwrap());
        }
    });
    let sent: usize = server.gets(WEIGHTS).iter().map(|r| r.sent).sum();
    assert_eq!(sent, weights(&server).len());
    whole(&server, cache.path());
}

#[test]
fn trouble_on_the_way() {
    let server = Server::new("hf_deit");
    // 500 twice, then success.
    server.edit().trouble.insert(WEIGHTS.into(), vec![500, 500]);
    whole(&server, tempfile::tempdir().unwrap().path());
    // A damaged download is noticed and fetched again, small files by git's hash.
    for name in [WEIGHTS, "config.json"] {
        let cache = tempfile::tempdir().unwrap();
        server.edit().spoil.insert(name.into(), 1);
        server.edit().requests.clear();
        whole(&server, cache.path());
        assert_eq!(server.gets(&format!("/{name}")).len(), 2);
    }
    // Damaged again and again: an error, and the cache does not keep it.
    for (name, kind) in [(WEIGHTS, "SHA-256"), ("config.json", "SHA-1")] {
        let cache = tempfile::tempdir().unwrap();
        server.edit().spoil.insert(name.into(), 100);
        let text = fetch(&server, cache.path()).unwrap_err();
        assert!(text.contains(kind) && text.contains("twice"), "{text}");
        assert!(text.contains(name), "{text}");
        server.edit().spoil.clear();
        whole(&server, cache.path());
    }
}

#[test]
fn a_short_answer_again_and_again_is_an_error() {
    let server = Server::new("hf_deit");
    let cache = tempfile::tempdir().unwrap();
    server.edit().ranges = Ranges::Ignored;
    server.edit().cut.insert(WEIGHTS.into(), vec![3000; 99]);
    let text = fetch(&server, cache.path()).unwrap_err();
    let parts = [
        &format!("3000 of {}", weights(&server).len()),
        "to continue",
    ];
    assert!(parts.iter().all(|part| text.contains(*part)), "{text}");
    assert!(server.gets(WEIGHTS).len() < 10);
}

#[test]
fn the_storage_gets_the_range_and_no_token() {
    let (hub, storage) = (Server::new("hf_deit"), Server::new("hf_deit"));
    let cache = tempfile::tempdir().unwrap();
    hub.edit().token = Some("secret");
    hub.edit().storage = Some(storage.endpoint.clone());
    let content = weights(&hub);
    std::fs::write(partial(cache.path(), &content), &content[..7]).unwrap();
    let fetched = hub.hub(cache.path(), Some("secret"));
    let folder = fetched
        .fetch("hf://org/name", Arc::new(|_, _, _| {}))
        .unwrap();
    assert!(std::fs::read(folder.join(WEIGHTS)).unwrap() == content);
    assert!(hub.gets(WEIGHTS)[0].authorized);
    let asked = storage.gets(WEIGHTS);
    assert_eq!((asked.len(), asked[0].range), (1, Some(7)));
    assert!(!asked[0].authorized);
    // Nothing but bytes is asked of it.
    assert_eq!(storage.edit().requests.len(), 1);
}
