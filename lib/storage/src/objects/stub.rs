//! A server for tests that answers what it is told to.

use std::time::Duration;

use service_kit::config::s3::S3Config;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::Objects;

/// A bucket, below `some/`, whose server answers each request with the next of these, over and over: a status and a body. Gives the
/// requests too.
pub(super) async fn bucket(answers: Vec<(u16, String)>) -> (Objects, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (heard, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for (status, body) in answers.iter().cycle() {
            let (mut stream, _) = listener.accept().await.unwrap();
            drop(heard.send(request(&mut stream).await));
            let head = format!("HTTP/1.1 {status} told\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        }
    });
    let objects = Objects::new(&S3Config {
        endpoint: Some(endpoint),
        region: "us-east-1".into(),
        bucket: "clairvio".into(),
        prefix: "some/".into(),
        access_key: "a".into(),
        secret_key: "s".into(),
        request_timeout: Duration::from_secs(30),
        multipart_bytes: u64::MAX,
    });
    (objects, requests)
}

async fn request(stream: &mut TcpStream) -> String {
    let (mut request, mut piece) = (String::new(), [0; 65_536]);
    loop {
        let read = stream.read(&mut piece).await.unwrap();
        request.push_str(std::str::from_utf8(&piece[..read]).unwrap());
        let Some((head, body)) = request.split_once("\r\n\r\n") else { continue };
        let lower = head.to_ascii_lowercase();
        let len = lower.lines().find_map(|line| line.strip_prefix("content-length:"));
        let len = len.map_or(0, |len| len.trim().parse().unwrap());
        if body.len() >= len {
            return request;
        }
    }
}
