//! What an error of the etcd client means for the attempt that met it.

use super::super::Error;
use std::error::Error as _;
use tonic::{Code, ConnectError, Status};

/// Why one attempt at one endpoint failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing was sent.
    NotReached(String),
    /// Nothing was sent in time; connecting goes on.
    NotYet(String),
    /// The token is missing, expired or of an older auth store: authenticate and try again. Nothing was done.
    Stale(String),
    /// Credentials or permission. Nothing was done.
    Denied(String),
    /// The database is full. Where that was found while it was applied, it is done all the same.
    NoSpace(String),
    /// The etcd lease that the write names is gone. Nothing was done.
    NoLease(String),
    /// etcd refuses the request itself. Nothing was done.
    Rejected(String),
    /// Sent, and the answer is missing or unclear.
    Unclear(String),
}

impl Fault {
    /// Whether the attempt may have done something all the same.
    pub(super) const fn is_unclear(&self) -> bool {
        matches!(self, Self::Unclear(_))
    }

    /// Whether another endpoint, or a later attempt, would say the same.
    pub(super) const fn is_final(&self) -> bool {
        matches!(self, Self::NoSpace(_) | Self::NoLease(_) | Self::Rejected(_))
    }

    /// Whether the connection itself is in doubt and must be made anew.
    pub(super) const fn breaks_connection(&self) -> bool {
        matches!(self, Self::NotReached(_))
    }

    /// The same with the endpoint's name in front.
    pub(super) fn at(self, endpoint: &str) -> Self {
        let named = |why: String| format!("{endpoint}: {why}");
        match self {
            Self::NotReached(why) => Self::NotReached(named(why)),
            Self::NotYet(why) => Self::NotYet(named(why)),
            Self::Stale(why) => Self::Stale(named(why)),
            Self::Denied(why) => Self::Denied(named(why)),
            Self::NoSpace(why) => Self::NoSpace(named(why)),
            Self::NoLease(why) => Self::NoLease(named(why)),
            Self::Rejected(why) => Self::Rejected(named(why)),
            Self::Unclear(why) => Self::Unclear(named(why)),
        }
    }

    /// As the caller sees it, where no other attempt is in doubt.
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::NotReached(why) | Self::NotYet(why) => Error::Unreachable(why),
            Self::Stale(why) | Self::Denied(why) => Error::Denied(why),
            Self::NoSpace(why) => Error::NoSpace(why),
            Self::NoLease(why) | Self::Rejected(why) => Error::Rejected(why),
            Self::Unclear(why) => Error::NoAnswer(why),
        }
    }
}

impl From<etcd_client::Error> for Fault {
    fn from(error: etcd_client::Error) -> Self {
        match error {
            etcd_client::Error::GRpcStatus(status) => from_status(&status),
            etcd_client::Error::InvalidArgs(why) => Self::Rejected(why),
            // Transport, I/O, a stream that ended, an answer that is no UTF-8: sent or not, nobody knows.
            other => Self::Unclear(other.to_string()),
        }
    }
}

/// etcd's own messages, exactly (api/v3rpc/rpctypes/error.go, 3.4 to 3.6): a code alone may come from a proxy in between.
fn from_status(status: &Status) -> Fault {
    if let Some(why) = connect_fault(status) {
        return Fault::NotReached(why);
    }
    let why = match status.source() {
        Some(source) => format!("{:?}: {}: {}", status.code(), status.message(), chain(source)),
        None => format!("{:?}: {}", status.code(), status.message()),
    };
    match (status.code(), status.message()) {
        (Code::Unauthenticated, "etcdserver: invalid auth token")
        | (Code::InvalidArgument, "etcdserver: revision of auth store is old" | "etcdserver: user name is empty") => Fault::Stale(why),
        (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password")
        | (Code::PermissionDenied, "etcdserver: permission denied") => Fault::Denied(why),
        (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded") => Fault::NoSpace(why),
        (Code::NotFound, "etcdserver: requested lease not found") => Fault::NoLease(why),
        (
            Code::InvalidArgument,
            "etcdserver: request is too large"
            | "etcdserver: too many operations in txn request"
            | "etcdserver: duplicate key given in txn request"
            | "etcdserver: key is not provided",
        ) => Fault::Rejected(why),
        // etcd's gRPC layer, before etcd sees the request.
        (Code::ResourceExhausted, message) if message.starts_with("grpc: received message larger than max") => Fault::Rejected(why),
        _ => Fault::Unclear(why),
    }
}

/// The reason, where the connection was never made: tonic hands the connector's error to the request it did not send.
fn connect_fault(status: &Status) -> Option<String> {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return Some(chain(error));
        }
        source = error.source();
    }
    None
}

/// An error and its sources in one line, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}

/// Whether a watch's cancel reason, or an error's text, speaks of authentication.
pub(super) fn speaks_of_auth(reason: &str) -> bool {
    ["auth token", "auth store", "permission denied", "user name is empty"].iter().any(|part| reason.contains(part))
}

/// Whether authentication is not needed (any more).
pub(super) fn is_auth_disabled(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(status) if status.message() == "etcdserver: authentication is not enabled")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(code: Code, message: &str) -> Fault {
        Fault::from(etcd_client::Error::GRpcStatus(Status::new(code, message)))
    }

    /// Scenario 50.
    #[test]
    fn whatever_is_not_clearly_undone_is_unclear() {
        for (code, message) in [
            (Code::Unavailable, "etcdserver: request timed out, possibly due to previous leader failure"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, ""),
            (Code::Unknown, "<html>502 Bad Gateway</html>"),
            (Code::Internal, "h2 protocol error"),
            (Code::DeadlineExceeded, ""),
            (Code::Cancelled, ""),
            (Code::DataLoss, "x"),
            (Code::Unimplemented, "proxy"),
            (Code::InvalidArgument, "said a proxy"),
            (Code::PermissionDenied, "said a proxy"),
            (Code::ResourceExhausted, "too many pings"),
        ] {
            assert!(fault(code, message).is_unclear(), "{code:?} {message}");
        }
    }

    #[test]
    fn etcds_own_refusals_are_known_to_have_done_nothing() {
        assert!(matches!(fault(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"), Fault::NoSpace(_)));
        assert!(matches!(fault(Code::InvalidArgument, "etcdserver: revision of auth store is old"), Fault::Stale(_)));
        assert!(matches!(fault(Code::Unauthenticated, "etcdserver: invalid auth token"), Fault::Stale(_)));
        assert!(matches!(fault(Code::PermissionDenied, "etcdserver: permission denied"), Fault::Denied(_)));
        assert!(matches!(fault(Code::NotFound, "etcdserver: requested lease not found"), Fault::NoLease(_)));
    }
}
