//! Documents that were written to do harm, and the largest ones that were not. None may panic, recurse without end or
//! take long.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stepwell_compiler::{DOCUMENT_BYTES_MAX, check};
use stepwell_core::graph::{EDGES_MAX, NODES_MAX, PROBLEMS_MAX, Problem};

use crate::good::complete;
use crate::{checked, document, shown, transform};

/// Far more than any document needs on a slow machine that has other things to do.
const LONG: Duration = Duration::from_secs(10);

/// Checks a document, and how long that takes.
fn timed(name: &str, text: &str) -> Result<stepwell_compiler::Checked, Vec<Problem>> {
    let start = Instant::now();
    let result = checked(text);
    let took = start.elapsed();
    println!("{name}: {} bytes in {took:?}", text.len());
    assert!(took < LONG, "{name} took {took:?}");
    result
}

fn codes(name: &str, text: &str) -> Vec<String> {
    let mut codes: Vec<String> = timed(name, text).unwrap_err().into_iter().map(|problem| problem.code).collect();
    codes.sort_unstable();
    codes.dedup();
    codes
}

/// The largest graph: each node leads to the five behind it, and refers to them.
fn largest() -> String {
    let nodes: Vec<Value> = (0..NODES_MAX)
        .map(|n: usize| {
            let output = format!(
                "${{ .nodes.n{} // .input.x | if . == null then {{a: 1}} else map(select(.a > {n})) end }}",
                n.saturating_sub(1)
            );
            transform(&format!("n{n}"), if n == 0 { "${ .input }" } else { &output })
        })
        .collect();
    let edges: Vec<Value> = (0..NODES_MAX)
        .flat_map(|n| (1..=5).map(move |step| (n, n + step)))
        .filter(|(_, target)| *target < NODES_MAX)
        .take(EDGES_MAX)
        .map(|(source, target)| json!({ "source": format!("n{source}"), "target": format!("n{target}") }))
        .collect();
    json!({ "stepwell": 1, "nodes": nodes, "edges": edges, "output": format!("n{}", NODES_MAX - 1) }).to_string()
}

#[test]
fn the_largest_graph_takes_no_time() {
    let text = largest();
    let checked = timed("largest", &text).map_err(|problems| shown(&problems)).unwrap();
    assert_eq!(checked.program.plans[7].needs, ["input", "n6"]);
    assert_eq!(checked.graph.edges.len(), 5 * NODES_MAX - 15);
}

#[test]
fn a_fan_and_a_chain_are_fine() {
    let nodes: Vec<Value> = (0..NODES_MAX).map(|n| transform(&format!("n{n}"), "${ .input.x }")).collect();
    let last = NODES_MAX - 1;
    let fan: String = (1..last).map(|n| format!("n0 -> n{n}; n{n} -> n{last};")).collect();
    timed("fan", &document(json!(nodes), &fan).to_string()).unwrap();
    let chain: String = (1..NODES_MAX).map(|n| format!("n{} -> n{n};", n - 1)).collect();
    timed("chain", &document(json!(nodes), &chain).to_string()).unwrap();
}

#[test]
fn what_is_too_large_is_refused() {
    let padded =
        |bytes: usize| format!("{{\"stepwell\": 1, \"nodes\": [{}]{}}}", transform("a", ""), " ".repeat(bytes));
    let base = padded(0).len();
    assert!(checked(&padded(DOCUMENT_BYTES_MAX - base)).is_ok());
    assert_eq!(codes("a byte more", &padded(DOCUMENT_BYTES_MAX - base + 1)), ["too_large"]);
    assert_eq!(codes("nested", &"[".repeat(10_000)), ["too_deep"]);
    let string = format!("${{ {} }}", "a".repeat(1 << 20));
    assert_eq!(codes("expression", &document(json!([transform("a", &string)]), "").to_string()), ["too_large"]);
    let nodes: Vec<Value> = (0..=NODES_MAX).map(|n| transform(&format!("n{n}"), "")).collect();
    assert_eq!(codes("nodes", &document(json!(nodes), "").to_string()), ["too_many"]);
    let edges: String = (0..=EDGES_MAX).map(|_| "a -> a;".to_owned()).collect();
    assert_eq!(codes("edges", &document(json!([transform("a", "")]), &edges).to_string()), ["too_many"]);
}

#[test]
fn a_list_of_problems_ends() {
    let nodes: Vec<Value> = (0..NODES_MAX).map(|n| json!({ "id": format!("ü{n}"), "knid": [], "fuel": -1 })).collect();
    let edges: String = (0..EDGES_MAX).map(|n| format!("x{n} -> y{n};")).collect();
    let problems = timed("all wrong", &document(json!(nodes), &edges).to_string()).unwrap_err();
    assert_eq!(problems.len(), PROBLEMS_MAX + 1);
    assert_eq!(problems.last().unwrap().code, "more_problems");
}

/// Each of these is the worst case of one of the passes.
#[test]
fn no_pass_takes_long() {
    // Names that are compared with each other, over and over.
    let names: Vec<Value> =
        (0..NODES_MAX).map(|n| transform(&format!("{}{n:04}", "n".repeat(59)), "${ .nodes.nnnn }")).collect();
    let edges: Vec<Value> =
        (0..10_000).map(|n| json!({ "source": format!("{}{n:05}", "n".repeat(59)), "target": "x" })).collect();
    codes("unknown names", &json!({ "stepwell": 1, "nodes": names, "edges": edges }).to_string());
    let fields: serde_json::Map<String, Value> = (0..300_000).map(|n| (format!("kin{n}"), json!(1))).collect();
    codes("unknown fields", &json!({ "stepwell": 1, "nodes": [fields] }).to_string());
    // Every node would be handed every one before it.
    let greedy: Vec<Value> = (0..NODES_MAX).map(|n| transform(&format!("n{n}"), "${ . }")).collect();
    let chain: String = (1..NODES_MAX).map(|n| format!("n{} -> n{n};", n - 1)).collect();
    assert_eq!(codes("greedy", &document(json!(greedy), &chain).to_string()), ["too_many"]);
    // A branch with as many cases as there can be edges.
    let cases: Vec<Value> = (0..20_000).map(|n| json!({ "when": "${ 1 }", "label": format!("l{n}") })).collect();
    let edges: String = (0..20_000).map(|n| format!("b -l{n}-> a;")).collect();
    timed(
        "labels",
        &document(json!([{ "id": "b", "kind": "branch", "cases": cases }, transform("a", "")]), &edges).to_string(),
    )
    .unwrap();
    // Maps in maps.
    let half = NODES_MAX / 2;
    let maps = (0..half).map(|n| json!({ "id": format!("m{n}"), "kind": "map", "items": [] }));
    let joins = (0..half).map(|n| json!({ "id": format!("j{n}"), "kind": "join", "of": format!("m{n}") }));
    let nodes: Vec<Value> = maps.chain(joins).collect();
    let down: String = (1..half).map(|n| format!("m{} -> m{n}; j{n} -> j{};", n - 1, n - 1)).collect();
    let crossing: String = (0..half).map(|n| format!("m{n} -> j{}; ", (n * 7919) % half)).collect();
    assert!(
        codes("maps in maps", &document(json!(nodes), &(down + &crossing)).to_string())
            .contains(&"too_deep".to_owned())
    );
    // Expressions as large as they may be, with as many names and definitions as they hold.
    for piece in ["def f: .nodes.a; ", "f, ", ".nodes.a; ", ". as $x | "] {
        let code = piece.repeat(16_000 / piece.len());
        let nodes: Vec<Value> = (0..250).map(|n| transform(&format!("n{n}"), &format!("${{ {code} 1 }}"))).collect();
        timed(piece, &document(json!(nodes), "").to_string()).unwrap_err();
    }
    let defs: String = (0..600).map(|n| format!("def f{n}: .nodes.a{n};")).collect();
    let entries: String = (0..300).map(|n| format!("a{n}: f{n},")).collect();
    let nodes: Vec<Value> =
        (0..200).map(|n| transform(&format!("n{n}"), &format!("${{ {defs} {{{entries}}} }}"))).collect();
    let _ = timed("definitions", &document(json!(nodes), "").to_string());
}

/// Numbers that look random and are the same every time: xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % most as u64) as usize
    }
}

#[test]
fn random_bytes_are_refused() {
    let mut random = Random(0x5eed);
    for _ in 0..2_000 {
        let length = random.below(200);
        let bytes: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
        assert!(check(&bytes).is_err());
    }
}

#[test]
fn a_document_with_random_changes_is_accepted_or_refused() {
    let text = complete().to_string();
    let mut random = Random(0xD0C);
    let mut accepted = 0;
    for _ in 0..20_000 {
        let mut bytes = text.clone().into_bytes();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            match random.below(3) {
                0 => bytes[at] = random.below(256) as u8,
                1 => drop(bytes.drain(at..(at + random.below(20)).min(bytes.len()))),
                _ => {
                    let (from, length) = (random.below(bytes.len()), random.below(40));
                    let piece: Vec<u8> = bytes.iter().skip(from).take(length).copied().collect();
                    bytes.splice(at..at, piece).for_each(drop);
                }
            }
        }
        match check(&bytes) {
            Ok(_) => accepted += 1,
            Err(problems) => {
                assert!(!problems.iter().any(|problem| problem.code == "incomplete"), "{}", shown(&problems))
            }
        }
    }
    assert!(accepted > 200, "{accepted}");
}

#[test]
fn expressions_out_of_random_pieces_are_accepted_or_refused() {
    const PIECES: [&str; 60] = [
        ".", "..", ".nodes", ".a", ".input", "[", "]", "(", ")", "{", "}", "\"", "\\(", "\\u12", "|", ",", ";", ":",
        "?", "//", "+", "-", "=", "|=", "+=", "==", "and", "or", "not", "if", "then", "elif", "else", "end", "try",
        "catch", "reduce", "foreach", "as", "$x", "$", "@base64", "@", "def", "f", "f:", "label", "break", "map",
        "select", "1", "1.5e3", "#", "\n", "\\", "é", "'", "&", "import", "..[",
    ];
    let mut random = Random(0x1a4);
    let mut fine = 0;
    for _ in 0..50_000 {
        let length = 1 + random.below(12);
        let pieces: Vec<&str> = (0..length).map(|_| PIECES[random.below(PIECES.len())]).collect();
        let separator = if random.below(2) == 0 { " " } else { "" };
        let text = document(json!([transform("a", &format!("${{{}}}", pieces.join(separator)))]), "").to_string();
        match checked(&text) {
            Ok(_) => fine += 1,
            Err(problems) => assert!(!problems.is_empty()),
        }
    }
    assert!(fine > 500, "{fine}");
}
