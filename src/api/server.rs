//! Sockets and connections, on a thread of their own: what hangs elsewhere does not hang here.

use super::{
    Error, Settings,
    caller::Caller,
    patience::Patient,
    routes::{self, App},
};
use crate::{agent::handle::Handle, model::node::Address};
use axum::{Router, extract::Request};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::oneshot,
    task::JoinSet,
};
use tower_service::Service;

/// So many TCP connections are held open; one more is closed at once.
const CONNECTIONS: usize = 256;
/// So many of them from one address: one client cannot take the place of all others.
const CONNECTIONS_EACH: usize = 64;
/// So many local connections.
const LOCAL_CONNECTIONS: usize = 64;

/// The running API. Ends with this value.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    addresses: Vec<SocketAddr>,
    socket: Option<PathBuf>,
}

/// TCP sockets on which nobody answers yet: who connects waits.
#[derive(Debug, Default)]
pub struct Listeners(Vec<std::net::TcpListener>);

/// Listens on TCP, before anything else is begun: an address in use is found while nothing has been touched.
///
/// # Errors
/// [`Error::Listen`]: nothing is left behind.
pub fn listen(addresses: &[Address]) -> Result<Listeners, Error> {
    addresses.iter().map(listen_tcp).collect::<Result<Vec<_>, _>>().map(Listeners)
}

/// Opens the local socket, and answers there and on TCP from now on, on a thread of its own.
///
/// # Errors
/// [`Error`]: nothing is left behind.
pub fn start(settings: Settings, tcp: Listeners, handle: Handle) -> Result<Server, Error> {
    let Listeners(tcp) = tcp;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    let unix = settings.socket.as_deref().map(listen_unix).transpose()?;
    let socket = settings.socket.clone();
    let addresses = tcp.iter().filter_map(|listener| listener.local_addr().ok()).collect();
    let (stop, stopped) = oneshot::channel();
    let patience = settings.patience.to_std();
    let router = routes::router(Arc::new(App::new(settings, handle)));
    let body = move || runtime.block_on(run(tcp, unix, router, patience, stopped));
    let thread = std::thread::Builder::new().name("api".to_owned()).spawn(body);
    let thread = thread.map_err(|error| {
        remove(socket.as_deref());
        Error::Runtime(error)
    })?;
    Ok(Server { stop: Some(stop), thread: Some(thread), addresses, socket })
}

impl Server {
    /// Where TCP is listened on: with the real port where 0 was asked for.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A new agent must not find the socket of one that is gone.
        remove(self.socket.as_deref());
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It waits for nothing but this; a panic there was told by then.
            let _ = thread.join();
        }
    }
}

fn remove(socket: Option<&Path>) {
    if let Some(path) = socket {
        let _ = fs::remove_file(path);
    }
}

fn listen_tcp(address: &Address) -> Result<std::net::TcpListener, Error> {
    let fault = |source| Error::Listen { place: address.to_string(), source };
    let found: Vec<SocketAddr> = (address.host.as_str(), address.port).to_socket_addrs().map_err(fault)?.collect();
    let listener = std::net::TcpListener::bind(found.as_slice()).map_err(fault)?;
    listener.set_nonblocking(true).map_err(fault)?;
    Ok(listener)
}

/// A socket file without anybody behind it is left over from an agent that was killed.
fn listen_unix(path: &Path) -> Result<std::os::unix::net::UnixListener, Error> {
    let fault = |source| Error::Listen { place: path.display().to_string(), source };
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(Error::Taken { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(fault)?,
        Err(_) => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(fault)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(fault)?;
    listener.set_nonblocking(true).map_err(fault)?;
    Ok(listener)
}

async fn run(
    tcp: Vec<std::net::TcpListener>,
    unix: Option<std::os::unix::net::UnixListener>,
    router: Router,
    patience: Duration,
    stopped: oneshot::Receiver<()>,
) {
    let mut loops = JoinSet::new();
    let places = Arc::new(Places::default());
    for listener in tcp {
        match TcpListener::from_std(listener) {
            Ok(listener) => drop(loops.spawn(accept_tcp(listener, Arc::clone(&places), router.clone(), patience))),
            Err(error) => tracing::error!(%error, "the API cannot accept connections"),
        }
    }
    match unix.map(UnixListener::from_std) {
        Some(Ok(listener)) => drop(loops.spawn(accept_unix(listener, router, patience))),
        Some(Err(error)) => tracing::error!(%error, "the API cannot accept local connections"),
        None => {}
    }
    // Dropping the loops ends every connection.
    let _ = stopped.await;
}

async fn accept_tcp(listener: TcpListener, places: Arc<Places>, router: Router, patience: Duration) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, address)) = listener.accept().await else {
            pause().await;
            continue;
        };
        let Some(place) = places.take(address.ip()) else { continue };
        // Answers are small and wanted at once.
        let _ = stream.set_nodelay(true);
        let connection = serve(stream, Caller::Remote { address }, router.clone(), patience);
        connections.spawn(async move {
            connection.await;
            drop(place);
        });
    }
}

async fn accept_unix(listener: UnixListener, router: Router, patience: Duration) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            pause().await;
            continue;
        };
        let Ok(credentials) = stream.peer_cred() else { continue };
        if connections.len() < LOCAL_CONNECTIONS {
            connections.spawn(serve(stream, Caller::Local { uid: credentials.uid() }, router.clone(), patience));
        }
    }
}

/// After an accept that failed (no file descriptor is free, for example) another one would fail the same way.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

async fn serve<S>(stream: S, caller: Caller, router: Router, patience: Duration)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(caller);
        router.clone().call(request.map(axum::body::Body::new) as Request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience).max_buf_size(16 << 10);
    // What a client does wrong ends its connection and concerns nobody else.
    if let Err(error) = http.serve_connection(TokioIo::new(Patient::new(stream, patience)), service).await {
        tracing::trace!(%error, ?caller, "a connection ended");
    }
}

/// Who holds how many connections.
#[derive(Debug, Default)]
struct Places(Mutex<HashMap<IpAddr, usize>>);

/// One connection's place; free again when dropped.
struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Places {
    fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = held.values().sum();
        let own = held.entry(address).or_default();
        if all >= CONNECTIONS || *own >= CONNECTIONS_EACH {
            return None;
        }
        *own += 1;
        Some(Place { places: Arc::clone(self), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.address);
            }
        }
    }
}
