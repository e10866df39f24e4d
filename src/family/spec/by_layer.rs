//! What is the same in every layer of a model, or each layer's own.

/// One value for all layers, or one for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByLayer<T> {
    first: T,
    /// Of the layers after the first; beyond its end, the value is that of the last.
    others: Vec<T>,
}

impl<T> ByLayer<T> {
    /// The same for all.
    pub fn all(value: T) -> Self {
        Self { first: value, others: Vec::new() }
    }

    /// One for each, if there are any; that of all if they are the same.
    pub fn each(values: impl IntoIterator<Item = T>) -> Option<Self>
    where
        T: PartialEq,
    {
        let mut values = values.into_iter();
        let first = values.next()?;
        let mut others: Vec<T> = values.collect();
        if others.iter().all(|other| *other == first) {
            others.clear();
        }
        Some(Self { first, others })
    }

    /// That of layer `layer`.
    pub fn of(&self, layer: usize) -> &T {
        let others = &self.others;
        match layer {
            0 => &self.first,
            _ => others.get(layer - 1).or(others.last()).unwrap_or(&self.first),
        }
    }

    /// All that there are: one of all layers, or each layer's.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl ByLayer<usize> {
    /// The largest.
    pub fn most(&self) -> usize {
        self.iter().copied().fold(self.first, usize::max)
    }

    /// The smallest.
    pub fn least(&self) -> usize {
        self.iter().copied().fold(self.first, usize::min)
    }

    /// `of` of every value.
    #[must_use]
    pub fn map(&self, of: impl Fn(usize) -> usize) -> Self {
        Self { first: of(self.first), others: self.others.iter().map(|&value| of(value)).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_its_own_or_that_of_all() {
        let all = ByLayer::all(7);
        assert_eq!([0, 1, 99].map(|layer| *all.of(layer)), [7; 3]);
        let each = ByLayer::each([4, 9, 2]).unwrap();
        assert_eq!([0, 1, 2, 3].map(|layer| *each.of(layer)), [4, 9, 2, 2]);
        assert_eq!((all.most(), each.most(), each.least(), each.iter().count()), (7, 9, 2, 3));
        assert_eq!(ByLayer::each([7, 7, 7]), Some(all));
        assert_eq!(each.map(|value| 2 * value), ByLayer::each([8, 18, 4]).unwrap());
        assert_eq!(ByLayer::<usize>::each([]), None);
    }
}
