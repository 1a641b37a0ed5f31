//! A real etcd of its own for one test: unique directory and ports, ended and removed on drop.

#[path = "port.rs"]
mod port;

use pgbaton::dcs::Settings;
use port::Port;
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How the members are started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub members: usize,
    /// Client certificates are demanded.
    pub tls: bool,
    pub quota: Option<u64>,
    /// Heartbeat and election timeout in milliseconds; etcd's defaults where not given.
    pub timing: Option<(u32, u32)>,
    pub extra: Vec<String>,
}

struct Member {
    name: String,
    client: Port,
    peer: Port,
    child: Option<Child>,
}

/// All members.
pub struct Etcds {
    options: Options,
    dir: TempDir,
    members: Vec<Member>,
    /// Who speaks for etcdctl: `user:password`.
    user: Option<String>,
}

#[expect(clippy::disallowed_methods, reason = "the tests start their own etcd")]
fn command(program: &str) -> Command {
    Command::new(program)
}

/// Now, for waits in tests.
#[expect(clippy::disallowed_methods, reason = "tests wait by the real clock")]
pub fn now() -> Instant {
    Instant::now()
}

impl Etcds {
    pub fn start(options: Options) -> Self {
        let dir = tempfile::Builder::new().prefix("pgbaton-dcs-").tempdir().expect("directory");
        if options.tls {
            certificates(dir.path());
        }
        let count = options.members.max(1);
        let member = |i| Member { name: format!("m{i}"), client: Port::kept(), peer: Port::kept(), child: None };
        let members = (0..count).map(member).collect();
        let mut etcds = Self { options, dir, members, user: None };
        (0..count).for_each(|i| etcds.run(i));
        etcds.wait_healthy();
        etcds
    }

    pub fn one() -> Self {
        Self::start(Options { members: 1, ..Options::default() })
    }

    pub fn three() -> Self {
        Self::start(Options { members: 3, ..Options::default() })
    }

    /// With TLS, client certificates and users.
    pub fn secured(options: Options) -> Self {
        let mut etcds = Self::start(Options { tls: true, ..options });
        etcds.enable_auth();
        etcds
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn url(&self, index: usize) -> String {
        let scheme = if self.options.tls { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.members[index].client.number())
    }

    pub fn port(&self, index: usize) -> u16 {
        self.members[index].client.number()
    }

    /// Every text that the key has ever had, in order (nothing may have been compacted).
    pub fn values_of(&self, path: &str) -> Vec<String> {
        let alive: Vec<String> = (0..self.members.len()).filter(|i| self.members[*i].child.is_some()).map(|i| self.url(i)).collect();
        // Ended by itself where the history does not end in the present value.
        let watch = self.etcdctl(&alive[..1], &["watch", path, "--rev", "1"]);
        let mut bounded = command("timeout");
        bounded.arg("10").arg(watch.get_program()).args(watch.get_args()).env("ETCDCTL_API", "3");
        let mut child = bounded.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("run etcdctl");
        let last = (0..5).find_map(|_| {
            let output = self.ctl_at(&alive, &["get", path, "--print-value-only"]);
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
        });
        let last = last.expect("the present value");
        let mut values = Vec::new();
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().expect("stdout"))).map_while(Result::ok);
        // `PUT` or `DELETE`, the key, the value (an empty line after a deletion).
        while values.last() != Some(&last) {
            let kind = lines.next().expect("the history ends before the present value");
            let (_, text) = (lines.next(), lines.next().unwrap_or_default());
            if kind == "PUT" {
                values.push(text);
            }
        }
        // `timeout` passes it on; it has gone by itself where it was late.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signal");
        child.wait().expect("wait");
        values
    }

    pub fn settings(&self) -> Settings {
        let urls = (0..self.members.len()).map(|i| self.url(i)).collect();
        let mut settings = Settings::new(urls, "/pgbaton", "c1".parse().expect("name"));
        if self.options.tls {
            settings.ca_file = Some(self.path().join("ca.pem"));
            settings.cert_file = Some(self.path().join("client.pem"));
            settings.key_file = Some(self.path().join("client.key"));
        }
        settings
    }

    /// The settings of a client that etcd lets in.
    pub fn client_settings(&self) -> Settings {
        if self.user.is_some() { self.agent_settings("secret") } else { self.settings() }
    }

    /// The settings of [`Etcds::enable_auth`]'s user `agent`, with this password in its file.
    pub fn agent_settings(&self, password: &str) -> Settings {
        let file = self.path().join("password");
        std::fs::write(&file, format!("{password}\n")).expect("write");
        Settings { username: Some("agent".to_owned()), password_file: Some(file), ..self.settings() }
    }

    /// Starts a member, with the data that it has.
    pub fn run(&mut self, index: usize) {
        let peers: Vec<String> = self.members.iter().map(|m| format!("{}=http://127.0.0.1:{}", m.name, m.peer.number())).collect();
        let (client, peer) = (self.url(index), format!("http://127.0.0.1:{}", self.members[index].peer.number()));
        let data = self.data(index);
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join(format!("m{index}.log"))).expect("log");
        // Ended with this test process, however that ends.
        let mut start = command("setpriv");
        start.args(["--pdeathsig", "KILL", "etcd", "--logger", "zap", "--name", &self.members[index].name]);
        start.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        start.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        start.args(["--initial-cluster", &peers.join(","), "--initial-cluster-token", "pgbaton-test"]);
        // Data on a disk of the test machine: what is tested is the protocol, not the disk.
        start.arg("--data-dir").arg(&data);
        if let Some((heartbeat, election)) = self.options.timing {
            start.args(["--heartbeat-interval", &heartbeat.to_string(), "--election-timeout", &election.to_string()]);
        }
        if let Some(quota) = self.options.quota {
            start.args(["--quota-backend-bytes", &quota.to_string()]);
        }
        if self.options.tls {
            let file = |name: &str| self.dir.path().join(name).display().to_string();
            start.args(["--cert-file", &file("server.pem"), "--key-file", &file("server.key")]);
            start.args(["--trusted-ca-file", &file("ca.pem"), "--client-cert-auth"]);
        }
        start.args(&self.options.extra);
        let error = log.try_clone().expect("log");
        let child = start.stdin(Stdio::null()).stdout(log).stderr(error).spawn().expect("start etcd");
        self.members[index].child = Some(child);
    }

    pub fn data(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("data{index}"))
    }

    fn wait_healthy(&self) {
        let deadline = now() + Duration::from_secs(15);
        while !self.ctl(&["endpoint", "health"]).status.success() {
            assert!(now() < deadline, "etcd did not become healthy: {}", self.log(0));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The end of a member's log.
    pub fn log(&self, index: usize) -> String {
        let text = std::fs::read_to_string(self.dir.path().join(format!("m{index}.log"))).unwrap_or_default();
        text.lines().rev().take(10).collect::<Vec<_>>().join("\n")
    }

    /// Runs etcdctl against all members as whoever [`Etcds::login`] named.
    pub fn ctl(&self, args: &[&str]) -> Output {
        let urls: Vec<String> = (0..self.members.len()).map(|i| self.url(i)).collect();
        self.ctl_at(&urls, args)
    }

    fn ctl_at(&self, urls: &[String], args: &[&str]) -> Output {
        self.etcdctl(urls, args).output().expect("run etcdctl")
    }

    fn etcdctl(&self, urls: &[String], args: &[&str]) -> Command {
        let mut ctl = command("etcdctl");
        ctl.env("ETCDCTL_API", "3").args(["--dial-timeout", "2s", "--command-timeout", "4s", "--endpoints", &urls.join(",")]);
        if self.options.tls {
            let file = |name: &str| self.dir.path().join(name).display().to_string();
            ctl.args(["--cacert", &file("ca.pem"), "--cert", &file("client.pem"), "--key", &file("client.key")]);
        }
        if let Some(user) = &self.user {
            ctl.args(["--user", user]);
        }
        ctl.args(args);
        ctl
    }

    /// As [`Etcds::ctl`], and must succeed. Its standard output.
    pub fn must(&self, args: &[&str]) -> String {
        succeeded(args, &self.ctl(args))
    }

    /// As [`Etcds::must`], at one member.
    pub fn must_at(&self, index: usize, args: &[&str]) -> String {
        succeeded(args, &self.ctl_at(&[self.url(index)], args))
    }

    pub fn change_password(&self, user: &str, password: &str) {
        let mut ctl = self.etcdctl(&[self.url(0)], &["user", "passwd", user, "--interactive=false"]);
        let mut child = ctl.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("run etcdctl");
        std::io::Write::write_all(&mut child.stdin.take().expect("stdin"), format!("{password}\n").as_bytes()).expect("write");
        assert!(child.wait().expect("wait").success(), "change the password of {user}");
    }

    pub fn login(&mut self, user: &str) {
        self.user = Some(user.to_owned());
    }

    /// Users `root` and `agent` (who may do everything below `/pgbaton`), both with password `secret`; then auth on.
    pub fn enable_auth(&mut self) {
        self.must(&["user", "add", "root:secret"]);
        self.must(&["user", "grant-role", "root", "root"]);
        self.must(&["role", "add", "pgbaton"]);
        self.must(&["role", "grant-permission", "pgbaton", "--prefix=true", "readwrite", "/pgbaton/c1/"]);
        self.must(&["user", "add", "agent:secret"]);
        self.must(&["user", "grant-role", "agent", "pgbaton"]);
        self.must(&["auth", "enable"]);
        self.login("root:secret");
    }

    /// Index of the raft leader.
    pub fn leader(&self) -> usize {
        let deadline = now() + Duration::from_secs(10);
        loop {
            let found = (0..self.members.len()).find(|i| {
                self.members[*i].child.is_some() && {
                    let output = self.ctl_at(&[self.url(*i)], &["endpoint", "status", "-w", "simple"]);
                    String::from_utf8_lossy(&output.stdout).split(", ").nth(4) == Some("true")
                }
            });
            if let Some(index) = found {
                return index;
            }
            assert!(now() < deadline, "no leader");
        }
    }

    fn signal(&self, index: usize, signal: nix::sys::signal::Signal) {
        let child = self.members[index].child.as_ref().expect("a running member");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("pid"));
        nix::sys::signal::kill(pid, signal).expect("signal");
    }

    pub fn freeze(&self, index: usize) {
        self.signal(index, nix::sys::signal::Signal::SIGSTOP);
    }

    pub fn thaw(&self, index: usize) {
        self.signal(index, nix::sys::signal::Signal::SIGCONT);
    }

    /// `kill -9`, waited for.
    pub fn kill(&mut self, index: usize) {
        if let Some(mut child) = self.members[index].child.take() {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
    }

    /// Stops every member, puts a snapshot's data in place of theirs, and starts them again.
    pub fn restore(&mut self, snapshot: &Path) {
        let peers: Vec<String> = self.members.iter().map(|m| format!("{}=http://127.0.0.1:{}", m.name, m.peer.number())).collect();
        for index in 0..self.members.len() {
            self.kill(index);
            std::fs::remove_dir_all(self.data(index)).expect("remove data");
            let mut ctl = command("etcdctl");
            ctl.env("ETCDCTL_API", "3").args(["snapshot", "restore"]).arg(snapshot).arg("--data-dir").arg(self.data(index));
            ctl.args(["--name", &self.members[index].name, "--initial-cluster", &peers.join(",")]);
            ctl.args(["--initial-cluster-token", "pgbaton-test"]);
            ctl.args(["--initial-advertise-peer-urls", &format!("http://127.0.0.1:{}", self.members[index].peer.number())]);
            let output = ctl.output().expect("run etcdctl");
            assert!(output.status.success(), "restore: {}", String::from_utf8_lossy(&output.stderr));
        }
        (0..self.members.len()).for_each(|index| self.run(index));
        self.wait_healthy();
    }
}

fn succeeded(args: &[&str], output: &Output) -> String {
    assert!(output.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Drop for Etcds {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|index| self.kill(index));
    }
}

/// An authority, and certificates for the servers and for one client.
pub fn certificates(dir: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().expect("key");
    let root = authority.self_signed(&authority_key).expect("certificate");
    std::fs::write(dir.join("ca.pem"), root.pem()).expect("write");
    let issuer = Issuer::new(authority, authority_key);
    for name in ["server", "client"] {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).expect("parameters");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &issuer).expect("certificate");
        std::fs::write(dir.join(format!("{name}.pem")), certificate.pem()).expect("write");
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).expect("write");
    }
}
