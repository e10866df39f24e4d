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
#[cfg(target_arch = "x86_64")]
mod sha;

use std::cell::Cell;

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

/// Instruction sets with a copy of their own, narrowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
            if std::is_x86_feature_detected!("avx2")
                && std::is_x86_feature_detected!("bmi1")
                && std::is_x86_feature_detected!("bmi2")
                && std::is_x86_feature_detected!("avx512f")
                && std::is_x86_feature_detected!("avx512bw")
                && std::is_x86_feature_detected!("avx512vl")
                && std::is_x86_feature_detected!("avx512dq")
            {
                return Self::Avx512;
            }
            if std::is_x86_feature_detected!("avx2")
                && std::is_x86_feature_detected!("bmi1")
                && std::is_x86_feature_detected!("bmi2")
            {
                return Self::Avx2;
            }
        }
        Self::Portable
    }
}

thread_local! {
    /// The widest level that this thread may use.
    static CAP: Cell<Level> = const { Cell::new(Level::Avx512) };
}

/// Calls `body` with this thread kept to `level` and below, so that tests and benches can
/// compare levels on one machine.
pub fn with_at_most<R>(level: Level, body: impl FnOnce() -> R) -> R {
    struct Restore(Level);
    impl Drop for Restore {
        fn drop(&mut self) {
            CAP.set(self.0);
        }
    }
    let _restore = Restore(CAP.replace(level));
    body()
}

/// The level that kernels of this thread run at.
#[inline]
fn current() -> Level {
    Level::detect().min(CAP.get())
}

/// Runs `kernel` with the widest instruction set that this CPU has.
#[inline]
pub fn run<K: Kernel>(kernel: K) -> K::Output {
    match current() {
        // SAFETY: `current` is never above what was detected on this CPU.
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
    match current() {
        // SAFETY: `current` is never above what was detected on this CPU.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { lanes_avx512(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { lanes_avx2(kernel) },
        _ => kernel.run(portable::Portable),
    }
}

/// SHA-256's compression function over `blocks`.
#[inline]
pub(crate) fn sha256(state: &mut [u32; 8], blocks: &[[u8; 64]]) {
    sha2::block_api::compress256(state, blocks);
}

/// SHA-256's compression function over the blocks of two messages, of which there are equally many.
#[inline]
pub(crate) fn sha256_both(states: [&mut [u32; 8]; 2], blocks: [&[[u8; 64]]; 2]) {
    #[cfg(target_arch = "x86_64")]
    if current() > Level::Portable && sha::is_here() {
        // SAFETY: this CPU has the instructions.
        return unsafe { sha::compress(states, blocks) };
    }
    for (state, blocks) in states.into_iter().zip(blocks) {
        sha256(state, blocks);
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
