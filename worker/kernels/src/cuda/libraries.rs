//! Finding CUDA's libraries, also where the loader does not look: toolkits below `/usr/local`, Python's wheels.
//!
//! ```text
//! folders that were given -> the loader's path -> CUDA_HOME, CUDA_PATH, /usr/local/cuda* -> site-packages/nvidia/*/lib
//! ```
//!
//! The bindings open a library by name alone (`libnvrtc.so`, `libnvrtc.so.13`, ...). The loader compares such a name with
//! those that the loaded libraries give themselves (their sonames) before it searches, so a file that was found elsewhere is
//! opened by its path, stays open, and answers to its name from then on. What the loader finds under a name without a
//! version, the bindings take before all others.
//!
//! NCCL calls itself `libnccl.so.2`, a name that the bindings do not try: its functions are taken by [`Loaded::symbol`].

mod places;

use std::{
    ffi::{CStr, CString, c_void},
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    ptr::NonNull,
    sync::{Mutex, OnceLock},
};

use self::places::Surroundings;
use super::memory::lock;
use crate::{KernelError, Result};

/// A library that is loaded when it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Library {
    /// The driver. It belongs to the machine's kernel module, so no wheel and no toolkit has it.
    Driver,
    /// The compiler.
    Nvrtc,
    /// Matrix products.
    CublasLt,
    /// Exchange between devices.
    Nccl,
}

impl Library {
    /// What people call it.
    fn title(self) -> &'static str {
        match self {
            Self::Driver => "CUDA driver",
            Self::Nvrtc => "NVRTC",
            Self::CublasLt => "cuBLASLt",
            Self::Nccl => "NCCL",
        }
    }

    /// Its names, in the order in which the bindings try them. Those of CUDA 13 and of 12.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Driver => &["libcuda.so", "libcuda.so.1"],
            Self::Nvrtc => &["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"],
            Self::CublasLt => &["libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12"],
            Self::Nccl => &["libnccl.so", "libnccl.so.2"],
        }
    }

    /// Whether the bindings find it, by one of the names that they try.
    fn answers(self) -> bool {
        // SAFETY: each looks for a library by name, which is loaded already if it is found, and lets go of it again.
        unsafe {
            match self {
                Self::Driver => cudarc::driver::sys::is_culib_present(),
                Self::Nvrtc => cudarc::nvrtc::sys::is_culib_present(),
                Self::CublasLt => cudarc::cublaslt::sys::is_culib_present(),
                // Taken by symbol.
                Self::Nccl => true,
            }
        }
    }

    /// What helps when it is missing.
    fn help(self) -> &'static str {
        match self {
            Self::Driver => {
                "install the NVIDIA driver (580 or later), in a container start it with the NVIDIA runtime, or run with the \
                 CPU as the device"
            }
            Self::Nvrtc => {
                "install CUDA's runtime libraries or `pip install nvidia-cuda-nvrtc`, name their folder in \
                 MODELPROFILE_CUDA_LIBRARIES, or start with a folder of compiled kernels"
            }
            Self::CublasLt => {
                "install CUDA's runtime libraries or `pip install nvidia-cublas`, or name their folder in \
                 MODELPROFILE_CUDA_LIBRARIES"
            }
            Self::Nccl => {
                "install it (`apt-get install libnccl2`) or `pip install nvidia-nccl-cu13`, name its folder in \
                 MODELPROFILE_CUDA_LIBRARIES, or compute the model on one GPU"
            }
        }
    }
}

/// A library that is loaded, for good.
#[derive(Debug)]
pub(super) struct Loaded {
    library: Library,
    handle: NonNull<c_void>,
}

// SAFETY: a handle of the loader, which locks by itself; it is never closed.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl Loaded {
    /// The address of a function; `None` when the library has none of this name.
    pub(super) fn symbol(&self, name: &CStr) -> Option<NonNull<c_void>> {
        // SAFETY: a handle that stays open, and a string that ends.
        NonNull::new(unsafe { libc::dlsym(self.handle.as_ptr(), name.as_ptr()) })
    }
}

/// Folders to look in before all others. The libraries of a process are one set: for those that are loaded already it comes
/// too late, and the first call that names any folder counts.
pub fn look_first_in(folders: &[PathBuf]) {
    let folders: Vec<PathBuf> = folders.iter().filter(|folder| !folder.as_os_str().is_empty()).cloned().collect();
    if !folders.is_empty() {
        let _ = GIVEN.set(folders);
    }
}

static GIVEN: OnceLock<Vec<PathBuf>> = OnceLock::new();
/// What was loaded, leaked: at most one entry for each library.
static LOADED: Mutex<Vec<&'static Loaded>> = Mutex::new(Vec::new());

/// Loads a library, so that the bindings find it.
///
/// # Errors
/// [`KernelError::Device`]: where was looked, what was there and did not load, and what helps.
pub(super) fn load(library: Library) -> Result<&'static Loaded> {
    let mut all = lock(&LOADED);
    if let Some(loaded) = all.iter().find(|loaded| loaded.library == library) {
        return Ok(loaded);
    }
    let given = GIVEN.get().map_or(&[][..], Vec::as_slice);
    let handle = search(library, given, &Surroundings::of_this_process(), open)?;
    if !library.answers() {
        // The bindings would end the process at their first call.
        return Err(KernelError::Device(format!(
            "the file that was found as {} is another library: it calls itself by none of the names {}; {}",
            library.title(),
            library.names().join(", "),
            library.help()
        )));
    }
    let loaded = Box::leak(Box::new(Loaded { library, handle }));
    all.push(loaded);
    Ok(loaded)
}

/// Looks for a library, place by place; `open` is the loader.
fn search<T>(
    library: Library,
    given: &[PathBuf],
    surroundings: &Surroundings,
    open: impl Fn(&Path) -> std::result::Result<T, String>,
) -> Result<T> {
    let mut refusals: Vec<String> = Vec::new();
    let mut in_folders = |folders: &[PathBuf]| {
        // A newer version in a later folder of one place comes before an older one in an earlier. A name without a version
        // may be of either.
        let [plain, versions @ ..] = library.names() else { return None };
        let names = versions.iter().chain([plain]);
        let files = names.flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
        // One that is no file was not there; one that does not load is told.
        files.filter(|file| file.is_file()).find_map(|file| open(&file).map_err(|why| refusals.push(why)).ok())
    };
    if let Some(found) = in_folders(given) {
        return Ok(found);
    }
    if let Some(found) = library.names().iter().find_map(|name| open(Path::new(name)).ok()) {
        return Ok(found);
    }
    let places = if library == Library::Driver { surroundings.driver() } else { surroundings.toolkits_and_wheels() };
    if let Some(found) = places.iter().find_map(|place| in_folders(place)) {
        return Ok(found);
    }
    let looked: Vec<String> =
        given.iter().chain(places.iter().flatten()).map(|folder| folder.display().to_string()).collect();
    let looked = if looked.is_empty() { String::new() } else { format!(" and in {}", looked.join(", ")) };
    Err(KernelError::Device(format!(
        "no {}: {} was not found on the loader's path{looked}; {}",
        library.title(),
        library.names().get(1).unwrap_or(&""),
        [refusals, vec![library.help().to_owned()]].concat().join("; ")
    )))
}

/// Opens a library by its path, or by its name alone. It is never closed: threads of its own may run.
fn open(path: &Path) -> std::result::Result<NonNull<c_void>, String> {
    for part in parts(path) {
        // One that does not load may be of another version than the library that asks for it.
        let _ = open_file(&part);
    }
    open_file(path)
}

/// What NVRTC loads by itself when it first compiles, by name alone: the loader finds it only if it is loaded already, since
/// a wheel's library does not say that its parts lie beside it.
fn parts(path: &Path) -> Vec<PathBuf> {
    let named =
        |file: &Path, start: &str| file.file_name().is_some_and(|name| name.as_bytes().starts_with(start.as_bytes()));
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && named(path, "libnvrtc.so"))
    else {
        return Vec::new();
    };
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    files.filter(|file| named(file, "libnvrtc-builtins.so")).collect()
}

fn open_file(path: &Path) -> std::result::Result<NonNull<c_void>, String> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| "a path with a zero byte".to_owned())?;
    // SAFETY: a string that ends; what the library does when it is loaded is its own.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
    NonNull::new(handle).ok_or_else(|| {
        // SAFETY: the loader's string, valid until its next call on this thread.
        let why = unsafe { libc::dlerror() };
        if why.is_null() {
            return format!("{} did not load", path.display());
        }
        // SAFETY: as above.
        unsafe { CStr::from_ptr(why) }.to_string_lossy().into_owned()
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A loader that has these libraries on its path, and opens any file but those that hold `broken`.
    fn loader<'a>(on_path: &'a [&'a str]) -> impl Fn(&Path) -> std::result::Result<PathBuf, String> + 'a {
        |path| {
            let taken = if path.is_absolute() {
                fs::read_to_string(path).unwrap() != "broken"
            } else {
                on_path.contains(&path.to_str().unwrap())
            };
            if taken { Ok(path.to_owned()) } else { Err(format!("{}: invalid ELF header", path.display())) }
        }
    }

    fn file(folder: &Path, name: &str, content: &str) -> PathBuf {
        fs::create_dir_all(folder).unwrap();
        let path = folder.join(name);
        fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn given_folders_come_before_the_loader_and_the_loader_before_the_rest() {
        let root = tempfile::tempdir().unwrap();
        let (given, toolkit) = (root.path().join("given"), root.path().join("usr/cuda/lib64"));
        let of_toolkit = file(&toolkit, "libnvrtc.so.13", "");
        let surroundings = Surroundings { local: root.path().join("usr"), ..Surroundings::default() };
        let find = |given: &[PathBuf], on_path: &[&str]| {
            search(Library::Nvrtc, given, &surroundings, loader(on_path)).unwrap()
        };
        assert_eq!(find(std::slice::from_ref(&given), &["libnvrtc.so.12"]), Path::new("libnvrtc.so.12"));
        assert_eq!(find(std::slice::from_ref(&given), &[]), of_toolkit);
        let of_given = file(&given, "libnvrtc.so.12", "");
        assert_eq!(find(std::slice::from_ref(&given), &["libnvrtc.so.13"]), of_given);
        assert_eq!(find(&[], &["libnvrtc.so.13", "libnvrtc.so"]), Path::new("libnvrtc.so"), "as the bindings do");
    }

    #[test]
    fn the_newest_of_a_place_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let site = root.path().join("lib/python3.12/site-packages/nvidia");
        file(&site.join("cublas/lib"), "libcublasLt.so.12", "");
        let newer = file(&site.join("cu13/lib"), "libcublasLt.so.13", "");
        let surroundings = Surroundings { prefixes: vec![root.path().into()], ..Surroundings::default() };
        assert_eq!(search(Library::CublasLt, &[], &surroundings, loader(&[])).unwrap(), newer);
        file(newer.parent().unwrap(), "libcublasLt.so.13", "broken");
        let older = search(Library::CublasLt, &[], &surroundings, loader(&[])).unwrap();
        assert!(older.ends_with("cublas/lib/libcublasLt.so.12"), "{older:?}");
    }

    #[test]
    fn what_is_missing_says_where_was_looked_what_did_not_load_and_what_helps() {
        let root = tempfile::tempdir().unwrap();
        let site = root.path().join("lib/python3.12/site-packages/nvidia");
        let broken = file(&site.join("nccl/lib"), "libnccl.so.2", "broken");
        let surroundings = Surroundings { prefixes: vec![root.path().into()], ..Surroundings::default() };
        let given = root.path().join("mine");
        let error =
            search(Library::Nccl, std::slice::from_ref(&given), &surroundings, loader(&[])).unwrap_err().to_string();
        for part in [
            "no NCCL: libnccl.so.2 was not found on the loader's path",
            &given.display().to_string(),
            &broken.parent().unwrap().display().to_string(),
            &format!("{}: invalid ELF header", broken.display()),
            "pip install nvidia-nccl",
            "MODELPROFILE_CUDA_LIBRARIES",
        ] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
    }

    #[test]
    fn a_driver_is_never_taken_from_wheels_or_toolkits() {
        let root = tempfile::tempdir().unwrap();
        // As toolkits have it: a library that only programs are linked with.
        file(&root.path().join("cuda/lib64"), "libcuda.so", "");
        file(&root.path().join("lib/python3.12/site-packages/nvidia/cu13/lib"), "libcuda.so.1", "");
        let surroundings =
            Surroundings { local: root.path().into(), prefixes: vec![root.path().into()], ..Surroundings::default() };
        let error = search(Library::Driver, &[], &surroundings, loader(&[])).unwrap_err().to_string();
        assert!(error.contains("libcuda.so.1") && error.contains("CPU"), "{error}");
    }

    #[test]
    fn the_loader_says_why_it_does_not_open_a_file() {
        let root = tempfile::tempdir().unwrap();
        let text = file(root.path(), "libnvrtc.so.13", "no library");
        assert!(open(&text).unwrap_err().contains("libnvrtc.so.13"));
        assert!(open(Path::new("libc.so.6")).is_ok());
    }
}
