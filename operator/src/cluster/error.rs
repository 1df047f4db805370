//! Errors of a pass, by what is to be done about them.

use std::time::Duration;

/// What went wrong in a pass. The class decides when the next one comes; nobody else's ModelProfile waits for it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server does not take an object of ours as it is.
    #[error("the API server refuses {object}: {message}")]
    Invalid {
        /// Kind and name.
        object: String,
        /// What it said.
        message: String,
    },
    /// An object of somebody else has a name that is needed.
    #[error("{0}")]
    Taken(String),
    /// The namespace is on its way out, and all of this with it.
    #[error("{object}: its namespace is being deleted")]
    Leaving {
        /// Kind and name.
        object: String,
    },
    /// Somebody else wrote meanwhile; the next pass sees it.
    #[error("{object} was changed meanwhile")]
    Conflict {
        /// Kind and name.
        object: String,
    },
    /// The API server is away, slow or refuses for now.
    #[error("{what}: {message}")]
    Transient {
        /// What was tried.
        what: String,
        /// What went wrong.
        message: String,
    },
    /// What must not be.
    #[error("{0}; please report this")]
    Bug(String),
}

impl Error {
    /// The error of a request about an object.
    pub fn of(object: &str, error: &kube::Error) -> Self {
        let object = object.to_owned();
        match error {
            kube::Error::Api(status) if status.code == 403 && is_leaving(status) => Self::Leaving { object },
            kube::Error::Api(status) if status.code == 409 => Self::Conflict { object },
            kube::Error::Api(status) if matches!(status.code, 400 | 403 | 404 | 422) => {
                Self::Invalid { object, message: status.message.clone() }
            }
            other => Self::Transient { what: object, message: other.to_string() },
        }
    }

    /// One word for metrics, from a closed set.
    pub const fn class(&self) -> &'static str {
        match self {
            Self::Invalid { .. } | Self::Taken(_) => "invalid",
            Self::Conflict { .. } | Self::Leaving { .. } => "conflict",
            Self::Transient { .. } => "transient",
            Self::Bug(_) => "bug",
        }
    }

    /// Whether it stays until a person does something, so that the status has to tell of it.
    pub const fn needs_a_person(&self) -> bool {
        matches!(self, Self::Invalid { .. } | Self::Taken(_))
    }

    /// When to try again after `failures` in a row. A refusal is mostly repeated until somebody changes something, which is
    /// seen at once; a conflict is over already.
    pub fn pause(&self, failures: u32) -> Duration {
        let (first, longest) = match self {
            Self::Conflict { .. } => (Duration::from_millis(100), Duration::from_secs(5)),
            // Nothing tells when somebody else's object goes.
            Self::Transient { .. } | Self::Taken(_) | Self::Leaving { .. } => {
                (Duration::from_secs(1), Duration::from_secs(30))
            }
            Self::Invalid { .. } | Self::Bug(_) => (Duration::from_secs(10), Duration::from_secs(300)),
        };
        first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(longest)
    }
}

/// Cause that the API server names where nothing new may be made in a namespace.
fn is_leaving(status: &kube::core::Status) -> bool {
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn api(code: u16) -> kube::Error {
        let mut status = kube::core::Status::failure("no", "Reason");
        status.code = code;
        kube::Error::Api(status.boxed())
    }

    #[rstest]
    #[case(409, "conflict")]
    #[case(422, "invalid")]
    #[case(403, "invalid")]
    #[case(500, "transient")]
    #[case(429, "transient")]
    fn the_answer_decides_the_class(#[case] code: u16, #[case] class: &str) {
        assert_eq!(Error::of("Service llama", &api(code)).class(), class);
    }

    #[test]
    fn pauses_double_up_to_their_longest() {
        let error = Error::of("Service llama", &api(500));
        let seconds: Vec<u64> = (1..8).map(|failures| error.pause(failures).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
    }
}
