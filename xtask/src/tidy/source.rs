//! Rust source as words: what stands in comments and literals is no code and is not seen.
//!
//! This is no parser. It knows brackets, names and attributes, which is all the rules ask for.

use std::ops::Range;

/// A name, a number or one punctuation mark of the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word<'a> {
    pub(super) text: &'a str,
    pub(super) line: usize,
}

/// A function with a body: where it starts and how many lines it has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Function<'a> {
    pub(super) name: &'a str,
    pub(super) line: usize,
    pub(super) lines: usize,
}

/// An attribute, the brackets not included.
pub(super) struct Attribute<'a, 'w> {
    pub(super) line: usize,
    pub(super) words: &'w [Word<'a>],
}

impl Attribute<'_, '_> {
    pub(super) fn has(&self, text: &str) -> bool {
        self.words.iter().any(|word| word.text == text)
    }
}

/// The text with comments and the insides of literals blanked; lines stay where they were.
pub(super) fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let blank = blank_len(rest);
        let length = blank.unwrap_or_else(|| first.len_utf8());
        let (token, after) = rest.split_at_checked(length).unwrap_or((rest, ""));
        code.extend(token.chars().map(|c| if blank.is_none() || c == '\n' { c } else { ' ' }));
        rest = after;
    }
    code
}

/// The length in bytes of the comment or literal that starts here, if one does.
fn blank_len(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(block_comment_len(rest));
    }
    if rest.starts_with('"') {
        return Some(quoted_len(rest, '"'));
    }
    if let Some(after) = rest.strip_prefix('r') {
        let inside = after.trim_start_matches('#');
        let hashes = after.len().saturating_sub(inside.len());
        if !inside.starts_with('"') {
            return None;
        }
        let end = format!("\"{}", "#".repeat(hashes));
        let body = inside.get(1..).unwrap_or_default();
        let open = rest.len().saturating_sub(body.len());
        let close = body.find(&end).unwrap_or(body.len());
        return Some(open.saturating_add(close).saturating_add(end.len()));
    }
    let inside = rest.strip_prefix('\'')?;
    let mut chars = inside.chars();
    match (chars.next(), chars.next()) {
        (Some('\\'), _) | (_, Some('\'')) => Some(quoted_len(rest, '\'')),
        _ => None, // a lifetime
    }
}

fn block_comment_len(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut previous = ' ';
    for (at, c) in rest.char_indices() {
        let pair = (std::mem::replace(&mut previous, c), c);
        match pair {
            ('/', '*') => depth = depth.saturating_add(1),
            ('*', '/') => depth = depth.saturating_sub(1),
            _ => continue,
        }
        previous = ' ';
        if depth == 0 {
            return at.saturating_add(1);
        }
    }
    rest.len()
}

fn quoted_len(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if !escaped && c == quote {
            return at.saturating_add(1);
        }
        escaped = !escaped && c == '\\';
    }
    rest.len()
}

/// Splits code (see [`code_of`]) into words.
pub(super) fn words_of(code: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    for (line, text) in (1_usize..).zip(code.lines()) {
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let name = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let length = if name == 0 { first.len_utf8() } else { name };
            let (word, after) = rest.split_at_checked(length).unwrap_or((rest, ""));
            words.push(Word { text: word, line });
            rest = after.trim_start();
        }
    }
    words
}

/// Every function with a body.
pub(super) fn functions<'a>(words: &[Word<'a>]) -> Vec<Function<'a>> {
    let mut found = Vec::new();
    for (at, pair) in words.windows(2).enumerate() {
        let [keyword, name] = pair else { continue };
        if keyword.text != "fn" || !is_name(name.text) {
            continue;
        }
        let end = words.get(item_end(words, at)).map_or(keyword.line, |word| word.line);
        let lines = end.saturating_sub(keyword.line).saturating_add(1);
        found.push(Function { name: name.text, line: keyword.line, lines });
    }
    found
}

/// Every attribute, `#[..]` and `#![..]`.
pub(super) fn attributes<'a, 'w>(words: &'w [Word<'a>]) -> Vec<Attribute<'a, 'w>> {
    let mut found = Vec::new();
    for (at, three) in words.windows(3).enumerate() {
        let [hash, second, third] = three else { continue };
        let skip = match (hash.text, second.text, third.text) {
            ("#", "[", _) => 1,
            ("#", "!", "[") => 2,
            _ => continue,
        };
        let open = at.saturating_add(skip);
        let inside = open.saturating_add(1)..closing(words, open);
        found.push(Attribute { line: hash.line, words: words.get(inside).unwrap_or_default() });
    }
    found
}

/// The lines of items that are compiled for tests only.
pub(super) fn test_lines(words: &[Word<'_>]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for (at, three) in words.windows(3).enumerate() {
        let [hash, open, cfg] = three else { continue };
        if (hash.text, open.text, cfg.text) != ("#", "[", "cfg") {
            continue;
        }
        let open = at.saturating_add(1);
        let close = closing(words, open);
        let inside = words.get(open..close).unwrap_or_default();
        let is_test = inside.iter().any(|word| word.text == "test");
        if is_test && !inside.iter().any(|word| word.text == "not") {
            let end = words.get(item_end(words, close.saturating_add(1)));
            let end = end.map_or(hash.line, |word| word.line);
            found.push(hash.line..end.saturating_add(1));
        }
    }
    found
}

/// Where the item that starts at `from` ends: at its `;` or at the brace that closes its body.
fn item_end(words: &[Word<'_>], from: usize) -> usize {
    let mut at = from;
    while let Some(word) = words.get(at) {
        match word.text {
            ";" | "}" => return at,
            "{" => return closing(words, at),
            "(" | "[" => at = closing(words, at).saturating_add(1),
            _ => at = at.saturating_add(1),
        }
    }
    at
}

/// Where the bracket that opens at `open` closes; the end of the text if it never does.
fn closing(words: &[Word<'_>], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, word) in words.iter().enumerate().skip(open) {
        match word.text {
            "(" | "[" | "{" => depth = depth.saturating_add(1),
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    words.len()
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str) -> String {
        let code = code_of(source);
        words_of(&code).iter().map(|word| word.text).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn comments_and_literals_are_not_code() {
        assert_eq!(texts("a // b\nc /* d /* e */ f */ g"), "a c g");
        assert_eq!(texts(r#"let x = "fn \" y"; z"#), "let x = ; z");
        assert_eq!(texts("let x = r#\"fn \" y\"#; z"), "let x = ; z");
        assert_eq!(texts(r"match c { '\'' => 1, '{' => 2, _ => 'x' }"), {
            "match c { = > 1 , = > 2 , _ = > }"
        });
        assert_eq!(texts("fn f<'a>(x: &'a str)"), "fn f < ' a > ( x : & ' a str )");
    }

    #[test]
    fn functions_are_measured_to_their_closing_brace() {
        let code = code_of("fn a();\nfn b(x: [u8; 3])\n{\n  if x { }\n}\ntype F = fn(u8);\n");
        let words = words_of(&code);
        let measured: Vec<_> =
            functions(&words).iter().map(|f| (f.name, f.line, f.lines)).collect();
        assert_eq!(measured, [("a", 1, 1), ("b", 2, 4)]);
    }

    #[test]
    fn items_for_tests_are_found_whole() {
        let code = code_of("fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() {}\n}\nfn c() {}\n");
        assert!(matches!(test_lines(&words_of(&code)).as_slice(), [lines] if *lines == (2..6)));
        let code = code_of("#[cfg(not(test))]\nfn a() {}\n");
        assert!(test_lines(&words_of(&code)).is_empty());
    }

    #[test]
    fn attributes_keep_their_words() {
        let code = code_of("#![allow(x, reason = \"y\")]\n#[ignore]\nfn a() {}");
        let words = words_of(&code);
        let found = attributes(&words);
        assert!(found.iter().any(|a| a.line == 1 && a.has("allow") && a.has("reason")));
        assert!(found.iter().any(|a| a.line == 2 && a.has("ignore")));
    }
}
