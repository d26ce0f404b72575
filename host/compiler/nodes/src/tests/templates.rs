use serde_json::{Value, json};

use super::{output, permanent, run_one};

fn transform(output: Value) -> Value {
    json!({ "id": "t", "kind": "transform", "output": output })
}

#[track_caller]
fn made(template: Value) -> Value {
    let handed = [("input", json!({ "name": "Ada", "list": [1, 2], "none": null, "n": 7 }))];
    output(run_one(transform(template), &handed))
}

#[track_caller]
fn refused(template: Value) -> String {
    permanent(run_one(transform(template), &[("input", json!({ "list": [1, 2] }))]))
}

#[test]
fn a_text_of_one_expression_is_its_value_and_in_another_text_it_is_inserted() {
    for (template, expected) in [
        (json!("plain"), json!("plain")),
        (json!("${.input.list}"), json!([1, 2])),
        (json!(" ${.input.list}"), json!(" [1,2]")),
        (json!("Hello ${.input.name}!"), json!("Hello Ada!")),
        (json!("${.input.none}${.input.n}"), json!("null7")),
        (json!("$${.input} costs $5"), json!("${.input} costs $5")),
        (json!("${ {a: .input.name, b: \"}\"} }"), json!({ "a": "Ada", "b": "}" })),
        (json!({ "a": ["${.input.n}", true, null, 1.5], "b": {} }), json!({ "a": [7, true, null, 1.5], "b": {} })),
        (json!("${.input.missing.too}"), json!(null)),
        (json!("${.nodes.skipped.x}"), json!(null)),
    ] {
        assert_eq!(made(template.clone()), expected, "{template}");
    }
}

#[test]
fn an_expression_sees_which_step_it_is_in() {
    let expected = json!({
        "id": "0190", "workflow": "orders", "version": "ab12", "node": "t", "attempt": 2, "items": [],
    });
    assert_eq!(made(json!("${.run}")), expected);
    assert_eq!(made(json!("${keys}")), json!(["input", "nodes", "run"]));
}

#[test]
fn an_expression_has_exactly_one_value() {
    assert_eq!(refused(json!("${empty}")), "no_value");
    assert_eq!(refused(json!("${.input.list[]}")), "several_values");
    assert_eq!(refused(json!("${.input.list.a}")), "expression_failed");
    assert_eq!(refused(json!("${1, error(\"late\")}")), "expression_failed");
}

#[test]
fn a_failure_names_node_and_field_and_says_what_jq_says() {
    let node = transform(json!({ "title": ["a", "x ${error(\"no good\")}"] }));
    let failure = run_one(node, &[]).unwrap_err();
    assert_eq!(failure.message, "node `t`, output.title[1]: no good");
    assert_eq!(super::parsed(&failure.details.unwrap()), json!({ "node": "t", "field": "output.title[1]" }));
}

#[test]
fn an_output_is_json_whatever_jq_makes_of_it() {
    for (template, expected) in [
        ("${nan}", json!(null)),
        ("${[infinite, -infinite]}", json!([null, null])),
        ("${10 / 2}", json!(5)),
        ("${\"x\" * 2 | tobytes | tostring}", json!("xx")),
        ("${\"/w==\" | @base64d}", json!("\u{FFFD}")),
        ("${\"1.50\" | fromjson}", json!(1.5)),
        ("${\"+1.5\" | fromjson}", json!(1.5)),
        ("${\"1e999\" | fromjson}", json!(null)),
        ("${\"\\u0000\\u001f\\u007f\\\"\"}", json!("\u{0}\u{1f}\u{7f}\"")),
        ("${4294967296 * 4294967296 | tostring}", json!("18446744073709551616")),
    ] {
        assert_eq!(made(json!(template)), expected, "{template}");
    }
    assert_eq!(refused(json!("${\"x\" | tobytes}")), "not_json");
    assert_eq!(refused(json!("${ {(1): 2} }")), "not_json");
    assert_eq!(refused(json!("a ${[\"x\" | tobytes]}")), "not_json");
    assert_eq!(refused(json!("${reduce range(200) as $i (1; [.])}")), "not_json");
}

#[test]
fn numbers_are_written_as_jq_writes_them() {
    for (code, expected) in [
        ("10 / 4", "2.5"),
        ("10 / 5", "2"),
        ("1e3 + 0.0", "1000"),
        ("100000000000000000000.5 + 0", "1e20"),
        ("-0.25 * 4", "-1"),
        ("12345678901234567890123", "12345678901234567890123"),
    ] {
        assert_eq!(made(json!(format!("> ${{{code}}}"))), json!(format!("> {expected}")), "{code}");
    }
}

#[test]
fn assignments_make_what_a_path_needs() {
    for (code, expected) in [
        ("null | .a.b[2].c = 1", json!({ "a": { "b": [null, null, { "c": 1 }] } })),
        ("{} | .count.x += 1 | .count.x += 1", json!({ "count": { "x": 2 } })),
        ("reduce (\"a\", \"b\", \"a\") as $k ({}; .[$k] += [1])", json!({ "a": [1, 1], "b": [1] })),
        ("{a: null} | .a //= 7 | .b //= .a", json!({ "a": 7, "b": 7 })),
        ("[1, 2, 3] | .[1:] = [9]", json!([1, 9])),
        ("[1, 2, 3] | .[-1] |= . * 2", json!([1, 2, 6])),
        ("[1, 2, 3, 4] | (.[] | select(. % 2 == 0)) |= empty", json!([1, 3])),
        ("{a: [{b: 1}, {b: 2}]} | .a[].b |= . + 1 | del(.a[0, 5], .c, .a[0].x)", json!({ "a": [{ "b": 3 }] })),
        ("[[1, 2], 3] | (.. | numbers) |= . * 10", json!([[10, 20], 30])),
        ("{a: 6} | .a /= 4", json!({ "a": 1.5 })),
        ("def f: .x = 1; {} | f | \"\\(.y = 2)\"", json!("{\"x\":1,\"y\":2}")),
        ("try (null | .[1000001] = 1) catch \"too far\"", json!("too far")),
        ("try ([1] | .[-2] = 1) catch \"before\"", json!("before")),
        ("5 as $x | {} | .a += $x", json!({ "a": 5 })),
    ] {
        assert_eq!(made(json!(format!("${{{code}}}"))), expected, "{code}");
    }
}

#[test]
fn a_quotient_is_whole_where_it_can_be_and_there_is_none_by_zero() {
    for (code, expected) in [
        ("\"\\(10 / 2) \\(1 / 4) \\(-6 / 3)\"", json!("5 0.25 -2")),
        ("[1, 2, 3][4 / 2]", json!(3)),
        ("8589934592 / 2 | tostring", json!("4294967296")),
        ("\"a,b\" / \",\"", json!(["a", "b"])),
        ("pow(2; 10) | tostring", json!("1024")),
    ] {
        assert_eq!(made(json!(format!("${{{code}}}"))), expected, "{code}");
    }
    assert_eq!(refused(json!("${1 / 0}")), "expression_failed");
    assert_eq!(refused(json!("${0.5 / 0.0}")), "expression_failed");
    assert_eq!(refused(json!("${{a: 1} | .a /= 0}")), "expression_failed");
}
