//! The text of a traced model → its graph. An operation that is not known here is an error, and the model then runs as
//! it is.

use std::collections::HashMap;

use super::{
    archive::Archive,
    arguments::{Arguments, Value},
    constant::Constant,
    graph::{Convolution, Graph, Operation, Padding, Pointwise, Pool, Reduction},
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
                let of = |tensor: Option<Constant>, default| match tensor {
                    Some(tensor) => tensor.values(),
                    None => Ok(vec![default; channels]),
                };
                let (gamma, beta) = (of(arguments.tensor(1)?, 1.0)?, of(arguments.tensor(2)?, 0.0)?);
                let (mean, variance) = (of(mean, f32::NAN)?, of(variance, f32::NAN)?);
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
                let bias = arguments.tensor(2)?.map(|bias| bias.values()).transpose()?;
                let then = bias.map(|shift| Pointwise::Affine { scale: vec![1.0; channels], shift });
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
                let bias = arguments.tensor(2)?.map_or_else(|| Ok(vec![0.0; outputs]), |bias| bias.values())?;
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
