//! The code of one expression as a syntax tree.
//!
//! Owns: what is refused because of how it is written, and the words for it.
//! Does not: know which filters there are ([`crate::filters`]) and what is referred to ([`crate::references`]).
//! Invariant: jaq's lexer and parser recurse with the nesting of what they read, and so does everybody who walks the
//! tree, here and in the guest. What comes out of here is nested at most [`NESTING_MAX`] levels, and what is nested
//! deeper is refused before jaq sees it.

use jaq_core::load::lex::{self, Lexer, StrPart, Tok, Token};
use jaq_core::load::parse::{self, Parser, Term};

use crate::problems::clip;

/// Bytes of one expression. Nobody reads a longer one; a document with more to say has more nodes.
pub(crate) const EXPRESSION_BYTES_MAX: usize = 16 * 1024;
/// Levels of one expression, where each bracket and, inside of it, each operator and keyword counts as one: `a + b + c`
/// is a tree of two levels. jaq takes up to 2 KiB of stack for a level on the host, when it parses and when it compiles,
/// and the guest has half a MiB.
pub(crate) const NESTING_MAX: usize = 128;

/// What is wrong with an expression.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) code: &'static str,
    /// Where, in bytes.
    pub(crate) at: usize,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Wrong {
    fn new(code: &'static str, at: usize, message: impl Into<String>) -> Self {
        Self { code, at, message: message.into(), hint: None }
    }

    fn syntax(at: usize, message: impl Into<String>) -> Self {
        Self::new("invalid_expression", at, message)
    }
}

/// Reads an expression.
pub(crate) fn parse(code: &str) -> Result<Term<&str>, Wrong> {
    if code.len() > EXPRESSION_BYTES_MAX {
        let message = format!("the expression has {} bytes, at most {EXPRESSION_BYTES_MAX} are allowed", code.len());
        return Err(Wrong::new("too_large", 0, message));
    }
    check_brackets(code)?;
    let tokens = Lexer::new(code).lex().map_err(|errors| lexical(code, errors))?;
    let Some(Token(first, _)) = tokens.first() else {
        let hint = Some("write what is to be inserted, such as `${ .input }`".to_owned());
        return Err(Wrong { hint, ..Wrong::new("empty_expression", 0, "there is nothing in `${ … }`") });
    };
    if matches!(*first, "import" | "include" | "module") {
        return Err(Wrong::syntax(offset(code, first), format!("`{first}`: an expression cannot load modules")));
    }
    if nesting(&tokens, false) > NESTING_MAX {
        return Err(too_deep(0));
    }
    Parser::new(&tokens).parse(|parser| parser.term()).map_err(|errors| syntactic(code, errors))
}

/// Where a part of the code stands in it. Parts that are not of it are taken for its end.
pub(crate) fn offset(code: &str, part: &str) -> usize {
    let offset = (part.as_ptr() as usize).wrapping_sub(code.as_ptr() as usize);
    offset.min(code.len())
}

fn too_deep(at: usize) -> Wrong {
    let message = format!("the expression is nested more than {NESTING_MAX} levels deep");
    let hint = Some("each bracket, operator and keyword counts as a level: split it into several nodes".to_owned());
    Wrong { hint, ..Wrong::new("too_deep", at, message) }
}

/// What is open around a place in the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Bracket(char),
    String,
}

/// Checks what decides how deep jaq's lexer recurses: that brackets and strings match, not too deep, and that between
/// them are only characters that begin a token. Everything else about tokens is the lexer's to say. It must see brackets,
/// strings and comments just as the lexer does; where that would give up, this one refuses the expression.
fn check_brackets(code: &str) -> Result<(), Wrong> {
    let mut open: Vec<(Open, usize)> = Vec::new();
    let mut at = 0;
    while let Some(character) = code.get(at..).and_then(|rest| rest.chars().next()) {
        let here = at;
        at += character.len_utf8();
        let innermost = open.last().copied();
        if let Some((Open::String, _)) = innermost {
            match character {
                '"' => drop(open.pop()),
                '\\' => match code.get(at..).and_then(|rest| rest.chars().next()) {
                    Some('(') => {
                        open.push((Open::Bracket('('), at));
                        at += 1;
                    }
                    Some(escaped) => at += escaped.len_utf8(),
                    None => {}
                },
                _ => {}
            }
            continue;
        }
        match character {
            '"' => open.push((Open::String, here)),
            '(' | '[' | '{' => open.push((Open::Bracket(character), here)),
            ')' | ']' | '}' => match innermost {
                Some((Open::Bracket(opening), _)) if closing(opening) == character => drop(open.pop()),
                Some((Open::Bracket(opening), opened)) => {
                    let message = format!("found `{character}` where `{}` closes the `{opening}`", closing(opening));
                    let position = position(code, opened);
                    return Err(Wrong::syntax(here, format!("{message} of {position}")));
                }
                _ => return Err(Wrong::syntax(here, format!("`{character}` closes nothing"))),
            },
            '#' => at += comment(code.get(at..).unwrap_or_default()),
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '$' | '@' | '.' | ':' | ';' | ',' | '?' => {}
            '|' | '=' | '!' | '<' | '>' | '+' | '-' | '*' | '/' | '%' => {}
            white if white.is_whitespace() => {}
            '\'' => {
                let hint = Some("strings stand in double quotes".to_owned());
                return Err(Wrong { hint, ..Wrong::syntax(here, "`'` is no part of jq") });
            }
            '&' => {
                let hint = Some("jq has the words `and` and `or`".to_owned());
                return Err(Wrong { hint, ..Wrong::syntax(here, "`&` is no part of jq") });
            }
            other => return Err(Wrong::syntax(here, format!("`{}` is no part of jq", other.escape_debug()))),
        }
        if open.len() > NESTING_MAX {
            return Err(too_deep(here));
        }
    }
    match open.last() {
        None => Ok(()),
        Some((Open::String, at)) => Err(Wrong::syntax(*at, "the string that begins here does not end")),
        Some((Open::Bracket(opening), at)) => Err(Wrong::syntax(*at, format!("the `{opening}` here is not closed"))),
    }
}

fn closing(opening: char) -> char {
    match opening {
        '(' => ')',
        '[' => ']',
        _ => '}',
    }
}

/// Bytes of a comment behind its `#`. A line that ends with an odd number of backslashes goes on in the next one.
fn comment(text: &str) -> usize {
    let mut length = 0;
    for line in text.split_inclusive('\n') {
        length += line.len();
        let line = line.strip_suffix('\n').unwrap_or(line);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 0 {
            break;
        }
    }
    length
}

/// A number that the nesting of the tree made of these tokens, and of the calls that make it, does not exceed. A level
/// begins with a bracket, an operator or a keyword, and nothing else. `in_braces`: the tokens are those of an object.
fn nesting(tokens: &[Token<&str>], in_braces: bool) -> usize {
    let (mut levels, mut deepest, mut inside) = (1, 1, 0);
    // Whether something may go on behind a comma that is not between two entries of an object.
    let mut in_keyword = false;
    // What both were before each `if` that is not closed.
    let mut before_ifs = Vec::new();
    // Whether something has been said that an operator or an `end` can follow.
    let mut is_complete = false;
    for Token(text, token) in tokens {
        let mut completes = true;
        match token {
            Tok::Word => match *text {
                "if" | "then" | "elif" | "else" | "try" | "catch" | "reduce" | "foreach" | "def" | "label" | "as" => {
                    if *text == "if" {
                        before_ifs.push((levels, in_keyword));
                    }
                    (levels, in_keyword, completes) = (levels + 1, true, false);
                }
                "and" | "or" => (levels, completes) = (levels + 1, false),
                // With nothing before it, it would be the name of a filter.
                "end" if is_complete => (levels, in_keyword) = before_ifs.pop().unwrap_or((levels, in_keyword)),
                _ => {}
            },
            Tok::Sym if in_braces && *text == "," && !in_keyword => (levels, completes) = (1, false),
            Tok::Sym if text.starts_with('.') || *text == "?" => {}
            Tok::Sym if matches!(*text, ":" | ";" | ")" | "]" | "}") => completes = false,
            Tok::Sym => (levels, completes) = (levels + 1, false),
            Tok::Block(tokens) => inside = inside.max(nesting(tokens, text.starts_with('{'))),
            Tok::Str(parts) => {
                for part in parts {
                    if let StrPart::Term(Token(_, Tok::Block(tokens))) = part {
                        inside = inside.max(nesting(tokens, false));
                    }
                }
            }
            Tok::Var | Tok::Fmt | Tok::Num => {}
        }
        (deepest, is_complete) = (deepest.max(levels), completes);
    }
    deepest + inside
}

/// The first of the lexer's errors, in a sentence.
fn lexical(code: &str, errors: Vec<lex::Error<&str>>) -> Wrong {
    let errors = errors.into_iter().map(|(expected, found)| (offset(code, found), expected, found));
    let Some((at, expected, found)) = errors.min_by_key(|(at, ..)| *at) else {
        return Wrong::syntax(0, "the expression is not jq");
    };
    let expected = match expected {
        lex::Expect::Digit => "a digit",
        lex::Expect::Ident => "a name",
        lex::Expect::Escape => {
            "one of the escapes `\\\"`, `\\\\`, `\\/`, `\\b`, `\\f`, `\\n`, `\\r`, `\\t`, `\\u` and `\\(`"
        }
        lex::Expect::Unicode => "four hexadecimal digits of a Unicode character",
        // Brackets and characters were looked at before.
        _ => "something else",
    };
    Wrong::syntax(at, format!("expected {expected}, found {}", found_text(found.chars().next())))
}

/// The first of the parser's errors, in a sentence.
fn syntactic(code: &str, errors: Vec<parse::TError<'_, &str>>) -> Wrong {
    let errors =
        errors.into_iter().map(|(expected, found)| (offset(code, Token::opt_as_str(found, code)), expected, found));
    let Some((at, expected, found)) = errors.min_by_key(|(at, ..)| *at) else {
        return Wrong::syntax(0, "the expression is not jq");
    };
    use parse::Expect;
    let expected = match expected {
        Expect::Just(text) => format!("`{text}`"),
        Expect::Var => "a variable such as `$x`".to_owned(),
        Expect::Pattern => "a variable or a pattern such as `$x` or `[$x, $y]`".to_owned(),
        Expect::ElseOrEnd => "`elif`, `else` or `end`".to_owned(),
        Expect::CommaOrRBrack => "`,` or `]`".to_owned(),
        Expect::CommaOrRBrace => "`,` or `}`".to_owned(),
        Expect::SemicolonOrRParen => "`;` or `)`".to_owned(),
        Expect::Term => "an expression".to_owned(),
        Expect::Key => "a key".to_owned(),
        Expect::Ident => "a name".to_owned(),
        Expect::Arg => "the name of an argument".to_owned(),
        Expect::Str => "a string".to_owned(),
        Expect::Nothing => "an operator or the end".to_owned(),
        _ => "something else".to_owned(),
    };
    let found = match found {
        None => "the end".to_owned(),
        Some(Token(text, Tok::Block(_) | Tok::Str(_))) => found_text(text.chars().next()),
        Some(Token(text, _)) => format!("`{}`", clip(text)),
    };
    Wrong::syntax(at, format!("expected {expected}, found {found}"))
}

fn found_text(character: Option<char>) -> String {
    character.map_or("the end".to_owned(), |character| format!("`{}`", character.escape_debug()))
}

/// Where a place in a text is, as people count: `character 12`, or `line 2, character 5` of a text with several lines.
pub(crate) fn position(text: &str, at: usize) -> String {
    let before = text.get(..at).unwrap_or(text);
    let (line, start) = match before.rfind('\n') {
        Some(end) => (before.bytes().filter(|byte| *byte == b'\n').count() + 1, end + 1),
        None => (1, 0),
    };
    let character = before.get(start..).map_or(0, |line| line.chars().count()) + 1;
    if text.contains('\n') { format!("line {line}, character {character}") } else { format!("character {character}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filters::tests::undefined_by_jaq;

    fn shown(code: &str) -> String {
        match parse(code) {
            Ok(_) => "fine".to_owned(),
            Err(wrong) => format!("{} {}: {}", position(code, wrong.at), wrong.code, wrong.message),
        }
    }

    #[test]
    fn what_jq_takes_is_taken() {
        for code in [
            ".",
            " .input ",
            ".nodes[\"a-b\"].x?",
            "if . then 1 end",
            "\"a \\(.b | \"c \\(.d)\") e\"",
            "@base64 \"x\\(.)\"",
            "reduce .[] as [$a, {b: $c}] (0; . + $a)",
            "def f(x; $y): x + $y; f(1; 2)",
            "label $out | foreach .[] as $x (0; . + 1; if . > 3 then ., break $out else . end)",
            "# a comment\n. # and \\\n another )\n",
            "{a, $b, \"c\", (.d): 1, e: 2 | 3}",
            "try error(\"x\") catch .",
            "..",
            ".[1:2]",
            "-1 + - .x",
            "\u{a0}.\u{2003}",
        ] {
            assert_eq!(shown(code), "fine", "{code}");
        }
    }

    #[test]
    fn what_jq_does_not_take_is_told_with_its_place() {
        for (code, expected) in [
            ("", "character 1 empty_expression: there is nothing in `${ … }`"),
            ("  # nothing", "character 1 empty_expression: there is nothing in `${ … }`"),
            (".a b", "character 4 invalid_expression: expected an operator or the end, found `b`"),
            (".a |", "character 5 invalid_expression: expected an expression, found the end"),
            ("if . then 1", "character 12 invalid_expression: expected `elif`, `else` or `end`, found the end"),
            ("(1, 2", "character 1 invalid_expression: the `(` here is not closed"),
            ("[1, (2]", "character 7 invalid_expression: found `]` where `)` closes the `(` of character 5"),
            ("1)", "character 2 invalid_expression: `)` closes nothing"),
            ("\"abc", "character 1 invalid_expression: the string that begins here does not end"),
            (
                "\"é\" + \"a\\x\"",
                "character 10 invalid_expression: expected one of the escapes `\\\"`, `\\\\`, `\\/`, `\\b`, `\\f`, `\\n`, `\\r`, `\\t`, `\\u` and `\\(`, found `x`",
            ),
            (
                "\"\\ud800\"",
                "character 4 invalid_expression: expected four hexadecimal digits of a Unicode character, found `d`",
            ),
            (".a && .b", "character 4 invalid_expression: `&` is no part of jq"),
            (".a == 'b'", "character 7 invalid_expression: `'` is no part of jq"),
            ("1.", "character 3 invalid_expression: expected a digit, found the end"),
            ("$", "character 2 invalid_expression: expected a name, found the end"),
            ("{a b}", "character 4 invalid_expression: expected `,` or `}`, found `b`"),
            ("{(1)}", "character 5 invalid_expression: expected `:`, found `}`"),
            ("map(.a", "character 4 invalid_expression: the `(` here is not closed"),
            (
                ". as 1 | 2",
                "character 6 invalid_expression: expected a variable or a pattern such as `$x` or `[$x, $y]`, found `1`",
            ),
            (".a\n| )", "line 2, character 3 invalid_expression: `)` closes nothing"),
            ("import \"a\" as a; 1", "character 1 invalid_expression: `import`: an expression cannot load modules"),
            ("include \"a\"; 1", "character 1 invalid_expression: `include`: an expression cannot load modules"),
            ("()", "character 2 invalid_expression: expected an expression, found `)`"),
            ("\u{1f600}", "character 1 invalid_expression: `\u{1f600}` is no part of jq"),
        ] {
            assert_eq!(shown(code), expected, "{code}");
        }
    }

    /// jaq would recurse once for each of these.
    #[test]
    fn nesting_that_would_use_up_the_stack_is_refused() {
        let most = EXPRESSION_BYTES_MAX;
        for piece in [
            "(",
            "[",
            "{a:",
            "\"\\(",
            "-",
            "if ",
            "try ",
            "1|",
            "1+",
            "1,",
            ". as $x|",
            "def f:",
            "label $x|",
            "reduce ",
        ] {
            let code = piece.repeat(most / piece.len());
            assert!(shown(&code).contains("too_deep"), "{piece}: {}", shown(&code));
            assert!(shown(&piece.repeat(100_000)).contains("too_large"));
        }
        // Where a simpler scan would take brackets for a part of a string or a comment.
        for begin in ["\"\\(&\" ", "# \\\n\" \n", "\"\\(]\" ", "\"\\u\" "] {
            let code = format!("{begin}{}", "(".repeat(16_000));
            assert_ne!(shown(&code), "fine");
        }
        // Where levels might be taken for closed that are not.
        for piece in ["- if 1, ", "if -end then ", "if 1 then -end else ", "if {end} then ", "def end: if 1 then "] {
            let attack = format!("{{a: {}1}}", piece.repeat(most / piece.len() - 1));
            assert!(shown(&attack).contains("too_deep"), "{piece}: {}", shown(&attack));
        }
    }

    #[test]
    fn what_is_long_but_not_nested_is_fine() {
        let entries: String = (0..900).map(|n| format!("k{n}: .a + 1,")).collect();
        assert_eq!(shown(&format!("{{{entries}}}")), "fine");
        let entries: String = (0..300).map(|n| format!("k{n}: if .a == {n} then .b + 1 else 3 end,")).collect();
        assert_eq!(shown(&format!("{{{entries}}}")), "fine");
        assert_eq!(shown(&format!(".a{}", ".b[0]".repeat(2_000))), "fine");
        let sum = "1 + ".repeat(NESTING_MAX - 2) + "1";
        assert_eq!(shown(&sum), "fine");
    }

    #[test]
    fn a_stack_of_a_quarter_mebibyte_is_enough_for_what_is_let_through() {
        let deepest = |piece: &str, end: &str| piece.repeat(NESTING_MAX - 8) + end;
        let codes = [
            deepest("-", "1"),
            deepest("1|", "1"),
            deepest("1,", "1"),
            ". as $x|".repeat(NESTING_MAX / 2 - 4) + "1",
            "if 1 then ".repeat(NESTING_MAX / 2 - 4) + "1" + &" end".repeat(NESTING_MAX / 2 - 4),
            deepest("try ", "1"),
            "(".repeat(NESTING_MAX / 2) + &")".repeat(NESTING_MAX / 2).replacen(')', "1)", 1),
            "[".repeat(NESTING_MAX / 2) + &"]".repeat(NESTING_MAX / 2),
        ];
        let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
            for code in &codes {
                assert_eq!(shown(code), "fine", "{code}");
                assert!(undefined_by_jaq(code).is_empty());
            }
        });
        thread.unwrap().join().unwrap();
    }
}
