//! `modelprofile local` as a child process that never outlives the scenario.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use modelprofile_api::ModelProfileStatus;
use modelprofile_api::worker::{WorkerPhase, WorkerState};
use modelprofile_operator::local::admin::Admin;
use modelprofile_operator::local::session::{Session, Sessions};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};

/// Between two looks at something that is awaited.
const POLL: Duration = Duration::from_millis(50);

/// A running local mode. Its session is kept in a folder of its own, so that scenarios cannot meet.
pub struct Local {
    child: Child,
    folder: tempfile::TempDir,
    name: String,
}

/// A local mode that is ready.
#[derive(Clone, Debug)]
pub struct Ready {
    /// How to reach it.
    pub session: Session,
    /// Its admin API.
    pub admin: Admin,
    /// Its state when it got ready.
    pub state: WorkerState,
}

impl Local {
    /// Starts local mode on free ports; what it prints is shown.
    ///
    /// # Errors
    /// The manifest has no name, or the command cannot be started.
    pub fn start(modelprofile: &Path, manifest: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
        let yaml: serde_yaml::Value = serde_yaml::from_str(&text)?;
        let name = yaml["metadata"]["name"].as_str().context("the manifest has no metadata.name")?.to_owned();
        let folder = tempfile::tempdir()?;
        let (port, admin_port) = free_ports()?;
        let mut child = Command::new(modelprofile)
            .arg("local")
            .arg("-f")
            .arg(manifest)
            .args(["--port", &port.to_string(), "--admin-port", &admin_port.to_string()])
            .env("XDG_RUNTIME_DIR", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", modelprofile.display()))?;
        show(child.stdout.take());
        show(child.stderr.take());
        Ok(Self { child, folder, name })
    }

    /// Waits until the worker is ready.
    ///
    /// # Errors
    /// Local mode ended, or the limit passed.
    pub async fn ready(&mut self, limit: Duration) -> anyhow::Result<Ready> {
        let sessions = Sessions::in_runtime_dir(self.folder.path());
        let wait = async {
            loop {
                if let Some(status) = self.child.try_wait()? {
                    bail!("modelprofile local ended before it was ready: {status}");
                }
                if let Ok(session) = sessions.find(&self.name) {
                    let admin = Admin::new(&session.admin_url, &session.token)?;
                    if let Ok(state) = admin.state().await
                        && state.phase == WorkerPhase::Ready
                    {
                        return Ok(Ready { session, admin, state });
                    }
                }
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(limit, wait).await.with_context(|| format!("not ready within {} s", limit.as_secs()))?
    }

    /// The status that it wrote last.
    ///
    /// # Errors
    /// There is none yet.
    pub fn status(&self) -> anyhow::Result<ModelProfileStatus> {
        Sessions::in_runtime_dir(self.folder.path()).status(&self.name)
    }

    /// Ends local mode as Ctrl-C does, and says whether it ended well.
    ///
    /// # Errors
    /// It did not end within the limit, or with an error.
    pub async fn stop(mut self, limit: Duration) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            kill_process(pid, Signal::TERM).context("cannot signal modelprofile local")?;
        }
        let status = tokio::time::timeout(limit, self.child.wait())
            .await
            .with_context(|| format!("modelprofile local did not end within {} s", limit.as_secs()))??;
        if !status.success() {
            bail!("modelprofile local ended with {status}");
        }
        Ok(())
    }
}

/// Two ports that nothing listens on. Both are held at once, so that they differ.
fn free_ports() -> anyhow::Result<(u16, u16)> {
    let (first, second) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    Ok((first.local_addr()?.port(), second.local_addr()?.port()))
}

/// Prints the lines of a child as they come, marked as its own.
fn show(stream: Option<impl AsyncRead + Unpin + Send + 'static>) {
    let Some(stream) = stream else { return };
    tokio::spawn(async move {
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            println!("  | {line}");
        }
    });
}
