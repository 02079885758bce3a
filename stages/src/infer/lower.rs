//! The text of a traced model → its graph. An operation that is not known here is an error, and the model then runs as it is.

use std::{collections::HashMap, rc::Rc};

use super::{
    archive::{Archive, Constant, Stored},
    graph::{Convolution, Graph, NodeId, Operation, Padding, Pointwise, Pool, Reduction},
    script::{self, Expression, Method, Statement},
};

/// The graph of the model in `archive` for a window of `[frames, bands]`.
///
/// # Errors
/// What is not known, in words.
pub fn lower(archive: &Archive, window: [usize; 2]) -> Result<Graph, String> {
    let mut methods = HashMap::new();
    for (module, text) in &archive.sources {
        for (name, method) in script::methods(text)? {
            methods.insert(format!("{module}.{name}"), method);
        }
    }
    let mut lowering = Lowering { archive, methods, graph: Graph::new(window), depth: 0 };
    let root = Value::from(&archive.root);
    match lowering.call(&root, "forward", vec![Value::Node(0)])? {
        Value::Node(output) => lowering.graph.output = output,
        _ => return Err("the model's result is not one tensor".to_owned()),
    }
    Ok(lowering.graph)
}

/// What a name stands for.
#[derive(Clone, Debug)]
enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    List(Vec<Value>),
    Node(NodeId),
    Tensor(Rc<Constant>),
    Module { class: String, attributes: Rc<HashMap<String, Stored>> },
    Other,
}

impl From<&Stored> for Value {
    fn from(stored: &Stored) -> Self {
        match stored {
            Stored::Tensor(tensor) => Self::Tensor(tensor.clone()),
            Stored::Module { class, attributes } => {
                Self::Module { class: class.clone(), attributes: attributes.clone() }
            }
            Stored::Other => Self::Other,
        }
    }
}

/// Modules within modules, at most: a model that calls itself is refused.
const MAX_DEPTH: usize = 32;

struct Lowering<'a> {
    archive: &'a Archive,
    /// By `module.Class.method`.
    methods: HashMap<String, Method>,
    graph: Graph,
    depth: usize,
}

impl Lowering<'_> {
    fn call(&mut self, module: &Value, method: &str, arguments: Vec<Value>) -> Result<Value, String> {
        let Value::Module { class, .. } = module else { return Err(format!("{method} of what is no module")) };
        let name = format!("{class}.{method}");
        let Method { parameters, body } = self.methods.get(&name).ok_or_else(|| format!("{name} is missing"))?.clone();
        if parameters.len() != arguments.len() + 1 || self.depth == MAX_DEPTH {
            return Err(format!("{name} is called in an unknown way"));
        }
        self.depth += 1;
        let mut names: HashMap<String, Value> =
            parameters.into_iter().zip([module.clone()].into_iter().chain(arguments)).collect();
        for statement in &body {
            match statement {
                Statement::Assign(name, expression) => {
                    let value = self.value(expression, &names)?;
                    names.insert(name.clone(), value);
                }
                Statement::Return(expression) => {
                    self.depth -= 1;
                    return self.value(expression, &names);
                }
            }
        }
        Err(format!("{name} returns nothing"))
    }

    fn value(&mut self, expression: &Expression, names: &HashMap<String, Value>) -> Result<Value, String> {
        Ok(match expression {
            Expression::None => Value::None,
            Expression::Bool(yes) => Value::Bool(*yes),
            Expression::Int(n) => Value::Int(*n),
            Expression::Float(x) => Value::Float(*x),
            Expression::Text(_) => Value::Other,
            Expression::List(items) => {
                Value::List(items.iter().map(|item| self.value(item, names)).collect::<Result<_, _>>()?)
            }
            Expression::Name(name) => names.get(name).ok_or_else(|| format!("{name} is not known"))?.clone(),
            Expression::Attribute(of, name) => match &**of {
                Expression::Name(constants) if constants == "CONSTANTS" => {
                    let number: Option<usize> = name.strip_prefix('c').and_then(|number| number.parse().ok());
                    let constant = number.and_then(|number| self.archive.constants.get(number));
                    constant.ok_or_else(|| format!("CONSTANTS.{name} is missing"))?.into()
                }
                of => match self.value(of, names)? {
                    Value::Module { attributes, .. } => attributes.get(name).map_or(Value::Other, Value::from),
                    _ => return Err(format!("attribute {name} of what is no module")),
                },
            },
            Expression::Call { function, arguments, named } => {
                let mut values = Vec::new();
                for argument in arguments {
                    values.push(self.value(argument, names)?);
                }
                let mut by_name = HashMap::new();
                for (name, argument) in named {
                    by_name.insert(name.as_str(), self.value(argument, names)?);
                }
                match &**function {
                    Expression::Attribute(of, name) => match &**of {
                        Expression::Name(torch) if torch == "torch" => {
                            let arguments = Arguments { function: name, values, by_name };
                            return self.torch(&arguments);
                        }
                        of => {
                            let module = self.value(of, names)?;
                            return self.call(&module, name, values);
                        }
                    },
                    _ => return Err("a call of what is no method".to_owned()),
                }
            }
        })
    }

    /// One of PyTorch's operations, in the form `torch.jit.trace` writes it.
    fn torch(&mut self, arguments: &Arguments<'_>) -> Result<Value, String> {
        let function = arguments.function;
        let node = match function {
            "batch_norm" => {
                let x = arguments.node(0)?;
                arguments.expect(5, |training| matches!(training, Value::Bool(false)))?;
                let channels = self.graph.shape(x).get(1).copied().unwrap_or(0);
                let (mean, variance) = (arguments.tensor(3)?, arguments.tensor(4)?);
                let eps = arguments.float(7)?;
                let of = |tensor: Option<Rc<Constant>>, default| match tensor {
                    Some(tensor) => tensor.values.clone(),
                    None => vec![default; channels],
                };
                let (gamma, beta) = (of(arguments.tensor(1)?, 1.0), of(arguments.tensor(2)?, 0.0));
                let (mean, variance) = (of(mean, f32::NAN), of(variance, f32::NAN));
                if [&gamma, &beta, &mean, &variance].iter().any(|values| values.len() != channels) {
                    return Err(arguments.wrong(1));
                }
                let scale: Vec<f64> = gamma
                    .iter()
                    .zip(&variance)
                    .map(|(&gamma, &variance)| f64::from(gamma) / (f64::from(variance) + eps).sqrt())
                    .collect();
                let shift =
                    (0..channels).map(|i| (f64::from(beta[i]) - f64::from(mean[i]) * scale[i]) as f32).collect();
                let scale = scale.into_iter().map(|scale| scale as f32).collect();
                self.graph.push(Operation::Pointwise(Pointwise::Affine { scale, shift }), vec![x])?
            }
            "_convolution" | "conv2d" => {
                // _convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, …)
                let groups = if function == "conv2d" {
                    6
                } else {
                    arguments.expect(6, |transposed| matches!(transposed, Value::Bool(false)))?;
                    8
                };
                arguments.expect(groups, |groups| matches!(groups, Value::Int(1)))?;
                if arguments.pair(5)? != [1, 1] {
                    return Err(arguments.wrong(5));
                }
                let x = arguments.node(0)?;
                let weight = arguments.tensor(1)?.ok_or_else(|| arguments.wrong(1))?;
                let channels = weight.shape.first().copied().unwrap_or(0);
                let before = arguments.pair(4)?;
                let then = arguments
                    .tensor(2)?
                    .map(|bias| Pointwise::Affine { scale: vec![1.0; channels], shift: bias.values.clone() });
                let convolution = Operation::Convolution(Convolution {
                    weight,
                    stride: arguments.pair(3)?,
                    padding: Padding { before, after: before },
                    pool: Pool::NONE,
                    then: vec![],
                });
                let product = self.graph.push(convolution, vec![x])?;
                match then {
                    Some(bias) => self.graph.push(Operation::Pointwise(bias), vec![product])?,
                    None => product,
                }
            }
            "relu" | "relu_" => self.graph.push(Operation::Pointwise(Pointwise::Relu), vec![arguments.node(0)?])?,
            "sigmoid" => self.graph.push(Operation::Pointwise(Pointwise::Sigmoid), vec![arguments.node(0)?])?,
            "add" | "add_" => {
                if !matches!(arguments.by_name.get("alpha"), None | Some(Value::Int(1))) {
                    return Err(arguments.wrong(2));
                }
                self.graph.push(Operation::Add, vec![arguments.node(0)?, arguments.node(1)?])?
            }
            "constant_pad_nd" => {
                let x = arguments.node(0)?;
                let zero =
                    |value: &Value| matches!(value, Value::Int(0)) || matches!(value, Value::Float(x) if *x == 0.0);
                if arguments.values.len() > 2 {
                    arguments.expect(2, zero)?;
                }
                let [left, right, top, bottom] = *arguments.sizes(1)? else { return Err(arguments.wrong(1)) };
                let padding = Padding { before: [top, left], after: [bottom, right] };
                self.graph.push(Operation::Pad(padding), vec![x])?
            }
            "max_pool2d" => {
                let x = arguments.node(0)?;
                if arguments.pair(3)? != [0, 0] || arguments.pair(4)? != [1, 1] {
                    return Err(arguments.wrong(3));
                }
                if arguments.values.len() > 5 {
                    arguments.expect(5, |up| matches!(up, Value::Bool(false)))?;
                }
                let pool = Pool { window: arguments.pair(1)?, stride: arguments.pair(2)? };
                self.graph.push(Operation::MaxPool(pool), vec![x])?
            }
            "amax" | "mean" => {
                let reduction = if function == "amax" { Reduction::Max } else { Reduction::Mean };
                let mut x = arguments.node(0)?;
                let mut shape = self.graph.shape(x).to_vec();
                let mut axes = arguments.axes(1, shape.len())?;
                axes.sort_unstable();
                for &axis in axes.iter().rev() {
                    x = self.graph.push(Operation::Reduce(reduction, axis), vec![x])?;
                    shape[axis] = 1;
                    if !matches!(arguments.values.get(2), Some(Value::Bool(true))) {
                        shape.remove(axis);
                    }
                }
                self.graph.reshape(x, shape)?
            }
            "cat" | "stack" => {
                let Some(Value::List(items)) = arguments.values.first() else { return Err(arguments.wrong(0)) };
                let mut inputs = Vec::new();
                for item in items {
                    let Value::Node(mut node) = *item else { return Err(arguments.wrong(0)) };
                    if function == "stack" {
                        let mut shape = self.graph.shape(node).to_vec();
                        shape.insert(arguments.axis(1, shape.len() + 1)?, 1);
                        node = self.graph.reshape(node, shape)?;
                    }
                    inputs.push(node);
                }
                let first = *inputs.first().ok_or_else(|| arguments.wrong(0))?;
                let axis = arguments.axis(1, self.graph.shape(first).len())?;
                self.graph.push(Operation::Concatenate(axis), inputs)?
            }
            "transpose" | "permute" => {
                let x = arguments.node(0)?;
                let rank = self.graph.shape(x).len();
                let order = if function == "permute" {
                    arguments.axes(1, rank)?
                } else {
                    let mut order: Vec<usize> = (0..rank).collect();
                    order.swap(arguments.axis(1, rank)?, arguments.axis(2, rank)?);
                    order
                };
                self.graph.push(Operation::Permute(order), vec![x])?
            }
            "unsqueeze" | "squeeze" | "flatten" | "reshape" | "view" => {
                let x = arguments.node(0)?;
                let shape = self.new_shape(arguments, self.graph.shape(x))?;
                self.graph.reshape(x, shape)?
            }
            "linear" => {
                let x = arguments.node(0)?;
                let weight = arguments.tensor(1)?.ok_or_else(|| arguments.wrong(1))?;
                let outputs = weight.shape.first().copied().unwrap_or(0);
                let bias = arguments.tensor(2)?.map_or_else(|| vec![0.0; outputs], |bias| bias.values.clone());
                self.graph.push(Operation::Linear { weight, bias }, vec![x])?
            }
            "dropout" | "dropout_" => {
                arguments.expect(2, |training| matches!(training, Value::Bool(false)))?;
                arguments.node(0)?
            }
            "contiguous" => arguments.node(0)?,
            _ => return Err(format!("torch.{function} is not known")),
        };
        Ok(Value::Node(node))
    }

    fn new_shape(&self, arguments: &Arguments<'_>, old: &[usize]) -> Result<Vec<usize>, String> {
        let mut shape = old.to_vec();
        match arguments.function {
            "unsqueeze" => shape.insert(arguments.axis(1, old.len() + 1)?, 1),
            "squeeze" => {
                for &axis in arguments.axes(1, old.len())?.iter().rev() {
                    if shape[axis] == 1 {
                        shape.remove(axis);
                    }
                }
            }
            "flatten" => {
                let (first, last) = (arguments.axis(1, old.len())?, arguments.axis(2, old.len())?);
                let flat = old.get(first..=last).ok_or_else(|| arguments.wrong(1))?.iter().product();
                shape.splice(first..=last, [flat]);
            }
            _ => {
                let Some(Value::List(sizes)) = arguments.values.get(1) else { return Err(arguments.wrong(1)) };
                let known = |size: &Value| if let Value::Int(n) = size { usize::try_from(*n).ok() } else { None };
                let product: usize = sizes.iter().filter_map(known).product();
                if sizes.iter().filter(|size| known(size).is_none()).count() > 1 || product == 0 {
                    return Err(arguments.wrong(1));
                }
                let rest = old.iter().product::<usize>() / product;
                shape = sizes.iter().map(|size| known(size).unwrap_or(rest)).collect();
            }
        }
        Ok(shape)
    }
}

/// The arguments of one of PyTorch's operations.
struct Arguments<'a> {
    function: &'a str,
    values: Vec<Value>,
    by_name: HashMap<&'a str, Value>,
}

impl Arguments<'_> {
    fn wrong(&self, at: usize) -> String {
        format!("torch.{} is not known with argument {at} = {:?}", self.function, Short(self.values.get(at)))
    }

    fn node(&self, at: usize) -> Result<NodeId, String> {
        if let Some(Value::Node(node)) = self.values.get(at) { Ok(*node) } else { Err(self.wrong(at)) }
    }

    /// A constant; `None` for None.
    fn tensor(&self, at: usize) -> Result<Option<Rc<Constant>>, String> {
        match self.values.get(at) {
            Some(Value::Tensor(tensor)) => Ok(Some(tensor.clone())),
            Some(Value::None) => Ok(None),
            _ => Err(self.wrong(at)),
        }
    }

    fn float(&self, at: usize) -> Result<f64, String> {
        match self.values.get(at) {
            Some(Value::Float(x)) => Ok(*x),
            Some(Value::Int(n)) => Ok(*n as f64),
            _ => Err(self.wrong(at)),
        }
    }

    fn expect(&self, at: usize, ok: impl Fn(&Value) -> bool) -> Result<(), String> {
        if self.values.get(at).is_some_and(ok) { Ok(()) } else { Err(self.wrong(at)) }
    }

    /// A number or a list of numbers.
    fn ints(&self, at: usize) -> Result<Vec<i64>, String> {
        let int = |value: &Value| if let Value::Int(n) = value { Some(*n) } else { None };
        match self.values.get(at) {
            Some(Value::Int(n)) => Ok(vec![*n]),
            Some(Value::List(items)) => items.iter().map(int).collect::<Option<_>>().ok_or_else(|| self.wrong(at)),
            _ => Err(self.wrong(at)),
        }
    }

    fn sizes(&self, at: usize) -> Result<Box<[usize]>, String> {
        self.ints(at)?.into_iter().map(|n| usize::try_from(n).map_err(|_| self.wrong(at))).collect()
    }

    /// Two sizes; one stands for both.
    fn pair(&self, at: usize) -> Result<[usize; 2], String> {
        match *self.sizes(at)? {
            [both] => Ok([both, both]),
            [rows, columns] => Ok([rows, columns]),
            _ => Err(self.wrong(at)),
        }
    }

    /// Axes of a tensor of `rank`; −1 is the last.
    fn axes(&self, at: usize, rank: usize) -> Result<Vec<usize>, String> {
        let axis = |n: i64| usize::try_from(if n < 0 { n + rank as i64 } else { n }).ok().filter(|&axis| axis < rank);
        self.ints(at)?.into_iter().map(axis).collect::<Option<_>>().ok_or_else(|| self.wrong(at))
    }

    fn axis(&self, at: usize, rank: usize) -> Result<usize, String> {
        if let [axis] = *self.axes(at, rank)? { Ok(axis) } else { Err(self.wrong(at)) }
    }
}

/// A value without the numbers of a tensor.
struct Short<'a>(Option<&'a Value>);

impl std::fmt::Debug for Short<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(Value::Tensor(tensor)) => write!(f, "a constant of shape {:?}", tensor.shape),
            Some(Value::Module { class, .. }) => f.write_str(class),
            Some(value) => write!(f, "{value:?}"),
            None => f.write_str("nothing"),
        }
    }
}
