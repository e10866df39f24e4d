//! Finds packed weights: puts the tensors of a module together to one entry of the catalogue.

use std::collections::{HashMap, HashSet};

use requant_formats::layout::Matrix;

use super::quantization::{Module, Packing, Quantization};
use super::{Encoding, Packed, SourceTensor};
use crate::error::{Error, Result};
use crate::family::Expected;
use crate::source::Source;

const WEIGHT: &str = ".weight";

/// Turns the codes of every packed module into the weight that `expected` asks for. Returns the
/// positions of the tensors that belong to one.
///
/// # Errors
/// A module of which something is missing, or a tensor whose dtype or shape is not what the layout demands.
pub(super) fn join(
    source: &dyn Source,
    tensors: &mut [SourceTensor],
    expected: &[Expected],
    quantization: &Quantization,
) -> Result<HashSet<usize>> {
    let ids: HashMap<String, usize> =
        tensors.iter().enumerate().map(|(id, tensor)| (tensor.name.clone(), id)).collect();
    let mut taken = HashSet::new();
    for expected in expected {
        let (Some(stem), &[rows, cols]) = (expected.name.strip_suffix(WEIGHT), expected.shape.as_slice())
        else {
            continue;
        };
        if ids.contains_key(&expected.name) {
            continue;
        }
        let id_of = |suffix: &str| ids.get(&format!("{stem}.{suffix}")).copied();
        let present = |packing: &&Packing| id_of(packing.codes).is_some();
        let Some(packing) = quantization.packings.iter().find(present) else { continue };
        let stored_tensor =
            |suffix: &str| id_of(suffix).map(|id| (tensors[id].dtype, tensors[id].shape.clone()));
        let module = Module { name: stem, cols, tensor: &stored_tensor };
        let (codec, layout) = (packing.find)(&module)?;
        let matrix = Matrix { shape: &expected.shape, codec, tensor_scale: 1.0 };
        let file_of = |id: usize| source.files()[tensors[id].file].name.clone();
        let own_id = id_of(packing.codes);
        let file = own_id.map_or_else(|| source.location(), file_of);
        let wanted = layout
            .tensors(matrix)
            .map_err(|error| Error::checkpoint(&file, format!("tensor {}: {error}", expected.name)))?;
        let mut members = Vec::with_capacity(wanted.len());
        for stored in &wanted {
            let name = format!("{stem}.{}", stored.suffix);
            let Some(id) = id_of(stored.suffix) else {
                let message = format!("tensor {name} is missing, but {stem}.{} is there", packing.codes);
                return Err(Error::checkpoint(&file, message));
            };
            let found = &tensors[id];
            if (found.dtype, &found.shape) != (stored.dtype, &stored.shape) {
                let message = format!(
                    "tensor {name}: found {} {:?}, expected {} {:?} for a {rows} x {cols} weight of {} in {}",
                    found.dtype,
                    found.shape,
                    stored.dtype,
                    stored.shape,
                    codec.name(),
                    layout.name()
                );
                return Err(Error::checkpoint(file_of(id), message));
            }
            members.push(id);
        }
        let Some(own) = members.iter().position(|&id| Some(id) == own_id) else {
            let message =
                format!("tensor {stem}.{}: not a tensor of layout {}", packing.codes, layout.name());
            return Err(Error::checkpoint(&file, message));
        };
        taken.extend(&members);
        let id = members.remove(own);
        let weight = &mut tensors[id];
        weight.name.clone_from(&expected.name);
        weight.shape.clone_from(&expected.shape);
        weight.encoding = Encoding::Packed(Packed { codec, layout, own, companions: members });
    }
    Ok(taken)
}
