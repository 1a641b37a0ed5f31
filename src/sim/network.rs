//! Links that lose, delay and cut, each direction for itself.

/// Between nodes, and between each node and etcd. A direction is blocked until a point of real time.
pub(super) struct Network {
    /// node → etcd.
    pub(super) to_etcd: Vec<u64>,
    /// etcd → node.
    pub(super) from_etcd: Vec<u64>,
    /// Everything between two hosts: `[from][to]`.
    pub(super) between: Vec<Vec<u64>>,
    /// WAL streams and other connections between servers alone.
    pub(super) servers: Vec<Vec<u64>>,
    /// What agents say to each other alone.
    pub(super) agents: Vec<Vec<u64>>,
    /// Of a thousand messages so many are lost, until.
    pub(super) loss: (u64, u64),
    /// Streams are slow until.
    pub(super) slow_streams: u64,
    /// Messages to and from etcd take up to so many milliseconds more, each for itself, until.
    pub(super) slow_etcd: (u64, u64),
    /// Some requests of a node to etcd are held until then, and arrive all the same.
    pub(super) queued: Vec<u64>,
}

impl Network {
    pub(super) fn new(nodes: usize) -> Self {
        Self {
            to_etcd: vec![0; nodes],
            from_etcd: vec![0; nodes],
            between: vec![vec![0; nodes]; nodes],
            servers: vec![vec![0; nodes]; nodes],
            agents: vec![vec![0; nodes]; nodes],
            loss: (0, 0),
            slow_streams: 0,
            slow_etcd: (0, 0),
            queued: vec![0; nodes],
        }
    }

    pub(super) fn heal(&mut self) {
        *self = Self::new(self.to_etcd.len());
    }

    pub(super) fn reaches_etcd(&self, node: usize, now: u64) -> bool {
        self.to_etcd[node] <= now
    }

    pub(super) fn hears_etcd(&self, node: usize, now: u64) -> bool {
        self.from_etcd[node] <= now
    }

    /// Whether what one server sends comes to the other.
    pub(super) fn reaches(&self, from: usize, to: usize, now: u64) -> bool {
        self.between[from][to] <= now && self.servers[from][to] <= now
    }

    /// Whether what one agent says to the other comes there.
    pub(super) fn tells(&self, from: usize, to: usize, now: u64) -> bool {
        self.between[from][to] <= now && self.agents[from][to] <= now
    }

    /// Whether two servers can hold a conversation.
    pub(super) fn talks(&self, one: usize, other: usize, now: u64) -> bool {
        self.reaches(one, other, now) && self.reaches(other, one, now)
    }
}
