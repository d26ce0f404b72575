//! A connection to the server.
//!
//! Owns: one keep-alive HTTP/1.1 connection, one request at a time, with the API key of `serve --dev`.
//! Does not: retry, follow, pool or decode anything: what it costs is what is taken from the server.

use std::net::SocketAddr;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, HOST, HeaderName};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// A header that is the same in all requests of its kind.
pub(crate) type Header = (HeaderName, &'static str);

/// One connection. Closed on drop.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.context("cannot connect to the server")?;
        // A request is one small write: nothing is gained by waiting for more of it.
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // What goes wrong with the connection goes wrong with the request under way, which says so.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender })
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn open_response(
        &mut self,
        method: Method,
        path: &str,
        headers: &[Header],
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        let mut request =
            Request::builder().method(method).uri(path).header(HOST, "stepwell").header(AUTHORIZATION, "Bearer dev");
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let request = request.body(Full::new(body)).with_context(|| format!("cannot ask for {path}"))?;
        self.sender.ready().await.context("the server has closed the connection")?;
        self.sender.send_request(request).await.context("the server gave no answer")
    }

    /// Sends a request and waits for all of its answer.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[Header],
        body: Bytes,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let response = self.open_response(method, path, headers, body).await?;
        let status = response.status();
        let body = response.into_body().collect().await.context("the answer stopped in the middle")?;
        Ok((status, body.to_bytes()))
    }

    /// Sends a request that must be answered with `expected` and JSON.
    pub(crate) async fn send_for_json(
        &mut self,
        method: Method,
        path: &str,
        headers: &[Header],
        body: Bytes,
        expected: StatusCode,
    ) -> anyhow::Result<Value> {
        let (status, answer) = self.send(method, path, headers, body).await?;
        anyhow::ensure!(status == expected, "{path} was answered {status}: {}", String::from_utf8_lossy(&answer));
        serde_json::from_slice(&answer).with_context(|| format!("{path} was answered with what is not JSON"))
    }
}
