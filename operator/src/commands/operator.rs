//! `modelprofile operator`.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use tracing_subscriber::EnvFilter;

use crate::cluster::plan::facts::{Images, OperatorPod, Options};
use crate::cluster::start::{Flags, start};

/// Arguments of `modelprofile operator`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Act on ModelProfiles of this namespace only [default: all namespaces].
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Seconds between two looks at the metrics of workers; after each one it is decided anew.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Where /metrics is served.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    metrics_address: SocketAddr,
    /// Where /livez and /readyz are served.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8081")]
    health_address: SocketAddr,
    /// Act only while holding the Lease modelprofile-operator: needed with more than one replica.
    #[arg(long)]
    leader_election: bool,
    /// Namespace of the operator's Lease and key.
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", default_value = "default")]
    operator_namespace: String,
    /// Labels of the operator's own pods, which workers let in to their admin port. Left out: every pod that reaches it.
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    operator_labels: Vec<String>,
    /// Image of the worker.
    #[arg(long, value_name = "IMAGE", default_value = concat!("modelprofile-worker:", env!("CARGO_PKG_VERSION")))]
    worker_image: String,
    /// Image of vLLM, where a manifest names none.
    #[arg(long, value_name = "IMAGE")]
    vllm_image: Option<String>,
    /// Image of TensorRT-LLM, where a manifest names none.
    #[arg(long, value_name = "IMAGE")]
    tensorrt_llm_image: Option<String>,
    /// Image of llama.cpp's server, where a manifest names none.
    #[arg(long, value_name = "IMAGE")]
    llama_cpp_image: Option<String>,
    /// imagePullPolicy of all pods [default: what the cluster makes of the tag].
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    image_pull_policy: Option<String>,
    /// Labels of namespaces whose pods may scrape the metrics of workers.
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    metrics_from_labels: Vec<String>,
}

/// Acts until a signal.
///
/// # Errors
/// What keeps the operator from acting at all.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let labels = pairs(&args.operator_labels, "--operator-labels")?;
    let flags = Flags {
        namespace: args.namespace,
        interval: Duration::from_secs(args.interval),
        metrics: args.metrics_address,
        health: args.health_address,
        leader_election: args.leader_election,
        options: Options {
            images: Images {
                worker: args.worker_image,
                vllm: args.vllm_image,
                tensorrt_llm: args.tensorrt_llm_image,
                llama_cpp: args.llama_cpp_image,
            },
            image_pull_policy: args.image_pull_policy,
            admin_keys: Vec::new(),
            operator: (!labels.is_empty()).then(|| OperatorPod { namespace: args.operator_namespace.clone(), labels }),
            metrics_from: pairs(&args.metrics_from_labels, "--metrics-from-labels")?,
        },
        operator_namespace: args.operator_namespace,
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter(std::env::var("RUST_LOG").ok()))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    super::runtime()?.block_on(start(flags)).map(|()| ExitCode::SUCCESS)
}

/// What is logged: what RUST_LOG says, without what the client library would add to every line, unless that is asked for.
fn filter(wanted: Option<String>) -> EnvFilter {
    let wanted = wanted.filter(|wanted| !wanted.trim().is_empty()).unwrap_or_else(|| "info".to_owned());
    if wanted.contains("kube") { EnvFilter::new(wanted) } else { EnvFilter::new(format!("{wanted},kube=warn")) }
}

fn pairs(texts: &[String], flag: &str) -> anyhow::Result<std::collections::BTreeMap<String, String>> {
    let pair = |text: &String| -> anyhow::Result<(String, String)> {
        let (key, value) = text.split_once('=').with_context(|| format!("{flag}: `{text}` is not KEY=VALUE"))?;
        if key.is_empty() {
            bail!("{flag}: `{text}` has no key before the =");
        }
        Ok((key.to_owned(), value.to_owned()))
    };
    texts.iter().map(pair).collect()
}
