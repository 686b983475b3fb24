//! Chat templates.

use std::fmt;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, context};

use crate::error::DataError;

/// A chat template in Jinja, as `tokenizer_config.json` holds one, rendered for a single user message.
///
/// Blocks trim the line feed behind them and the blanks before them, and strings have Python's methods, as in
/// Transformers. A template sees `messages` (one, with `role` "user" and `content`), `add_generation_prompt`
/// (true), `bos_token`, `eos_token` and the function `raise_exception`.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the spellings of the begin and end tokens.
    ///
    /// # Errors
    /// [`DataError::ChatTemplate`] with the line.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, DataError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|error| failed(&error))?;
        environment.set_syntax(syntax);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| {
            Err::<String, _>(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| failed(&error))?;
        Ok(Self {
            environment,
            bos: bos.to_owned(),
            eos: eos.to_owned(),
        })
    }

    /// The text of one user message and the beginning of the answer.
    ///
    /// # Errors
    /// [`DataError::ChatTemplate`] with the line and what the template, or Jinja, complains about.
    pub fn render(&self, prompt: &str) -> Result<String, DataError> {
        let template = self.environment.get_template(NAME);
        let message = context! { role => "user", content => prompt };
        let values = context! {
            messages => vec![message],
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        };
        template
            .and_then(|template| template.render(values))
            .map_err(|error| failed(&error))
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .finish_non_exhaustive()
    }
}

fn failed(error: &minijinja::Error) -> DataError {
    DataError::ChatTemplate {
        line: error.line(),
        problem: match error.detail() {
            Some(detail) => format!("{}: {detail}", error.kind()),
            None => error.kind().to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, prompt: &str) -> Result<String, DataError> {
        ChatTemplate::new(source, "<s>", "</s>")?.render(prompt)
    }

    #[test]
    fn blocks_and_string_methods_are_pythons() {
        let source = "{{ bos_token }}\n\
            {% for message in messages %}\n\
            {%- if message['role'] == 'user' %}\n\
            [Q] {{ message.content.strip() | trim }} [/Q]\n\
            {% endif %}\n\
            {% endfor %}\n\
            {% if add_generation_prompt %}\n[A]\n{%- endif %}";
        assert_eq!(render(source, " hi ").unwrap(), "<s>\n[Q] hi [/Q]\n[A]");
    }

    #[test]
    fn errors_name_the_line() {
        let message = render("ok\n{% if %}", "x").unwrap_err().to_string();
        assert!(message.contains("chat template, line 2"), "{message}");
        let refusing = "{% if messages %}\n{{ raise_exception('no such role') }}{% endif %}";
        let message = render(refusing, "x").unwrap_err().to_string();
        assert!(
            message.contains("line 2") && message.contains("no such role"),
            "{message}"
        );
        let message = render("{{ messages[0].content.nonsense() }}", "x").unwrap_err();
        assert!(message.to_string().contains("nonsense"), "{message}");
    }
}
