//! Rewrites a graph into one that computes the same with less work. No pass looks at the name of a model.
//!
//! - Zeros around an image become the padding of the convolution that reads them.
//! - A maximum over an axis of an image becomes a maximum of windows.
//! - Functions of each value (bias, ReLU, batch-norm) join the convolution before them, and neighbouring batch-norms
//!   become one.
//! - A maximum goes before those functions, where there are fewer values left to apply them to. Each of them is
//!   monotone per channel; if the chain falls (a negative scale), the channel's weights change sign before the
//!   maximum and its values after it.
//! - A batch-norm beside a linear layer becomes part of its weights.

use super::{
    constant::Constant,
    graph::{Convolution, Graph, Node, NodeId, Operation, Padding, Pointwise, Pool, Reduction, places},
};

/// # Errors
/// Operations do not go together; the graph was wrong.
pub fn optimise(old: &Graph) -> Result<Graph, String> {
    let uses = old.uses();
    let mut new = Graph { nodes: Vec::new(), output: 0 };
    let mut moved: Vec<NodeId> = Vec::with_capacity(old.nodes.len());
    for node in &old.nodes {
        let inputs: Vec<NodeId> = node.inputs.iter().map(|&input| moved[input]).collect();
        // The one input, if no other node reads it: it may change.
        let own = match *node.inputs {
            [input] if uses[input] == 1 => Some(moved[input]),
            _ => None,
        };
        let place = match &node.operation {
            Operation::Input | Operation::Reshape => {
                new.nodes.push(Node { inputs, ..node.clone() });
                new.nodes.len() - 1
            }
            Operation::Convolution(convolution) => convolve(&mut new, convolution.clone(), inputs[0])?,
            Operation::Reduce(Reduction::Max, axis @ (2 | 3)) if node.shape.len() == 4 => {
                let mut window = [1, 1];
                window[axis - 2] = new.shape(inputs[0])[*axis];
                maximum(&mut new, Pool { window, stride: [1, 1] }, inputs[0], own)?
            }
            Operation::MaxPool(pool) => maximum(&mut new, *pool, inputs[0], own)?,
            Operation::Pointwise(pointwise) => each_value(&mut new, pointwise, inputs[0], own)?,
            Operation::Linear { weight, bias } => linear(&mut new, weight, bias, inputs[0], own)?,
            operation => new.push(operation.clone(), inputs)?,
        };
        moved.push(place);
    }
    new.output = moved[old.output];
    Ok(new.pruned())
}

fn convolve(graph: &mut Graph, mut convolution: Convolution, mut input: NodeId) -> Result<NodeId, String> {
    while let Operation::Pad(Padding { before, after }) = graph.nodes[input].operation {
        for axis in 0..2 {
            convolution.padding.before[axis] += before[axis];
            convolution.padding.after[axis] += after[axis];
        }
        input = graph.nodes[input].inputs[0];
    }
    graph.push(Operation::Convolution(convolution), vec![input])
}

/// Overlapping windows compute some products more than once; up to this often is cheaper than storing them.
const MOST_REPEATS: usize = 2;

fn maximum(graph: &mut Graph, pool: Pool, input: NodeId, own: Option<NodeId>) -> Result<NodeId, String> {
    let mut repeats = 1;
    for axis in 0..2 {
        if places(graph.shape(input)[2 + axis], pool.window[axis], pool.stride[axis])? > 1 {
            repeats *= pool.window[axis].div_ceil(pool.stride[axis]);
        }
    }
    let (Some(own), true) = (own, repeats <= MOST_REPEATS) else {
        return graph.push(Operation::MaxPool(pool), vec![input]);
    };
    let Operation::Convolution(convolution) = &mut graph.nodes[own].operation else {
        return graph.push(Operation::MaxPool(pool), vec![input]);
    };
    if convolution.pool != Pool::NONE {
        return graph.push(Operation::MaxPool(pool), vec![input]);
    }
    convolution.pool = pool;
    let signs = signs(&convolution.then, convolution.channels_out());
    if signs.iter().any(|&sign| sign < 0.0) {
        convolution.weight = convolution.weight.clone().with_rows_scaled(signs.clone());
        let mut then = vec![Pointwise::Affine { shift: vec![0.0; signs.len()], scale: signs }];
        for pointwise in std::mem::take(&mut convolution.then) {
            append(&mut then, &pointwise);
        }
        convolution.then = then;
    }
    // The shape follows anew.
    let convolution = graph.nodes[own].operation.clone();
    let input = graph.nodes[own].inputs.clone();
    graph.push(convolution, input)
}

/// −1 for each channel on which the chain falls.
fn signs(chain: &[Pointwise], channels: usize) -> Vec<f32> {
    let mut signs = vec![1.0_f32; channels];
    for pointwise in chain {
        if let Pointwise::Affine { scale, .. } = pointwise {
            for (sign, &scale) in signs.iter_mut().zip(scale) {
                if scale < 0.0 {
                    *sign = -*sign;
                }
            }
        }
    }
    signs
}

/// Adds a function to a chain; two affine ones become one.
fn append(chain: &mut Vec<Pointwise>, next: &Pointwise) {
    match (chain.last_mut(), next) {
        (Some(Pointwise::Affine { scale, shift }), Pointwise::Affine { scale: scale_2, shift: shift_2 }) => {
            for i in 0..scale.len() {
                scale[i] *= scale_2[i];
                shift[i] = shift[i] * scale_2[i] + shift_2[i];
            }
        }
        _ => chain.push(next.clone()),
    }
}

fn each_value(graph: &mut Graph, pointwise: &Pointwise, input: NodeId, own: Option<NodeId>) -> Result<NodeId, String> {
    if let Some(own) = own {
        match (&mut graph.nodes[own].operation, pointwise) {
            (Operation::Convolution(convolution), _) => {
                append(&mut convolution.then, pointwise);
                return Ok(own);
            }
            (Operation::Linear { weight, bias }, Pointwise::Affine { scale, shift }) => {
                *weight = weight.clone().with_rows_scaled(scale.clone());
                for (bias, (scale, shift)) in bias.iter_mut().zip(scale.iter().zip(shift)) {
                    *bias = *bias * scale + shift;
                }
                return Ok(own);
            }
            _ => {}
        }
    }
    graph.push(Operation::Pointwise(pointwise.clone()), vec![input])
}

fn linear(
    graph: &mut Graph,
    weight: &Constant,
    bias: &[f32],
    input: NodeId,
    own: Option<NodeId>,
) -> Result<NodeId, String> {
    let (mut weight, mut bias, mut input) = (weight.clone(), bias.to_vec(), input);
    if let Some(own) = own
        && let Operation::Pointwise(Pointwise::Affine { scale, shift }) = &graph.nodes[own].operation
        && graph.shape(own).len() == 2
    {
        for (output, bias) in bias.iter_mut().enumerate() {
            let row = weight.rows(output..output + 1)?;
            *bias += row.iter().zip(shift).map(|(weight, shift)| weight * shift).sum::<f32>();
        }
        weight = weight.with_columns_scaled(scale.clone());
        input = graph.nodes[own].inputs[0];
    }
    graph.push(Operation::Linear { weight, bias }, vec![input])
}
