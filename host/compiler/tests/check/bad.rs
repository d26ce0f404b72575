//! Documents with faults, and the words for them.

use expect_test::{Expect, expect};
use serde_json::{Value, json};
use stepwell_compiler::check;

use crate::good::complete;
use crate::{checked, document, shown, transform};

fn problems(document: &Value, expected: Expect) {
    text_problems(&document.to_string(), expected);
}

fn text_problems(text: &str, expected: Expect) {
    expected.assert_eq(&shown(&checked(text).expect_err("the document has problems")));
}

fn map(id: &str) -> Value {
    json!({ "id": id, "kind": "map", "items": "${ .input }" })
}

fn looping(id: &str) -> Value {
    json!({ "id": id, "kind": "loop", "initial": 0, "while": "${ .item < 3 }", "max": 5 })
}

fn join(id: &str, of: &str) -> Value {
    json!({ "id": id, "kind": "join", "of": of, "output": null })
}

#[test]
fn one_answer_has_every_fault() {
    problems(
        &json!({
            "stepwell": 1,
            "nam": "Many",
            "description": 5,
            "topics": ["a b", "progress", "progress"],
            "channel": "",
            "input": [],
            "signals": { "go": true, "not ok": true, "wrong": 7 },
            "timeout": "400d",
            "nodes": [
                { "id": "1st", "kind": "transform" },
                { "id": "two", "kind": "transfrom", "output": 1 },
                { "id": "wait", "kind": "sleep" },
                { "id": "two", "kind": "http", "url": "ftp://x", "method": "get", "headers": { "a b": 1 }, "query": { "q": [] },
                  "status": { "ok": ["2xx", 99], "retry": [204] }, "timeout": "2h" },
                { "id": "ask", "kind": "llm", "provider": "my provider", "prompt": "${ .nodes.wat }", "model": "m", "max_tokens": 0,
                  "temperature": 3, "schema": "none", "topic": "progres", "temprature": 1 },
                { "id": "branch", "kind": "branch", "cases": [{ "when": ".input.x", "label": "a b" }, { "label": "c" }] },
                { "id": "each", "kind": "map", "items": 5, "concurrency": 0, "on_failure": "colect" },
                { "id": "call", "kind": "component", "workflow": "-", "version": "AB", "node": "input", "inputs": { "a b": 1 } },
                { "id": "retry", "kind": "transform", "output": "${ .a && .b }",
                  "retry": { "max_attempts": 101, "initial": "1 s", "factor": 0.5, "max": "25h", "jitter": "a", "extra": 1 },
                  "fuel": -1, "timeout": 30 },
                { "id": "nap", "kind": "sleep", "for": "soon" },
                { "id": "long", "kind": "sleep", "for": "400d" },
                { "id": "hear", "kind": "signal", "name": "og", "within": "0s", "on_timeout": "nul" },
                { "id": "other", "kind": "workflow", "workflow": "-", "version": "latest", "detached": 1 },
                { "id": "again", "kind": "transform", "output": 1,
                  "retry": { "errors": { "busy": { "max_attempts": 0, "jitter": 1 }, "late": 5, "Too-Late": {} }, "when_exhausted": "stop" } },
                5,
                { "kind": "transform", "output": "${ frob }" },
            ],
            "edges": [
                { "source": "ask", "target": "branhc" },
                { "source": "ask", "target": "branch", "label": "ok" },
                { "source": "ask" },
                { "from": "ask", "to": "retry" },
                { "source": "ask", "target": "retry", "label": "" },
            ],
            "output": "nothing",
        }),
        expect![[r#"
            - description wrong_type: expected a string, found a number
            - input wrong_type: expected a JSON Schema, which is an object, true or false, found an array
            - topics[0] invalid_topic: the topic `a b` is not valid: a topic has 1 to 64 characters out of A-Z, a-z, 0-9, _, . and -
            - topics[2] duplicate_topic: the topic `progress` is named twice
            - channel invalid_channel: the channel `` is not valid: a channel has 1 to 64 characters out of A-Z, a-z, 0-9, _, . and -
            - signals["not ok"] invalid_signal: the signal `not ok` is not valid: a signal has 1 to 64 characters out of A-Z, a-z, 0-9, _, . and -
            - signals.wrong wrong_type: expected a JSON Schema, which is an object, true or false, found a number
            - timeout out_of_range: `400d` is 34560000000 ms, which is not between 1 ms and 31622400000 ms
            - nam unknown_field: there is no field `nam` here (did you mean `name`?)
            1st id invalid_id: `1st` is not valid: a node id consists of A-Z, a-z, 0-9, _ and - and starts with a letter or _
            1st output missing_field: `output` is missing
            two kind unknown_kind: there is no kind `transfrom` (did you mean `transform`? the kinds are `transform`, `branch`, `map`, `loop`, `join`, `llm`, `http`, `component`, `sleep`, `signal` and `workflow`)
            wait for missing_field: `for` is missing
            two timeout out_of_range: `2h` is 7200000 ms, which is not between 1 ms and 3600000 ms
            two method invalid_method: `get` is not a method: it consists of letters A-Z (write `GET`)
            two url invalid_url: `ftp://x` does not begin with http:// or https:// and a host
            two query.q wrong_type: expected a string, a number, true, false or null, found an array
            two headers["a b"] invalid_header: `a b` is not the name of a header
            two headers["a b"] wrong_type: expected a string, found a number
            two status.ok[1] invalid_status: 99 is not a status (a number from 100 to 599, or a class such as "5xx")
            two status.retry ambiguous_status: a response with status 204 is in both lists, of which `ok` is asked first
            two id duplicate_id: `nodes[1]` is called `two` as well
            ask provider invalid_provider: `my provider` is not valid: provider has 1 to 64 characters out of A-Z, a-z, 0-9, _, . and -
            ask max_tokens out_of_range: 0 is not a whole number from 1 to 1000000
            ask temperature out_of_range: 3 is not between 0 and 2
            ask schema wrong_type: expected a JSON Schema, which is an object, true or false, found a string
            ask temprature unknown_field: there is no field `temprature` here (did you mean `temperature`?)
            ask prompt unknown_reference: at character 11: there is no node `wat` (did you mean `wait`?)
            ask topic unknown_topic: `progres` is not among the document's topics (did you mean `progress`?)
            branch cases[0].label invalid_label: `a b` is not valid: label has 1 to 64 characters out of A-Z, a-z, 0-9, _, . and -
            branch cases[1].when missing_field: `when` is missing
            branch cases[0].when not_an_expression: this must be one expression and nothing else (write `${ .input.x }`)
            each items wrong_type: expected an expression or an array, found a number
            each concurrency out_of_range: 0 is not a whole number from 1 to 1000
            each on_failure unknown_word: `colect` is not one of `cancel`, `finish` and `collect` (did you mean `collect`?)
            call workflow invalid_workflow: `-` is not valid: a workflow name starts with a letter or a digit
            call version invalid_version: `AB` is not a version: it consists of 64 characters out of 0-9 and a-f
            call node invalid_node: `input` is not valid: a node id is not `input`, which names the run's input
            call inputs["a b"] invalid_input_name: `a b` is not the name of a need: a node id consists of A-Z, a-z, 0-9, _ and - and starts with a letter or _
            retry retry.max_attempts out_of_range: 101 is not a whole number from 1 to 100
            retry retry.initial invalid_duration: `1 s` is not a duration (whole numbers with ms, s, m, h or d, such as `500ms`, `30s` or `1m30s`)
            retry retry.factor out_of_range: 0.5 is not between 1 and 10
            retry retry.max out_of_range: `25h` is 90000000 ms, which is not between 0 ms and 86400000 ms
            retry retry.jitter wrong_type: expected a number, found a string
            retry retry.extra unknown_field: there is no field `extra` here (the fields are `max_attempts`, `initial`, `factor`, `max`, `jitter`, `when_exhausted` and `errors`)
            retry timeout wrong_type: expected a string, found a number
            retry fuel out_of_range: -1 is not a whole number from 1 to 100000000000
            retry output invalid_expression: at character 7: `&` is no part of jq (jq has the words `and` and `or`)
            nap for invalid_duration: `soon` is not a duration (whole numbers with ms, s, m, h or d, such as `30s` or `1m30s`; or an expression)
            long for out_of_range: `400d` is more than 366 days
            hear within out_of_range: `0s` is 0 ms, which is not between 1 ms and 31622400000 ms
            hear on_timeout unknown_word: `nul` is not one of `fail` and `null` (did you mean `null`?)
            hear name unknown_signal: `og` is not among the document's signals (did you mean `go`?)
            other workflow invalid_workflow: `-` is not valid: a workflow name starts with a letter or a digit
            other version invalid_version: `latest` is not a version: it consists of 64 characters out of 0-9 and a-f
            other detached wrong_type: expected true or false, found a number
            again retry.when_exhausted unknown_word: `stop` is not one of `fail` and `pause`
            again retry.errors["Too-Late"] invalid_code: no failure has the code `Too-Late` (a code has 1 to 64 characters out of a-z, 0-9 and _)
            again retry.errors.busy.max_attempts out_of_range: 0 is not a whole number from 1 to 100
            again retry.errors.busy.jitter unknown_field: there is no field `jitter` here (the fields are `max_attempts`, `initial`, `factor` and `max`)
            again retry.errors.late wrong_type: expected an object, found a number
            - nodes[14] wrong_type: expected an object, found a number
            - nodes[15].id missing_field: `id` is missing
            - nodes[15].output undefined_filter: at character 4: there is no filter `frob`
            - edges[0].target unknown_node: `branhc` is no node (did you mean `branch`?)
            - edges[1].label label_without_branch: `ask` is of kind `llm`: only a branch chooses among labels (leave the label out, or put a branch in between)
            - edges[2].target missing_field: `target` is missing
            - edges[3].from unknown_field: there is no field `from` here (did you mean `source`?)
            - edges[3].to unknown_field: there is no field `to` here (did you mean `target`?)
            - edges[4].label invalid_label: `` is not a valid label: a label has 1 to 64 characters out of A-Z, a-z, 0-9, _, . and -
            - output unknown_node: `nothing` is no node
        "#]],
    );
}

#[test]
fn what_is_no_document_is_told_at_once() {
    text_problems(
        "{\n  \"stepwell\": 1,\n  \"nodes\": [,]\n}",
        expect![[r#"
            - - invalid_json: the document is not JSON: expected value at line 3 column 13
        "#]],
    );
    text_problems(
        "[]",
        expect![[r#"
            - - wrong_type: a document is an object, not an array
        "#]],
    );
    text_problems(
        "{}",
        expect![[r#"
            - stepwell missing_field: `stepwell` is missing
            - nodes missing_field: `nodes` is missing
        "#]],
    );
    problems(
        &json!({ "stepwell": 2, "graph": {} }),
        expect![[r#"
            - stepwell unsupported_format: documents of version 2 are not known, only of version 1
        "#]],
    );
    problems(
        &json!({ "stepwell": "1", "nodes": {}, "edges": 1 }),
        expect![[r#"
            - stepwell wrong_type: expected a whole number, found a string
            - nodes wrong_type: expected an array, found an object
            - edges wrong_type: expected an array, found a number
        "#]],
    );
    problems(
        &json!({ "stepwell": 1, "nodes": [] }),
        expect![[r#"
            - nodes no_nodes: a graph has at least one node
        "#]],
    );
}

#[test]
fn keys_that_are_given_twice() {
    text_problems(
        r#"{ "stepwell": 1, "nodes": [{ "id": "a", "kind": "transform", "output": { "x": 1, "x": 2 }, "kind": "transform" }] }"#,
        expect![[r#"
            a output.x duplicate_key: `x` is given twice (most programs would read the last one only)
            a kind duplicate_key: `kind` is given twice (most programs would read the last one only)
        "#]],
    );
}

#[test]
fn ids() {
    problems(
        &document(
            json!([
                transform("größe", ""),
                transform("a", ""),
                transform("a", ""),
                transform("input", ""),
                transform("", "")
            ]),
            "",
        ),
        expect![[r#"
            größe id invalid_id: `größe` is not valid: a node id consists of A-Z, a-z, 0-9, _ and - and starts with a letter or _
            a id duplicate_id: `nodes[1]` is called `a` as well
            input id invalid_id: `input` is not valid: a node id is not `input`, which names the run's input
             id invalid_id: `` is not valid: a node id has 1 to 64 characters
        "#]],
    );
}

#[test]
fn schemas_may_say_only_what_is_enforced() {
    let mut document = complete();
    document["input"] = json!({ "type": "strng", "patern": "a" });
    let result = check(document.to_string().as_bytes());
    expect![[r#"
        - input invalid_schema: at `/patern`: is a keyword that is not supported
        - input invalid_schema: at `/type`: must be one of null, boolean, object, array, number, integer and string, or an array of these
    "#]].assert_eq(&shown(&result.unwrap_err()));
}

#[test]
fn edges() {
    let nodes = json!([transform("alpha", ""), transform("beta", ""), transform("gamma", "")]);
    problems(
        &document(nodes.clone(), "alpha -> beta; alpha -> beta; alpha -yes-> gamma; alhpa -> beta; beta -> delta"),
        expect![[r#"
            - edges[1] duplicate_edge: there is an edge from `alpha` to `beta` already
            - edges[2].label label_without_branch: `alpha` is of kind `transform`: only a branch chooses among labels (leave the label out, or put a branch in between)
            - edges[3].source unknown_node: `alhpa` is no node (did you mean `alpha`?)
            - edges[4].target unknown_node: `delta` is no node
        "#]],
    );
    problems(
        &document(nodes.clone(), "alpha -> beta; beta -> gamma; gamma -> beta"),
        expect![[r#"
        - edges cycle: edges lead in a circle: `beta` → `gamma` → `beta` (what is to run again and again stands between a loop and its join)
    "#]],
    );
    problems(
        &document(nodes, "alpha -> alpha"),
        expect![[r#"
        - edges cycle: edges lead in a circle: `alpha` → `alpha` (what is to run again and again stands between a loop and its join)
    "#]],
    );
    let many: Vec<Value> = (0..30).map(|n| transform(&format!("n{n}"), "")).collect();
    let circle: String = (0..30).map(|n| format!("n{n} -> n{};", (n + 1) % 30)).collect();
    problems(
        &document(json!(many), &circle),
        expect![[r#"
        - edges cycle: edges lead in a circle: `n0` → `n1` → `n2` → `n3` → `n4` → `n5` → `n6` → `n7` → `n8` → `n9` → `…` → `n0` (what is to run again and again stands between a loop and its join)
    "#]],
    );
}

#[test]
fn labels() {
    problems(
        &document(
            json!([
                { "id": "b", "kind": "branch", "else": "other",
                  "cases": [{ "when": "${ true }", "label": "yes" }, { "when": "${ false }", "label": "no" }, { "when": "${ 1 }", "label": "no" }] },
                transform("x", ""), transform("y", ""),
            ]),
            "b -yes-> x; b -noo-> y; b -> y; b -maybe-> x; x -yes-> y",
        ),
        expect![[r#"
            b cases[1].label unused_label: no edge out of this branch has the label `no` (add an edge with it: without one the run would silently go no further)
            b else unused_label: no edge out of this branch has the label `other` (add an edge with it: without one the run would silently go no further)
            - edges[1].label unknown_label: the branch `b` never chooses `noo` (did you mean `no`?)
            - edges[3].label unknown_label: the branch `b` never chooses `maybe` (its labels are `yes`, `no`, `no` and `other`)
            - edges[4].label label_without_branch: `x` is of kind `transform`: only a branch chooses among labels (leave the label out, or put a branch in between)
        "#]],
    );
}

#[test]
fn expressions() {
    let outputs = json!([
        "${ .input", "${}", "${ # nothing\n}", "a ${ .input } b ${ .input + }", "${ map }", "${ lenght }", "${ now }", "${ input.x }",
        "${ $x }", "${ $ENV.HOME }", "${ import \"a\" as a; 1 }", "${ item }", "${ a::b }", "line\nline ${ [1, 2}", "${ break $out }",
        { "${ .input.key }": 1, "a b": ["${ ) }"] },
    ]);
    problems(
        &document(
            json!([
                { "id": "a", "kind": "transform", "output": outputs },
                { "id": "b", "kind": "branch", "cases": [
                    { "when": ".input.x", "label": "l" }, { "when": "is ${ .input.x }", "label": "l" },
                    { "when": "${ 1 }${ 2 }", "label": "l" }, { "when": "", "label": "l" }
                ] },
                { "id": "m", "kind": "map", "items": "input.list" },
                { "id": "j", "kind": "join", "of": "m" },
                { "id": "h", "kind": "http", "url": "http://x", "authorization": { "secret": "s", "prefix": "${ .input }" } },
            ]),
            "b -l-> a; m -> h; h -> j",
        ),
        expect![[r#"
            a output[0] unclosed_expression: the `${` at character 1 is not closed (`$${` stands for the characters `${`)
            a output[1] empty_expression: there is nothing in `${ … }` (write what is to be inserted, such as `${ .input }`)
            a output[2] empty_expression: there is nothing in `${ … }` (write what is to be inserted, such as `${ .input }`)
            a output[3] invalid_expression: at character 29: expected an expression, found the end
            a output[4] undefined_filter: at character 4: there is no filter `map` (`map` takes 1 argument)
            a output[5] undefined_filter: at character 4: there is no filter `lenght` (did you mean `length`?)
            a output[6] undefined_filter: at character 4: there is no filter `now` (expressions know no time: hand it in with the run's input, or have a component compute it)
            a output[7] undefined_filter: at character 4: there is no filter `input` (write `.input`)
            a output[8] undefined_variable: at character 4: there is no variable `$x`
            a output[9] undefined_variable: at character 4: there is no variable `$ENV` (expressions know no environment: hand it in with the run's input)
            a output[10] invalid_expression: at character 4: `import`: an expression cannot load modules
            a output[11] undefined_filter: at character 4: there is no filter `item` (write `.item`)
            a output[12] undefined_filter: at character 4: `a::b`: expressions have no modules
            a output[13] invalid_expression: at line 2, character 9: the `[` here is not closed
            a output[14] undefined_label: at character 10: there is no label `$out`
            a output[15]["${ .input.key }"] expression_not_allowed: there is an expression in `${ .input.key }`, which is taken as it stands (an object with computed keys is one expression: `${ {(.input.key): 1} }`)
            a output[15]["a b"][0] invalid_expression: at character 4: `)` closes nothing
            b cases[0].when not_an_expression: this must be one expression and nothing else (write `${ .input.x }`)
            b cases[1].when not_an_expression: this must be one expression and nothing else (move what stands around `${ … }` into it)
            b cases[2].when not_an_expression: this must be one expression and nothing else (move what stands around `${ … }` into it)
            b cases[3].when not_an_expression: this must be one expression and nothing else (write one, such as `${ .input.list }`)
            m items not_an_expression: this must be one expression and nothing else (write `${ input.list }`)
            h authorization.prefix expression_not_allowed: there is an expression in `${ .input }`, which is taken as it stands
        "#]],
    );
}

#[test]
fn references() {
    problems(
        &document(
            json!([
                transform("first", "1"), transform("my-node", "1"), transform("apart", "1"),
                { "id": "last", "kind": "transform", "output": [
                    "${ .nodes.first, .nodes[\"my-node\"] }", "${ .nodes.frist }", "${ .nodes.my-node }", "${ .nodes.apart }", "${ .nodes.last }",
                    "${ .inptu }", "${ .title }", "${ .first }", "${ .item }", "${ .index }", "${ .failures }", "a\nb: ${ .nodes[\"x y\"] }",
                    "${ .nodes.first | .nodes.nobody }", "${ def f: .nodes.nobody; f }",
                ] },
            ]),
            "first -> last; my-node -> last",
        ),
        expect![[r#"
            last output[1] unknown_reference: at character 11: there is no node `frist` (did you mean `first`?)
            last output[2] unknown_reference: at character 11: there is no node `my` (a `-` is a minus: write `.nodes["my-node"]`)
            last output[3] not_an_ancestor: at character 11: no path leads from `apart` to this node (add edges from `apart` that lead here)
            last output[4] not_an_ancestor: at character 11: a node has no output of its own while it runs
            last output[5] unknown_reference: at character 5: there is no `.inptu` here (did you mean `input`?)
            last output[6] unknown_reference: at character 5: there is no `.title` here (a field of the run's input is `.input.title`)
            last output[7] unknown_reference: at character 5: there is no `.first` here (write `.nodes.first`)
            last output[8] no_item: at character 5: there is no `.item` here, outside of every map and loop (only nodes between a map or loop and its join have one)
            last output[9] no_item: at character 5: there is no `.index` here, outside of every map and loop (only nodes between a map or loop and its join have one)
            last output[10] unknown_reference: at character 5: there is no `.failures` here (only the join of a map has it)
            last output[11] unknown_reference: at line 2, character 15: there is no node `x y`
        "#]],
    );
}

#[test]
fn references_into_and_out_of_scopes() {
    problems(
        &document(
            json!([
                map("m"), transform("in", "${ .item }"), map("n"), transform("deep", "${ .nodes.in, .nodes.m, .nodes.n }"),
                join("nj", "n"),
                { "id": "mj", "kind": "join", "of": "m", "output": "${ .nodes.in, .nodes.nj, .nodes.deep, .item, .index, .failures }" },
                transform("end", "${ .nodes.in, .nodes.deep, .nodes.nj, .nodes.mj, .nodes.m }"),
                { "id": "l", "kind": "loop", "initial": "${ .item }", "while": "${ .item < .nodes.step }", "max": 1 },
                transform("step", "${ .failures }"),
                { "id": "lj", "kind": "join", "of": "l", "output": "${ .nodes.step, .item, .nodes.in }" },
            ]),
            "m -> in; in -> n; n -> deep; deep -> nj; nj -> mj; mj -> end; end -> l; l -> step; step -> lj",
        ),
        expect![[r#"
            mj output inside_scope: at character 33: `deep` runs several times, in a map or loop that this node is outside of (the join has what comes out of it: write `.nodes.mj`)
            mj output no_item: at character 40: there is no `.item` here, outside of every map and loop (in the join of a map `.nodes.<id>` is the array of a node's outputs)
            mj output no_item: at character 47: there is no `.index` here, outside of every map and loop (in the join of a map `.nodes.<id>` is the array of a node's outputs)
            end output inside_scope: at character 11: `in` runs several times, in a map or loop that this node is outside of (the join has what comes out of it: write `.nodes.mj`)
            end output inside_scope: at character 22: `deep` runs several times, in a map or loop that this node is outside of (the join has what comes out of it: write `.nodes.mj`)
            end output inside_scope: at character 35: `nj` runs several times, in a map or loop that this node is outside of (the join has what comes out of it: write `.nodes.mj`)
            l initial no_item: at character 5: there is no `.item` here, outside of every map and loop (only nodes between a map or loop and its join have one)
            l while not_an_ancestor: at character 19: no path leads from `step` to this node (add edges from `step` that lead here)
            step output unknown_reference: at character 5: there is no `.failures` here (only the join of a map has it)
            lj output inside_scope: at character 31: `in` runs several times, in a map or loop that this node is outside of (the join has what comes out of it: write `.nodes.mj`)
        "#]],
    );
}

#[test]
fn scopes_and_joins() {
    problems(
        &document(json!([map("m"), looping("l"), transform("a", "")]), "m -> a; l -> a"),
        expect![[r#"
            m - unmatched_map: no join closes this map (add a node of kind `join` with `"of": "m"` behind the nodes that belong to it)
            l - unmatched_loop: no join closes this loop (add a node of kind `join` with `"of": "l"` behind the nodes that belong to it)
        "#]],
    );
    problems(
        &document(json!([map("m"), transform("a", ""), join("j", "m"), join("k", "m")]), "m -> a; a -> j; a -> k"),
        expect![[r#"
            k of duplicate_join: `m` is closed by `j` already
        "#]],
    );
    problems(
        &document(json!([map("each"), transform("a", ""), join("j", "eahc")]), "each -> a; a -> j"),
        expect![[r#"
            j of unknown_node: `eahc` is no node (did you mean `each`?)
        "#]],
    );
    problems(
        &document(json!([map("m"), transform("a", ""), join("j", "a")]), "m -> a; a -> j"),
        expect![[r#"
            j of not_a_scope: `a` is of kind `transform`: a join closes a map or a loop
        "#]],
    );
    problems(
        &document(json!([map("m"), transform("a", ""), join("j", "m")]), "m -> a"),
        expect![[r#"
            j of unmatched_join: no path leads from `m` to this join
        "#]],
    );
    problems(
        &document(json!([map("m"), join("j", "m")]), "m -> j"),
        expect![[r#"
            - edges[0] empty_scope: the edge leads from `m` straight to its join (at least one node stands between them, and nothing passes it by)
        "#]],
    );
    problems(
        &document(json!([map("m"), transform("a", ""), join("j", "m")]), "m -> a; a -> j; m -> j"),
        expect![[r#"
            - edges[2] empty_scope: the edge leads from `m` straight to its join (at least one node stands between them, and nothing passes it by)
        "#]],
    );
}

#[test]
fn edges_across_scopes() {
    let nodes = |more: Value| {
        let mut nodes = vec![map("m"), transform("a", ""), join("j", "m"), transform("x", ""), transform("y", "")];
        nodes.extend(more.as_array().cloned().unwrap_or_default());
        json!(nodes)
    };
    // Around the join.
    problems(
        &document(nodes(json!([])), "m -> a; a -> j; j -> x; a -> x; x -> y"),
        expect![[r#"
            - edges[3] leaves_scope: the edge leads from `a` inside of `m` to `x` outside (lead it to the join `j`, and on from there)
        "#]],
    );
    // Into the middle.
    problems(
        &document(nodes(json!([])), "m -> a; a -> j; x -> a; j -> y"),
        expect![[r#"
            - edges[2] enters_scope: the edge leads from `x` into `m`, where `a` stands (lead it to `m`: nodes inside may refer to all that comes before it)
        "#]],
    );
    // To the join from outside.
    problems(
        &document(nodes(json!([])), "m -> a; a -> j; x -> j"),
        expect![[r#"
            - edges[2] enters_scope: the edge leads from `x` into `m`, where `j` stands (lead it to `m`: nodes inside may refer to all that comes before it)
        "#]],
    );
    // To a node that never gets to the join.
    problems(
        &document(nodes(json!([])), "m -> a; a -> j; a -> x; y -> x"),
        expect![[r#"
            - edges[2] leaves_scope: the edge leads from `a` inside of `m` to `x` outside (lead it to the join `j`, and on from there)
        "#]],
    );
    // From one scope to another.
    problems(
        &document(
            nodes(json!([looping("l"), transform("b", ""), join("k", "l")])),
            "m -> a; a -> j; l -> b; b -> k; a -> b",
        ),
        expect![[r#"
            - edges[4] leaves_scope: the edge leads from `a` inside of `m` to `b` outside (lead it to the join `j`, and on from there)
        "#]],
    );
    // Crossing like brackets of different kinds.
    problems(
        &document(
            nodes(json!([looping("l"), transform("b", ""), join("k", "l")])),
            "m -> l; l -> a; a -> j; j -> k; a -> b",
        ),
        expect![[r#"
            - edges[2] leaves_scope: the edge leads from `a` inside of `l` to `j` outside (lead it to the join `k`, and on from there)
            - edges[3] enters_scope: the edge leads from `j` into `m`, where `k` stands (lead it to `m`: nodes inside may refer to all that comes before it)
        "#]],
    );
}

#[test]
fn joins_and_outputs() {
    problems(
        &document(
            json!([map("m"), transform("a", ""), transform("b", ""), join("j", "m")]),
            "m -> a; m -> b; a -> j; b -> j",
        ),
        expect![[r#"
            j output needs_output: edges lead here from several nodes, so it must be said what comes out (give `output`, such as `${ .nodes.<id> }`)
        "#]],
    );
    let mut graph = document(
        json!([map("m"), transform("a", ""), join("j", "m"), looping("l"), transform("b", ""), join("k", "l")]),
        "m -> a; a -> j; l -> b; b -> k",
    );
    for (output, expected) in [
        (
            "a",
            expect![[r#"
                - output inside_scope: `a` runs several times, so it has no single output (name its join, `j`)
            "#]],
        ),
        (
            "m",
            expect![[r#"
                - output not_an_output: `m` is a map, which puts out nothing of its own (name its join, `j`)
            "#]],
        ),
        (
            "jj",
            expect![[r#"
                - output unknown_node: `jj` is no node (did you mean `j`?)
            "#]],
        ),
    ] {
        graph["output"] = output.into();
        problems(&graph, expected);
    }
    for output in ["j", "k"] {
        graph["output"] = output.into();
        assert!(checked(&graph.to_string()).is_ok(), "{output}");
    }
}

#[test]
fn scopes_stand_in_each_other_up_to_a_limit() {
    let nested = |levels: usize| {
        let nodes: Vec<Value> =
            (0..levels).flat_map(|n| [map(&format!("m{n}")), join(&format!("j{n}"), &format!("m{n}"))]).collect();
        let mut nodes = nodes;
        nodes.push(transform("x", ""));
        let mut edges: String = (1..levels).map(|n| format!("m{} -> m{n}; j{n} -> j{};", n - 1, n - 1)).collect();
        edges.push_str(&format!("m{} -> x; x -> j{}", levels - 1, levels - 1));
        document(json!(nodes), &edges)
    };
    assert!(checked(&nested(8).to_string()).is_ok());
    problems(
        &nested(9),
        expect![[r#"
            m8 - too_deep: maps and loops stand at most 8 deep in each other
        "#]],
    );
}

#[test]
fn waits_that_contradict_the_defaults() {
    let with = |retry: Value| json!({ "stepwell": 1, "nodes": [{ "id": "a", "kind": "transform", "output": 1, "retry": retry }] });
    problems(
        &with(json!({ "max": "500ms" })),
        expect![[r#"
            a retry.max out_of_range: the longest wait is shorter than the first one (without `initial` the first one is 1s)
        "#]],
    );
    assert!(checked(&with(json!({ "initial": "2m" })).to_string()).is_ok());
    assert!(checked(&with(json!({ "max": "500ms", "initial": "0s" })).to_string()).is_ok());
}

#[test]
fn a_misspelt_field_is_told_once() {
    problems(
        &json!({ "stepwell": 1, "nodes": [{ "id": "a", "type": "transform", "output": 1 }, { "name": "b", "kind": "transform", "ouput": 1 }] }),
        expect![[r#"
            a type unknown_field: there is no field `type` here (did you mean `kind`?)
            - nodes[1].name unknown_field: there is no field `name` here (did you mean `id`?)
            - nodes[1].ouput unknown_field: there is no field `ouput` here (did you mean `output`?)
        "#]],
    );
}
