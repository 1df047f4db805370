//! Which instruction set the kernels use, decided at run time.

/// An instruction set with kernels of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Portable code.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, DQ, BW, VL, VBMI, VNNI and BF16, and all of AVX2's.
    Avx512,
}

impl Isa {
    /// Every instruction set of this machine, the best last.
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                all.push(Self::Avx2);
            }
            // What AVX2's kernels use is used beside it.
            if all.contains(&Self::Avx2)
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vbmi")
                && is_x86_feature_detected!("avx512vnni")
                && is_x86_feature_detected!("avx512bf16")
            {
                all.push(Self::Avx512);
            }
        }
        all
    }

    /// The best of this machine, or what the environment variable `MODELPROFILE_ISA` (scalar, avx2, avx512) names.
    pub fn detect() -> Self {
        let available = Self::available();
        let wanted = match std::env::var("MODELPROFILE_ISA").as_deref() {
            Ok("scalar") => Some(Self::Scalar),
            Ok("avx2") => Some(Self::Avx2),
            Ok("avx512") => Some(Self::Avx512),
            _ => None,
        };
        wanted.filter(|isa| available.contains(isa)).or_else(|| available.last().copied()).unwrap_or(Self::Scalar)
    }
}

/// Compiles a function once per instruction set: `name(isa, ...)` runs the body with the instructions of `isa`. The body
/// is an `#[inline(always)]` function of portable code. Only for values of [`Isa::available`].
macro_rules! per_isa {
    ($(#[$doc:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $body:path;) => {
        $(#[$doc])*
        #[allow(unused_unsafe, reason = "some bodies are safe")]
        $vis unsafe fn $name(isa: $crate::cpu::Isa, $($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
            #[allow(unused_unsafe, reason = "some bodies are safe")]
            unsafe fn avx512($($arg: $type),*) {
                // SAFETY: the caller's promises.
                unsafe { $body($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(unused_unsafe, reason = "some bodies are safe")]
            unsafe fn avx2($($arg: $type),*) {
                // SAFETY: the caller's promises.
                unsafe { $body($($arg),*) }
            }
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the caller's promises; the machine has the instructions.
                $crate::cpu::Isa::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::cpu::Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: the caller's promises.
                _ => unsafe { $body($($arg),*) },
            }
        }
    };
}
pub(crate) use per_isa;
