//! A plan as a manifest. Only what was decided is written; the rest keeps the defaults of the fields.

use anyhow::bail;
use modelprofile_api::{API_VERSION, KIND, Manifest, Method, unsupported, violations};
use serde_json::{Value, json as value};

use super::{Compute, Plan, Request};

/// What a manifest says that no number decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// Name of the object.
    pub name: String,
    /// Where the checkpoint is.
    pub uri: String,
    /// The licence that the user accepts. `None`: not written.
    pub license: Option<String>,
}

/// The manifest, as the value that is written.
///
/// # Errors
/// Name, URI or licence break a rule of the manifest.
pub fn manifest(request: &Request, plan: &Plan, labels: &Labels) -> anyhow::Result<(Value, Manifest)> {
    let mut model = value!({"uri": labels.uri, "maxContextTokens": request.context_tokens});
    if let Some(license) = &labels.license {
        model["license"] = value!({"accepted": license});
    }
    let count = plan.rungs.len();
    let profiles: Vec<Value> = plan.rungs.iter().enumerate().map(|(i, rung)| {
        let name = match i {
            0 => "quality",
            _ if i + 1 == count => "density",
            _ => "balanced",
        };
        let mut weights = value!({"format": rung.format});
        if rung.method != Method::RoundToNearest {
            weights["method"] = value!(rung.method);
        }
        if let Some(size) = rung.group_size {
            weights["groupSize"] = value!(size);
        }
        value!({"name": name, "weights": weights, "kvCache": {"format": plan.kv_format}, "tensorParallel": plan.tensor_parallel})
    }).collect();
    let mut placement = value!({"memoryBudget": format!("{}Mi", plan.memory_budget_mib)});
    if request.machine.compute != Compute::Cpu {
        placement["acceleratorResource"] = value!("nvidia.com/gpu");
    }
    let written = value!({
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": labels.name},
        "spec": {
            "model": model,
            "profiles": profiles,
            "scaling": {"minReplicas": 1, "maxReplicas": plan.replicas},
            "placement": placement,
        },
    });
    let manifest = Manifest::from_yaml(&serde_yaml::to_string(&written)?)?;
    let broken: Vec<_> = violations(&manifest).iter().map(ToString::to_string).collect();
    if !broken.is_empty() {
        bail!("{}", broken.join("\n"));
    }
    Ok((written, manifest))
}

/// The reasons alone, one line each, indented by depth.
pub fn text(plan: &Plan) -> String {
    let lines =
        plan.reasons.iter().map(|r| format!("{r}\n")).chain(plan.warnings.iter().map(|w| format!("warning: {w}\n")));
    lines.collect()
}

/// The manifest with its reasons in comments, and with what this version does not support yet.
///
/// # Errors
/// As [`manifest`].
pub fn yaml(request: &Request, plan: &Plan, labels: &Labels) -> anyhow::Result<String> {
    let (written, manifest) = manifest(request, plan, labels)?;
    let mut lines: Vec<_> = plan.reasons.iter().map(|r| format!("# because {r}\n")).collect();
    lines.extend(plan.warnings.iter().map(|w| format!("# warning: {w}\n")));
    lines.extend(unsupported(&manifest).iter().map(|e| format!("# not in this version: {e}\n")));
    lines.push(serde_yaml::to_string(&written)?);
    Ok(lines.concat())
}

/// Plan and manifest as JSON.
///
/// # Errors
/// As [`manifest`].
pub fn json(request: &Request, plan: &Plan, labels: &Labels) -> anyhow::Result<String> {
    let (written, manifest) = manifest(request, plan, labels)?;
    let unsupported: Vec<_> = unsupported(&manifest).iter().map(ToString::to_string).collect();
    let all = value!({"manifest": written, "plan": plan, "unsupported": unsupported});
    Ok(format!("{}\n", serde_json::to_string_pretty(&all)?))
}
