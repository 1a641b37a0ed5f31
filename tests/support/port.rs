//! Ports of the loopback interface that nobody else gets.

#![allow(dead_code, unreachable_pub, reason = "each test crate uses a part of it")]
#![allow(clippy::expect_used, reason = "a test that cannot be set up ends here")]

use tokio::net::TcpSocket;

/// A port on 127.0.0.1 that is kept while this lives.
///
/// It is bound and not listened on: no search for a free port and no outgoing connection gets it, and a server that sets
/// `SO_REUSEADDR`, as PostgreSQL and etcd do, can listen on it, also again after a restart.
pub struct Port {
    socket: TcpSocket,
}

impl Port {
    /// One that nobody uses.
    pub fn kept() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("SO_REUSEADDR");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
        Self { socket }
    }

    pub fn number(&self) -> u16 {
        self.socket.local_addr().expect("its address").port()
    }
}
