//! What a source file uses: its paths and words, without comments, texts and tests.

/// A word or a mark of the source, with its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) line: usize,
}

/// A path as it is written, groups spelled out: `crate::{a::b, c}` is two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UsedPath {
    pub(crate) segments: Vec<String>,
    pub(crate) line: usize,
}

/// The tokens of the product's own code: comments, texts and `#[cfg(test)]` items are left out.
pub(crate) fn tokens(text: &str) -> Vec<Token> {
    without_tests(&split(text))
}

/// Splits code into identifiers, `::`, and single marks. Numbers count as identifiers.
fn split(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let (mut tokens, mut at, mut line) = (Vec::new(), 0, 1);
    while at < chars.len() {
        let rest = &chars[at..];
        let length = match skipped(rest) {
            Some(length) => length,
            None => {
                let word = rest.iter().take_while(|c| c.is_alphanumeric() || **c == '_').count();
                let length = if word > 0 {
                    word
                } else if rest.starts_with(&[':', ':']) {
                    2
                } else {
                    1
                };
                if !rest[0].is_whitespace() {
                    tokens.push(Token { text: rest[..length].iter().collect(), line });
                }
                length
            }
        };
        line += rest[..length].iter().filter(|c| **c == '\n').count();
        at += length;
    }
    tokens
}

/// How long the comment, text, character or lifetime is that begins here.
fn skipped(rest: &[char]) -> Option<usize> {
    let find =
        |from: usize, end: &[char]| (from..rest.len()).find(|at| rest[*at..].starts_with(end)).map_or(rest.len(), |at| at + end.len());
    if rest.starts_with(&['/', '/']) {
        return Some(rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()));
    }
    if rest.starts_with(&['/', '*']) {
        return Some(block_comment(rest));
    }
    let prefix = rest.iter().take_while(|c| matches!(c, 'b' | 'r' | 'c')).count();
    let marks = rest[prefix..].iter().take_while(|c| **c == '#').count();
    if prefix <= 2 && rest[..prefix].contains(&'r') && rest.get(prefix + marks) == Some(&'"') {
        let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', marks)).collect();
        return Some(find(prefix + marks + 1, &end));
    }
    if prefix <= 1 && rest.get(prefix) == Some(&'"') {
        return Some(quoted(rest, prefix + 1, '"'));
    }
    if rest[0] == '\'' || rest.starts_with(&['b', '\'']) {
        let start = if rest[0] == 'b' { 2 } else { 1 };
        let lifetime = rest.get(start).is_some_and(|c| c.is_alphanumeric() || *c == '_') && rest.get(start + 1) != Some(&'\'');
        return Some(if lifetime { start + 1 } else { quoted(rest, start, '\'') });
    }
    // An identifier is taken whole, so that a `b` at its end begins no text.
    None
}

fn quoted(rest: &[char], from: usize, end: char) -> usize {
    let mut at = from;
    while at < rest.len() && rest[at] != end {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with(&['/', '*']) {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(&['*', '/']) {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let attribute = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut kept, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let here = tokens[at..].iter().map(|token| token.text.as_str());
        if here.take(attribute.len()).eq(attribute) {
            at = end_of_item(tokens, at + attribute.len());
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

/// Behind the item that begins at `at`: its `;`, or its closing brace.
fn end_of_item(tokens: &[Token], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            ";" if depth == 0 => return at + 1,
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => {
                depth = depth.saturating_sub(1);
                if depth == 0 && tokens[at].text == "}" {
                    return at + 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    at
}

/// Every path in the code, `use` groups spelled out; a single word counts only behind `use`.
pub(crate) fn paths(tokens: &[Token]) -> Vec<UsedPath> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let is_use = tokens[at].text == "use";
        if is_use || (is_word(&tokens[at]) && text(tokens, at + 1) == "::") {
            at = tree(tokens, at + usize::from(is_use), &[], &mut found);
        } else {
            at += 1;
        }
    }
    found
}

fn is_word(token: &Token) -> bool {
    token.text.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

fn text(tokens: &[Token], at: usize) -> &str {
    tokens.get(at).map_or("", |token| token.text.as_str())
}

/// Reads one path with its groups; returns where it ends.
fn tree(tokens: &[Token], mut at: usize, before: &[String], found: &mut Vec<UsedPath>) -> usize {
    let line = tokens.get(at).map_or(0, |token| token.line);
    let mut segments = before.to_vec();
    if text(tokens, at) == "::" {
        at += 1;
    }
    while at < tokens.len() {
        if is_word(&tokens[at]) {
            segments.push(tokens[at].text.clone());
            at += 1;
        } else if text(tokens, at) == "{" {
            at += 1;
            while at < tokens.len() && text(tokens, at) != "}" {
                at = match text(tokens, at) {
                    "," => at + 1,
                    _ => tree(tokens, at, &segments, found).max(at + 1),
                };
            }
            return at + 1;
        } else {
            break;
        }
        if text(tokens, at) == "::" && (is_word_at(tokens, at + 1) || text(tokens, at + 1) == "{") {
            at += 1;
        } else {
            break;
        }
    }
    if !segments.is_empty() {
        found.push(UsedPath { segments, line });
    }
    // `as name` is no path of its own.
    if text(tokens, at) == "as" { at + 2 } else { at }
}

fn is_word_at(tokens: &[Token], at: usize) -> bool {
    tokens.get(at).is_some_and(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(code: &str) -> Vec<String> {
        paths(&tokens(code)).into_iter().map(|path| path.segments.join("::")).collect()
    }

    #[test]
    fn groups_are_spelled_out() {
        let code = "use crate::{a::{b, c::D}, e as f};\nuse tokio;\nfn x() { crate::g::h(std::fs::read(1)) }";
        assert_eq!(spelled(code), ["crate::a::b", "crate::a::c::D", "crate::e", "tokio", "crate::g::h", "std::fs::read"]);
    }

    #[test]
    fn comments_texts_and_tests_are_left_out() {
        let code = "// a::b\n/* c::d /* e::f */ g::h */ let x = \"i::j\"; let y = r#\"k::\"l\"#; let z = 'm'; fn f<'a>(b: &'a str) { n::o }\n\
                    #[cfg(test)]\nmod tests { use p::q; fn r() { s::t } }\nlet w = b'\\''; u::v";
        assert_eq!(spelled(code), ["n::o", "u::v"]);
    }

    #[test]
    fn lines_are_counted_through_texts() {
        let code = "let x = \"a\nb\";\n\nuse c::d;";
        assert_eq!(paths(&tokens(code)), [UsedPath { segments: vec!["c".into(), "d".into()], line: 4 }]);
    }
}
