//! NCCL: sums over the devices that compute one model.
//!
//! The library is loaded when several devices are asked for, and never otherwise. The bindings' types are used, but not their
//! functions: these look for the library under names that NCCL's packages do not install (see [`super::libraries`]), and end
//! the program where they find none.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr::NonNull,
    sync::{Condvar, Mutex, OnceLock},
    time::Duration,
};

use cudarc::nccl::sys;

use super::{
    driver::{Address, Stream},
    libraries::{self, Loaded},
    memory::lock,
};
use crate::{KernelError, Result};

/// How long an abort waits for a thread that is handing over an operation. Handing over takes microseconds, but for ever where
/// the queue to a device is full that waits for another device: then the abort is what ends it.
const HANDING_OVER: Duration = Duration::from_secs(2);

// Results are integers here: a newer library may give some that the bindings do not name.
type InitAll = unsafe extern "C" fn(*mut sys::ncclComm_t, c_int, *const c_int) -> c_int;
type AllReduce =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, sys::ncclComm_t, *mut c_void) -> c_int;
type OfComm = unsafe extern "C" fn(sys::ncclComm_t) -> c_int;
type ErrorString = unsafe extern "C" fn(c_int) -> *const c_char;

/// The functions that are used.
struct Library {
    init_all: InitAll,
    all_reduce: AllReduce,
    abort: OfComm,
    destroy: OfComm,
    error_string: ErrorString,
}

impl Library {
    /// The library, loaded once.
    fn get() -> Result<&'static Self> {
        static LOADED: OnceLock<Library> = OnceLock::new();
        if let Some(loaded) = LOADED.get() {
            return Ok(loaded);
        }
        let functions = Self::functions(libraries::load(libraries::Library::Nccl)?)?;
        Ok(LOADED.get_or_init(|| functions))
    }

    fn functions(library: &Loaded) -> Result<Self> {
        let symbol = |name: &CStr| {
            library.symbol(name).map(NonNull::as_ptr).ok_or_else(|| {
                let name = name.to_string_lossy();
                KernelError::Device(format!("NCCL has no function {name}: install a newer one"))
            })
        };
        // SAFETY: the types are those that NCCL's header declares for these names, its enumerations as integers; the library
        // is never unloaded.
        unsafe {
            Ok(Self {
                init_all: std::mem::transmute::<*mut c_void, InitAll>(symbol(c"ncclCommInitAll")?),
                all_reduce: std::mem::transmute::<*mut c_void, AllReduce>(symbol(c"ncclAllReduce")?),
                abort: std::mem::transmute::<*mut c_void, OfComm>(symbol(c"ncclCommAbort")?),
                destroy: std::mem::transmute::<*mut c_void, OfComm>(symbol(c"ncclCommDestroy")?),
                error_string: std::mem::transmute::<*mut c_void, ErrorString>(symbol(c"ncclGetErrorString")?),
            })
        }
    }

    fn check(&self, call: &str, code: c_int) -> Result<()> {
        if code == sys::ncclResult_t::ncclSuccess as c_int {
            return Ok(());
        }
        // SAFETY: gives a static string for every code, or null.
        let text = unsafe { (self.error_string)(code) };
        // SAFETY: as above.
        let text = if text.is_null() { "unknown".into() } else { unsafe { CStr::from_ptr(text) }.to_string_lossy() };
        Err(KernelError::Device(format!("{call}: error {code} ({text}); NCCL_DEBUG=WARN makes NCCL say more")))
    }
}

/// The communicators of all devices of a model, each used by its device's thread.
pub(super) struct Communicators {
    library: &'static Library,
    members: Vec<Member>,
}

struct Member {
    state: Mutex<State>,
    handed_over: Condvar,
}

struct State {
    /// Null once it is gone.
    handle: sys::ncclComm_t,
    /// A thread is handing over an operation.
    in_call: bool,
}

// SAFETY: a communicator may be used from any thread, by one at a time: `in_call` and the lock see to it.
unsafe impl Send for State {}

impl Communicators {
    /// Joins devices, by their numbers. Their contexts exist.
    ///
    /// # Errors
    /// [`KernelError::Device`] with a sentence: NCCL is missing, or refuses the devices.
    pub(super) fn new(ordinals: &[usize]) -> Result<Self> {
        let library = Library::get()?;
        let numbers: Vec<c_int> =
            ordinals.iter().map(|ordinal| c_int::try_from(*ordinal).unwrap_or(c_int::MAX)).collect();
        let mut handles: Vec<sys::ncclComm_t> = vec![std::ptr::null_mut(); numbers.len()];
        // One call for all: where it fails, no device waits for another one.
        // SAFETY: as many places to write as there are numbers.
        let made = unsafe { (library.init_all)(handles.as_mut_ptr(), numbers.len() as c_int, numbers.as_ptr()) };
        library.check("ncclCommInitAll", made)?;
        let members = handles
            .into_iter()
            .map(|handle| Member { state: Mutex::new(State { handle, in_call: false }), handed_over: Condvar::new() });
        Ok(Self { library, members: members.collect() })
    }

    /// Sums `count` values over all devices, in place: each device's thread hands its part over to its own stream.
    ///
    /// # Errors
    /// [`KernelError::Device`]: NCCL's, or after an abort. Then the other devices wait for this one until [`Self::abort`].
    pub(super) fn all_reduce(&self, rank: usize, stream: &Stream, at: Address, count: usize) -> Result<()> {
        let member = &self.members[rank];
        let handle = {
            let mut state = lock(&member.state);
            if state.handle.is_null() {
                return Err(KernelError::Device("ncclAllReduce: the communicator was aborted".into()));
            }
            state.in_call = true;
            state.handle
        };
        let (kind, sum) = (sys::ncclDataType_t::ncclFloat32 as c_int, sys::ncclRedOp_t::ncclSum as c_int);
        let memory = at as *mut c_void;
        // SAFETY: the communicator lives while `in_call` is set, but for an abort that gave up waiting, which NCCL allows;
        // whoever made the command owns the range, as with a launch.
        let code = unsafe { (self.library.all_reduce)(memory, memory, count, kind, sum, handle, stream.raw().cast()) };
        lock(&member.state).in_call = false;
        member.handed_over.notify_all();
        self.library.check("ncclAllReduce", code)
    }

    /// Ends all operations that have not ended, without a result, and all communicators. From any thread.
    pub(super) fn abort(&self) {
        self.leave(self.library.abort);
    }

    /// Ends the communicators when all their operations have ended and no recorded one is left.
    pub(super) fn destroy(&self) {
        self.leave(self.library.destroy);
    }

    fn leave(&self, how: OfComm) {
        for member in &self.members {
            let state = lock(&member.state);
            let waited = member.handed_over.wait_timeout_while(state, HANDING_OVER, |state| state.in_call);
            let (mut state, _) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
            let handle = std::mem::replace(&mut state.handle, std::ptr::null_mut());
            if !handle.is_null() {
                // SAFETY: ours, and not used again.
                unsafe { how(handle) };
            }
        }
    }
}

impl Drop for Communicators {
    fn drop(&mut self) {
        // Those that are left: the devices were never a group.
        self.abort();
    }
}
