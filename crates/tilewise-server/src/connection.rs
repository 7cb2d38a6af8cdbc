//! Connections: how many, how long, and how they end.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::Sleep;

use crate::Limits;

/// Bytes of a request's head, and its fields.
const HEAD_BYTES: usize = 64 << 10;
const HEAD_FIELDS: usize = 100;

/// How long to wait when the system has no connection to give.
const REST: Duration = Duration::from_millis(50);

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client(pub(crate) IpAddr);

/// How many connections each address has.
#[derive(Debug, Clone)]
struct Shares {
    of: Arc<Mutex<HashMap<IpAddr, usize>>>,
    most: usize,
}

/// One of the connections of an address, until this is dropped; `None` for this machine's own.
struct Share(Option<(Shares, IpAddr)>);

impl Shares {
    fn new(most: usize) -> Self {
        Self { of: Arc::default(), most: most.max(1) }
    }

    /// Another one, unless the address has its share already.
    fn take(&self, address: IpAddr) -> Option<Share> {
        if address.is_loopback() {
            return Some(Share(None));
        }
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let count = of.entry(address).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Share(Some((self.clone(), address))))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Some((shares, address)) = self.0.take() else { return };
        let mut of = shares.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = of.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                of.remove(&address);
            }
        }
    }
}

/// Serves connections until `closing` says so, then waits until all that are open have ended.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    mut closing: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let shares = Shares::new(limits.connections / 2);
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closed(&mut closing) => break,
        };
        match accepted {
            Ok((stream, client)) => {
                // Nobody else has a place when one address has all of them; behind a proxy there is only one.
                let Some(share) = shares.take(client.ip()) else { continue };
                let router = router.clone().layer(Extension(Client(client.ip())));
                let connection = connection(stream, router, limits, closing.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop((share, place));
                });
            }
            // No file descriptor is left, or the client has gone: others will go too.
            Err(_) => tokio::time::sleep(REST).await,
        }
    }
    drop(listener);
    // All places are free when nobody is left.
    let _ = places.acquire_many(limits.connections as u32).await;
}

/// Waits until the server closes.
async fn closed(closing: &mut watch::Receiver<bool>) {
    // The other side is dropped by a server that has ended.
    let _ = closing.wait_for(|closing| *closing).await;
}

async fn connection(stream: TcpStream, router: Router, limits: Limits, mut closing: watch::Receiver<bool>) {
    // Tokens are small and shall not wait for more. A client that has gone already is found out soon.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(Patient { stream, patience: limits.write_time, waiting: None });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_time)
        .max_headers(HEAD_FIELDS)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(io, TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closed(&mut closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}

/// A stream whose writes fail when the other side takes nothing for too long.
struct Patient {
    stream: TcpStream,
    patience: Duration,
    /// Set while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    /// Looks at the clock while a write waits.
    fn poll_patience<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        match waiting.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.poll_patience(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.poll_patience(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_share_and_gives_it_back() {
        let (shares, one, other): (_, IpAddr, IpAddr) =
            (Shares::new(2), [192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let (first, second) = (shares.take(one), shares.take(one));
        assert!(first.is_some() && second.is_some() && shares.take(one).is_none());
        assert!(shares.take(other).is_some(), "its share is its own");
        drop(first);
        assert!(shares.take(one).is_some());
        drop(second);
        assert!(shares.of.lock().unwrap().is_empty());
        let own: Vec<Option<Share>> = (0..9).map(|_| shares.take([127, 0, 0, 1].into())).collect();
        assert!(own.iter().all(Option::is_some));
    }
}
