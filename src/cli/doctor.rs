//! `doctor`: whether this host can do what its configuration says.

use super::{arguments::DoctorOptions, exit::Exit, target::Target};

pub(super) async fn run(_target: &Target, _options: &DoctorOptions) -> anyhow::Result<Exit> {
    anyhow::bail!("not yet")
}
