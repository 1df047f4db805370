//! Kernel sources into device images, by NVRTC, kept on disk.
//!
//! ```text
//! shipped folder  ->  cache folder  ->  NVRTC, then written to the cache folder
//! ```
//!
//! An image in the cache is named by a hash of all that made it: source, options, and the versions of NVRTC and of the
//! driver. A shipped image was made elsewhere, so its name knows source and options only. A file that is not whole is
//! compiled anew and replaced: files are written to a temporary name and renamed, and carry the hash of their content.

use std::{
    ffi::{CString, c_char, c_int},
    fs,
    path::{Path, PathBuf},
    ptr,
};

use cudarc::nvrtc::sys;

use super::{
    device::CudaOptions,
    libraries::{Library, load},
};
use crate::{KernelError, Result};

/// A translation unit: files one behind the other, the primitives first.
#[derive(Clone, Copy, Debug)]
pub struct Unit {
    /// Its name, for messages and file names.
    pub name: &'static str,
    /// The files.
    pub files: &'static [&'static str],
}

impl Unit {
    /// What the compiler gets.
    pub fn source(&self) -> String {
        self.files.concat()
    }
}

/// Where images come from and go to.
#[derive(Clone, Debug, Default)]
pub struct Images {
    /// Images that came with the program.
    pub shipped: Option<PathBuf>,
    /// Images that were compiled here.
    pub cache: Option<PathBuf>,
}

/// How an image came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It came with the program.
    Shipped,
    /// It was compiled at an earlier start.
    Cached,
    /// It was compiled now.
    Compiled,
}

impl Images {
    /// As a device's options name them.
    pub(super) fn of(options: &CudaOptions) -> Self {
        Self { shipped: options.shipped.clone(), cache: options.cache.clone() }
    }

    /// Whether the images of these units came with the program, or can be compiled.
    ///
    /// # Errors
    /// [`KernelError::Device`] when NVRTC is needed and missing.
    pub(super) fn obtainable(&self, units: &[Unit], capability: (i32, i32)) -> Result<()> {
        let made_of = |unit: &Unit| of(&unit.source(), &nvrtc_options(capability));
        let shipped = |folder: &PathBuf| units.iter().all(|unit| path(folder, unit, made_of(unit)).is_file());
        if self.shipped.as_ref().is_some_and(shipped) { Ok(()) } else { nvrtc_version().map(drop) }
    }

    /// The image of a unit for a device.
    ///
    /// # Errors
    /// [`KernelError::Device`] when NVRTC is needed and missing, or refuses the source; its log is told. A cache that
    /// cannot be written is no error.
    pub fn get(&self, unit: &Unit, capability: (i32, i32), driver: i32) -> Result<(Vec<u8>, Origin)> {
        let (source, options) = (unit.source(), nvrtc_options(capability));
        let made_of = of(&source, &options);
        if let Some(folder) = &self.shipped
            && let Some(image) = read(&path(folder, unit, made_of), made_of)
        {
            return Ok((image, Origin::Shipped));
        }
        let version = nvrtc_version();
        let by_what = version.as_ref().map_or((0, 0), |version| *version);
        let made_by = made_of.with(format!("nvrtc {}.{} driver {driver}", by_what.0, by_what.1).as_bytes());
        let cached = self.cache.as_ref().map(|folder| path(folder, unit, made_by));
        if let Some(file) = &cached
            && let Some(image) = read(file, made_by)
        {
            return Ok((image, Origin::Cached));
        }
        version?;
        let image = compile(unit.name, &source, &options)?;
        if let Some(file) = &cached {
            // The next start compiles again: slower, and nothing else.
            let _ = write(file, made_by, &image);
        }
        Ok((image, Origin::Compiled))
    }

    /// Compiles a unit into a folder that is to be shipped, unless it is there.
    ///
    /// # Errors
    /// As [`Self::get`]; [`KernelError::Io`] when the folder cannot be written.
    pub fn ship(folder: &Path, unit: &Unit, capability: (i32, i32)) -> Result<PathBuf> {
        nvrtc_version()?;
        let (source, options) = (unit.source(), nvrtc_options(capability));
        let made_of = of(&source, &options);
        let file = path(folder, unit, made_of);
        if read(&file, made_of).is_none() {
            write(&file, made_of, &compile(unit.name, &source, &options)?)?;
        }
        Ok(file)
    }
}

/// What NVRTC is told for a compute capability. No fast math: scales and codes of activations are to be the CPU's, so division is IEEE division.
pub fn nvrtc_options((major, minor): (i32, i32)) -> Vec<String> {
    // Hopper's own instructions are not in any later architecture, so they are asked for by a name of its own.
    let suffix = if (major, minor) == (9, 0) { "a" } else { "" };
    vec![
        format!("--gpu-architecture=sm_{major}{minor}{suffix}"),
        "--std=c++17".into(),
        "-lineinfo".into(),
        // No unit uses all the primitives that it is compiled behind.
        "--diag-suppress=177".into(),
    ]
}

/// What an image is made of.
fn of(source: &str, options: &[String]) -> Hash {
    Hash::new().with(source.as_bytes()).with(options.join(" ").as_bytes())
}

fn path(folder: &Path, unit: &Unit, hash: Hash) -> PathBuf {
    folder.join(format!("{}-{:032x}.cubin", unit.name, hash.0))
}

/// FNV-1a of 128 bits: names files, keeps no secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hash(u128);

impl Hash {
    const fn new() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    fn with(self, bytes: &[u8]) -> Self {
        // The length first: parts that are joined differently are different.
        let length = (bytes.len() as u64).to_le_bytes();
        let step = |hash: u128, byte: &u8| (hash ^ u128::from(*byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
        Self(length.iter().chain(bytes).fold(self.0, step))
    }
}

/// Before the image: what the file is, what it was made of, and the hash of what follows.
const MAGIC: &[u8; 16] = b"modelprofile gpu";
const HEADER: usize = 16 + 16 + 16;

fn read(file: &Path, made_of: Hash) -> Option<Vec<u8>> {
    let bytes = fs::read(file).ok()?;
    let (header, image) = bytes.split_at_checked(HEADER)?;
    let content = Hash::new().with(image);
    let whole = header[..16] == MAGIC[..]
        && header[16..32] == made_of.0.to_le_bytes()
        && header[32..] == content.0.to_le_bytes()
        && is_image(image);
    whole.then(|| image.to_vec())
}

/// The driver takes an image by its address alone: it must be what it claims to be.
fn is_image(image: &[u8]) -> bool {
    image.len() > 64 && image.starts_with(b"\x7fELF")
}

fn write(file: &Path, made_of: Hash, image: &[u8]) -> Result<()> {
    let io = |source| KernelError::Io { path: file.display().to_string(), source };
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).map_err(io)?;
    }
    let mut bytes = Vec::with_capacity(HEADER + image.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&made_of.0.to_le_bytes());
    bytes.extend_from_slice(&Hash::new().with(image).0.to_le_bytes());
    bytes.extend_from_slice(image);
    // Two workers may start at once on one volume: each writes a file of its own, the last rename wins.
    let temporary = file.with_extension(format!("{}.partial", std::process::id()));
    let written = fs::write(&temporary, &bytes).and_then(|()| fs::rename(&temporary, file));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(io)
}

fn nvrtc_version() -> Result<(c_int, c_int)> {
    load(Library::Nvrtc)?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: two places to write.
    check("nvrtcVersion", unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) })?;
    Ok((major, minor))
}

fn check(call: &str, code: sys::nvrtcResult) -> Result<()> {
    if code == sys::nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    Err(KernelError::Device(format!("{call}: {code:?}")))
}

/// A program of NVRTC; destroys itself.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: ours.
        unsafe { sys::nvrtcDestroyProgram(&raw mut self.0) };
    }
}

fn compile(name: &str, source: &str, options: &[String]) -> Result<Vec<u8>> {
    let no_text = |_| KernelError::Format(format!("the source of {name} holds a zero byte"));
    let text = CString::new(source).map_err(no_text)?;
    let file = CString::new(format!("{name}.cu")).map_err(no_text)?;
    let options: Vec<CString> =
        options.iter().map(|o| CString::new(o.as_str())).collect::<std::result::Result<_, _>>().map_err(no_text)?;
    let arguments: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
    let mut program = Program(ptr::null_mut());
    // SAFETY: strings that live for the call, no headers.
    let created = unsafe {
        sys::nvrtcCreateProgram(&raw mut program.0, text.as_ptr(), file.as_ptr(), 0, ptr::null(), ptr::null())
    };
    check("nvrtcCreateProgram", created)?;
    // SAFETY: a program, and strings that live for the call.
    let compiled = unsafe { sys::nvrtcCompileProgram(program.0, arguments.len() as c_int, arguments.as_ptr()) };
    if compiled != sys::nvrtcResult::NVRTC_SUCCESS {
        return Err(KernelError::Device(format!("NVRTC refused {name} ({compiled:?}):\n{}", log(&program))));
    }
    let mut size = 0;
    // SAFETY: a compiled program, a place to write.
    check("nvrtcGetCUBINSize", unsafe { sys::nvrtcGetCUBINSize(program.0, &raw mut size) })?;
    let mut image = vec![0u8; size];
    // SAFETY: room for as many bytes as it said.
    check("nvrtcGetCUBIN", unsafe { sys::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast()) })?;
    if is_image(&image) {
        return Ok(image);
    }
    Err(KernelError::Device(format!("NVRTC gave {size} bytes for {name} that are no device image")))
}

fn log(program: &Program) -> String {
    let mut size = 0;
    // SAFETY: a program, a place to write.
    if unsafe { sys::nvrtcGetProgramLogSize(program.0, &raw mut size) } != sys::nvrtcResult::NVRTC_SUCCESS {
        return "its log cannot be read".into();
    }
    let mut text = vec![0u8; size];
    // SAFETY: room for as many bytes as it said.
    unsafe { sys::nvrtcGetProgramLog(program.0, text.as_mut_ptr().cast()) };
    String::from_utf8_lossy(&text).trim_end_matches('\0').into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Vec<u8> {
        let mut image = b"\x7fELF".to_vec();
        image.resize(100, 7);
        image
    }

    #[test]
    fn an_image_is_read_as_it_was_written_and_a_damaged_one_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep/rows.cubin");
        let hash = Hash::new().with(b"source");
        write(&file, hash, &image()).unwrap();
        assert_eq!(read(&file, hash), Some(image()));
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
        assert_eq!(read(&file, hash.with(b"")), None, "made of something else");
        let whole = fs::read(&file).unwrap();
        for (length, flipped) in [(whole.len() - 1, None), (20, None), (0, None), (whole.len(), Some(HEADER + 50))] {
            let mut bytes = whole[..length].to_vec();
            if let Some(at) = flipped {
                bytes[at] ^= 1;
            }
            fs::write(&file, &bytes).unwrap();
            assert_eq!(read(&file, hash), None, "{length} {flipped:?}");
        }
    }

    #[test]
    fn hashes_tell_parts_apart() {
        assert_ne!(Hash::new().with(b"ab").with(b"c"), Hash::new().with(b"a").with(b"bc"));
        assert_ne!(Hash::new(), Hash::new().with(b""));
    }

    #[test]
    fn hopper_is_asked_for_with_its_own_instructions() {
        assert_eq!(nvrtc_options((9, 0))[0], "--gpu-architecture=sm_90a");
        assert_eq!(nvrtc_options((10, 0))[0], "--gpu-architecture=sm_100");
    }
}
