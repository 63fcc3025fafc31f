//! `convert --upload` against a server of our own: no test touches the network.
#![cfg(feature = "hub")]
mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use common::{fails, ok, vitfreeze};

/// Requests with their bodies.
type Requests = Arc<Mutex<Vec<(String, String, String)>>>;

/// A Hub that takes every file as it is into a commit, from one who has the token `good`.
fn server() -> (String, Requests) {
    let requests = Requests::default();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let seen = requests.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut first, mut head) = (String::new(), String::new());
            reader.read_line(&mut first).unwrap();
            while reader.read_line(&mut head).unwrap() > 2 {}
            let head = head.to_lowercase();
            let length = head.split("content-length: ").nth(1);
            let length = length.map_or(0, |l| l.split("\r\n").next().unwrap().parse().unwrap());
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let body = String::from_utf8(body).unwrap();
            let path = first.split(' ').nth(1).unwrap().to_owned();
            let (status, answer) = if !head.contains("authorization: bearer good\r\n") {
                ("403 Forbidden", "{}".to_owned())
            } else if path == "/api/repos/create" {
                (
                    "200 OK",
                    format!(r#"{{"url":"{}","name":"me/vit"}}"#, "http://x/me/vit"),
                )
            } else if path.contains("/preupload/") {
                let asked: serde_json::Value = serde_json::from_str(&body).unwrap();
                let files = asked["files"].as_array().unwrap().iter();
                let files =
                    files.map(|f| format!(r#"{{"path":{},"uploadMode":"regular"}}"#, f["path"]));
                let files: Vec<String> = files.collect();
                ("200 OK", format!(r#"{{"files":[{}]}}"#, files.join(",")))
            } else {
                (
                    "200 OK",
                    r#"{"success":true,"commitOid":"1","commitUrl":"http://x/1"}"#.into(),
                )
            };
            seen.lock().unwrap().push((first, path, body));
            let length = answer.len();
            let kind = "Content-Type: application/json";
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\nConnection: close\r\n{kind}\r\nContent-Length: {length}\r\n\r\n{answer}"
            );
        }
    });
    (endpoint, requests)
}

fn convert(endpoint: &str, out: &Path) -> Command {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../vit/tests/fixtures/checkpoints/timm_distilled");
    let mut command = vitfreeze(["convert"]);
    command
        .arg(tiny)
        .arg(out)
        .args(["--to=timm", "--upload=me/vit"]);
    command
        .env("HF_ENDPOINT", endpoint)
        .env("HF_HOME", out.with_extension("home"));
    command.env_remove("HF_TOKEN").env_remove("HF_HUB_OFFLINE");
    command
}

#[test]
fn a_folder_is_uploaded_in_one_commit() {
    let (dir, (endpoint, requests)) = (tempfile::tempdir().unwrap(), server());
    let out = dir.path().join("out");
    let said = ok({
        let mut command = convert(&endpoint, &out);
        command.env("HF_TOKEN", "good").arg("--private");
        command
    });
    assert!(said.contains("https://huggingface.co/me/vit"), "{said}");
    let requests = requests.lock().unwrap();
    let of = |part: &str| {
        requests
            .iter()
            .find(|(_, path, _)| path.contains(part))
            .unwrap()
    };
    let made: serde_json::Value = serde_json::from_str(&of("/repos/create").2).unwrap();
    assert_eq!(made["private"], true, "{made}");
    let lines = of("/api/models/me/vit/commit/main").2.lines();
    let entries: Vec<serde_json::Value> = lines.map(|l| serde_json::from_str(l).unwrap()).collect();
    let mut sent: Vec<&str> = entries
        .iter()
        .filter_map(|e| e["value"]["path"].as_str())
        .collect();
    sent.sort();
    let mut there: Vec<String> = std::fs::read_dir(&out)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort();
    assert_eq!(sent, there);
    assert!(sent.contains(&"model.safetensors"));
}

#[test]
fn what_cannot_be_uploaded_is_written_all_the_same() {
    let (dir, (endpoint, _)) = (tempfile::tempdir().unwrap(), server());
    for (token, reason) in [
        (None, "set HF_TOKEN to a token that may write"),
        (Some("bad"), "set HF_TOKEN to a token that may write"),
    ] {
        let out = dir.path().join(token.unwrap_or("none"));
        let mut command = convert(&endpoint, &out);
        if let Some(token) = token {
            command.env("HF_TOKEN", token);
        }
        let error = fails(command, 1);
        assert!(
            error.contains(reason) && error.contains("is written but not uploaded"),
            "{error}"
        );
        assert!(out.join("model.safetensors").is_file());
    }
}
