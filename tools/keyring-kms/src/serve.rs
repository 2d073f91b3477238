//! Answering a service's questions from a keyring.

use std::io;
use std::sync::Arc;

use schemas::limits::KEYRING_QUESTIONS_MAX;
use sealing::keyring::{KeyVersion, Keyring, KeyringError};
use service_kit::keys::program::protocol::{Answer, Ask, Lines, Question};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinSet;

/// Answers questions until there are no more, each as soon as its answer is known. An error when a line is no question, or
/// when nobody takes the answers.
pub async fn serve(
    keyring: Arc<dyn Keyring>,
    questions: impl AsyncRead + Unpin,
    mut answers: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut lines = Lines::new(questions);
    let mut answering = JoinSet::new();
    let mut is_asked = true;
    loop {
        tokio::select! {
            line = lines.next(), if is_asked && answering.len() <= KEYRING_QUESTIONS_MAX => match line? {
                Some(line) => drop(answering.spawn(answer(Arc::clone(&keyring), line.to_vec()))),
                None => is_asked = false,
            },
            Some(answered) = answering.join_next() => {
                let answer = answered.map_err(io::Error::other)??;
                answers.write_all(&answer.to_line()).await?;
                answers.flush().await?;
            }
            else => return Ok(()),
        }
    }
}

async fn answer(keyring: Arc<dyn Keyring>, line: Vec<u8>) -> io::Result<Answer> {
    let Some(question) = Question::parse(&line) else {
        let no_question = || io::Error::new(io::ErrorKind::InvalidData, "a line is no question");
        let id = Question::id_of(&line).ok_or_else(no_question)?;
        // A later service's: it goes on without an answer to this one.
        return Ok(Answer::key(id, Err(KeyringError::Unavailable("the program does not know this question".into()))));
    };
    Ok(match question.ask {
        Ask::Versions => {
            let current = keyring.current();
            Answer::versions(question.id, current.and_then(|current| Ok((current, keyring.versions()?))))
        }
        Ask::Key { owner, version } => Answer::key(question.id, keyring.key(owner, KeyVersion(version)).await),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sealing::Key;
    use sealing::keyring::{KeyFuture, Owner, Roots};

    use super::*;

    fn roots() -> Arc<Roots> {
        let versions: BTreeMap<_, _> = [1, 2].map(|n| (KeyVersion(n), Key::new([n as u8; 32]))).into();
        Arc::new(Roots::new(KeyVersion(2), versions).unwrap())
    }

    async fn serve_all(questions: &str) -> (io::Result<()>, Vec<String>) {
        let mut answers = Vec::new();
        let served = serve(roots(), questions.as_bytes(), &mut answers).await;
        let mut lines: Vec<String> = String::from_utf8(answers).unwrap().lines().map(str::to_owned).collect();
        lines.sort();
        (served, lines)
    }

    #[tokio::test]
    async fn each_question_has_its_answer() {
        let storage = format!("02{}", "0".repeat(32));
        let questions = format!(
            "{}\n{}\n{}\n{}\n",
            r#"{"id":1,"ask":"versions"}"#,
            format_args!(r#"{{"id":2,"ask":"key","owner":"{storage}","version":1}}"#),
            format_args!(r#"{{"id":3,"ask":"key","owner":"{storage}","version":9}}"#),
            r#"{"id":4,"ask":"weather"}"#,
        );
        let (served, answers) = serve_all(&questions).await;
        served.unwrap();
        let key = Answer::key(2, roots().derive(Owner::Storage, KeyVersion(1))).to_line();
        let expected = [
            r#"{"id":1,"current":2,"versions":[1,2]}"#,
            str::from_utf8(&key).unwrap().trim_end(),
            r#"{"id":3,"error":"missing"}"#,
            r#"{"id":4,"error":"unavailable","reason":"the program does not know this question"}"#,
        ];
        assert_eq!(answers, expected);
    }

    /// A keyring that has version 1 once it was asked for version 2.
    #[derive(Debug, Default)]
    struct Entangled(tokio::sync::Notify);

    impl Keyring for Entangled {
        fn current(&self) -> Result<KeyVersion, KeyringError> {
            Err(KeyringError::Unavailable("not yet".into()))
        }

        fn versions(&self) -> Result<Vec<KeyVersion>, KeyringError> {
            self.current().map(|version| vec![version])
        }

        fn key(&self, _: Owner, version: KeyVersion) -> KeyFuture<'_> {
            Box::pin(async move {
                if version == KeyVersion(1) {
                    self.0.notified().await;
                } else {
                    self.0.notify_one();
                }
                Err(KeyringError::Missing(version))
            })
        }
    }

    #[tokio::test]
    async fn no_question_waits_for_another() {
        let storage = format!("02{}", "0".repeat(32));
        let question = |id| format!(r#"{{"id":{id},"ask":"key","owner":"{storage}","version":{id}}}"#);
        let questions = [question(1), question(2), r#"{"id":3,"ask":"versions"}"#.into(), String::new()].join("\n");
        let mut answers = Vec::new();
        let serving = serve(Arc::new(Entangled::default()), questions.as_bytes(), &mut answers);
        tokio::time::timeout(std::time::Duration::from_secs(60), serving).await.unwrap().unwrap();
        let answers = String::from_utf8(answers).unwrap();
        for expected in [
            r#"{"id":1,"error":"missing"}"#,
            r#"{"id":2,"error":"missing"}"#,
            r#"{"id":3,"error":"unavailable","reason":"not yet"}"#,
        ] {
            assert!(answers.lines().any(|line| line == expected), "{answers}");
        }
    }

    #[tokio::test]
    async fn a_line_that_is_no_question_ends_it() {
        for line in ["hello\n", "{}\n", "\n", &"a".repeat(20_000)] {
            let (served, answers) = serve_all(line).await;
            assert_eq!((served.unwrap_err().kind(), answers.len()), (io::ErrorKind::InvalidData, 0), "{line}");
        }
    }
}
