//! Runs one kernel body compiled for the best instruction set of this CPU.
//!
//! There are two ways to write a kernel once and have it run at full width:
//!
//! - [`Kernel`], run by [`run`]: plain Rust over slices, `#[inline(always)]` all the way
//!   down. The compiler vectorizes the copy that sits in a `#[target_feature]` function.
//!   Right for straight-line conversions.
//! - [`LaneKernel`], run by [`run_lanes`]: generic over [`Lanes`], an explicit vector of
//!   `f32`. Right for searches, where every lane must follow one scalar computation.
//!
//! Floating-point results do not depend on the copy: neither Rust nor [`Lanes`]
//! reassociates or contracts, so every copy performs the same operations in the same order.
#![expect(unsafe_code, reason = "calling a #[target_feature] function after detecting it")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod lanes;
mod portable;

pub use lanes::Lanes;

/// A computation that can be compiled for several instruction sets.
pub trait Kernel {
    /// What the kernel returns.
    type Output;
    /// The body; implement with `#[inline(always)]`.
    fn run(self) -> Self::Output;
}

/// A computation written over explicit vectors.
pub trait LaneKernel {
    /// What the kernel returns.
    type Output;
    /// The body; implement with `#[inline(always)]`. `lanes` proves that the CPU has the
    /// instructions behind `L`.
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Instruction sets with a copy of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// What the target guarantees: SSE2 on x86-64, NEON on AArch64.
    Portable,
    /// 256-bit vectors on x86-64.
    Avx2,
    /// 512-bit vectors on x86-64.
    Avx512,
}

impl Level {
    /// The widest level of this CPU.
    #[inline]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if std::is_x86_feature_detected!("avx512f")
                && std::is_x86_feature_detected!("avx512bw")
                && std::is_x86_feature_detected!("avx512vl")
                && std::is_x86_feature_detected!("avx512dq")
            {
                return Self::Avx512;
            }
            if std::is_x86_feature_detected!("avx2") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }
}

/// Runs `kernel` with the widest instruction set that this CPU has.
#[inline]
pub fn run<K: Kernel>(kernel: K) -> K::Output {
    match Level::detect() {
        // SAFETY: `detect` found the features on this CPU.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { run_avx512(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { run_avx2(kernel) },
        _ => kernel.run(),
    }
}

/// Runs `kernel` over the widest [`Lanes`] that this CPU has.
#[inline]
pub fn run_lanes<K: LaneKernel>(kernel: K) -> K::Output {
    run_lanes_at(Level::detect(), kernel)
}

/// Runs `kernel` over the [`Lanes`] of `level`, or of the widest level below it that this
/// CPU has. Tests use it to compare levels on one machine.
#[inline]
pub fn run_lanes_at<K: LaneKernel>(level: Level, kernel: K) -> K::Output {
    match (level, Level::detect()) {
        // SAFETY: `detect` found the features on this CPU.
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, Level::Avx512) => unsafe { lanes_avx512(kernel) },
        // SAFETY: as above; AVX-512 implies AVX2.
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512 | Level::Avx2, Level::Avx512 | Level::Avx2) => unsafe { lanes_avx2(kernel) },
        _ => kernel.run(portable::Portable),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,bmi1,bmi2")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,bmi1,bmi2")]
fn lanes_avx512<K: LaneKernel>(kernel: K) -> K::Output {
    // SAFETY: this function carries the features that the token stands for.
    kernel.run(unsafe { avx512::Avx512::new() })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2")]
fn lanes_avx2<K: LaneKernel>(kernel: K) -> K::Output {
    // SAFETY: this function carries the features that the token stands for.
    kernel.run(unsafe { avx2::Avx2::new() })
}
