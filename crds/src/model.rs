//! Which checkpoint, under which name, from where, and under which licence.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One checkpoint at one revision, and how clients see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "kube", schemars(extend("x-kubernetes-validations" = [
    {"rule": "!has(self.revision) || self.uri.startsWith('hf://')", "message": "revision is for hf:// only"},
])))]
#[serde(rename_all = "camelCase")]
pub struct ModelSpec {
    /// Where the checkpoint is: `hf://OWNER/NAME`, `pvc://CLAIM/PATH`, `file:///PATH` or `https://HOST/PATH`; a directory or
    /// a `.gguf` file. One GGUF file of a hub's repository is `https://huggingface.co/OWNER/NAME/resolve/REVISION/FILE.gguf`. A relative `file://./PATH` starts at the current directory of the process that reads the manifest, so
    /// it suits local use only. Required; can not be changed afterwards: make another ModelProfile for another model.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 1024)))]
    #[cfg_attr(feature = "kube", schemars(extend("x-kubernetes-validations" = crate::schema::immutable_uri())))]
    pub uri: String,
    /// Commit, tag or branch of a Hugging Face repository. Left out: what `main` is when the model is first prepared.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 128), extend("x-kubernetes-validations" = crate::schema::without_spaces())))]
    pub revision: Option<String>,
    /// Name that clients put into `model` of a request. Left out: the name of the ModelProfile.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = crate::schema::without_spaces())))]
    pub served_name: Option<String>,
    /// Longest prompt plus answer, in tokens; longer requests are refused in every profile. Left out: the model's own
    /// limit, or the KV-cache tokens of the profile that has the fewest, whichever is less.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(range(min = 16, max = 16_777_216)))]
    pub max_context_tokens: Option<u32>,
    /// Access token for a checkpoint that is not public. Left out: no token is sent. On one machine the environment variable
    /// HF_TOKEN takes its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKeyRef>,
    /// The licence that the user has accepted. Left out: enough for permissive ones such as apache-2.0, mit and bsd; a
    /// checkpoint under any other licence, or none, is refused with a sentence that says what to write here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license: Option<License>,
}

/// Consent to the checkpoint's licence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct License {
    /// Identifier that the checkpoint itself declares (`apache-2.0`, `llama3.3`), in upper or lower case; several with
    /// commas for a model made of others; `unknown` for a checkpoint that declares none, or that was made of one whose licence
    /// could not be learned. It must match, else nothing is downloaded or quantized. Required.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 128), extend("x-kubernetes-validations" = [
        {"rule": r"self.matches('[^\\s\\v\\x{85}\\p{Z}]')", "message": "write the identifier that the checkpoint declares, such as apache-2.0"},
    ])))]
    pub accepted: String,
}

/// One key of a Secret in the namespace of the ModelProfile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret. Required.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    pub name: String,
    /// Key within the Secret. Required.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    pub key: String,
}

/// A Secret in the namespace of the ModelProfile, all keys of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret. Required.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    pub name: String,
}

/// A `model.uri`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelUri {
    /// `hf://OWNER/NAME`.
    HuggingFace {
        /// `OWNER/NAME`.
        repository: String,
    },
    /// `pvc://CLAIM/PATH`.
    PersistentVolumeClaim {
        /// Name of the claim.
        claim: String,
        /// Path inside the volume, without `..`.
        path: PathBuf,
    },
    /// `file:///PATH`, or `file://./PATH` from the current directory.
    File(PathBuf),
    /// `https://HOST/PATH`.
    Https(String),
}

impl ModelUri {
    /// Takes a URI apart.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to write.
    pub fn parse(uri: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = uri.split_once("://") else {
            return Err(format!(
                "`{uri}` has no scheme; write hf://OWNER/NAME, pvc://CLAIM/PATH, file:///PATH or https://HOST/PATH"
            ));
        };
        // The path ends up on a mounted volume: whoever may write a ModelProfile must not read beside the mount.
        let climbs = rest.split(['/', '\\']).any(|part| part == "..");
        if rest.contains('\0') {
            return Err("the URI contains a NUL character; remove it".to_owned());
        }
        match scheme {
            "hf" => match rest.split('/').collect::<Vec<_>>()[..] {
                [owner, name] if is_hub_name(owner) && is_hub_name(name) => {
                    Ok(Self::HuggingFace { repository: rest.to_owned() })
                }
                _ => Err(format!("`{rest}` is not OWNER/NAME of a Hugging Face repository")),
            },
            "pvc" => match rest.split_once('/') {
                Some((claim, path)) if crate::patterns::is_name(claim) && !path.is_empty() && !climbs => {
                    Ok(Self::PersistentVolumeClaim { claim: claim.to_owned(), path: PathBuf::from(path) })
                }
                _ => Err("write pvc://CLAIM/PATH, with the name of a PersistentVolumeClaim and a path without `..`"
                    .to_owned()),
            },
            "file" if rest.starts_with('/') || rest.starts_with("./") => {
                if climbs {
                    return Err("a file URI can not contain `..`; write the path that it leads to".to_owned());
                }
                Ok(Self::File(PathBuf::from(rest)))
            }
            "file" => Err(format!(
                "`{uri}` has no path; write file:///ABSOLUTE/PATH, or file://./PATH from the current directory"
            )),
            "https" => match rest.split_once('/') {
                Some((host, path)) if !host.is_empty() && !path.is_empty() => Ok(Self::Https(uri.to_owned())),
                _ => Err("write https://HOST/PATH of a .gguf file".to_owned()),
            },
            other => Err(format!("the scheme `{other}` is not known; use hf://, pvc://, file:// or https://")),
        }
    }

    /// The scheme, without `://`.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::HuggingFace { .. } => "hf",
            Self::PersistentVolumeClaim { .. } => "pvc",
            Self::File(_) => "file",
            Self::Https(_) => "https",
        }
    }
}

/// The characters that the Hugging Face hub allows in owners and repositories.
fn is_hub_name(text: &str) -> bool {
    !text.is_empty()
        && text != "."
        && text != ".."
        && text.len() <= 96
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("hf://meta-llama/Llama-3.3-70B-Instruct", "hf")]
    #[case("pvc://models/llama/model.gguf", "pvc")]
    #[case("file:///models/a.gguf", "file")]
    #[case("file://./models/a.gguf", "file")]
    #[case("https://example.org/a.gguf", "https")]
    fn known_schemes_are_taken_apart(#[case] uri: &str, #[case] scheme: &str) {
        assert_eq!(ModelUri::parse(uri).map(|u| u.scheme()), Ok(scheme));
    }

    #[rstest]
    #[case("")]
    #[case("models/a.gguf")]
    #[case("s3://bucket/a")]
    #[case("hf://llama")]
    #[case("hf://a/b/c")]
    #[case("hf://../b")]
    #[case("pvc://models")]
    #[case("pvc://Models/x")]
    #[case("pvc://models/../../etc/passwd")]
    #[case("file://models/a.gguf")]
    #[case("file:///models/../etc/passwd")]
    #[case("file://")]
    #[case("file:///a\0b")]
    #[case("https://example.org")]
    fn other_uris_are_refused(#[case] uri: &str) {
        assert!(ModelUri::parse(uri).is_err());
    }

    #[test]
    fn file_paths_stay_as_written() {
        assert_eq!(ModelUri::parse("file://./models/a.gguf"), Ok(ModelUri::File("./models/a.gguf".into())));
        assert_eq!(ModelUri::parse("file:///models/a.gguf"), Ok(ModelUri::File("/models/a.gguf".into())));
    }
}
