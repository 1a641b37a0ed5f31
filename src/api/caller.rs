//! Who asks, and what he may.

use super::{Settings, allow};
use axum::http::HeaderMap;
use std::net::SocketAddr;

/// Who asks, as the socket tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Over `agent.sock`: the kernel names the user.
    Local {
        /// The user's number.
        uid: u32,
    },
    /// Over TCP.
    Remote {
        /// The other end.
        address: SocketAddr,
    },
}

/// The header in which a local tool names the person on whose behalf it asks. For the audit trail; grants nothing.
pub const ON_BEHALF_OF: &str = "pgbaton-actor";

impl Caller {
    /// Whether he is answered at all.
    pub fn may_ask(&self, settings: &Settings) -> bool {
        match self {
            Self::Local { .. } => true,
            Self::Remote { address } => allow::is_allowed(&settings.allow, address.ip()),
        }
    }

    /// Why he may not change anything; `None` where he may.
    pub fn may_not_change(&self, settings: &Settings) -> Option<&'static str> {
        match self {
            Self::Local { uid } if *uid == 0 || *uid == settings.service_uid => None,
            Self::Local { .. } => Some("only root and the user who runs the agent may change anything over the Unix socket"),
            Self::Remote { .. } => Some("no tokens are configured: changes are accepted over the Unix socket of a node only"),
        }
    }

    /// Who, for the audit trail.
    pub fn actor(&self, headers: &HeaderMap) -> String {
        let named = headers.get(ON_BEHALF_OF).and_then(|value| value.to_str().ok());
        let named = named.map(|name| name.chars().filter(|c| c.is_ascii_graphic()).take(64).collect::<String>()).filter(|n| !n.is_empty());
        match (self, named) {
            (Self::Local { uid }, Some(name)) => format!("{name} (uid {uid})"),
            (Self::Local { uid }, None) => format!("uid {uid}"),
            (Self::Remote { address }, _) => address.ip().to_string(),
        }
    }

    /// From where, for the audit trail.
    pub fn origin(&self) -> String {
        match self {
            Self::Local { .. } => "local".to_owned(),
            Self::Remote { address } => address.to_string(),
        }
    }
}
