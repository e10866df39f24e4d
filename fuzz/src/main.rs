//! One program for all targets: linking each of them to the whole of requant would take longer than running them.
//! `FUZZ_TARGET` names the one that runs.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use requant_fuzz::TARGETS;

fn chosen() -> fn(&[u8]) {
    static CHOSEN: OnceLock<fn(&[u8])> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        let found = TARGETS.iter().find(|(known, _)| *known == name);
        let known: Vec<&str> = TARGETS.iter().map(|(known, _)| *known).collect();
        found.unwrap_or_else(|| panic!("FUZZ_TARGET={name:?}: expected one of {}", known.join(", "))).1
    })
}

fuzz_target!(|bytes: &[u8]| chosen()(bytes));
