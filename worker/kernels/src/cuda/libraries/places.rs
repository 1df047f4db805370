//! Where CUDA's libraries lie when the loader does not know of them.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// What the folders depend on.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    /// Toolkits that variables name.
    pub(super) toolkits: Vec<PathBuf>,
    /// Where toolkits and drivers are installed: `/usr/local`.
    pub(super) local: PathBuf,
    /// Folders of the machine's own that hold its driver.
    pub(super) drivers: Vec<PathBuf>,
    /// Prefixes of Python installations, the interpreter's own first: `PREFIX/bin/python3`.
    pub(super) prefixes: Vec<PathBuf>,
}

impl Surroundings {
    /// As the environment says. No interpreter is started: a prefix is known from where its `python3` lies.
    pub(super) fn of_this_process() -> Self {
        let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let named = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable);
        let path = env::var_os("PATH").unwrap_or_default();
        let found = env::split_paths(&path).filter(|folder| folder.join("python3").exists());
        let found = found.filter_map(|folder| folder.parent().map(Path::to_owned));
        let mut prefixes: Vec<PathBuf> = Vec::new();
        // `pip install --user`.
        for prefix in named.chain(found).chain(variable("HOME").map(|home| home.join(".local"))) {
            if !prefixes.contains(&prefix) {
                prefixes.push(prefix);
            }
        }
        Self {
            toolkits: ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable).collect(),
            local: "/usr/local".into(),
            // Windows' subsystem for Linux, and NixOS.
            drivers: vec!["/usr/lib/wsl/lib".into(), "/run/opengl-driver/lib".into()],
            prefixes,
        }
    }

    /// Places of the driver's library, best first, each as its folders.
    pub(super) fn driver(&self) -> Vec<Vec<PathBuf>> {
        // Where Kubernetes engines of clouds mount it.
        let mounted = [self.local.join("nvidia/lib64"), self.local.join("nvidia/lib")];
        mounted
            .into_iter()
            .chain(self.drivers.iter().cloned())
            .filter(|f| f.is_dir())
            .map(|folder| vec![folder])
            .collect()
    }

    /// Places of all other libraries, best first, each as its folders.
    pub(super) fn toolkits_and_wheels(&self) -> Vec<Vec<PathBuf>> {
        let toolkits = self.toolkits.iter().cloned().chain(installed(&self.local));
        let toolkits = toolkits.map(|toolkit| {
            let folders = [toolkit.join("lib64"), toolkit.join("targets/x86_64-linux/lib"), toolkit.join("lib")];
            folders.into_iter().filter(|folder| folder.is_dir()).collect()
        });
        toolkits
            .chain(self.prefixes.iter().map(|prefix| wheels(prefix)))
            .filter(|place: &Vec<_>| !place.is_empty())
            .collect()
    }
}

/// Toolkits below `/usr/local`: `cuda` first, which is the one that the machine's owner chose, then the newest.
fn installed(local: &Path) -> Vec<PathBuf> {
    let mut versions: Vec<PathBuf> = matching(local, |name| name.starts_with("cuda-"));
    // 13.0 before 12.9, and 12.10 before both of 12.9 and 12.2.
    let version = |path: &PathBuf| -> Vec<u32> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.trim_start_matches("cuda-").split('.').map(|part| part.parse().unwrap_or(0)).collect()
    };
    versions.sort_by_key(|path| std::cmp::Reverse(version(path)));
    [local.join("cuda")].into_iter().filter(|path| path.is_dir()).chain(versions).collect()
}

/// Folders of NVIDIA's wheels in a Python installation: `nvidia/cublas/lib` of those for CUDA 12, `nvidia/cu13/lib` of those
/// for CUDA 13.
fn wheels(prefix: &Path) -> Vec<PathBuf> {
    let pythons =
        ["lib", "lib64"].into_iter().flat_map(|lib| matching(&prefix.join(lib), |name| name.starts_with("python3")));
    let packages = pythons.flat_map(|python| ["site-packages", "dist-packages"].map(|name| python.join(name)));
    let parts = packages.flat_map(|packages| matching(&packages.join("nvidia"), |_| true));
    parts.map(|part| part.join("lib")).filter(|folder| folder.is_dir()).collect()
}

/// What a folder holds under matching names, by name; nothing of one that cannot be read.
fn matching(folder: &Path, matches: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let entries = entries.filter(|entry| entry.file_name().to_str().is_some_and(&matches));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these folders in it.
    fn tree(folders: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for folder in folders {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        root
    }

    fn names(root: &Path, places: &[Vec<PathBuf>]) -> Vec<Vec<String>> {
        let name = |path: &PathBuf| path.strip_prefix(root).unwrap().display().to_string();
        places.iter().map(|place| place.iter().map(name).collect()).collect()
    }

    #[test]
    fn toolkits_come_before_wheels_the_chosen_one_first_and_then_the_newest() {
        let root = tree(&[
            "opt/mine/lib64",
            "local/cuda-12.9/lib64",
            "local/cuda-12.10/lib64",
            "local/cuda-13.0/targets/x86_64-linux/lib",
            "local/cuda/lib64",
            "local/cudnn/lib64",
            "venv/lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib",
            "venv/lib/python3.12/site-packages/nvidia/cu13/lib",
            "venv/lib/python3.12/site-packages/nvidia/cu13/include",
            "usr/lib/python3/dist-packages/nvidia/nccl/lib",
        ]);
        let at = |path: &str| root.path().join(path);
        let surroundings = Surroundings {
            toolkits: vec![at("opt/mine"), at("absent")],
            local: at("local"),
            drivers: Vec::new(),
            prefixes: vec![at("venv"), at("absent"), at("usr")],
        };
        assert_eq!(
            names(root.path(), &surroundings.toolkits_and_wheels()),
            [
                vec!["opt/mine/lib64"],
                vec!["local/cuda/lib64"],
                vec!["local/cuda-13.0/targets/x86_64-linux/lib"],
                vec!["local/cuda-12.10/lib64"],
                vec!["local/cuda-12.9/lib64"],
                vec![
                    "venv/lib/python3.12/site-packages/nvidia/cu13/lib",
                    "venv/lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib",
                ],
                vec!["usr/lib/python3/dist-packages/nvidia/nccl/lib"],
            ]
        );
    }

    #[test]
    fn drivers_lie_where_machines_mount_them() {
        let root = tree(&["local/nvidia/lib64", "local/cuda/lib64", "wsl"]);
        let at = |path: &str| root.path().join(path);
        let drivers = vec![at("wsl"), at("absent")];
        let surroundings = Surroundings { local: at("local"), drivers, ..Surroundings::default() };
        assert_eq!(names(root.path(), &surroundings.driver()), [["local/nvidia/lib64"], ["wsl"]]);
    }
}
