//! The Hub's protocol against a server of our own: no test touches the network.
#![cfg(feature = "hub")]
mod common;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use common::server::{Server, COMMIT};
use vit::{Checkpoint, Hints, Hub, LoadOptions};

fn quiet() -> vit::OnProgress {
    Arc::new(|_, _, _| {})
}

fn error(hub: &Hub, origin: &str) -> String {
    let text = hub.fetch(origin, quiet()).unwrap_err().to_string();
    assert!(!text.contains('\n') && text.starts_with("hf://"), "{text}");
    text
}

#[test]
fn fetches_checks_and_caches() {
    let server = Server::new("hf_deit");
    let cache = tempfile::tempdir().unwrap();
    let seen = Arc::new(AtomicU64::new(0));
    let most = seen.clone();
    let progress: vit::OnProgress = Arc::new(move |_, done, total| {
        assert!(done <= total);
        most.fetch_max(done, Ordering::Relaxed);
    });
    let hub = server.hub(cache.path(), None);
    let fetched = hub.fetch("hf://org/name", progress).unwrap();
    assert!(fetched.ends_with(COMMIT));
    let size = server.edit().files["model.safetensors"].len() as u64;
    assert_eq!(seen.load(Ordering::Relaxed), size);
    let checkpoint = Checkpoint::open_path("hf://org/name", &fetched, &Hints::default()).unwrap();
    checkpoint.load(&LoadOptions::default()).unwrap();
    let folder = cache.path().join("models--org--name");
    assert_eq!(
        std::fs::read_to_string(folder.join("refs/main")).unwrap(),
        COMMIT
    );

    // A second time nothing is downloaded.
    server.edit().requests.clear();
    hub.fetch("hf://org/name", quiet()).unwrap();
    assert!(server.gets("").is_empty());

    // Offline, from the cache alone; an empty cache says so.
    server.edit().requests.clear();
    let offline = Hub::new(&server.endpoint, cache.path(), None, true).unwrap();
    assert_eq!(offline.fetch("hf://org/name", quiet()).unwrap(), fetched);
    let empty = tempfile::tempdir().unwrap();
    let offline = Hub::new(&server.endpoint, empty.path(), None, true).unwrap();
    let text = error(&offline, "hf://org/name");
    assert!(text.contains("HF_HUB_OFFLINE"), "{text}");
    assert!(server.edit().requests.is_empty());

    // No server: the cache serves, by branch and by commit.
    let nobody = Hub::new("http://127.0.0.1:1", cache.path(), None, false).unwrap();
    assert_eq!(nobody.fetch("hf://org/name", quiet()).unwrap(), fetched);
    let origin = format!("hf://org/name@{COMMIT}");
    assert_eq!(nobody.fetch(&origin, quiet()).unwrap(), fetched);
}

#[test]
fn inside_an_async_runtime() {
    let server = Server::new("hf_deit");
    let cache = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let hub = server.hub(cache.path(), None);
    runtime
        .unwrap()
        .block_on(async { hub.fetch("hf://org/name", quiet()) })
        .unwrap();
}

#[test]
fn shards_redirects_revisions() {
    let server = Server::new("hf_dinov2_registers");
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path(), None);
    let fetched = hub.fetch("hf://org/old@v1", quiet()).unwrap();
    let checkpoint = Checkpoint::open_path("hf://org/old@v1", &fetched, &Hints::default()).unwrap();
    checkpoint.load(&LoadOptions::default()).unwrap();
    // A pull request: one segment of the address, folders in the cache.
    hub.fetch("hf://org/name@refs/pr/1", quiet()).unwrap();
    let asked = server.edit().requests.iter().any(|r| {
        r.line
            .starts_with("HEAD /org/name/resolve/refs%2Fpr%2F1/config.json")
    });
    assert!(asked);
    assert!(cache
        .path()
        .join("models--org--name/refs/refs/pr/1")
        .is_file());
    server
        .edit()
        .files
        .remove("model-00003-of-00004.safetensors");
    let other = tempfile::tempdir().unwrap();
    let text = error(&server.hub(other.path(), None), "hf://org/name");
    assert!(text.contains("model-00003-of-00004.safetensors"), "{text}");
    // Half a checkpoint is not what a branch is.
    assert!(!other.path().join("models--org--name/refs/main").exists());
}

#[test]
fn errors_say_what_to_do() {
    let server = Server::new("hf_deit");
    let cache = tempfile::tempdir().unwrap();
    let fails = |origin: &str, token: Option<&str>| error(&server.hub(cache.path(), token), origin);
    assert!(fails("hf://org", None).contains("hf://org/name"));
    assert!(fails("hf://org/../x", None).contains("expected"));
    assert!(fails("hf://org/missing", None).contains("HF_TOKEN"));
    assert!(fails("hf://org/name@nope", None).contains("after @"));
    server.edit().token = Some("secret");
    assert!(fails("hf://org/name", Some("wrong")).contains("HF_TOKEN"));
    assert!(fails("hf://org/name", Some("li\nne")).contains("HF_TOKEN"));
    let hub = server.hub(cache.path(), Some("secret"));
    hub.fetch("hf://org/name", quiet()).unwrap();
    for endpoint in ["", "nowhere", "file:///etc"] {
        let no = Hub::new(endpoint, cache.path(), None, false).err().unwrap();
        assert!(no.to_string().contains("HF_ENDPOINT"), "{no}");
    }
}

#[test]
fn nothing_outside_leads_out_of_the_cache() {
    let server = Server::new("hf_deit");
    let outer = tempfile::tempdir().unwrap();
    let cache = outer.path().join("a/b/cache");
    let hub = server.hub(&cache, None);
    for revision in [
        "",
        "..",
        "../../../x",
        "a/../b",
        "a//b",
        "/etc",
        "a\\..\\b",
        ".hidden",
        "a\nb",
        "a b",
    ] {
        let text = error(&hub, &format!("hf://org/name@{revision}"));
        assert!(text.contains("after @"), "{text}");
    }
    assert!(server.edit().requests.is_empty());
    for etag in [
        "../../../../x",
        "",
        ".",
        "a/b",
        "a\\b",
        "x".repeat(999).as_str(),
    ] {
        server.edit().etag = Some(etag.to_owned());
        let text = error(&hub, "hf://org/name");
        assert!(text.contains("ETag"), "{text}");
    }
    server.edit().etag = None;
    for commit in ["../../../../x", "", "main"] {
        server.edit().commit = commit.to_owned();
        let text = error(&hub, "hf://org/name");
        assert!(text.contains("X-Repo-Commit"), "{text}");
    }
    let entries = |path: &Path| std::fs::read_dir(path).map_or(0, |e| e.count());
    assert_eq!(entries(outer.path()) + entries(&outer.path().join("a")), 0);
    // A commit that the cache holds is no more trusted.
    let refs = cache.join("models--org--name/refs");
    std::fs::create_dir_all(&refs).unwrap();
    std::fs::write(refs.join("main"), "../../../../../../etc").unwrap();
    let offline = Hub::new(&server.endpoint, &cache, None, true).unwrap();
    assert!(error(&offline, "hf://org/name").contains("not in the cache"));
}

/// A token does not cross the network in the clear.
#[test]
fn a_token_over_plain_http_is_refused() {
    let cache = tempfile::tempdir().unwrap();
    let hub = |endpoint: &str, token| Hub::new(endpoint, cache.path(), token, false);
    for endpoint in [
        "http://hub.example.org",
        "http://10.0.0.7:8080/hf",
        "http://localhost.example.org",
        "http://127.example.org",
        "http://[2001:db8::1]",
    ] {
        let error = hub(endpoint, Some("secret")).err().unwrap().to_string();
        assert!(
            error.contains("plain http") && !error.contains("secret"),
            "{error}"
        );
        assert!(hub(endpoint, None).is_ok());
        assert!(Hub::new(endpoint, cache.path(), Some("secret"), true).is_ok());
    }
    for endpoint in [
        "https://hub.example.org",
        "http://localhost:8080",
        "http://127.0.0.1:1",
        "http://[::1]:8080",
    ] {
        assert!(hub(endpoint, Some("secret")).is_ok(), "{endpoint}");
    }
}
