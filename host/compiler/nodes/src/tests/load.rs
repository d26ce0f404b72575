use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{load, output, plan, run};
use crate::program::problems_json;

fn transform(id: &str, output: &str) -> Value {
    json!({ "id": id, "kind": "transform", "output": output })
}

#[test]
fn what_depends_on_more_than_the_inputs_is_not_there() {
    for code in [
        "now",
        "localtime",
        "input",
        "inputs",
        "env",
        "$ENV",
        "halt",
        "halt_error",
        "debug",
        "stderr",
        "todate",
        "input_filename",
        "input_line_number",
        "$__prog_args",
        "strftime(\"%Y\")",
        "mktime",
    ] {
        let problems = load(json!([transform("t", &format!("${{{code}}}"))])).err().unwrap_or_else(|| panic!("{code}"));
        assert!(problems[0].message.starts_with("there is no "), "{code}: {problems:?}");
    }
}

#[test]
fn an_expression_cannot_reach_out_of_its_place() {
    for code in ["1) , (2", "1; def e: 2", "table", "!table", "import \"a\" as a; 1", "include \"a\"; 1", "", "# 1"] {
        assert!(load(json!([transform("t", &format!("${{{code}}}"))])).is_err(), "{code}");
    }
    // A definition is the expression's own.
    let program = load(json!([transform("a", "${def not: 7; not}"), transform("b", "${true | not}")])).unwrap();
    assert_eq!(output(run(&program, "a", &[], &[])), json!(7));
    assert_eq!(output(run(&program, "b", &[], &[])), json!(false));
}

#[test]
fn every_problem_is_reported_with_its_place() {
    let nodes = json!([
        { "id": "a", "kind": "transform", "output": { "x": ["ok ${1 +}"], "y": "${.a" } },
        { "id": "b", "kind": "branch", "cases": [{ "when": "true", "label": "l" }] },
        { "id": "c", "kind": "transform", "output": "é ${1 +}" },
    ]);
    let problems = load(nodes).err().unwrap();
    let found: Value = serde_json::from_str(&problems_json(&problems)).unwrap();
    let at = |node: &str, field: &str, at: u32, expression: &str, message: &str| {
        let code = "invalid_expression";
        json!({ "node": node, "field": field, "code": code, "at": at, "expression": expression, "message": message })
    };
    assert_eq!(
        found,
        json!([
            at("a", "output.y", 0, "", "`${` is not closed"),
            at("b", "cases[0].when", 0, "", "must be one expression, `${ … }`"),
            at("a", "output.x[0]", 5, "1 +", "expected term at the end"),
            at("c", "output", 5, "1 +", "expected term at the end"),
        ])
    );
}

#[test]
fn an_undefined_name_is_reported_where_it_stands() {
    let nodes = json!([transform("a", "${foo}"), transform("b", "${.x}"), transform("c", "${$y | bar(1)}")]);
    let problems = load(nodes).err().unwrap();
    let found: Vec<_> = problems.iter().map(|problem| (problem.node.as_str(), problem.message.as_str())).collect();
    let expected =
        [("a", "there is no filter foo/0"), ("c", "there is no variable $y"), ("c", "there is no filter bar/1")];
    assert_eq!(found, expected);
}

#[test]
fn a_program_that_is_none_is_a_problem() {
    let problems = crate::program::Program::load(b"{").err().unwrap();
    assert!(problems[0].message.starts_with("the program cannot be read"), "{problems:?}");
}

#[test]
fn a_thousand_expressions_load_in_no_time() {
    let nodes: Vec<_> = (0..1_000)
        .map(|n| {
            transform(
                &format!("n{n}"),
                &format!("${{.input.items | map(select(.price > {n}) | .name) | join(\", \")}}"),
            )
        })
        .collect();
    let begin = Instant::now();
    let program = load(Value::from(nodes)).unwrap();
    let took = begin.elapsed();
    println!("1,000 expressions load in {took:?}");
    assert!(took < Duration::from_millis(500), "{took:?}");
    let handed = [("input", json!({ "items": [{ "price": 999, "name": "a" }, { "price": 1000, "name": "b" }] }))];
    assert_eq!(output(run(&program, "n999", &[], &handed)), json!("b"));
    assert_eq!(output(run(&program, "n0", &[], &handed)), json!("a, b"));
}

#[test]
fn the_graph_is_described_from_the_plans() {
    use crate::bindings::stepwell::workflow::graph::{Delegate, Each, ItemFailure, Repeat, Scope};
    let mut first = plan(&[], None);
    first["needs"] = json!(["input"]);
    let program = json!({
        "document": {
            "stepwell": 1, "output": "j", "topics": ["t"], "channel": "c", "input": { "type": "object" },
            "nodes": [
                { "id": "m", "kind": "map", "items": "${.input}", "on_failure": "collect", "description": "All." },
                { "id": "j", "kind": "join", "of": "m" },
                { "id": "l", "kind": "loop", "initial": 1, "while": "${.item < 5}", "max": 9 },
                { "id": "k", "kind": "join", "of": "l" },
                { "id": "o", "kind": "component", "workflow": "w", "version": "v", "node": "n" },
            ],
            "edges": [{ "source": "m", "target": "j" }, { "source": "j", "target": "l", "label": "x" }],
        },
        "plans": [first, plan(&[], None), plan(&[], None), plan(&["l"], None), plan(&[], None)],
    });
    let program = crate::program::Program::load(program.to_string().as_bytes()).unwrap();
    let graph = crate::describe::describe(&program);
    assert_eq!(graph.output.as_deref(), Some("j"));
    assert_eq!(graph.input_schema.as_deref(), Some(r#"{"type":"object"}"#));
    assert_eq!((graph.topics, graph.channel.as_deref()), (vec!["t".to_owned()], Some("c")));
    assert_eq!(graph.edges[1].label.as_deref(), Some("x"));
    let [m, j, l, k, o] = graph.nodes.as_slice() else { panic!("{:?}", graph.nodes) };
    assert_eq!(m.needs, ["input"]);
    assert_eq!(m.opens, Some(Scope::Each(Each { concurrency: 10, on_failure: ItemFailure::Collect })));
    assert_eq!((m.limits.fuel, m.limits.timeout_ms, m.limits.memory_bytes), (1_000_000, 30_000, 1_000_000));
    assert_eq!((m.retry.max_attempts, m.retry.max_ms), (4, 60_000));
    assert_eq!(l.opens, Some(Scope::Repeat(Repeat { max: 9 })));
    assert_eq!((j.closes.as_deref(), k.closes.as_deref()), (Some("m"), Some("l")));
    let to = Delegate { workflow: "w".to_owned(), version: "v".to_owned(), node: "n".to_owned() };
    assert_eq!(o.delegates_to, Some(to));
}
