//! Where a tensor's values lie: permuting, slicing and most reshaping move nothing.

/// A tensor within a larger slice: its shape, and the distance between neighbours on each axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

impl View {
    pub fn row_major(offset: usize, shape: &[usize]) -> Self {
        let order: Vec<usize> = (0..shape.len()).collect();
        Self::in_order(offset, shape, &order)
    }

    /// The values of all channels (axis 1) side by side.
    pub fn channels_last(offset: usize, shape: &[usize]) -> Self {
        let order: Vec<usize> =
            (0..shape.len()).filter(|&axis| axis != 1).chain((shape.len() > 1).then_some(1)).collect();
        Self::in_order(offset, shape, &order)
    }

    /// The last axis of `order` has its values side by side.
    fn in_order(offset: usize, shape: &[usize], order: &[usize]) -> Self {
        let mut strides = vec![0; shape.len()];
        let mut stride = 1;
        for &axis in order.iter().rev() {
            strides[axis] = stride;
            stride *= shape[axis];
        }
        Self { offset, shape: shape.to_vec(), strides }
    }

    pub fn permuted(&self, order: &[usize]) -> Self {
        let pick = |of: &[usize]| order.iter().map(|&axis| of[axis]).collect();
        Self { offset: self.offset, shape: pick(&self.shape), strides: pick(&self.strides) }
    }

    /// The tensor that [`permuted`](Self::permuted) by `order` gives this one.
    pub fn unpermuted(&self, order: &[usize]) -> Self {
        let mut back = vec![0; order.len()];
        for (to, &from) in order.iter().enumerate() {
            back[from] = to;
        }
        self.permuted(&back)
    }

    /// `length` places of one axis.
    pub fn sliced(&self, axis: usize, start: usize, length: usize) -> Self {
        let mut slice = self.clone();
        slice.offset += start * self.strides[axis];
        slice.shape[axis] = length;
        slice
    }

    /// The same values in row-major order under another shape, if that needs no copy.
    pub fn reshaped(&self, shape: &[usize]) -> Option<Self> {
        let mut strides = vec![0; shape.len()];
        // Groups of axes that hold equally many values on both sides.
        let old: Vec<(usize, usize)> =
            self.shape.iter().copied().zip(self.strides.iter().copied()).filter(|&(length, _)| length != 1).collect();
        let (mut i, mut j) = (old.len(), shape.len());
        while i > 0 {
            let (mut length, stride) = old[i - 1];
            let mut taken = 1;
            i -= 1;
            let mut next = stride;
            while taken < length || (j > 0 && shape[j - 1] == 1) {
                let axis = j.checked_sub(1)?;
                j -= 1;
                strides[axis] = next;
                next *= shape[axis];
                taken *= shape[axis];
                while taken > length {
                    // The next axis must go on where this one ends.
                    let &(more, more_stride) = old.get(i.checked_sub(1)?)?;
                    if more_stride != stride * length {
                        return None;
                    }
                    length *= more;
                    i -= 1;
                }
            }
        }
        Some(Self { offset: self.offset, shape: shape.to_vec(), strides })
    }

    /// Whether both are the same values in the same order.
    pub fn same_places(&self, other: &Self) -> bool {
        let strides = |view: &Self| -> Vec<usize> {
            view.strides
                .iter()
                .zip(&view.shape)
                .filter(|&(_, &length)| length != 1)
                .map(|(&stride, _)| stride)
                .collect()
        };
        self.offset == other.offset && self.shape == other.shape && strides(self) == strides(other)
    }

    pub fn axis(&self, axis: usize) -> (usize, usize) {
        (self.shape[axis], self.strides[axis])
    }
}

/// Visits tensors of one shape together, a row along `along` at a time: `visit(offsets, channel of the row's start)`.
pub fn rows<const N: usize>(views: [&View; N], along: usize, mut visit: impl FnMut([usize; N], usize)) {
    let shape = &views[0].shape;
    let mut place = vec![0; shape.len()];
    if shape.contains(&0) {
        return;
    }
    loop {
        let offset = |view: &View| view.offset + view.strides.iter().zip(&place).map(|(s, p)| s * p).sum::<usize>();
        visit(views.map(offset), place.get(1).copied().unwrap_or(0));
        let mut axis = shape.len();
        loop {
            let Some(next) = axis.checked_sub(1) else { return };
            axis = next;
            if axis == along {
                continue;
            }
            place[axis] += 1;
            if place[axis] < shape[axis] {
                break;
            }
            place[axis] = 0;
        }
    }
}
