//! Rules of the fields beside ladder and switching.

use super::unique;
use crate::patterns::is_name;
use crate::{Cache, Engine, FieldError, Metadata, ModelSpec, ModelUri, Placement, Quality, Quantity, Scaling};
use crate::{TolerationOperator, parse_quantity};

pub(super) fn metadata(metadata: &Metadata, errors: &mut Vec<FieldError>) {
    // The operator makes a Service of that name, so it is a label of RFC 1035, shorter than most object names.
    if !is_label(&metadata.name) || metadata.name.starts_with(|c: char| c.is_ascii_digit()) {
        errors.push(FieldError::new(
            "metadata.name",
            format!(
                "`{}` must be at most 63 lower-case letters, digits and '-', starting with a letter",
                metadata.name
            ),
        ));
    }
    if let Some(namespace) = metadata.namespace.as_deref().filter(|n| !is_label(n)) {
        errors.push(FieldError::new(
            "metadata.namespace",
            format!("`{namespace}` must be at most 63 lower-case letters, digits and '-'"),
        ));
    }
}

fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_name(text)
}

pub(super) fn model(model: &ModelSpec, errors: &mut Vec<FieldError>) {
    let path = |field: &str| format!("spec.model.{field}");
    match ModelUri::parse(&model.uri) {
        Err(message) => errors.push(FieldError::new(path("uri"), message)),
        Ok(uri) => {
            let is_hub = matches!(uri, ModelUri::HuggingFace { .. });
            if !is_hub && model.revision.is_some() {
                let message =
                    format!("is for hf:// only, a {}:// checkpoint has no revisions; remove it", uri.scheme());
                errors.push(FieldError::new(path("revision"), message));
            }
        }
    }
    for (field, value) in [("revision", &model.revision), ("servedName", &model.served_name)] {
        if value.as_ref().is_some_and(|v| v.is_empty() || v.chars().any(|c| c.is_control() || c.is_whitespace())) {
            errors.push(FieldError::new(path(field), "must not be empty, nor contain spaces; correct it or remove it"));
        }
    }
    if model.max_context_tokens.is_some_and(|n| n < 16) {
        errors.push(FieldError::new(path("maxContextTokens"), "must be at least 16, one block of the KV cache"));
    }
    if model.license.as_ref().is_some_and(|l| l.accepted.trim().is_empty()) {
        let message = "must not be empty; write the identifier that the checkpoint declares, such as apache-2.0";
        errors.push(FieldError::new(path("license.accepted"), message));
    }
}

pub(super) fn engine(engine: &Engine, errors: &mut Vec<FieldError>) {
    let at = |i: usize| format!("spec.engine.env[{i}]");
    unique(engine.env.iter().map(|e| e.name.as_str()), |i| format!("{}.name", at(i)), errors);
    for (i, variable) in engine.env.iter().enumerate() {
        if variable.name.is_empty() || variable.name.contains('=') || variable.name.chars().any(char::is_control) {
            errors.push(FieldError::new(format!("{}.name", at(i)), "must not be empty, nor contain `=`"));
        }
        if variable.value.is_some() && variable.secret_key_ref.is_some() {
            errors.push(FieldError::new(at(i), "has both value and secretKeyRef; remove one"));
        }
    }
}

pub(super) fn scaling(scaling: &Scaling, errors: &mut Vec<FieldError>) {
    let (min, max) = (scaling.min_replicas, scaling.max_replicas);
    if min == 0 {
        errors.push(FieldError::new("spec.scaling.minReplicas", "must be at least 1"));
    }
    if min > max {
        // `maxReplicas` may be the default, which the user did not write.
        errors.push(FieldError::new(
            "spec.scaling.maxReplicas",
            format!("is {max}, below minReplicas, which is {min}; raise it to at least {min}"),
        ));
    }
}

pub(super) fn quality(quality: &Quality, errors: &mut Vec<FieldError>) {
    let divergence = &quality.max_mean_kl_divergence;
    if divergence.to_f64().is_none() {
        errors.push(FieldError::new(
            "spec.quality.maxMeanKLDivergence",
            format!("`{divergence}` is not a number of nats; write one such as \"0.1\""),
        ));
    }
    if let Some(Err(message)) = quality.dataset.as_ref().map(|d| ModelUri::parse(&d.uri)) {
        errors.push(FieldError::new("spec.quality.dataset.uri", message));
    }
}

pub(super) fn placement(placement: &Placement, errors: &mut Vec<FieldError>) {
    let path = |field: &str| format!("spec.placement.{field}");
    if let Some(budget) = &placement.memory_budget {
        match budget.to_u64() {
            Ok(0) => errors.push(FieldError::new(path("memoryBudget"), "must be more than 0, such as 76Gi")),
            Ok(_) => {}
            Err(error) => errors.push(FieldError::new(path("memoryBudget"), format!("`{budget}`: {error}"))),
        }
    }
    for (group, amounts) in [("requests", &placement.resources.requests), ("limits", &placement.resources.limits)] {
        for (name, amount) in amounts {
            quantity(amount, path(&format!("resources.{group}.{name}")), errors);
        }
    }
    for (name, request) in &placement.resources.requests {
        let limit = placement.resources.limits.get(name);
        if let (Ok(request), Some(Ok(limit))) = (parse_quantity(&request.0), limit.map(|l| parse_quantity(&l.0)))
            && request > limit
        {
            errors.push(FieldError::new(
                path(&format!("resources.requests.{name}")),
                "is above the limit of the same resource; lower it or raise the limit",
            ));
        }
    }
    for (i, toleration) in placement.tolerations.iter().enumerate() {
        let at = path(&format!("tolerations[{i}]"));
        let exists = toleration.operator == TolerationOperator::Exists;
        if exists && toleration.value.as_ref().is_some_and(|v| !v.is_empty()) {
            errors.push(FieldError::new(format!("{at}.value"), "has no meaning with operator Exists; remove it"));
        }
        if !exists && toleration.key.as_ref().is_none_or(String::is_empty) {
            errors.push(FieldError::new(format!("{at}.key"), "required, unless the operator is Exists"));
        }
    }
}

pub(super) fn cache(cache: &Cache, errors: &mut Vec<FieldError>) {
    let kinds = [
        ("persistentVolumeClaim", cache.persistent_volume_claim.is_some()),
        ("hostPath", cache.host_path.is_some()),
        ("emptyDir", cache.empty_dir.is_some()),
    ];
    let set: Vec<&str> = kinds.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
    if set.len() > 1 {
        errors.push(FieldError::new("spec.cache", format!("has {}; keep one of them", set.join(" and "))));
    }
    if let Some(path) = &cache.host_path
        && (!path.starts_with('/') || path.split('/').any(|part| part == ".."))
    {
        errors.push(FieldError::new("spec.cache.hostPath", format!("`{path}` must be an absolute path without `..`")));
    }
    if let Some(limit) = cache.empty_dir.as_ref().and_then(|d| d.size_limit.as_ref()) {
        quantity(limit, "spec.cache.emptyDir.sizeLimit".to_owned(), errors);
    }
}

fn quantity(amount: &Quantity, path: String, errors: &mut Vec<FieldError>) {
    if let Err(error) = parse_quantity(&amount.0) {
        errors.push(FieldError::new(path, format!("`{amount}`: {error}")));
    }
}
