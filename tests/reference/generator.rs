//! Draws graphs and inputs.
//!
//! Owns: what there is to be tried out. Every graph is valid: expressions refer to what comes before them and can be
//! seen, every label has an edge, all ways out of a scope lead to its join.
//! Keeps: texts, lists and numbers stay small however often nodes build on each other, and nothing runs more than a few
//! hundred steps. Expressions have the type that is asked for, so that a run does not fail all the time; what is read
//! may be `null` all the same, because its node was skipped or the input lacks it.

use serde_json::{Map, Value, json};

use super::dealer::Dealer;
use super::graph::{From, Graph, Join, Kind, Link, Node, OnFailure, OnMax, Scope};
use super::language::{Expr, Operator, Template};

/// Nodes of a graph, besides joins and those that bring loose ends together.
const NODES_MAX: usize = 14;
/// Scopes within scopes.
const DEPTH_MAX: usize = 3;
/// Characters and elements of what an expression builds on.
const READ_MAX: usize = 4;
/// What whole numbers are reduced by before they are put out.
const NUMBERS: i64 = 100_003;

const TEXTS: [&str; 6] = ["a", "b", "", "é𝄞", "x}y", "\"{\\"];
const LABELS: [&str; 3] = ["yes", "no", "other"];
const TOPICS: [&str; 2] = ["progress", "results"];
/// Ids that mean something elsewhere, or have to be quoted.
const ODD_IDS: [&str; 8] = ["failures", "item", "index", "run", "nodes", "if", "and", "length"];

/// What an expression may be about.
#[derive(Debug, Clone, PartialEq)]
enum Type {
    Int,
    Str,
    Bool,
    List(Box<Self>),
    Record(Vec<(&'static str, Self)>),
}

/// Something that can be read. It may be `null`.
#[derive(Debug, Clone)]
struct Readable {
    path: Vec<String>,
    of: Type,
}

impl Type {
    fn list(of: Self) -> Self {
        Self::List(Box::new(of))
    }

    fn levels(&self) -> usize {
        match self {
            Self::Int | Self::Str | Self::Bool => 1,
            Self::List(of) => 1 + of.levels(),
            Self::Record(fields) => 1 + fields.iter().map(|(_, of)| of.levels()).max().unwrap_or(0),
        }
    }
}

impl Readable {
    fn new(path: &[&str], of: Type) -> Self {
        Self { path: path.iter().map(|key| (*key).to_owned()).collect(), of }
    }

    /// Itself, and what is in it.
    fn spread(&self, into: &mut Vec<Self>) {
        into.push(self.clone());
        if let Type::Record(fields) = &self.of {
            for (name, of) in fields {
                let path = [self.path.as_slice(), &[(*name).to_owned()]].concat();
                Self { path, of: of.clone() }.spread(into);
            }
        }
    }

    fn is_of_item(&self) -> bool {
        matches!(self.path[0].as_str(), "item" | "index")
    }

    /// The list of failures has messages in it, which the reference does not know. So it is only read in parts.
    fn is_failures(&self) -> bool {
        self.path == ["failures"]
    }
}

fn row() -> Type {
    Type::Record(vec![("n", Type::Int), ("s", Type::Str), ("xs", Type::list(Type::Int))])
}

/// A graph.
pub(super) fn graph(dealer: &mut Dealer) -> Graph {
    let calm = dealer.one_in(2);
    let mut drawing = Drawing { dealer, calm, nodes_left: NODES_MAX, ids: 0, odd_ids: ODD_IDS.to_vec() };
    let top = [
        Readable::new(&["input", "n"], Type::Int),
        Readable::new(&["input", "m"], Type::Int),
        Readable::new(&["input", "s"], Type::Str),
        Readable::new(&["input", "b"], Type::Bool),
        Readable::new(&["input", "xs"], Type::list(Type::Int)),
        Readable::new(&["input", "rows"], Type::list(row())),
        Readable::new(&["run", "workflow"], Type::Str),
    ];
    let (scope, _) = drawing.scope(&top, None);
    let output = (!drawing.dealer.one_in(8)).then(|| {
        let nodes: Vec<_> = scope.nodes.iter().map(Node::last_id).collect();
        (*drawing.dealer.pick(&nodes)).to_owned()
    });
    Graph { scope, output }
}

/// An input. Any part of it may be missing or `null`.
pub(super) fn input(dealer: &mut Dealer) -> Value {
    let int = |dealer: &mut Dealer| match dealer.below(8) {
        0 => json!(dealer.below(10_000_000_000)), // more than 32 bits
        1 => json!(-(dealer.below(100) as i64)),
        _ => json!(dealer.below(10)),
    };
    let text = |dealer: &mut Dealer| json!(*dealer.pick(&TEXTS));
    let ints = |dealer: &mut Dealer| (0..dealer.below(READ_MAX)).map(|_| int(dealer)).collect::<Value>();
    let rows = |dealer: &mut Dealer| {
        let mut rows = Vec::new();
        for _ in 0..dealer.below(READ_MAX) {
            let row = [("n", int(dealer)), ("s", text(dealer)), ("xs", ints(dealer))];
            rows.push(with_gaps(dealer, row));
        }
        json!(rows)
    };
    let fields = [
        ("n", int(dealer)),
        ("m", int(dealer)),
        ("s", text(dealer)),
        ("b", json!(dealer.one_in(2))),
        ("xs", ints(dealer)),
        ("rows", rows(dealer)),
    ];
    with_gaps(dealer, fields)
}

fn with_gaps<const N: usize>(dealer: &mut Dealer, fields: [(&str, Value); N]) -> Value {
    let mut object = Map::new();
    for (name, value) in fields {
        match dealer.below(16) {
            0 => {}
            1 => drop(object.insert(name.to_owned(), Value::Null)),
            _ => drop(object.insert(name.to_owned(), value)),
        }
    }
    object.into()
}

struct Drawing<'a> {
    dealer: &'a mut Dealer,
    /// Without expressions that fail on purpose.
    calm: bool,
    nodes_left: usize,
    ids: usize,
    odd_ids: Vec<&'static str>,
}

/// The scope that nodes are drawn for.
struct Inside {
    depth: usize,
    /// Of a loop's state, where the last node has to make it.
    state: Option<Type>,
    /// Whether the join is to have one node before it.
    has_one_exit: bool,
}

impl Drawing<'_> {
    /// The nodes of a scope, and what each is seen as from behind.
    fn scope(&mut self, around: &[Readable], inside: Option<&Inside>) -> (Scope, Vec<Vec<Readable>>) {
        let depth = inside.map_or(0, |inside| inside.depth);
        let mut scope = Scope::default();
        let mut seen: Vec<Vec<Readable>> = Vec::new();
        let mut loose: Vec<Link> = Vec::new();
        let count = if depth == 0 { 3 + self.dealer.below(6) } else { 1 + self.dealer.below(4) };
        for place in 0..count {
            if place > 0 && self.nodes_left == 0 {
                break;
            }
            self.nodes_left = self.nodes_left.saturating_sub(1);
            let links = self.links(&scope, &mut loose, inside.is_some());
            self.node(&mut scope, &mut seen, &mut loose, links, around, depth);
        }
        let Some(inside) = inside else {
            if !loose.is_empty() {
                let output = self.last_output(&scope, &seen, &loose, around, None);
                self.push(&mut scope, &mut seen, loose, output);
            }
            return (scope, seen);
        };

        let leads_on = |scope: &Scope, node: usize| {
            scope.nodes.iter().any(|other| other.links.iter().any(|link| link.from == From::Node(node)))
        };
        let mut exits = loose;
        for node in 0..scope.nodes.len() {
            let ends_here = !leads_on(&scope, node) && !exits.iter().any(|exit| exit.from == From::Node(node));
            if if ends_here { !self.dealer.one_in(8) } else { self.dealer.one_in(4) } {
                exits.push(Link { from: From::Node(node), label: None });
            }
        }
        if exits.is_empty() {
            exits.push(Link { from: From::Node(scope.nodes.len() - 1), label: None });
        }
        if inside.has_one_exit {
            let output = self.last_output(&scope, &seen, &exits, around, inside.state.clone());
            self.push(&mut scope, &mut seen, exits, output);
            exits = vec![Link { from: From::Node(scope.nodes.len() - 1), label: None }];
        }
        scope.exits = exits;
        (scope, seen)
    }

    /// Edges to the next node. Labels that lead nowhere yet come first.
    fn links(&mut self, scope: &Scope, loose: &mut Vec<Link>, is_inner: bool) -> Vec<Link> {
        let mut links: Vec<Link> = Vec::new();
        for link in std::mem::take(loose) {
            if self.dealer.one_in(2) { links.push(link) } else { loose.push(link) }
        }
        let wanted = if scope.nodes.is_empty() { 0 } else { self.dealer.below(3) };
        for _ in 0..wanted {
            let from = match self.dealer.below(scope.nodes.len() + usize::from(is_inner)) {
                place if place < scope.nodes.len() => From::Node(place),
                _ => From::Opener,
            };
            let labels = if let From::Node(place) = from { scope.nodes[place].labels() } else { Vec::new() };
            let label = (!labels.is_empty() && !self.dealer.one_in(3)).then(|| *self.dealer.pick(&labels));
            let link = Link { from, label };
            if !links.contains(&link) {
                links.push(link);
            }
        }
        if links.is_empty() && is_inner {
            links.push(Link { from: From::Opener, label: None });
        } else if links.is_empty() && !scope.nodes.is_empty() && !self.dealer.one_in(4) {
            links.push(Link { from: From::Node(scope.nodes.len() - 1), label: None });
        }
        links
    }

    fn node(
        &mut self,
        scope: &mut Scope,
        seen: &mut Vec<Vec<Readable>>,
        loose: &mut Vec<Link>,
        links: Vec<Link>,
        around: &[Readable],
        depth: usize,
    ) {
        let readable = readable(scope, seen, &links, around);
        match self.dealer.below(10) {
            0..=1 => {
                let id = self.id();
                let mut cases = Vec::new();
                for _ in 0..1 + self.dealer.below(2) {
                    let when = self.boolean(&readable, 2);
                    cases.push((self.risky(&readable, when), *self.dealer.pick(&LABELS)));
                }
                let otherwise = self.dealer.one_in(2).then(|| *self.dealer.pick(&LABELS));
                let from = From::Node(scope.nodes.len());
                let kind = Kind::Branch { cases, otherwise };
                seen.push(vec![Readable::new(&["nodes", &id], Type::Str)]);
                scope.nodes.push(Node { id, links, max_attempts: self.max_attempts(), kind });
                let mut labels = scope.nodes.last().unwrap().labels();
                labels.sort_unstable();
                labels.dedup();
                loose.extend(labels.into_iter().map(|label| Link { from, label: Some(label) }));
            }
            2..=4 if depth < DEPTH_MAX && self.nodes_left > 0 => {
                let (node, outputs) = if self.dealer.one_in(3) {
                    self.looping(links, &readable, depth)
                } else {
                    self.map(links, &readable, depth)
                };
                scope.nodes.push(node);
                seen.push(outputs);
            }
            _ => {
                let output = self.output(&readable);
                self.push(scope, seen, links, output);
            }
        }
    }

    /// A transform.
    fn push(&mut self, scope: &mut Scope, seen: &mut Vec<Vec<Readable>>, links: Vec<Link>, output: (Template, Type)) {
        let id = self.id();
        let topic = self.dealer.one_in(5).then(|| *self.dealer.pick(&TOPICS));
        seen.push(vec![Readable::new(&["nodes", &id], output.1)]);
        let kind = Kind::Transform { output: output.0, topic };
        scope.nodes.push(Node { id, links, max_attempts: self.max_attempts(), kind });
    }

    fn last_output(
        &mut self,
        scope: &Scope,
        seen: &[Vec<Readable>],
        links: &[Link],
        around: &[Readable],
        of: Option<Type>,
    ) -> (Template, Type) {
        let readable = readable(scope, seen, links, around);
        match of {
            Some(of) => (self.template(&readable, &of), of),
            None => self.output(&readable),
        }
    }

    fn map(&mut self, links: Vec<Link>, around: &[Readable], depth: usize) -> (Node, Vec<Readable>) {
        let (id, join) = (self.id(), self.id());
        let lists: Vec<&Readable> =
            around.iter().filter(|of| matches!(of.of, Type::List(_)) && !of.is_failures()).collect();
        let (items, of) = match self.dealer.below(6) {
            0 => {
                let of = Type::Record(vec![("n", Type::Int), ("s", Type::Str)]);
                let count = self.dealer.below(READ_MAX);
                (Template::Array((0..count).map(|_| self.template(around, &of)).collect()), of)
            }
            1..=3 if !lists.is_empty() => {
                let list = (*self.dealer.pick(&lists)).clone();
                let Type::List(of) = list.of else { unreachable!("only lists were picked") };
                let path = Expr::Path(list.path);
                // What is not there is no array, and fails the node.
                let items = if !self.calm && self.dealer.one_in(4) { path } else { cut(or(path, json!([]))) };
                (Template::Whole(items), *of)
            }
            _ => {
                let items = self.list(around, 2);
                (Template::Whole(self.risky(around, cut(items))), Type::Int)
            }
        };
        let on_failure = *self.dealer.pick(&[OnFailure::Cancel, OnFailure::Finish, OnFailure::Collect]);
        let concurrency = 1 + self.dealer.below(4);

        let mut within: Vec<Readable> = around.iter().filter(|of| !of.is_of_item()).cloned().collect();
        within.extend(self.item(&id, &of));
        let has_one_exit = self.dealer.one_in(3);
        let (inside, seen) = self.scope(&within, Some(&Inside { depth: depth + 1, state: None, has_one_exit }));

        let whole = Readable::new(&["nodes", &id], Type::list(of));
        let mut behind: Vec<Readable> = around.to_vec();
        whole.spread(&mut behind);
        let mut outputs: Vec<Readable> = Vec::new();
        for place in inside.before(&inside.exits) {
            for of in seen[place].iter().filter(|of| of.path.len() == 2) {
                outputs.push(Readable { path: of.path.clone(), of: Type::list(of.of.clone()) });
            }
        }
        behind.extend(outputs.clone());
        let named = if has_finish(&inside) {
            vec![("index", Type::Int)]
        } else {
            vec![("index", Type::Int), ("node", Type::Str), ("code", Type::Str)]
        };
        behind.push(Readable::new(&["failures"], Type::list(Type::Record(named))));

        let handed_on =
            inside.only_exit().map(|node| node.last_id().to_owned()).filter(|_| has_one_exit || self.dealer.one_in(2));
        let handed_on = handed_on.and_then(|id| outputs.iter().find(|of| of.path[1] == id));
        let (output, of) = match handed_on {
            Some(output) => (None, output.of.clone()),
            None => {
                let (output, of) = self.join_output(&behind, &outputs);
                (Some(output), of)
            }
        };
        let seen = vec![whole, Readable::new(&["nodes", &join], of)];
        let join = Join { id: join, output };
        let kind = Kind::Map { items, concurrency, on_failure, inside, join };
        (Node { id, links, max_attempts: self.max_attempts(), kind }, seen)
    }

    /// What a map's join makes of it all: something of each kind of thing that only it can see.
    fn join_output(&mut self, behind: &[Readable], outputs: &[Readable]) -> (Template, Type) {
        if self.dealer.one_in(3) {
            return self.output(behind);
        }
        let failures = behind.last().unwrap();
        let Type::List(record) = &failures.of else { unreachable!("failures are a list") };
        let Type::Record(fields) = &**record else { unreachable!("of records") };
        let field = self.dealer.pick(fields).0;
        let failures = Expr::Path(failures.path.clone());
        let plucked =
            if self.dealer.one_in(2) { Expr::Length(failures.into()) } else { Expr::Pluck(failures.into(), field) };
        let of = if matches!(plucked, Expr::Length(_)) {
            Type::Int
        } else {
            Type::list(if field == "index" { Type::Int } else { Type::Str })
        };
        let mut fields = vec![("n", Template::Whole(plucked), of)];
        for name in ["xs", "ys"] {
            if !outputs.is_empty() {
                let output = self.dealer.pick(outputs).clone();
                fields.push((name, Template::Whole(Expr::Path(output.path)), output.of));
            }
        }
        let of = Type::Record(fields.iter().map(|(name, _, of)| (*name, of.clone())).collect());
        (Template::Object(fields.into_iter().map(|(name, value, _)| (name, value)).collect()), of)
    }

    fn looping(&mut self, links: Vec<Link>, around: &[Readable], depth: usize) -> (Node, Vec<Readable>) {
        let (id, join) = (self.id(), self.id());
        let of = match self.dealer.below(2) {
            0 => Type::Int,
            _ => Type::Record(vec![("n", Type::Int), ("s", Type::Str)]),
        };
        let initial = self.template(around, &of);
        let outside: Vec<Readable> = around.iter().filter(|of| !of.is_of_item()).cloned().collect();

        // What the condition is about does not include the loop's own id: it is asked where that has no output yet.
        let mut asked = outside.clone();
        asked.extend(self.item(&id, &of).into_iter().filter(Readable::is_of_item));
        let index = || Expr::Path(vec!["index".to_owned()]);
        let bound = remainder(self.int(&asked, 1), 5);
        let mut condition = operation(Operator::Less, index(), bound);
        if self.dealer.one_in(2) {
            let more = self.boolean(&asked, 2);
            condition = operation(*self.dealer.pick(&[Operator::And, Operator::Or]), condition, more);
        }
        let condition = self.risky(&asked, condition);

        let mut within = outside;
        within.extend(self.item(&id, &of));
        let hands_on = self.dealer.one_in(3);
        let state = hands_on.then(|| of.clone());
        let (inside, seen) = self.scope(&within, Some(&Inside { depth: depth + 1, state, has_one_exit: hands_on }));
        let output = (!hands_on).then(|| {
            let readable = readable(&inside, &seen, &inside.exits, &within);
            self.template(&readable, &of)
        });
        let seen = vec![Readable::new(&["nodes", &id], of.clone()), Readable::new(&["nodes", &join], of)];
        let join = Join { id: join, output };
        let max = 1 + self.dealer.below(4) as u32;
        let on_max = if self.calm || self.dealer.one_in(2) { OnMax::Stop } else { OnMax::Fail };
        let kind = Kind::Loop { initial, condition, max, on_max, inside, join };
        (Node { id, links, max_attempts: self.max_attempts(), kind }, seen)
    }

    /// How a scope's nodes see the item or state, and its number.
    fn item(&mut self, opener: &str, of: &Type) -> Vec<Readable> {
        let mut found = Vec::new();
        Readable::new(&["nodes", opener], of.clone()).spread(&mut found);
        Readable::new(&["item"], of.clone()).spread(&mut found);
        found.push(Readable::new(&["index"], Type::Int));
        found
    }

    fn id(&mut self) -> String {
        self.ids += 1;
        match self.dealer.below(12) {
            0 if !self.odd_ids.is_empty() => {
                let odd = self.dealer.below(self.odd_ids.len());
                self.odd_ids.swap_remove(odd).to_owned()
            }
            1..=2 => format!("n-{}", self.ids),
            _ => format!("n{}", self.ids),
        }
    }

    fn max_attempts(&mut self) -> Option<u32> {
        self.dealer.one_in(3).then(|| 1 + self.dealer.below(2) as u32)
    }

    /// Fails when some condition holds, and is the expression otherwise.
    fn risky(&mut self, readable: &[Readable], expr: Expr) -> Expr {
        if self.calm || !self.dealer.one_in(8) {
            return expr;
        }
        let condition = match self.dealer.below(3) {
            0 => self.boolean(readable, 1),
            _ => operation(Operator::Equal, remainder(self.int(readable, 1), 3), Expr::Const(json!(0))),
        };
        Expr::If([condition, Expr::Boom, expr].into())
    }

    /// What a transform puts out.
    fn output(&mut self, readable: &[Readable]) -> (Template, Type) {
        let small: Vec<&Readable> = readable.iter().filter(|of| of.of.levels() <= 2 && !of.is_failures()).collect();
        let of = match self.dealer.below(8) {
            0..=1 => Type::Int,
            2 => Type::Str,
            3 => Type::Bool,
            4 => Type::list(Type::Int),
            5 if !small.is_empty() => {
                let whole = (*self.dealer.pick(&small)).clone();
                return (Template::Whole(self.risky(readable, Expr::Path(whole.path))), whole.of);
            }
            _ => {
                let mut fields =
                    vec![("n", Type::Int), ("s", Type::Str), ("xs", Type::list(Type::Int)), ("ok", Type::Bool)];
                fields.retain(|_| !self.dealer.one_in(3));
                Type::Record(fields)
            }
        };
        let output = self.template(readable, &of);
        (output, of)
    }

    /// A template of a type, which may fail.
    fn template(&mut self, readable: &[Readable], of: &Type) -> Template {
        match of {
            Type::Str if self.dealer.one_in(2) => {
                let mut parts = Vec::new();
                for _ in 0..1 + self.dealer.below(3) {
                    let part = match self.dealer.below(4) {
                        0 => self.list(readable, 1),
                        1 => self.boolean(readable, 1),
                        2 => remainder(self.int(readable, 1), NUMBERS),
                        _ => self.text(readable, 1),
                    };
                    parts.push((*self.dealer.pick(&["x ", "$ ", " }", "é"]), part));
                }
                Template::Text(parts)
            }
            Type::List(item) if self.dealer.one_in(2) => {
                Template::Array((0..self.dealer.below(READ_MAX)).map(|_| self.template(readable, item)).collect())
            }
            Type::Record(fields) if !self.dealer.one_in(3) => {
                Template::Object(fields.iter().map(|(name, of)| (*name, self.template(readable, of))).collect())
            }
            Type::Int if self.dealer.one_in(6) => Template::Const(json!(self.dealer.below(7))),
            of => {
                let expr = self.of(readable, of);
                Template::Whole(self.risky(readable, expr))
            }
        }
    }

    fn of(&mut self, readable: &[Readable], of: &Type) -> Expr {
        match of {
            Type::Int => remainder(self.int(readable, 3), NUMBERS),
            Type::Str => self.text(readable, 2),
            Type::Bool => self.boolean(readable, 3),
            Type::List(of) if **of == Type::Int => self.list(readable, 2),
            Type::List(of) => Expr::Array((0..self.dealer.below(READ_MAX)).map(|_| self.of(readable, of)).collect()),
            Type::Record(fields) => {
                Expr::Object(fields.iter().map(|(name, of)| (*name, self.of(readable, of))).collect())
            }
        }
    }

    /// A path to something of a type.
    fn path(&mut self, readable: &[Readable], of: &Type) -> Option<Expr> {
        let found: Vec<&Readable> = readable.iter().filter(|readable| readable.of == *of).collect();
        if found.is_empty() {
            return None;
        }
        // What has just been made is more interesting than the input.
        let place = self.dealer.below(found.len()).max(self.dealer.below(found.len()));
        Some(Expr::Path(found[place].path.clone()))
    }

    /// A whole number, which is as large as `levels` levels of operations make it.
    fn int(&mut self, readable: &[Readable], levels: usize) -> Expr {
        let small = |this: &mut Self| Expr::Const(json!(this.dealer.below(12) as i64 - 3));
        if levels == 0 || self.dealer.one_in(4) {
            let Some(path) = self.path(readable, &Type::Int) else { return small(self) };
            return match self.dealer.below(6) {
                0 => small(self),
                1 if !self.calm => path, // `null` fails most of what is done with it
                _ => or(path, json!(self.dealer.below(5))),
            };
        }
        let below = levels - 1;
        match self.dealer.below(10) {
            0..=1 => operation(Operator::Add, self.int(readable, below), self.int(readable, below)),
            2 => operation(Operator::Subtract, self.int(readable, below), self.int(readable, below)),
            3 => {
                let factor = remainder(self.int(readable, 0), 1009);
                let product = operation(Operator::Multiply, self.int(readable, below), factor);
                remainder(product, NUMBERS)
            }
            4 => {
                // Division by zero fails.
                let least = i64::from(self.calm);
                let divisor = Expr::Const(json!(self.dealer.below(4) as i64 + least));
                operation(Operator::Quotient, self.int(readable, below), divisor)
            }
            5 => Expr::Length(self.list(readable, below).into()),
            6 => Expr::Length(self.text(readable, below).into()),
            7 => match self.path(readable, &Type::list(Type::Int)) {
                Some(path) => Expr::Sum(cut(or(path, json!([]))).into()),
                None => small(self),
            },
            8 => match self.path(readable, &Type::Int) {
                // `null` adds nothing.
                Some(path) => operation(Operator::Add, path, self.int(readable, 0)),
                None => small(self),
            },
            _ => {
                let condition = self.boolean(readable, below);
                Expr::If([condition, self.int(readable, below), self.int(readable, below)].into())
            }
        }
    }

    fn text(&mut self, readable: &[Readable], levels: usize) -> Expr {
        if levels == 0 || self.dealer.one_in(4) {
            return match self.path(readable, &Type::Str) {
                Some(path) if !self.dealer.one_in(4) => Expr::Take(or(path, json!("none")).into(), READ_MAX),
                _ => Expr::Const(json!(*self.dealer.pick(&TEXTS))),
            };
        }
        let below = levels - 1;
        match self.dealer.below(4) {
            0..=1 => operation(Operator::Add, self.text(readable, below), self.text(readable, below)),
            2 => {
                let int = remainder(self.int(readable, below), NUMBERS);
                Expr::Interpolate(vec![self.text(readable, below), int, self.list(readable, 0)])
            }
            _ => {
                let condition = self.boolean(readable, below);
                Expr::If([condition, self.text(readable, below), self.text(readable, below)].into())
            }
        }
    }

    fn boolean(&mut self, readable: &[Readable], levels: usize) -> Expr {
        if levels == 0 {
            let bool = Expr::Const(json!(self.dealer.one_in(2)));
            return self.path(readable, &Type::Bool).unwrap_or(bool);
        }
        let below = levels - 1;
        match self.dealer.below(8) {
            0..=1 => {
                let operator = *self.dealer.pick(&[Operator::Less, Operator::AtMost, Operator::Equal]);
                operation(operator, self.int(readable, below), self.int(readable, below))
            }
            2 => {
                let operator = *self.dealer.pick(&[Operator::Less, Operator::Unequal]);
                operation(operator, self.text(readable, below), self.text(readable, below))
            }
            3 => {
                // Things of different kinds, each of which may be `null`.
                let (one, other) = (self.path(readable, &Type::Int), self.path(readable, &Type::Str));
                let [one, other] = [one, other].map(|path| path.unwrap_or(Expr::Const(Value::Null)));
                operation(*self.dealer.pick(&[Operator::Less, Operator::AtMost]), one, other)
            }
            4 => {
                let any: Vec<_> = readable.iter().filter(|of| !of.is_failures()).collect();
                let any = Expr::Path(self.dealer.pick(&any).path.clone());
                operation(*self.dealer.pick(&[Operator::Equal, Operator::Unequal]), any, Expr::Const(Value::Null))
            }
            5 => Expr::Not(self.boolean(readable, below).into()),
            6 => operation(Operator::And, self.boolean(readable, below), self.boolean(readable, below)),
            _ => operation(Operator::Or, self.boolean(readable, below), self.boolean(readable, below)),
        }
    }

    /// A list of whole numbers.
    fn list(&mut self, readable: &[Readable], levels: usize) -> Expr {
        if levels == 0 || self.dealer.one_in(3) {
            return match self.path(readable, &Type::list(Type::Int)) {
                Some(path) => cut(or(path, json!([]))),
                None => Expr::Const(json!([1, 2])),
            };
        }
        let below = levels - 1;
        match self.dealer.below(4) {
            0 => Expr::Range(remainder(self.int(readable, below), 5).into()),
            1 => {
                let count = self.dealer.below(READ_MAX);
                Expr::Array((0..count).map(|_| remainder(self.int(readable, below), NUMBERS)).collect())
            }
            2 => {
                let rows: Vec<_> = readable.iter().filter(|of| of.of == Type::list(row())).collect();
                let path = Expr::Path(self.dealer.pick(&rows).path.clone());
                Expr::Pluck(cut(or(path, json!([]))).into(), "n")
            }
            _ => operation(Operator::Add, self.list(readable, below), self.list(readable, below)),
        }
    }
}

/// What a node behind these edges can read.
fn readable(scope: &Scope, seen: &[Vec<Readable>], links: &[Link], around: &[Readable]) -> Vec<Readable> {
    let mut found = around.to_vec();
    for place in scope.before(links) {
        seen[place].iter().for_each(|readable| readable.spread(&mut found));
    }
    found
}

/// Whether a map in a scope lets its items finish before it fails. Which failure it was is then not told by what
/// failed last.
fn has_finish(scope: &Scope) -> bool {
    scope.nodes.iter().any(|node| match &node.kind {
        Kind::Map { on_failure, inside, .. } => *on_failure == OnFailure::Finish || has_finish(inside),
        Kind::Loop { inside, .. } => has_finish(inside),
        Kind::Transform { .. } | Kind::Branch { .. } => false,
    })
}

fn operation(operator: Operator, a: Expr, b: Expr) -> Expr {
    Expr::Operation(operator, [a, b].into())
}

fn remainder(of: Expr, by: i64) -> Expr {
    operation(Operator::Remainder, of, Expr::Const(json!(by)))
}

fn or(path: Expr, otherwise: Value) -> Expr {
    Expr::Else([path, Expr::Const(otherwise)].into())
}

/// At most a few elements.
fn cut(list: Expr) -> Expr {
    Expr::Take(list.into(), READ_MAX)
}
