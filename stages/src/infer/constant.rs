//! A tensor of float32 that a model holds. Its values stay in the model's file until they are needed, and only the rows
//! that are asked for are read: weights that are packed are never whole in memory a second time.

use std::{fs::File, ops::Range, os::unix::fs::FileExt, rc::Rc};

use super::view::{self, View};

#[derive(Clone, Debug)]
pub struct Constant {
    pub shape: Vec<usize>,
    file: Rc<File>,
    /// The byte at which the values start that `view` is of; they are little-endian.
    start: u64,
    view: View,
    /// What the values are multiplied by, one after the other.
    scales: Vec<Scale>,
}

#[derive(Clone, Debug)]
enum Scale {
    /// One factor for each place of the first axis.
    Rows(Vec<f32>),
    /// One for each value of a row.
    Columns(Vec<f32>),
}

impl Constant {
    /// The values are in `view` of those that lie in `file` from byte `start` on.
    pub fn new(file: Rc<File>, start: u64, view: View) -> Self {
        let shape = view.shape.clone();
        // A tensor without axes has one row.
        let view = if shape.is_empty() { View::row_major(view.offset, &[1]) } else { view };
        Self { shape, file, start, view, scales: Vec::new() }
    }

    /// Its rows multiplied by a factor each.
    pub fn with_rows_scaled(mut self, factors: Vec<f32>) -> Self {
        self.scales.push(Scale::Rows(factors));
        self
    }

    /// The values of each row multiplied by a factor each.
    pub fn with_columns_scaled(mut self, factors: Vec<f32>) -> Self {
        self.scales.push(Scale::Columns(factors));
        self
    }

    /// Values.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Places of the first axis.
    pub fn row_count(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Values of each of them.
    pub fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// All values.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn values(&self) -> Result<Vec<f32>, String> {
        self.rows(0..self.row_count())
    }

    /// The values of some places of the first axis.
    ///
    /// # Errors
    /// The file cannot be read, or there are no such places.
    pub fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>, String> {
        let length = self.row_len();
        if rows.end > self.row_count() {
            return Err("a tensor has too few values".to_owned());
        }
        let mut values = gathered(&self.file, self.start, &self.view.sliced(0, rows.start, rows.len()))?;
        for scale in &self.scales {
            for (number, row) in rows.clone().zip(values.chunks_exact_mut(length.max(1))) {
                match scale {
                    Scale::Rows(factors) => row.iter_mut().for_each(|value| *value *= factors[number]),
                    Scale::Columns(factors) => {
                        row.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
                    }
                }
            }
        }
        Ok(values)
    }
}

/// The values of `view`, row by row.
fn gathered(file: &File, start: u64, view: &View) -> Result<Vec<f32>, String> {
    let count = view.shape.iter().product();
    let byte = |value: usize| start + (value * size_of::<f32>()) as u64;
    let row_major = View::row_major(view.offset, &view.shape);
    if row_major.same_places(view) {
        return read(file, byte(view.offset), count);
    }
    // What lies closest together is read at a time.
    let axes = (0..view.shape.len()).filter(|&axis| view.shape[axis] > 1);
    let along = axes.min_by_key(|&axis| view.strides[axis]).unwrap_or(0);
    let (length, stride) = view.axis(along);
    let mut values = vec![0.0; count];
    let mut read_so_far = Ok(());
    view::rows([view, &row_major], along, |[from, to], _| {
        let run = read_so_far.clone().and_then(|()| read(file, byte(from), (length - 1) * stride + 1));
        match run {
            Ok(run) => {
                let to = to - view.offset;
                (0..length).for_each(|i| values[to + i * row_major.strides[along]] = run[i * stride]);
            }
            Err(e) => read_so_far = Err(e),
        }
    });
    read_so_far.map(|()| values)
}

/// Values that are read at a time: their bytes stay in the second cache.
const AT_ONCE: usize = 1 << 16;

/// `count` values from byte `at` of `file` on.
fn read(file: &File, mut at: u64, count: usize) -> Result<Vec<f32>, String> {
    let mut values = Vec::with_capacity(count);
    let mut bytes = vec![0; AT_ONCE.min(count) * size_of::<f32>()];
    while values.len() < count {
        let bytes = &mut bytes[..AT_ONCE.min(count - values.len()) * size_of::<f32>()];
        file.read_exact_at(bytes, at).map_err(|e| format!("a tensor cannot be read: {e}"))?;
        values.extend(bytes.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)));
        at += bytes.len() as u64;
    }
    Ok(values)
}

#[cfg(test)]
pub mod tests {
    use std::io::Write;

    use super::*;

    /// The values of `view`, which are in a file behind 3 other bytes.
    pub fn constant(values: &[f32], view: View) -> Constant {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = [0xff; 3].into_iter().chain(values.iter().flat_map(|value| value.to_le_bytes())).collect();
        file.write_all(&bytes).unwrap();
        Constant::new(Rc::new(file), 3, view)
    }

    /// 3 × 4 × 5 values behind 7 others, whose axes are in `order`.
    fn permuted(order: [usize; 3]) -> Constant {
        let values: Vec<f32> = (0..67).map(|value| value as f32).collect();
        constant(&values, View::row_major(7, &[3, 4, 5]).permuted(&order))
    }

    #[test]
    fn rows_of_a_tensor_are_those_of_its_definition_in_whatever_order_it_lies() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let tensor = permuted(order);
            let shape = tensor.shape.clone();
            let value = |place: [usize; 3]| {
                let mut natural = [0; 3];
                order.iter().zip(place).for_each(|(&axis, at)| natural[axis] = at);
                7.0 + (natural[0] * 20 + natural[1] * 5 + natural[2]) as f32
            };
            let mut all = Vec::new();
            for row in 0..shape[0] {
                let places = (0..shape[1]).flat_map(|i| (0..shape[2]).map(move |j| [row, i, j]));
                let expected: Vec<f32> = places.map(value).collect();
                assert_eq!(tensor.rows(row..row + 1).unwrap(), expected, "{order:?}, row {row}");
                all.extend(expected);
            }
            assert_eq!(tensor.values().unwrap(), all);
            assert!(tensor.rows(1..shape[0] + 1).is_err());
        }
    }

    #[test]
    fn a_tensor_without_axes_has_one_value() {
        let tensor = constant(&[1.0, 2.0], View::row_major(1, &[]));
        assert_eq!((tensor.count(), tensor.values().unwrap()), (1, vec![2.0]));
    }

    #[test]
    fn factors_belong_to_their_rows_and_columns() {
        let tensor = constant(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], View::row_major(0, &[3, 2]));
        let scaled = tensor.with_rows_scaled(vec![1.0, 10.0, 100.0]).with_columns_scaled(vec![1.0, -1.0]);
        assert_eq!(scaled.rows(1..3).unwrap(), [30.0, -40.0, 500.0, -600.0]);
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        let tensor = permuted([2, 1, 0]);
        tensor.file.set_len(100).unwrap();
        assert!(tensor.values().is_err());
    }
}
