//! Runs one safe kernel body compiled for the best instruction set of this CPU.
//!
//! A kernel is written once, as plain Rust over small arrays of lanes, with
//! `#[inline(always)]` all the way down. [`run`] calls it from a function that carries
//! `#[target_feature]`, so the compiler vectorizes that copy with the wider registers.
//! Floating-point results do not depend on the copy: Rust neither reassociates nor
//! contracts, so every copy performs the same operations in the same order.
#![expect(unsafe_code, reason = "calling a #[target_feature] function after detecting it")]

/// A computation that can be compiled for several instruction sets.
pub trait Kernel {
    /// What the kernel returns.
    type Output;
    /// The body; implement with `#[inline(always)]`.
    fn run(self) -> Self::Output;
}

/// Runs `kernel` with the widest instruction set that this CPU has.
#[inline]
pub fn run<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f")
            && std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("avx512vl")
            && std::is_x86_feature_detected!("avx512dq")
        {
            // SAFETY: the features were detected on this CPU one line above.
            return unsafe { run_avx512(kernel) };
        }
        if std::is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was detected on this CPU one line above.
            return unsafe { run_avx2(kernel) };
        }
    }
    kernel.run()
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
