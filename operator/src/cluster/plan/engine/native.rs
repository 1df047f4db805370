//! This project's worker.

use std::collections::BTreeMap;

use modelprofile_api::{Manifest, ModelProfileSpec, Strategy, unsupported};

use super::{ADMIN, CACHE, CONFIG, HTTP, KEYS, Launch, Probes, Refused, Subject, VOLUMES, args, checkpoint};

/// What tells a worker where to compute.
const DEVICE: &str = "MODELPROFILE_DEVICE";

/// Name of the file that says which profile a pod starts in. A pod of a set that serves one profile has a file of its own: the
/// file for all changes with the decision, and a pod of the old set that starts again in the middle of a Surge would follow it.
pub(crate) fn start_file(strategy: Strategy, profile: &str) -> String {
    match strategy {
        Strategy::InPlace => "start-profile".to_owned(),
        Strategy::Surge | Strategy::Recreate => format!("start-profile.{profile}"),
    }
}

pub(super) fn launches(subjects: &[Subject<'_>], refused: &mut Refused) -> Vec<Launch> {
    if let Some(subject) = subjects.first() {
        // What the worker itself would refuse.
        refused.0.extend(unsupported(subject.manifest));
        if checkpoint::is_per_profile(&subject.spec().model.uri) {
            let message = "the engine Native makes every profile out of one checkpoint; write its path, without {profile} and \
                           {format}";
            refused.add("spec.model.uri", message);
        }
    }
    subjects.iter().map(launch).collect()
}

fn launch(subject: &Subject<'_>) -> Launch {
    let spec = subject.spec();
    let start = format!("{CONFIG}/{}", start_file(spec.switching.strategy, &subject.profile().name));
    let mut arguments = args(["serve", "--config", &format!("{CONFIG}/profile.yaml"), "--start-profile-file", &start]);
    arguments.extend(args(["--host", "0.0.0.0", "--port", &HTTP.1.to_string(), "--admin-port", &ADMIN.1.to_string()]));
    arguments.extend(places());
    arguments.extend(admin(&subject.owner.audience()));
    arguments.extend(args(["--drain-seconds", "90"]));
    if spec.api_keys_secret_ref.is_some() {
        arguments.extend(args(["--api-keys-dir", KEYS]));
    }
    arguments.extend(spec.engine.args.iter().cloned());
    Launch {
        image: spec.engine.image.clone().unwrap_or_else(|| subject.options.images.worker.clone()),
        command: args(["modelprofile-worker"]),
        args: arguments,
        env: environment(subject),
        ports: vec![HTTP, ADMIN],
        // It answers before anything is loaded.
        probes: Probes { port: ADMIN.0, live: "/livez", ready: "/readyz", start_seconds: 300 },
        // It finishes its requests by itself; only the endpoints have to forget it first.
        linger_seconds: 5,
    }
}

/// Where the worker computes. As a variable, so that `--device` in `spec.engine.args` wins. A pod without an accelerator may
/// see those of its node all the same, and must leave them alone.
fn environment(subject: &Subject<'_>) -> BTreeMap<&'static str, String> {
    let device = if subject.spec().placement.accelerator_resource.is_some() { "cuda" } else { "cpu" };
    let mut variables: BTreeMap<_, _> = [(DEVICE, device.to_owned())].into();
    if subject.profile().tensor_parallel > 1 {
        // What keeps accelerators from each other is said by NCCL alone, and only if it is asked.
        variables.insert("NCCL_DEBUG", "WARN".to_owned());
    }
    variables
}

/// How a pod without an accelerator prepares what this project's worker serves. What is measured there is to count where the
/// pods compute on accelerators, which multiply weights in groups with BF16 activations.
pub(crate) fn preparing(manifest: &Manifest) -> Vec<String> {
    let mut arguments = args(["--device", "cpu"]);
    if is_accelerated(&manifest.spec) {
        arguments.extend(args(["--activations", "bf16"]));
    }
    arguments
}

/// Whether the pods compute on accelerators: those that have some do, unless the manifest itself names the CPU.
fn is_accelerated(spec: &ModelProfileSpec) -> bool {
    let own = &spec.engine.args;
    let apart = || own.windows(2).find(|pair| pair[0] == "--device").map(|pair| pair[1].as_str());
    let argument = own.iter().find_map(|argument| argument.strip_prefix("--device=")).or_else(apart);
    let variable = || spec.engine.env.iter().find(|variable| variable.name == DEVICE);
    let named = argument.or_else(|| variable().and_then(|variable| variable.value.as_deref()));
    spec.placement.accelerator_resource.is_some() && named != Some("cpu")
}

/// Where the worker finds and keeps models.
pub(crate) fn places() -> Vec<String> {
    args(["--cache", CACHE, "--volumes", VOLUMES])
}

/// Whom the worker's admin API trusts.
pub(crate) fn admin(audience: &str) -> Vec<String> {
    args(["--admin-keys", &format!("{CONFIG}/admin-keys"), "--admin-audience", audience])
}
