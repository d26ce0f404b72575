//! Connections of clients, and what happens to those that take nothing or say nothing.
//!
//! Owns: accepting connections, and the time that a client may do nothing: with what is written to it, with an answer that
//! waits for it ([`answer`]), or before it asks for something ([`traffic`]). And how many files the process may have open.
//! Does not: know what is asked for, and answered.
//! Keeps: a client that stops reading holds its connection, and what was read and written for it, for a bounded time; and
//! so does one that connects and asks for nothing.

pub(crate) mod answer;
mod files;
pub(crate) mod traffic;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};

pub use self::files::raise_limit;
use self::traffic::Verdict;
pub use self::traffic::{Patience, Traffic};

/// How long a write may be stuck, and an answer wait for its client, unless the operator says otherwise. A client that is
/// slow takes something in this time; one that is gone without a word, or asleep, does not. Whoever follows a stream comes
/// back to its place.
pub const STALL_SECONDS_DEFAULT: u64 = 30;
/// How long a client that has connected may take for its first request unless the operator says otherwise.
pub const REQUEST_SECONDS_DEFAULT: u64 = 30;

/// Accepts connections.
#[derive(Debug)]
pub struct Connections {
    listener: TcpListener,
    patience: Patience,
}

impl Connections {
    /// Closes connections whose clients do nothing for longer than that.
    #[must_use]
    pub const fn new(listener: TcpListener, patience: Patience) -> Self {
        Self { listener, patience }
    }
}

impl Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        // Without this, small answers wait for the acknowledgement of the one before: 40 ms for nothing.
        drop(stream.set_nodelay(true));
        let (patience, traffic) = (self.patience, Traffic::new(Instant::now()));
        (Connection { stream, peer, patience, traffic, stuck: None, look: None }, peer)
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
    patience: Patience,
    traffic: Traffic,
    /// Runs while a write is stuck.
    stuck: Option<Pin<Box<Sleep>>>,
    /// Runs until the next look at the traffic.
    look: Option<Pin<Box<Sleep>>>,
}

impl Connected<IncomingStream<'_, Connections>> for Traffic {
    fn connect_info(stream: IncomingStream<'_, Connections>) -> Self {
        stream.io().traffic.clone()
    }
}

impl Connection {
    /// Passes a write's outcome on, unless it has been stuck for too long.
    fn watched<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stuck = None;
            return written;
        }
        let stall = self.patience.stall;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        if stuck.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(Err(self.disconnected()))
    }

    /// Whether the connection goes on while nothing comes from the client. The answers on it are written by other tasks,
    /// so this is where all of them can be ended: an error in reading ends the connection with whatever is on it.
    fn goes_on(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let at = match self.traffic.verdict(Instant::now(), self.patience) {
                Verdict::LookAt(at) => at,
                // The last answer is still on its way; the other clock runs.
                Verdict::Silent if self.stuck.is_some() => return Poll::Pending,
                // To whoever reads it, as if the client had closed it.
                Verdict::Silent => return Poll::Ready(Ok(())),
                Verdict::Stuck => return Poll::Ready(Err(self.disconnected())),
            };
            let look = self.look.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            // One that is due earlier than needed looks again then; it is not set anew for each byte that comes.
            if look.is_elapsed() || look.deadline() > at {
                look.as_mut().reset(at);
            }
            if look.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn disconnected(&self) -> io::Error {
        let (peer, seconds) = (self.peer, self.patience.stall.as_secs());
        tracing::info!(%peer, seconds, "a client that takes nothing was disconnected");
        io::ErrorKind::TimedOut.into()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if read.is_ready() { read } else { this.goes_on(cx) }
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
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_write_that_is_stuck_ends_and_a_slow_one_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let patience = Patience { stall: Duration::from_millis(200), request: Duration::from_secs(60) };
        let mut connections = Connections::new(listener, patience);
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
