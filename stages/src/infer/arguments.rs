//! What a model's text passes to PyTorch's operations.

use std::{collections::HashMap, rc::Rc};

use super::{archive::Stored, constant::Constant, graph::NodeId};

/// What a name stands for.
#[derive(Clone, Debug)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    List(Vec<Value>),
    Node(NodeId),
    Tensor(Constant),
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

/// The arguments of one of PyTorch's operations.
pub struct Arguments<'a> {
    pub function: &'a str,
    pub values: Vec<Value>,
    pub by_name: HashMap<&'a str, Value>,
}

impl Arguments<'_> {
    pub fn wrong(&self, at: usize) -> String {
        format!("torch.{} is not known with argument {at} = {:?}", self.function, Short(self.values.get(at)))
    }

    pub fn node(&self, at: usize) -> Result<NodeId, String> {
        if let Some(Value::Node(node)) = self.values.get(at) { Ok(*node) } else { Err(self.wrong(at)) }
    }

    /// A constant; `None` for None.
    pub fn tensor(&self, at: usize) -> Result<Option<Constant>, String> {
        match self.values.get(at) {
            Some(Value::Tensor(tensor)) => Ok(Some(tensor.clone())),
            Some(Value::None) => Ok(None),
            _ => Err(self.wrong(at)),
        }
    }

    pub fn float(&self, at: usize) -> Result<f64, String> {
        match self.values.get(at) {
            Some(Value::Float(x)) => Ok(*x),
            Some(Value::Int(n)) => Ok(*n as f64),
            _ => Err(self.wrong(at)),
        }
    }

    pub fn expect(&self, at: usize, ok: impl Fn(&Value) -> bool) -> Result<(), String> {
        if self.values.get(at).is_some_and(ok) { Ok(()) } else { Err(self.wrong(at)) }
    }

    /// A number or a list of numbers.
    pub fn ints(&self, at: usize) -> Result<Vec<i64>, String> {
        let int = |value: &Value| if let Value::Int(n) = value { Some(*n) } else { None };
        match self.values.get(at) {
            Some(Value::Int(n)) => Ok(vec![*n]),
            Some(Value::List(items)) => items.iter().map(int).collect::<Option<_>>().ok_or_else(|| self.wrong(at)),
            _ => Err(self.wrong(at)),
        }
    }

    pub fn sizes(&self, at: usize) -> Result<Box<[usize]>, String> {
        self.ints(at)?.into_iter().map(|n| usize::try_from(n).map_err(|_| self.wrong(at))).collect()
    }

    /// Two sizes; one stands for both.
    pub fn pair(&self, at: usize) -> Result<[usize; 2], String> {
        match *self.sizes(at)? {
            [both] => Ok([both, both]),
            [rows, columns] => Ok([rows, columns]),
            _ => Err(self.wrong(at)),
        }
    }

    /// Axes of a tensor of `rank`; −1 is the last.
    pub fn axes(&self, at: usize, rank: usize) -> Result<Vec<usize>, String> {
        let axis = |n: i64| usize::try_from(if n < 0 { n + rank as i64 } else { n }).ok().filter(|&axis| axis < rank);
        self.ints(at)?.into_iter().map(axis).collect::<Option<_>>().ok_or_else(|| self.wrong(at))
    }

    pub fn axis(&self, at: usize, rank: usize) -> Result<usize, String> {
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
