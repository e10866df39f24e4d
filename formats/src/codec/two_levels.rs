//! Scales of two levels, as GGUF's super-blocks have them: those of sub-blocks are whole multiples of a number of the group.
//!
//! ```text
//! x_i  ~  d * sc_j * u(q_i) - dmin * m_j          u(q) = q - zero, or from a table
//! ```

/// How the weights of a group share scales.
#[derive(Debug, Clone, Copy)]
pub struct TwoLevels {
    /// Weights of a sub-block; as many after each other have a scale of their own.
    pub sub_len: usize,
    /// The least and the largest multiple `sc` that is stored.
    pub scales: (i16, i16),
    /// The largest multiple `m` that is stored; the least is 0.
    pub top_min: i16,
    /// What codes stand for, in units of the scale.
    pub units: Units,
}

/// What codes stand for, in units of the scale.
#[derive(Debug, Clone, Copy)]
pub enum Units {
    /// Code `q` stands for `q` less this.
    From(f32),
    /// Code `q` stands for number `q` of these.
    Table(&'static [f32; 16]),
}

/// Sub-blocks of a group, at most.
pub const MAX_SUBS: usize = 16;

/// The scales of one group.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Scales {
    /// What scales are multiples of.
    pub d: f32,
    /// What minima are multiples of; 0 for formats without minima.
    pub dmin: f32,
    /// `sc` of each sub-block.
    pub scales: [i16; MAX_SUBS],
    /// `m` of each sub-block.
    pub mins: [i16; MAX_SUBS],
}
