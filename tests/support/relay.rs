//! A TCP relay in front of one port that passes requests and can hold back answers.

use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// What becomes of answers. Requests always pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    Passed,
    Held,
}

/// Ends with its owner's runtime.
pub struct Relay {
    port: u16,
    answers: Arc<watch::Sender<Answers>>,
}

#[expect(clippy::disallowed_methods, reason = "tests have no task table")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

impl Relay {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let answers = Arc::new(watch::Sender::new(Answers::Passed));
        let relay = Self { port: listener.local_addr().expect("address").port(), answers: Arc::clone(&answers) };
        spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let answers = answers.subscribe();
                spawn(async move {
                    if let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await {
                        relay_one(client, server, answers).await;
                    }
                });
            }
        });
        relay
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn set(&self, answers: Answers) {
        self.answers.send_replace(answers);
    }
}

async fn relay_one(client: TcpStream, server: TcpStream, mut answers: watch::Receiver<Answers>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    spawn(async move {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    });
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length) = from_server.read(&mut buffer).await {
        let passed = answers.wait_for(|answers| *answers == Answers::Passed).await.is_ok();
        if length == 0 || !passed || to_client.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
