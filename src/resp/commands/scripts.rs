//! `EVAL`, for the one script that fastapi-cachette sends: it deletes the keys of a pattern.
//!
//! ```lua
//! for i, key in ipairs(redis.call("KEYS", "NAMESPACE:*")) do redis.call("DEL", key); end
//! ```
//!
//! Larder runs no Lua. It reads this one sentence, whatever its names, quotes and spaces, and refuses every other.

use bytes::Bytes;

use super::one::Work;
use super::{Command, Context, Step, When};
use crate::base::RespClass;
use crate::resp::reply::Reply;
use crate::resp::values::glob::Pattern;
use crate::resp::values::listing::Asker;
use crate::resp::values::operation::{NOT_AN_INTEGER, Operation, read_integer};

/// The most bytes of a script: more than the sentence has with the longest pattern.
const LONGEST_SCRIPT: usize = 8 << 10;

const fn command(name: &'static str, arity: i16, run: super::Handler) -> Command {
    let (class, flags): (_, &[&str]) = (RespClass::Transaction, &["noscript", "write"]);
    Command { name, arity, class, flags, keys: (0, 0, 0), when: When::Usual, run }
}

pub(super) static COMMANDS: &[Command] = &[
    command("eval", -3, eval),
    // A client then sends the script itself.
    command("evalsha", -3, |_, _| Reply::error("NOSCRIPT No matching script. Please use EVAL.").into()),
];

/// `EVAL script numkeys [key …] [argument …]`
fn eval(context: &mut Context<'_>, arguments: &[Bytes]) -> Step {
    let count = match read_integer(&arguments[2]) {
        None => return Reply::error(NOT_AN_INTEGER).into(),
        Some(count) if count < 0 => return Reply::error("ERR Number of keys can't be negative").into(),
        Some(count) => usize::try_from(count).unwrap_or(usize::MAX),
    };
    if count > arguments.len() - 3 {
        return Reply::error("ERR Number of keys can't be greater than number of args").into();
    }
    let script = Some(&arguments[1]).filter(|script| script.len() <= LONGEST_SCRIPT);
    let Some(pattern) = script.and_then(|script| std::str::from_utf8(script).ok()).and_then(deleted_by) else {
        let text = "ERR Larder runs no scripts, but for one that deletes the keys of a pattern: see docs/resp.md";
        return Reply::error(text).into();
    };
    if context.session.holds_turns {
        // It names no keys, so nobody could take their turns before.
        return Reply::error("ERR a script is not carried out inside a transaction").into();
    }
    if let Err(error) = Pattern::check(pattern.as_bytes()) {
        return error.into();
    }
    let (work, asker) = (Work::of(context), context.session.asker());
    Step::Waits(Box::pin(async move { delete_all(&work, &asker, pattern.as_bytes()).await }))
}

async fn delete_all(work: &Work, asker: &Asker, pattern: &[u8]) -> Reply {
    let names = match work.values.keys(asker, work.database, pattern).await {
        Ok(names) => names,
        Err(error) => return error,
    };
    for (count, name) in names.iter().enumerate() {
        // Listed a moment ago: there is nothing to ask the durable tier.
        if let Ok(key) = work.values.key(work.database, name) {
            work.carry_out(&key, Operation::Delete).await;
        }
        if count % 64 == 63 {
            tokio::task::yield_now().await;
        }
    }
    Reply::Null
}

/// A word, a sign, or a text of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Sign(char),
    Text(String),
}

/// Returns the pattern whose keys a script deletes, if that is what it does.
fn deleted_by(script: &str) -> Option<String> {
    let mut tokens = tokens(script)?;
    if tokens.last() == Some(&Token::Sign(';')) {
        tokens.pop();
    }
    if let [.., Token::Sign(';'), Token::Word(end)] = &tokens[..]
        && end == "end"
    {
        tokens.remove(tokens.len() - 2);
    }
    let (mut rest, mut texts) = (tokens.into_iter(), Vec::new());
    // A variable stands for what is called so the first time.
    let mut variables: Vec<(&str, String)> = Vec::new();
    let expected = "for $i , $key in ipairs ( redis . call ( \" , \" ) ) do redis . call ( \" , $key ) end";
    for wanted in expected.split(' ') {
        match (wanted, rest.next()?) {
            ("\"", Token::Text(text)) => texts.push(text),
            (variable, Token::Word(word)) if variable.starts_with('$') => {
                match variables.iter().find(|(known, _)| *known == variable) {
                    Some((_, known)) if *known != word => return None,
                    Some(_) => {}
                    None => variables.push((variable, word)),
                }
            }
            (wanted, Token::Word(word)) if wanted == word => {}
            (wanted, Token::Sign(sign)) if wanted.chars().eq([sign]) => {}
            _ => return None,
        }
    }
    let is_distinct = variables.first().map(|(_, name)| name) != variables.get(1).map(|(_, name)| name);
    let [lists, pattern, deletes] = texts.try_into().ok()?;
    let is_it = lists.eq_ignore_ascii_case("keys")
        && (deletes.eq_ignore_ascii_case("del") || deletes.eq_ignore_ascii_case("unlink"));
    (rest.next().is_none() && is_distinct && is_it).then_some(pattern)
}

/// Reads the tokens of a script; `None` if there is anything else than words, signs and plain texts.
fn tokens(script: &str) -> Option<Vec<Token>> {
    let (mut tokens, mut rest) = (Vec::new(), script.chars().peekable());
    while let Some(first) = rest.next() {
        // The sentence has 27 tokens.
        if tokens.len() > 40 {
            return None;
        }
        match first {
            ' ' | '\t' | '\n' | '\r' => {}
            'a'..='z' | 'A'..='Z' | '_' => {
                let mut word = String::from(first);
                while let Some(next) = rest.next_if(|next| next.is_ascii_alphanumeric() || *next == '_') {
                    word.push(next);
                }
                tokens.push(Token::Word(word));
            }
            '(' | ')' | ',' | '.' | ';' => tokens.push(Token::Sign(first)),
            '"' | '\'' => tokens.push(Token::Text(text(first, &mut rest)?)),
            _ => return None,
        }
    }
    Some(tokens)
}

/// Reads a text behind its first quote.
fn text(quote: char, rest: &mut impl Iterator<Item = char>) -> Option<String> {
    let mut text = String::new();
    loop {
        match rest.next()? {
            end if end == quote => return Some(text),
            '\\' => match rest.next()? {
                escaped @ ('\\' | '"' | '\'') => text.push(escaped),
                // Lua knows more of them, which nobody needs here.
                _ => return None,
            },
            '\n' | '\r' => return None,
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_script_is_known_by_its_shape_and_no_other_is() {
        for (script, expected) in [
            (r#"for i, key in ipairs(redis.call("KEYS", "a b:*")) do redis.call("DEL", key); end"#, Some("a b:*")),
            ("for _,k in ipairs(redis.call('keys','x*')) do\n redis.call('unlink',k)\nend;", Some("x*")),
            (r#"for i, key in ipairs(redis.call("KEYS", "a\"b\\*")) do redis.call("DEL", key) end"#, Some(r#"a"b\*"#)),
            (r#"for i, key in ipairs(redis.call("KEYS", "a")) do redis.call("DEL", i); end"#, None),
            (r#"for k, k in ipairs(redis.call("KEYS", "a")) do redis.call("DEL", k); end"#, None),
            (r#"for i, key in ipairs(redis.call("KEYS", "a")) do redis.call("GET", key); end"#, None),
            (r#"for i, key in ipairs(redis.call("KEYS", "a\n")) do redis.call("DEL", key); end"#, None),
            (r#"for i, key in ipairs(redis.call("KEYS", "a")) do redis.call("DEL", key); end os.exit()"#, None),
            (r#"for i, key in ipairs(redis.call("KEYS", "a" do"#, None),
            ("return 1", None),
            ("", None),
        ] {
            assert_eq!(deleted_by(script).as_deref(), expected, "{script}");
        }
    }
}
