//! The filters that expressions can call.
//!
//! Owns: their names and how many arguments they take, and what to say about those that jq has and a graph has not.
//! Does not: run them; the nodes guest does.
//! Invariant: what is in the table is in the guest. The definitions are the guest's own text and that of the crates it
//! stands on; what is written in Rust there is named here. A definition that calls something that is not in the table
//! is not in the table either.

use std::collections::HashMap;
use std::sync::LazyLock;

use jaq_core::data::JustLut;
use jaq_core::load::parse::Def;
use jaq_json::Val;
use stepwell_document::filters::NATIVES;

use crate::problems::{closest, listed};
use crate::references;

/// Definitions of the guest.
const GUEST_DEFINITIONS: &str = include_str!("../nodes/src/jq/defs.jq");

/// What jaq has in Rust and the guest leaves out: it ends the program.
const NOT_IN_GUEST: [&str; 1] = ["halt"];

/// Names and numbers of arguments.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    all: HashMap<&'static str, Vec<usize>>,
}

impl Filters {
    /// Whether there is a filter of this name that takes so many arguments.
    pub(crate) fn has(&self, name: &str, arguments: usize) -> bool {
        self.all.get(name).is_some_and(|counts| counts.contains(&arguments))
    }

    fn add(&mut self, name: &'static str, arguments: usize) {
        let counts = self.all.entry(name).or_default();
        if !counts.contains(&arguments) {
            counts.push(arguments);
            counts.sort_unstable();
        }
    }

    /// What to do about a filter that does not exist. `own` are the names that the expression itself defines.
    pub(crate) fn hint<'a>(&self, name: &'a str, own: impl IntoIterator<Item = &'a str>) -> Option<String> {
        if let Some(hint) = explained(name) {
            return Some(hint);
        }
        if let Some(counts) = self.all.get(name) {
            let words: Vec<String> = counts.iter().map(usize::to_string).collect();
            let noun = if counts.as_slice() == [1] { "argument" } else { "arguments" };
            return Some(format!("`{name}` takes {} {noun}", words.join(" or ")));
        }
        // Sorted, so that the answer is the same every time.
        let mut names: Vec<&str> = self.all.keys().copied().chain(own).collect();
        names.sort_unstable();
        closest(name, names).map(|name| format!("did you mean `{name}`?"))
    }
}

/// What there is instead.
fn explained(name: &str) -> Option<String> {
    Some(match name {
        "input" | "nodes" | "item" | "index" | "failures" | "run" => format!("write `.{name}`"),
        "inputs" => "write `.input`".to_owned(),
        "now" | "localtime" | "mktime" | "gmtime" | "strftime" | "strflocaltime" | "strptime" | "todate"
        | "fromdate" | "date" | "dateadd" | "datesub" | "fromdateiso8601" | "todateiso8601" => {
            "expressions know no time: hand it in with the run's input, or have a component compute it".to_owned()
        }
        "env" => "expressions know no environment: hand it in with the run's input".to_owned(),
        "debug" | "stderr" | "input_line_number" | "input_filename" => {
            format!("nobody would see what `{name}` shows: a node's output is in its run")
        }
        "halt" | "halt_error" => "`error(\"…\")` fails the step".to_owned(),
        "import" | "include" => "an expression cannot load modules".to_owned(),
        "then" | "else" | "elif" | "end" | "as" | "catch" | "and" | "or" => {
            format!("`{name}` belongs to something that is missing here")
        }
        "typeof" => "did you mean `type`?".to_owned(),
        "lower" | "tolower" | "toLowerCase" | "downcase" => "did you mean `ascii_downcase`?".to_owned(),
        "upper" | "toupper" | "toUpperCase" | "upcase" => "did you mean `ascii_upcase`?".to_owned(),
        "len" | "size" | "count" => "did you mean `length`?".to_owned(),
        "filter" => "did you mean `map(select(…))`?".to_owned(),
        "@form" | "@xml" => {
            format!("the formats are {}", listed(["@text", "@json", "@csv", "@tsv", "@html", "@uri", "@sh", "@base64"]))
        }
        _ => return None,
    })
}

/// The table.
pub(crate) fn filters() -> &'static Filters {
    static FILTERS: LazyLock<Filters> = LazyLock::new(table);
    &FILTERS
}

fn table() -> Filters {
    let mut filters = Filters::default();
    natives().for_each(|(name, arguments)| filters.add(name, arguments));
    for definition in definitions() {
        // As jaq resolves names: a definition sees itself and those before it.
        if references::is_defined(&definition, &filters) {
            filters.add(definition.name, definition.args.len());
        }
    }
    filters
}

/// What is written in Rust.
fn natives() -> impl Iterator<Item = (&'static str, usize)> {
    let jaq = jaq_core::funs::<JustLut<Val>>().chain(jaq_std::base_funs()).chain(jaq_json::funs());
    let jaq = jaq.map(|(name, arguments, _)| (name, arguments.len())).filter(|(name, _)| !NOT_IN_GUEST.contains(name));
    jaq.chain(NATIVES.into_iter().flat_map(|(names, arguments)| names.iter().map(move |name| (*name, arguments))))
}

/// What is written in jq. Later ones can call earlier ones.
fn definitions() -> impl Iterator<Item = Def<&'static str>> {
    let own = jaq_core::load::parse(GUEST_DEFINITIONS, |parser| parser.defs()).unwrap_or_default();
    jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs()).chain(own)
}

#[cfg(test)]
pub(crate) mod tests {
    use jaq_core::load::{Arena, File, Loader};
    use jaq_core::native::{run, v};
    use jaq_core::{Compiler, Ctx, Vars, unwrap_valr};

    use super::*;

    /// Compiles an expression with this table's filters, or gives the names that jaq does not find. What only the guest
    /// has in Rust puts out nothing.
    fn compiled(code: &str) -> Result<jaq_core::Filter<JustLut<Val>>, Vec<String>> {
        let definitions = definitions().filter(|definition| filters().has(definition.name, definition.args.len()));
        let jaq = jaq_core::funs::<JustLut<Val>>().chain(jaq_std::base_funs()).chain(jaq_json::funs());
        let mut natives: Vec<_> = jaq.filter(|(name, ..)| !NOT_IN_GUEST.contains(name)).collect();
        for (names, arguments) in NATIVES {
            for name in names {
                natives.push(run((*name, v(arguments), |_| Box::new(std::iter::empty()))));
            }
        }
        let arena = Arena::default();
        let modules = Loader::new(definitions).load(&arena, File { code, path: () }).map_err(|_| "loads").unwrap();
        Compiler::default().with_funs(natives).compile(modules).map_err(|errors| {
            errors.into_iter().flat_map(|(_, errors)| errors).map(|(name, _)| name.to_owned()).collect()
        })
    }

    /// The names that jaq does not find when it compiles an expression.
    pub(crate) fn undefined_by_jaq(code: &str) -> Vec<String> {
        compiled(code).err().unwrap_or_default()
    }

    /// The first values of an expression, and the error that it ends with.
    pub(crate) fn evaluated(code: &str, context: &serde_json::Value) -> Vec<String> {
        let context = jaq_json::read::parse_single(context.to_string().as_bytes()).unwrap();
        let filter = compiled(code).unwrap();
        let own = Ctx::<JustLut<Val>>::new(&filter.lut, Vars::new([]));
        let values = filter.id.run((own, context)).map(unwrap_valr).take(20);
        values.map(|value| value.map_or_else(|error| format!("error: {error}"), |value| value.to_string())).collect()
    }

    #[test]
    fn definitions_are_there_unless_they_call_what_is_not() {
        for (name, arguments) in
            [("map", 1), ("test", 1), ("test", 2), ("@base64", 0), ("@csv", 0), ("tostring", 0), ("pow", 2), ("IN", 1)]
        {
            assert!(filters().has(name, arguments), "{name}/{arguments}");
        }
        for (name, arguments) in [
            ("now", 0),
            ("todate", 0),
            ("fromdate", 0),
            ("mktime", 0),
            ("env", 0),
            ("input", 0),
            ("inputs", 0),
            ("debug", 0),
            ("debug", 1),
            ("stderr", 0),
            ("halt", 0),
            ("halt", 1),
            ("halt_error", 0),
            ("map", 0),
            ("input_line_number", 0),
            ("localtime", 0),
            ("!empty", 0),
        ] {
            assert!(!filters().has(name, arguments), "{name}/{arguments}");
        }
    }

    #[test]
    fn the_guests_definitions_are_read_and_all_of_them_are_there() {
        let own = jaq_core::load::parse(GUEST_DEFINITIONS, |parser| parser.defs()).unwrap();
        assert!(!own.is_empty());
        for definition in own {
            assert!(filters().has(definition.name, definition.args.len()), "{}", definition.name);
        }
    }

    #[test]
    fn jaq_compiles_the_table() {
        assert_eq!(undefined_by_jaq("."), Vec::<String>::new());
        assert_eq!(undefined_by_jaq("now"), ["now"]);
    }
}
