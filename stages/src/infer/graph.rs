//! What a model computes: operations on tensors of known shape, one window at a time.
//!
//! Images are `[1 × channels × rows × columns]`, as in PyTorch.

use super::constant::Constant;

/// The place of a node in its graph; nodes come after their inputs.
pub type NodeId = usize;

#[derive(Clone, Debug)]
pub struct Graph {
    pub nodes: Vec<Node>,
    pub output: NodeId,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub operation: Operation,
    pub inputs: Vec<NodeId>,
    pub shape: Vec<usize>,
}

#[derive(Clone, Debug)]
pub enum Operation {
    /// The window, `[1 × frames × bands]`.
    Input,
    Pointwise(Pointwise),
    /// The sum of two tensors of one shape.
    Add,
    /// Zeros around an image.
    Pad(Padding),
    Convolution(Convolution),
    MaxPool(Pool),
    /// Over one axis, which stays with length 1.
    Reduce(Reduction, usize),
    Concatenate(usize),
    Permute(Vec<usize>),
    /// The same values in row-major order under another shape.
    Reshape,
    /// `x · weightᵀ + bias`; weight: `[out × in]`.
    Linear {
        weight: Constant,
        bias: Vec<f32>,
    },
}

/// A function of each value alone.
#[derive(Clone, Debug, PartialEq)]
pub enum Pointwise {
    /// `x · scale + shift`, one of each per channel (axis 1).
    Affine {
        scale: Vec<f32>,
        shift: Vec<f32>,
    },
    Relu,
    Sigmoid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    Max,
    Mean,
}

/// Zeros before and after, `[rows, columns]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    pub before: [usize; 2],
    pub after: [usize; 2],
}

/// The maximum of each window; `[rows, columns]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    pub window: [usize; 2],
    pub stride: [usize; 2],
}

impl Pool {
    /// Every value is its own maximum.
    pub const NONE: Self = Self { window: [1, 1], stride: [1, 1] };
}

/// Padding → convolution → maximum → functions of each value.
#[derive(Clone, Debug)]
pub struct Convolution {
    /// `[out × in × rows × columns]`.
    pub weight: Constant,
    pub stride: [usize; 2],
    pub padding: Padding,
    pub pool: Pool,
    pub then: Vec<Pointwise>,
}

impl Convolution {
    pub fn channels_out(&self) -> usize {
        self.weight.shape[0]
    }

    /// Rows and columns of the kernel.
    pub fn kernel(&self) -> [usize; 2] {
        [self.weight.shape[2], self.weight.shape[3]]
    }
}

/// Places a window of `window` has on `length` values, each `stride` after the last.
pub fn places(length: usize, window: usize, stride: usize) -> Result<usize, String> {
    if stride == 0 || window == 0 || window > length {
        return Err(format!("a window of {window} every {stride} does not fit into {length}"));
    }
    Ok((length - window) / stride + 1)
}

impl Graph {
    pub fn new(window: [usize; 2]) -> Self {
        let input = Node { operation: Operation::Input, inputs: vec![], shape: vec![1, window[0], window[1]] };
        Self { nodes: vec![input], output: 0 }
    }

    pub fn shape(&self, node: NodeId) -> &[usize] {
        &self.nodes[node].shape
    }

    /// Adds a node whose shape follows from its inputs.
    ///
    /// # Errors
    /// The operation does not go with these inputs.
    pub fn push(&mut self, operation: Operation, inputs: Vec<NodeId>) -> Result<NodeId, String> {
        let shapes: Vec<&[usize]> = inputs.iter().map(|&input| self.shape(input)).collect();
        let shape = shape_of(&operation, &shapes)?;
        self.nodes.push(Node { operation, inputs, shape });
        Ok(self.nodes.len() - 1)
    }

    /// Adds the same values under another shape.
    pub fn reshape(&mut self, input: NodeId, shape: Vec<usize>) -> Result<NodeId, String> {
        let counts = [self.shape(input), &shape].map(|shape| shape.iter().product::<usize>());
        if counts[0] != counts[1] {
            return Err(format!("{:?} cannot become {shape:?}", self.shape(input)));
        }
        if self.shape(input) == shape {
            return Ok(input);
        }
        self.nodes.push(Node { operation: Operation::Reshape, inputs: vec![input], shape });
        Ok(self.nodes.len() - 1)
    }

    /// Without the nodes that the output does not depend on; the input stays.
    pub fn pruned(self) -> Self {
        let mut live = vec![false; self.nodes.len()];
        live[0] = true;
        live[self.output] = true;
        for (id, node) in self.nodes.iter().enumerate().rev() {
            if live[id] {
                node.inputs.iter().for_each(|&input| live[input] = true);
            }
        }
        let mut places = vec![0; self.nodes.len()];
        let mut nodes: Vec<Node> = Vec::new();
        for (id, mut node) in self.nodes.into_iter().enumerate().filter(|&(id, _)| live[id]) {
            places[id] = nodes.len();
            node.inputs.iter_mut().for_each(|input| *input = places[*input]);
            nodes.push(node);
        }
        Self { nodes, output: places[self.output] }
    }

    /// How many nodes, or the reader of the output, use each node.
    pub fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0; self.nodes.len()];
        uses[self.output] = 1;
        for node in &self.nodes {
            for &input in &node.inputs {
                uses[input] += 1;
            }
        }
        uses
    }
}

fn shape_of(operation: &Operation, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
    let wrong = || format!("{} does not take {inputs:?}", name(operation));
    let (&first, rest) = inputs.split_first().ok_or_else(wrong)?;
    let check = |ok: bool| if ok { Ok(()) } else { Err(wrong()) };
    let image = || <[usize; 4]>::try_from(first).map_err(|_| wrong());
    Ok(match operation {
        Operation::Input | Operation::Reshape => return Err(wrong()),
        Operation::Pointwise(pointwise) => {
            if let Pointwise::Affine { scale, shift } = pointwise {
                check(first.get(1) == Some(&scale.len()) && scale.len() == shift.len())?;
            }
            first.to_vec()
        }
        Operation::Add => {
            check(rest == [first])?;
            first.to_vec()
        }
        Operation::Pad(padding) => {
            let [_, channels, rows, columns] = image()?;
            let [rows, columns] = padded([rows, columns], *padding);
            vec![1, channels, rows, columns]
        }
        Operation::Convolution(convolution) => {
            let [_, channels, rows, columns] = image()?;
            check(convolution.weight.shape.len() == 4 && convolution.weight.shape[1] == channels)?;
            let size = padded([rows, columns], convolution.padding);
            let mut shape = vec![1, convolution.channels_out()];
            for (axis, length) in size.into_iter().enumerate() {
                let length = places(length, convolution.kernel()[axis], convolution.stride[axis])?;
                shape.push(places(length, convolution.pool.window[axis], convolution.pool.stride[axis])?);
            }
            shape
        }
        Operation::MaxPool(pool) => {
            let [_, channels, rows, columns] = image()?;
            let rows = places(rows, pool.window[0], pool.stride[0])?;
            vec![1, channels, rows, places(columns, pool.window[1], pool.stride[1])?]
        }
        Operation::Reduce(_, axis) => {
            check(first.get(*axis).is_some_and(|&length| length > 0))?;
            let mut shape = first.to_vec();
            shape[*axis] = 1;
            shape
        }
        Operation::Concatenate(axis) => {
            check(*axis < first.len())?;
            let mut shape = first.to_vec();
            for other in rest {
                check(other.len() == shape.len() && (0..shape.len()).all(|i| i == *axis || other[i] == shape[i]))?;
                shape[*axis] += other[*axis];
            }
            shape
        }
        Operation::Permute(order) => {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            check(sorted.into_iter().eq(0..first.len()))?;
            order.iter().map(|&axis| first[axis]).collect()
        }
        Operation::Linear { weight, bias } => {
            check(weight.shape.len() == 2 && first == [1, weight.shape[1]] && bias.len() == weight.shape[0])?;
            vec![1, weight.shape[0]]
        }
    })
}

/// `[rows, columns]` with its padding.
pub fn padded(size: [usize; 2], padding: Padding) -> [usize; 2] {
    [0, 1].map(|axis| size[axis] + padding.before[axis] + padding.after[axis])
}

fn name(operation: &Operation) -> &'static str {
    match operation {
        Operation::Input => "the input",
        Operation::Pointwise(_) => "a function of each value",
        Operation::Add => "a sum",
        Operation::Pad(_) => "padding",
        Operation::Convolution(_) => "a convolution",
        Operation::MaxPool(_) => "a maximum of windows",
        Operation::Reduce(..) => "a reduction",
        Operation::Concatenate(_) => "a concatenation",
        Operation::Permute(_) => "a permutation",
        Operation::Reshape => "a reshape",
        Operation::Linear { .. } => "a linear layer",
    }
}
