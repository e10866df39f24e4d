//! The hub as a client sees it, over real connections. What belongs where:
//!
//! - `client`: a client that shows what is on the wire. No tests.
//! - `serving`: what a healthy hub says.
//! - `faults`: every action, as it shows on the wire.
//! - `simulated`: the made-up checkpoint as it is served.

#[cfg(test)]
mod client;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod serving;
#[cfg(test)]
mod simulated;
