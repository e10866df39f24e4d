//! Reads tiles: rows of a stored tensor as f32.

use std::ops::Range;

use requant_formats::Dtype;
use requant_formats::codec::fp8::{self, BlockScales, F8E4M3, F8E5M2};
use requant_formats::codec::{self, Codec, Grid};
use requant_formats::dispatch::{self, Kernel};
use requant_formats::layout::PACK_QUANTIZED;

use super::packed_rows::{self, PackedRows};
use super::witness::{self, Unit, Witness};
use super::{BlockScale, Catalogue, Encoding, Packed, ScaleFormat, SourceTensor};
use crate::error::{Error, Result};

impl Catalogue {
    /// How many reads of the source [`TileReader::read`] makes for these rows, and the rows that it can decode
    /// without another one then.
    pub fn reads(&self, id: usize, rows: Range<usize>) -> (usize, Range<usize>) {
        match &self.tensors()[id].encoding {
            Encoding::Plain => (1, rows),
            Encoding::Scaled(_) => (2, rows),
            Encoding::Packed(packed) => packed_rows::reads(self, id, packed, &rows),
        }
    }
}

/// Reads tiles of one checkpoint after the other; keeps its buffers.
#[derive(Default)]
pub struct TileReader {
    bytes: Vec<u8>,
    scale_bytes: Vec<u8>,
    scales: Vec<f32>,
    /// Scales that were read beforehand: position of their tensor, where they start in it, and their bytes.
    held_scales: Option<(usize, usize, Vec<u8>)>,
    packed: PackedRows,
    /// Digests what is read of a unit, once one is begun.
    witness: Option<Witness>,
}

impl TileReader {
    /// Decodes `rows` of tensor number `id` into `tile`, row after row, and returns how many
    /// bytes were read for it.
    ///
    /// # Errors
    /// When the source cannot be read, or a weight is NaN or infinite: such a model is broken, and
    /// is better found broken now.
    pub fn read(
        &mut self,
        catalogue: &Catalogue,
        id: usize,
        rows: Range<usize>,
        tile: &mut Vec<f32>,
    ) -> Result<u64> {
        let (_, cols) = catalogue.tensors()[id].matrix();
        tile.resize(rows.len() * cols, 0.0);
        self.read_into(catalogue, id, rows, tile)
    }

    /// Reads all scales of a weight at once, if it has some: rows of it that are read next need none. For readers of
    /// one catalogue that want a few rows here and there.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub fn hold_scales(&mut self, catalogue: &Catalogue, id: usize) -> Result<()> {
        let rows = 0..catalogue.tensors()[id].matrix().0;
        self.hold_scales_of(catalogue, id, &rows)
    }

    fn hold_scales_of(&mut self, catalogue: &Catalogue, id: usize, rows: &Range<usize>) -> Result<()> {
        let tensor = &catalogue.tensors()[id];
        let Some(scale) = tensor.scale() else { return Ok(()) };
        let (scales, range) = witness::scale_bytes(catalogue, tensor, scale, rows);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let offset = scales.offset_bytes + range.start;
        catalogue.source().read_at(scales.file, offset, &mut bytes)?;
        if let Some(witness) = &mut self.witness {
            witness.read(scales.file, offset, &bytes);
        }
        self.held_scales = Some((scale.tensor, range.start as usize, bytes));
        Ok(())
    }

    /// The rows of `unit` are read next, in tiles from the first to the last, and what is read for them is digested.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub fn begin(&mut self, catalogue: &Catalogue, unit: &Unit) -> Result<()> {
        self.witness = Some(Witness::default());
        self.held_scales = None;
        self.packed.begin(unit.rows.end);
        if unit.unscaled { Ok(()) } else { self.hold_scales_of(catalogue, unit.id, &unit.rows) }
    }

    /// All rows of the unit were read: the fingerprint of the bytes that they were made from.
    pub fn finish(&mut self) -> u128 {
        self.held_scales = None;
        self.packed.end();
        self.witness.take().map_or(0, Witness::finish)
    }

    /// As [`TileReader::read`], but products of compressed-tensors' packed integers and their scales as they are in f32, not rounded to
    /// the scales' number format: what llama.cpp's converter makes of them.
    ///
    /// # Errors
    /// As [`TileReader::read`].
    pub fn read_unrounded(
        &mut self,
        catalogue: &Catalogue,
        id: usize,
        rows: Range<usize>,
        tile: &mut Vec<f32>,
    ) -> Result<u64> {
        let is_meant = |packed: &Packed| packed.layout.name() == PACK_QUANTIZED.name();
        self.packed.unrounded =
            matches!(&catalogue.tensors()[id].encoding, Encoding::Packed(packed) if is_meant(packed));
        let read = self.read(catalogue, id, rows, tile);
        self.packed.unrounded = false;
        read
    }

    /// As [`TileReader::read`], but numbers of a scaled tensor as they are stored, not multiplied by
    /// their scales.
    ///
    /// # Errors
    /// As [`TileReader::read`].
    pub fn read_unscaled(
        &mut self,
        catalogue: &Catalogue,
        id: usize,
        rows: Range<usize>,
        tile: &mut Vec<f32>,
    ) -> Result<u64> {
        let tensor = &catalogue.tensors()[id];
        let (_, cols) = tensor.matrix();
        tile.resize(rows.len() * cols, 0.0);
        self.read_bytes(catalogue, id, &rows)?;
        stored_codec(tensor)?.decode(&[&self.bytes], tile);
        check_finite(&tensor.name, &catalogue.source().files()[tensor.file].name, rows.start, cols, tile)?;
        Ok(self.bytes.len() as u64)
    }

    /// As [`TileReader::read`], for a tensor of one part of `codec`, row after row
    /// ([`SourceTensor::row_major`]); its stored bytes are appended to `stored`.
    ///
    /// # Errors
    /// As [`TileReader::read`].
    pub fn read_stored(
        &mut self,
        catalogue: &Catalogue,
        id: usize,
        codec: &dyn Codec,
        rows: Range<usize>,
        tile: &mut Vec<f32>,
        stored: &mut Vec<u8>,
    ) -> Result<u64> {
        let tensor = &catalogue.tensors()[id];
        let (_, cols) = tensor.matrix();
        let row_bytes = codec::part_len_bytes(codec, 0, cols as u64) as usize;
        let start = stored.len();
        stored.resize(start + rows.len() * row_bytes, 0);
        let offset = tensor.offset_bytes + (rows.start * row_bytes) as u64;
        catalogue.source().read_at(tensor.file, offset, &mut stored[start..])?;
        if let Some(witness) = &mut self.witness {
            witness.read(tensor.file, offset, &stored[start..]);
        }
        tile.resize(rows.len() * cols, 0.0);
        codec.decode(&[&stored[start..]], tile);
        check_finite(&tensor.name, &catalogue.source().files()[tensor.file].name, rows.start, cols, tile)?;
        Ok((stored.len() - start) as u64)
    }

    /// One group of a packed weight as multiples of a step, if its row was just read and its codec has such
    /// groups; `codes` has the length of a group.
    pub(super) fn grid<'a>(
        &self,
        catalogue: &Catalogue,
        id: usize,
        row: usize,
        group: usize,
        codes: &'a mut [u8],
    ) -> Option<Grid<'a>> {
        match &catalogue.tensors()[id].encoding {
            Encoding::Packed(packed) => self.packed.grid(catalogue, id, packed, row, group, codes),
            Encoding::Plain | Encoding::Scaled(_) => None,
        }
    }

    /// The same of a group of 4-bit floats under a power of two, whose byte it returns.
    pub(super) fn powers(
        &self,
        catalogue: &Catalogue,
        id: usize,
        row: usize,
        group: usize,
        codes: &mut [u8],
    ) -> Option<u8> {
        match &catalogue.tensors()[id].encoding {
            Encoding::Packed(packed) => self.packed.powers(catalogue, id, packed, row, group, codes),
            Encoding::Plain | Encoding::Scaled(_) => None,
        }
    }

    fn read_bytes(&mut self, catalogue: &Catalogue, id: usize, rows: &Range<usize>) -> Result<()> {
        let tensor = &catalogue.tensors()[id];
        let row_bytes = tensor.matrix().1 * tensor.dtype.size_bytes();
        self.bytes.resize(rows.len() * row_bytes, 0);
        let offset = tensor.offset_bytes + (rows.start * row_bytes) as u64;
        catalogue.source().read_at(tensor.file, offset, &mut self.bytes)?;
        if let Some(witness) = &mut self.witness {
            witness.read(tensor.file, offset, &self.bytes);
        }
        Ok(())
    }

    /// As [`TileReader::read`], into a slice of exactly `rows.len()` rows.
    ///
    /// # Errors
    /// As [`TileReader::read`].
    pub fn read_into(
        &mut self,
        catalogue: &Catalogue,
        id: usize,
        rows: Range<usize>,
        tile: &mut [f32],
    ) -> Result<u64> {
        let tensor = &catalogue.tensors()[id];
        let (_, cols) = tensor.matrix();
        let total = match &tensor.encoding {
            Encoding::Plain => {
                self.read_bytes(catalogue, id, &rows)?;
                decode_plain(tensor, &self.bytes, tile)?;
                self.bytes.len() as u64
            }
            Encoding::Scaled(scale) => {
                self.read_bytes(catalogue, id, &rows)?;
                self.bytes.len() as u64 + self.decode_scaled(catalogue, tensor, *scale, &rows, tile)?
            }
            Encoding::Packed(packed) => {
                self.packed.read(catalogue, id, packed, rows.clone(), tile, self.witness.as_mut())?
            }
        };
        check_finite(&tensor.name, &catalogue.source().files()[tensor.file].name, rows.start, cols, tile)?;
        Ok(total)
    }

    /// Decodes FP8 bytes with the scales of their row blocks; returns the bytes of those.
    fn decode_scaled(
        &mut self,
        catalogue: &Catalogue,
        tensor: &SourceTensor,
        scale: BlockScale,
        rows: &Range<usize>,
        tile: &mut [f32],
    ) -> Result<u64> {
        let (_, cols) = tensor.matrix();
        let scale_tensor = &catalogue.tensors()[scale.tensor];
        let grid_cols = cols.div_ceil(scale.block_cols);
        let first_block = rows.start / scale.block_rows;
        let end_block = rows.end.div_ceil(scale.block_rows);
        let width = scale_tensor.dtype.size_bytes();
        let count = (end_block - first_block) * grid_cols;
        self.scale_bytes.resize(count * width, 0);
        let start = first_block * grid_cols * width;
        match &self.held_scales {
            Some((held, first, bytes))
                if *held == scale.tensor
                    && (*first..=first + bytes.len()).contains(&start)
                    && start + count * width <= first + bytes.len() =>
            {
                self.scale_bytes.copy_from_slice(&bytes[start - first..][..count * width]);
            }
            _ => {
                let offset = scale_tensor.offset_bytes + start as u64;
                catalogue.source().read_at(scale_tensor.file, offset, &mut self.scale_bytes)?;
            }
        }
        self.scales.resize(count, 0.0);
        match scale.format {
            ScaleFormat::Float => {
                decode_plain(scale_tensor, &self.scale_bytes, &mut self.scales)?;
            }
            ScaleFormat::E8m0 => decode_exponents(&self.scale_bytes, &mut self.scales),
        }
        let scales =
            BlockScales { scales: &self.scales, block_rows: scale.block_rows, block_cols: scale.block_cols };
        // Only the scales from the first row's block on are here, so rows count from that block.
        let first_row = rows.start - first_block * scale.block_rows;
        match tensor.dtype {
            Dtype::F8_E5M2 => fp8::decode_scaled::<F8E5M2>(&self.bytes, cols, first_row, scales, tile),
            _ => fp8::decode_scaled::<F8E4M3>(&self.bytes, cols, first_row, scales, tile),
        }
        if scale.rounds {
            round_to(scale_tensor.dtype, tile);
        }
        // Every tile of a block reads the block's scales; count them with the block's first row.
        let starts_block = rows.start.is_multiple_of(scale.block_rows);
        let counted = count - if starts_block { 0 } else { grid_cols };
        Ok((counted * width) as u64)
    }
}

/// Decodes numbers of the tensor's own dtype. A byte that is not FP8 is an exponent: the format of scales.
fn decode_plain(tensor: &SourceTensor, bytes: &[u8], values: &mut [f32]) -> Result<()> {
    let codec = match tensor.dtype {
        Dtype::F32 | Dtype::F16 | Dtype::BF16 => codec::find(tensor.dtype.name()),
        Dtype::F8_E8M0 | Dtype::U8 => {
            decode_exponents(bytes, values);
            return Ok(());
        }
        _ => None,
    };
    let codec = codec.ok_or_else(|| Error::Unsupported {
        what: format!("tensor {}: dtype {}", tensor.name, tensor.dtype),
        hint: "unscaled weights may be F32, F16 or BF16".into(),
    })?;
    codec.decode(&[bytes], values);
    Ok(())
}

/// Powers of two, one exponent byte each.
fn decode_exponents(bytes: &[u8], values: &mut [f32]) {
    for (value, &code) in values.iter_mut().zip(bytes) {
        *value = fp8::e8m0_to_f32(code);
    }
}

/// Rounds to a number format of 16 bits; wider ones hold every product.
fn round_to(dtype: Dtype, values: &mut [f32]) {
    match dtype {
        Dtype::BF16 => codec::round_to_bf16(values),
        Dtype::F16 => codec::round_to_f16(values),
        _ => {}
    }
}

/// The codec of the stored numbers of a tensor, scaled or not.
fn stored_codec(tensor: &SourceTensor) -> Result<&'static dyn Codec> {
    codec::find(tensor.dtype.name()).ok_or_else(|| Error::Unsupported {
        what: format!("tensor {}: dtype {}", tensor.name, tensor.dtype),
        hint: "numbers to be carried over may be F32, F16, BF16, F8_E4M3 or F8_E5M2".into(),
    })
}

/// Names the first weight of a tile that is NaN or infinite: those with all exponent bits set.
///
/// # Errors
/// When there is one.
pub(crate) fn check_finite(
    name: &str,
    file: &str,
    first_row: usize,
    cols: usize,
    tile: &[f32],
) -> Result<()> {
    if dispatch::run(AllFinite(tile)) {
        return Ok(());
    }
    let Some(at) = tile.iter().position(|value| !value.is_finite()) else { return Ok(()) };
    let message = format!(
        "tensor {name}: found {} at row {}, column {}; expected finite weights (a damaged download? check its sha256)",
        tile[at],
        first_row + at / cols,
        at % cols
    );
    Err(Error::checkpoint(file, message))
}

/// Whether no value is NaN or infinite.
struct AllFinite<'a>(&'a [f32]);

impl Kernel for AllFinite<'_> {
    type Output = bool;
    #[inline(always)]
    fn run(self) -> bool {
        // Not `all`: without early exit this is one vector operation for eight values.
        let largest = self.0.iter().fold(0, |largest: u32, value| largest.max(value.to_bits() & 0x7fff_ffff));
        largest < f32::INFINITY.to_bits()
    }
}
