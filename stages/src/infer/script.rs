//! The text of a traced model: straight-line methods in the part of Python that TorchScript prints.

use std::collections::HashMap;

#[derive(Clone, Debug, PartialEq)]
pub enum Expression {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// A list or a tuple.
    List(Vec<Expression>),
    Name(String),
    Attribute(Box<Expression>, String),
    Call {
        function: Box<Expression>,
        arguments: Vec<Expression>,
        named: Vec<(String, Expression)>,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub enum Statement {
    Assign(String, Expression),
    Return(Expression),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Method {
    /// Names of the arguments, `self` first.
    pub parameters: Vec<String>,
    pub body: Vec<Statement>,
}

/// The methods of a file by `Class.method`.
///
/// # Errors
/// The first thing that is not straight-line code, in words.
pub fn methods(text: &str) -> Result<HashMap<String, Method>, String> {
    let mut methods = HashMap::new();
    let mut class = String::new();
    let mut lines = logical_lines(text)?.into_iter().peekable();
    while let Some(line) = lines.next() {
        let mut cursor = Cursor { tokens: &line.tokens };
        if cursor.word("class") {
            class = cursor.name()?;
        } else if cursor.word("def") {
            let name = cursor.name()?;
            let parameters = cursor.parameters()?;
            let mut body = Vec::new();
            while let Some(line) = lines.next_if(|next| next.indent > line.indent) {
                body.push(Cursor { tokens: &line.tokens }.statement()?);
            }
            methods.insert(format!("{class}.{name}"), Method { parameters, body });
        }
        // Other lines declare attributes.
    }
    Ok(methods)
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Number(String),
    Text(String),
    Sign(char),
}

struct Line {
    indent: usize,
    tokens: Vec<Token>,
}

/// Lines of tokens; a line goes on while a bracket is open.
fn logical_lines(text: &str) -> Result<Vec<Line>, String> {
    let mut lines: Vec<Line> = Vec::new();
    let mut open = 0_usize;
    for physical in text.lines() {
        let mut rest = physical.trim_start();
        if open == 0 {
            lines.push(Line { indent: physical.len() - rest.len(), tokens: Vec::new() });
        }
        while let Some(first) = rest.chars().next() {
            let end = |part: fn(char) -> bool| rest.find(|c| !part(c)).unwrap_or(rest.len());
            let (token, length) = match first {
                ' ' => (None, 1),
                '#' => (None, rest.len()),
                'a'..='z' | 'A'..='Z' | '_' => {
                    let end = end(|c| c.is_ascii_alphanumeric() || c == '_');
                    (Some(Token::Word(rest[..end].to_owned())), end)
                }
                '0'..='9' => {
                    let mut end = end(|c| c.is_ascii_alphanumeric() || c == '.');
                    // 1e-05
                    if rest[..end].ends_with('e') {
                        let digits = |c: char| !c.is_ascii_digit();
                        end += 1 + rest[end + 1..].find(digits).unwrap_or(rest.len() - end - 1);
                    }
                    (Some(Token::Number(rest[..end].to_owned())), end)
                }
                '"' | '\'' => {
                    let end = rest[1..].find(first).ok_or("a text has no end")? + 1;
                    (Some(Token::Text(rest[1..end].to_owned())), end + 1)
                }
                sign if sign.is_ascii() => {
                    match sign {
                        '(' | '[' => open += 1,
                        ')' | ']' => open = open.saturating_sub(1),
                        _ => {}
                    }
                    (Some(Token::Sign(sign)), 1)
                }
                other => return Err(format!("{other:?} is not expected in a model's text")),
            };
            if let (Some(token), Some(line)) = (token, lines.last_mut()) {
                line.tokens.push(token);
            }
            rest = &rest[length..];
        }
    }
    lines.retain(|line| !line.tokens.is_empty());
    Ok(lines)
}

struct Cursor<'a> {
    tokens: &'a [Token],
}

impl Cursor<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.first()
    }

    fn next(&mut self) -> Option<Token> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first.clone())
    }

    /// Steps over `sign` if it comes next.
    fn sign(&mut self, sign: char) -> bool {
        let found = self.peek() == Some(&Token::Sign(sign));
        if found {
            self.next();
        }
        found
    }

    fn word(&mut self, word: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Word(next)) if next == word);
        if found {
            self.next();
        }
        found
    }

    fn expect(&mut self, sign: char) -> Result<(), String> {
        if self.sign(sign) { Ok(()) } else { Err(format!("{:?} instead of {sign:?}", self.peek())) }
    }

    fn name(&mut self) -> Result<String, String> {
        match self.next() {
            Some(Token::Word(name)) => Ok(name),
            other => Err(format!("{other:?} instead of a name")),
        }
    }

    /// `(self: __torch__.A, x: Tensor)`; types are skipped.
    fn parameters(&mut self) -> Result<Vec<String>, String> {
        self.expect('(')?;
        let mut names = Vec::new();
        while !self.sign(')') {
            names.push(self.name()?);
            let mut open = 0_usize;
            while let Some(token) = self.peek() {
                match token {
                    Token::Sign(',') if open == 0 => break,
                    Token::Sign(')') if open == 0 => break,
                    Token::Sign('[' | '(') => open += 1,
                    Token::Sign(']' | ')') => open -= 1,
                    _ => {}
                }
                self.next();
            }
            self.sign(',');
        }
        Ok(names)
    }

    fn statement(&mut self) -> Result<Statement, String> {
        let statement = if self.word("return") {
            Statement::Return(self.expression()?)
        } else {
            let name = self.name()?;
            if !self.sign('=') {
                return Err(format!("the statement that starts with {name:?} is not an assignment"));
            }
            Statement::Assign(name, self.expression()?)
        };
        match self.peek() {
            None => Ok(statement),
            Some(token) => Err(format!("{token:?} after the end of a statement")),
        }
    }

    fn expression(&mut self) -> Result<Expression, String> {
        let mut expression = match self.next() {
            Some(Token::Word(word)) => match word.as_str() {
                "None" => Expression::None,
                "True" => Expression::Bool(true),
                "False" => Expression::Bool(false),
                _ => Expression::Name(word),
            },
            Some(Token::Text(text)) => Expression::Text(text),
            Some(Token::Number(number)) => Self::number(&number)?,
            Some(Token::Sign('-')) => match self.expression()? {
                Expression::Int(n) => Expression::Int(-n),
                Expression::Float(x) => Expression::Float(-x),
                _ => return Err("a minus sign before what is no number".to_owned()),
            },
            Some(Token::Sign('[')) => Expression::List(self.list(']')?.0),
            Some(Token::Sign('(')) => match self.list(')')? {
                (mut items, false) if items.len() == 1 => items.remove(0),
                (items, _) => Expression::List(items),
            },
            other => return Err(format!("{other:?} instead of an expression")),
        };
        loop {
            if self.sign('.') {
                expression = Expression::Attribute(Box::new(expression), self.name()?);
            } else if self.sign('(') {
                let (mut arguments, mut named) = (Vec::new(), Vec::new());
                while !self.sign(')') {
                    match self.tokens {
                        [Token::Word(name), Token::Sign('='), ..] => {
                            self.tokens = &self.tokens[2..];
                            named.push((name.clone(), self.expression()?));
                        }
                        _ => arguments.push(self.expression()?),
                    }
                    if self.peek() != Some(&Token::Sign(')')) {
                        self.expect(',')?;
                    }
                }
                expression = Expression::Call { function: Box::new(expression), arguments, named };
            } else {
                return Ok(expression);
            }
        }
    }

    /// Expressions up to `close`, and whether a comma stood after the last.
    fn list(&mut self, close: char) -> Result<(Vec<Expression>, bool), String> {
        let (mut items, mut comma) = (Vec::new(), false);
        while !self.sign(close) {
            items.push(self.expression()?);
            comma = self.sign(',');
            if !comma && self.peek() != Some(&Token::Sign(close)) {
                return Err(format!("{:?} in a list", self.peek()));
            }
        }
        Ok((items, comma))
    }

    fn number(text: &str) -> Result<Expression, String> {
        if let Ok(n) = text.parse() {
            return Ok(Expression::Int(n));
        }
        text.parse().map(Expression::Float).map_err(|_| format!("{text:?} is not a number"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traced_method_is_read() {
        let text = "class Net(Module):\n  __parameters__ = [\"weight\", ]\n  weight : Tensor\n  def forward(self: __torch__.Net,\n    \
                    x: List[Tensor]) -> Tensor:\n    w = self.weight\n    _0 = torch.add(x, w, alpha=-1)\n    return (sub).forward(_0, 1e-05, [], )\n";
        let methods = methods(text).unwrap();
        let method = &methods["Net.forward"];
        assert_eq!(method.parameters, ["self", "x"]);
        let name = |name: &str| Expression::Name(name.to_owned());
        let attribute = |of: Expression, name: &str| Box::new(Expression::Attribute(Box::new(of), name.to_owned()));
        let expected = [
            Statement::Assign("w".to_owned(), *attribute(name("self"), "weight")),
            Statement::Assign(
                "_0".to_owned(),
                Expression::Call {
                    function: attribute(name("torch"), "add"),
                    arguments: vec![name("x"), name("w")],
                    named: vec![("alpha".to_owned(), Expression::Int(-1))],
                },
            ),
            Statement::Return(Expression::Call {
                function: attribute(name("sub"), "forward"),
                arguments: vec![name("_0"), Expression::Float(1e-5), Expression::List(vec![])],
                named: vec![],
            }),
        ];
        assert_eq!(method.body, expected);
    }

    #[test]
    fn control_flow_is_refused() {
        let text = "class Net(Module):\n  def forward(self: __torch__.Net, x: Tensor) -> Tensor:\n    if True:\n      y = x\n    return x\n";
        assert!(methods(text).unwrap_err().contains("not an assignment"));
    }
}
