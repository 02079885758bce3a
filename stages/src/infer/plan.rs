//! A graph made ready to run: where every tensor lies, and the steps that fill them.

use super::{
    Precision,
    convolution::{Direct, Geometry, Work},
    element::{Bf16, Element},
    epilogue::{relu, sigmoid},
    fourier::{self, Fourier, Spectra},
    graph::{Convolution, Graph, Node, NodeId, Operation, Pointwise, Pool, Reduction, padded},
    kernels::Simd,
    linear::Linear,
    view::{View, rows},
    winograd::Winograd,
};

/// The steps of a model for one window. Nothing in it changes while it runs.
pub struct Plan {
    steps: Vec<Step>,
    spectra: Vec<Spectra>,
    input: View,
    output: View,
    values_len: usize,
    /// Elements of all images in float32 and in bfloat16.
    images: [usize; 2],
}

enum Step {
    Copy {
        from: View,
        to: View,
    },
    Each {
        pointwise: Pointwise,
        from: View,
        to: View,
    },
    Add {
        from: [View; 2],
        to: View,
    },
    MaxPool {
        pool: Pool,
        from: View,
        to: View,
    },
    Reduce {
        reduction: Reduction,
        axis: usize,
        from: View,
        to: View,
    },
    Float32(Layer<f32>),
    Bfloat16(Layer<Bf16>),
    /// The number among all spectra.
    Spectra(usize),
    Fourier(Box<Fourier>),
    Linear(Linear),
}

/// A convolution by the algorithm that is best for it.
enum Layer<T> {
    Direct(Box<Direct<T>>),
    Winograd(Box<Winograd<T>>),
}

impl<T: Element> Layer<T> {
    fn new(convolution: &Convolution, views: [&View; 2], simd: Simd, images: &mut usize) -> Result<Self, String> {
        if let Some(winograd) = Winograd::new(convolution, views, simd, images)? {
            return Ok(Self::Winograd(Box::new(winograd)));
        }
        let geometry = Geometry::new::<T>(convolution, views[0], views[1]);
        Ok(Self::Direct(Box::new(Direct::new(geometry, convolution, simd, images)?)))
    }

    fn run(&self, values: &mut [f32], images: &mut [T], work: &mut Work) {
        match self {
            Self::Direct(direct) => direct.run(values, images, work),
            Self::Winograd(winograd) => winograd.run(values, images, work),
        }
    }
}

/// What a run writes to. One run at a time uses it, and leaves in it nothing that the next one reads.
pub struct Scratch {
    /// All tensors.
    values: Vec<f32>,
    /// The images of the convolutions, with zeros around them.
    float32: Vec<f32>,
    bfloat16: Vec<Bf16>,
    work: Work,
}

impl Plan {
    /// # Errors
    /// The graph has an operation in a form that has no step, or its weights cannot be read.
    pub fn new(graph: &Graph, simd: Simd, precision: Precision) -> Result<Self, String> {
        let mut layout = Layout::of(graph);
        let mut steps = Vec::new();
        let mut images = [0; 2];
        let mut spectra = Vec::new();
        for (id, node) in graph.nodes.iter().enumerate() {
            let to = layout.target(graph, id);
            let inputs: Vec<View> = node.inputs.iter().filter_map(|&input| layout.views[input].clone()).collect();
            match (&node.operation, inputs.as_slice()) {
                (Operation::Input, _) => {}
                (Operation::Permute(order), [from]) => {
                    layout.views[id] = Some(from.permuted(order));
                    continue;
                }
                (Operation::Reshape, [from]) => {
                    if let Some(view) = from.reshaped(&node.shape) {
                        layout.views[id] = Some(view);
                        continue;
                    }
                    let row_major = View::row_major(layout.allocate(node.shape.iter().product()), &from.shape);
                    layout.views[id] = row_major.reshaped(&node.shape);
                    steps.push(Step::Copy { from: from.clone(), to: row_major });
                    continue;
                }
                (Operation::Concatenate(axis), parts) => {
                    let mut start = 0;
                    for from in parts {
                        let to = to.sliced(*axis, start, from.shape[*axis]);
                        start += from.shape[*axis];
                        if !from.same_places(&to) {
                            steps.push(Step::Copy { from: from.clone(), to });
                        }
                    }
                }
                (Operation::Pointwise(pointwise), [from]) => {
                    steps.push(Step::Each { pointwise: pointwise.clone(), from: from.clone(), to: to.clone() });
                }
                (Operation::Add, [a, b]) => steps.push(Step::Add { from: [a.clone(), b.clone()], to: to.clone() }),
                (Operation::MaxPool(pool), [from]) => {
                    steps.push(Step::MaxPool { pool: *pool, from: from.clone(), to: to.clone() });
                }
                (Operation::Reduce(reduction, axis), [from]) => {
                    steps.push(Step::Reduce { reduction: *reduction, axis: *axis, from: from.clone(), to: to.clone() })
                }
                (Operation::Convolution(convolution), [from]) => {
                    let views = [from, &to];
                    let [float32, bfloat16] = &mut images;
                    let geometry = Geometry::new::<f32>(convolution, from, &to);
                    let exact = !geometry.may_be_rounded() || costs_little(graph, node, convolution);
                    if let Some(choice) = fourier::best_choice(&geometry) {
                        let known = spectra.len();
                        let fourier = Fourier::new(geometry, convolution, choice, simd, &mut spectra, float32)?;
                        steps.extend((known..spectra.len()).map(Step::Spectra));
                        steps.push(Step::Fourier(Box::new(fourier)));
                    } else if exact || precision == Precision::Float32 {
                        steps.push(Step::Float32(Layer::new(convolution, views, simd, float32)?));
                    } else {
                        steps.push(Step::Bfloat16(Layer::new(convolution, views, simd, bfloat16)?));
                    }
                }
                (Operation::Linear { weight, bias }, [from]) => {
                    steps.push(Step::Linear(Linear::new(weight, bias, from, &to, simd)?));
                }
                (operation, _) => return Err(format!("there is no step for {operation:?}")),
            }
            layout.views[id] = Some(to);
        }
        let view = |id: NodeId| layout.views[id].clone().ok_or("the result does not depend on the window");
        Ok(Self { input: view(0)?, output: view(graph.output)?, values_len: layout.len, images, spectra, steps })
    }

    pub fn scratch(&self) -> Scratch {
        Scratch {
            values: vec![0.0; self.values_len],
            float32: vec![0.0; self.images[0]],
            bfloat16: vec![Bf16::default(); self.images[1]],
            work: Work::new(),
        }
    }

    /// The scores of a window.
    pub fn run(&self, window: &[f32], scratch: &mut Scratch) -> Vec<f32> {
        let Scratch { values, float32, bfloat16, work } = scratch;
        values[self.input.offset..][..window.len()].copy_from_slice(window);
        for step in &self.steps {
            match step {
                Step::Copy { from, to } => each(from, to, values, |value, _| value),
                Step::Each { pointwise, from, to } => match pointwise {
                    Pointwise::Affine { scale, shift } => {
                        each(from, to, values, |value, channel| value * scale[channel] + shift[channel]);
                    }
                    Pointwise::Relu => each(from, to, values, |value, _| relu(value)),
                    Pointwise::Sigmoid => each(from, to, values, |value, _| sigmoid(value)),
                },
                Step::Add { from, to } => add(from, to, values),
                Step::MaxPool { pool, from, to } => max_pool(*pool, from, to, values),
                Step::Reduce { reduction, axis, from, to } => reduce(*reduction, *axis, from, to, values),
                Step::Float32(layer) => layer.run(values, float32, work),
                Step::Bfloat16(layer) => layer.run(values, bfloat16, work),
                Step::Spectra(number) => self.spectra[*number].run(values, float32, &mut work.fourier),
                Step::Fourier(layer) => layer.run(values, float32, &mut work.fourier),
                Step::Linear(linear) => linear.run(values, &mut work.sums),
            }
        }
        let mut scores = Vec::with_capacity(self.output.shape.iter().product());
        let last = self.output.shape.len() - 1;
        let (length, stride) = self.output.axis(last);
        rows([&self.output], last, |[at], _| scores.extend((0..length).map(|i| values[at + i * stride])));
        scores
    }
}

/// Whether a convolution has too few of all multiplications for rounding to be worth its errors.
fn costs_little(graph: &Graph, node: &Node, convolution: &Convolution) -> bool {
    let all: usize = graph.nodes.iter().map(|node| multiplications(graph, node)).sum();
    // With one channel, a level keeps steady sounds exact.
    let worth_rounding = if convolution.weight.shape[1] == 1 { 32 } else { 20 };
    multiplications(graph, node) * worth_rounding < all
}

fn multiplications(graph: &Graph, node: &Node) -> usize {
    let Operation::Convolution(convolution) = &node.operation else { return 0 };
    let size = padded([graph.shape(node.inputs[0])[2], graph.shape(node.inputs[0])[3]], convolution.padding);
    let places = (0..2).map(|axis| (size[axis] - convolution.kernel()[axis]) / convolution.stride[axis] + 1);
    convolution.weight.count() * places.product::<usize>()
}

/// Where tensors lie. What a concatenation reads is written where the concatenation wants it.
struct Layout {
    views: Vec<Option<View>>,
    /// Places that are decided before their steps are made.
    targets: Vec<Option<View>>,
    len: usize,
}

impl Layout {
    fn of(graph: &Graph) -> Self {
        let none = vec![None; graph.nodes.len()];
        let mut layout = Self { views: none.clone(), targets: none, len: 0 };
        for (id, node) in graph.nodes.iter().enumerate().rev() {
            if let Operation::Concatenate(axis) = &node.operation {
                let whole = layout.target(graph, id);
                let mut start = 0;
                for &input in &node.inputs {
                    let length = graph.shape(input)[*axis];
                    layout.direct(graph, input, whole.sliced(*axis, start, length));
                    start += length;
                }
                layout.targets[id] = Some(whole);
            }
        }
        layout
    }

    /// Has `node` written at `view`, unless it is already written elsewhere.
    fn direct(&mut self, graph: &Graph, node: NodeId, view: View) {
        let Node { operation, inputs, .. } = &graph.nodes[node];
        match operation {
            Operation::Input => {}
            Operation::Reshape => {
                if let Some(view) = view.reshaped(graph.shape(inputs[0])) {
                    self.direct(graph, inputs[0], view);
                }
            }
            Operation::Permute(order) => self.direct(graph, inputs[0], view.unpermuted(order)),
            _ => {
                self.targets[node].get_or_insert(view);
            }
        }
    }

    /// Where a node's values go.
    fn target(&mut self, graph: &Graph, node: NodeId) -> View {
        let Node { operation, shape, .. } = &graph.nodes[node];
        if let Some(view) = &self.targets[node] {
            return view.clone();
        }
        match operation {
            // These lie where their input lies.
            Operation::Permute(_) | Operation::Reshape => View::row_major(0, shape),
            Operation::Input => View::row_major(self.allocate(shape.iter().product()), shape),
            _ => View::channels_last(self.allocate(shape.iter().product()), shape),
        }
    }

    fn allocate(&mut self, values: usize) -> usize {
        let at = self.len;
        self.len += values;
        at
    }
}

/// The axis whose values lie side by side, or else the last.
fn inner_axis(view: &View) -> usize {
    let side_by_side = |&axis: &usize| view.strides[axis] == 1 && view.shape[axis] > 1;
    (0..view.shape.len()).find(side_by_side).unwrap_or(view.shape.len() - 1)
}

/// `to = function(from, channel)`.
fn each(from: &View, to: &View, values: &mut [f32], function: impl Fn(f32, usize) -> f32) {
    let along = inner_axis(to);
    let (length, stride) = from.axis(along);
    let to_stride = to.strides[along];
    let next_channel = usize::from(along == 1);
    rows([from, to], along, |[from, to], channel| {
        for i in 0..length {
            values[to + i * to_stride] = function(values[from + i * stride], channel + i * next_channel);
        }
    });
}

fn add([a, b]: &[View; 2], to: &View, values: &mut [f32]) {
    let along = inner_axis(to);
    let length = to.shape[along];
    let [stride_a, stride_b, stride_to] = [a, b, to].map(|view| view.strides[along]);
    rows([a, b, to], along, |[a, b, to], _| {
        for i in 0..length {
            values[to + i * stride_to] = values[a + i * stride_a] + values[b + i * stride_b];
        }
    });
}

/// Values that are reduced side by side.
const BLOCK: usize = 64;

fn reduce(reduction: Reduction, axis: usize, from: &View, to: &View, values: &mut [f32]) {
    let (length, step) = from.axis(axis);
    // The reduced axis has one place here; rows run along another.
    let from = from.sliced(axis, 0, 1);
    let along = inner_axis(&from);
    let (row, stride) = from.axis(along);
    let to_stride = to.strides[along];
    rows([&from, to], along, |[from, to], _| {
        for first in (0..row).step_by(BLOCK) {
            let mut block = [0.0; BLOCK];
            let block = &mut block[..BLOCK.min(row - first)];
            for i in 0..length {
                let at = from + first * stride + i * step;
                if i == 0 {
                    for (k, value) in block.iter_mut().enumerate() {
                        *value = values[at + k * stride];
                    }
                } else if stride == 1 {
                    let next = &values[at..at + block.len()];
                    match reduction {
                        Reduction::Max => block.iter_mut().zip(next).for_each(|(max, &next)| *max = larger(*max, next)),
                        Reduction::Mean => block.iter_mut().zip(next).for_each(|(sum, &next)| *sum += next),
                    }
                } else {
                    for (k, value) in block.iter_mut().enumerate() {
                        let next = values[at + k * stride];
                        match reduction {
                            Reduction::Max => *value = larger(*value, next),
                            Reduction::Mean => *value += next,
                        }
                    }
                }
            }
            let scale = if reduction == Reduction::Mean { 1.0 / length as f32 } else { 1.0 };
            for (k, value) in block.iter().enumerate() {
                values[to + (first + k) * to_stride] = value * scale;
            }
        }
    });
}

fn max_pool(pool: Pool, from: &View, to: &View, values: &mut [f32]) {
    let along = inner_axis(to);
    let length = to.shape[along];
    let to_stride = to.strides[along];
    for inner in 0..pool.window[0] * pool.window[1] {
        // The place `inner` of every window.
        let mut each = from.clone();
        for (axis, inner) in [inner / pool.window[1], inner % pool.window[1]].into_iter().enumerate() {
            each.offset += inner * each.strides[2 + axis];
            each.strides[2 + axis] *= pool.stride[axis];
            each.shape[2 + axis] = to.shape[2 + axis];
        }
        let stride = each.strides[along];
        rows([&each, to], along, |[from, to], _| {
            for i in 0..length {
                let value = values[from + i * stride];
                let max = &mut values[to + i * to_stride];
                *max = if inner == 0 { value } else { larger(*max, value) };
            }
        });
    }
}

/// NaN counts as the largest, as in PyTorch.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}
