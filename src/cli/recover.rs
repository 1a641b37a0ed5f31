//! `etcd recover`.

use super::{arguments::RecoverOptions, exit::Exit, target::Target};

pub(super) async fn run(_target: &Target, _options: &RecoverOptions) -> anyhow::Result<Exit> {
    anyhow::bail!("not yet")
}
