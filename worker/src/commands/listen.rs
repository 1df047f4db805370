//! Where a command listens, and whom its admin port lets in.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use anyhow::Context;
use clap::Args;
use tokio::net::TcpListener;

use crate::{access::AdminKeys, app::App, outcome::Invalid};

/// Connections to the admin port: probes, scrapers and an operator.
pub(super) const ADMIN_CONNECTIONS: usize = 64;

/// Options of the admin port.
#[derive(Debug, Args)]
pub(super) struct Listen {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port of the admin API.
    #[arg(long, default_value_t = 8001)]
    admin_port: u16,
    /// File of Ed25519 public keys, one a line (32 bytes as base64url), read anew when it changes. The admin API takes JWTs
    /// that one of them has signed, beside the token of MODELPROFILE_ADMIN_TOKEN.
    #[arg(long, value_name = "FILE", requires = "admin_audience")]
    admin_keys: Option<PathBuf>,
    /// What the `aud` of these JWTs has to be.
    #[arg(long, value_name = "NAMESPACE/NAME/UID", requires = "admin_keys")]
    admin_audience: Option<String>,
}

impl Listen {
    /// Lets those into the app's admin API who have its token, or a key of the file.
    ///
    /// # Errors
    /// A file without keys.
    pub(super) fn admit(&self, app: &mut App) -> anyhow::Result<()> {
        app.admin_token = std::env::var("MODELPROFILE_ADMIN_TOKEN").ok().filter(|token| !token.is_empty());
        if let (Some(path), Some(audience)) = (&self.admin_keys, &self.admin_audience) {
            app.admin_keys = Some(AdminKeys::of_file(path.clone(), audience.clone())?);
        }
        Ok(())
    }

    /// The admin port.
    ///
    /// # Errors
    /// A port that is taken.
    pub(super) async fn bind_admin(&self) -> anyhow::Result<TcpListener> {
        self.bind(self.admin_port, "--admin-port").await
    }

    /// Any port, which `option` chooses.
    ///
    /// # Errors
    /// A port that is taken.
    pub(super) async fn bind(&self, port: u16, option: &str) -> anyhow::Result<TcpListener> {
        let address = SocketAddr::new(self.host, port);
        let bound = TcpListener::bind(address).await;
        bound.with_context(|| Invalid(format!("cannot listen on {address}: choose another {option}")))
    }
}
