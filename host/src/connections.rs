//! Connections of clients, and what happens to those that take nothing.
//!
//! Owns: accepting connections, and the time that a write may be stuck.
//! Does not: know what goes over them.
//! Keeps: a client that stops reading holds its connection, and what was written for it, for a bounded time.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;

/// How long a write may be stuck unless the operator says otherwise. A client that is slow takes something in this time;
/// one that is gone without a word, or asleep, does not. Whoever follows a stream comes back to its place.
pub const STALL_SECONDS_DEFAULT: u64 = 30;

/// Accepts connections.
#[derive(Debug)]
pub struct Connections {
    listener: TcpListener,
    stall: Duration,
}

impl Connections {
    /// Closes a connection when a write on it has been stuck for so long.
    #[must_use]
    pub const fn new(listener: TcpListener, stall: Duration) -> Self {
        Self { listener, stall }
    }
}

impl Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        // Without this, small answers wait for the acknowledgement of the one before: 40 ms for nothing.
        drop(stream.set_nodelay(true));
        (Connection { stream, peer, stall: self.stall, stuck: None }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A client's connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    stall: Duration,
    /// Runs while a write is stuck.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    /// Passes a write's outcome on, unless it has been stuck for too long.
    fn watched<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stuck = None;
            return written;
        }
        let stall = self.stall;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        if stuck.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        tracing::info!(peer = %self.peer, seconds = stall.as_secs(), "a client that takes nothing was disconnected");
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.watched(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.watched(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_write_that_is_stuck_ends_and_a_slow_one_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut connections = Connections::new(listener, Duration::from_millis(200));
        let address = connections.local_addr().unwrap();
        let connecting = tokio::spawn(TcpStream::connect(address));
        let (mut connection, _) = connections.accept().await;
        let mut client = connecting.await.unwrap().unwrap();
        // More than both ends keep for each other.
        let much = vec![0; 32 << 20];
        // Each read makes room for a little; together they take longer than a write may be stuck.
        let slow = async {
            let mut part = vec![0; 1 << 20];
            for _ in 0..32 {
                client.read_exact(&mut part).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let (written, ()) = tokio::join!(connection.write_all(&much), slow);
        written.unwrap();
        let stuck = connection.write_all(&much).await;
        assert_eq!(stuck.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
