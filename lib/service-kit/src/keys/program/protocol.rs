//! What a service and its keyring program say to each other: a JSON object per line, UTF-8, each with the question's id.
//!
//! ```text
//! {"id":1,"ask":"versions"}
//! {"id":1,"current":2,"versions":[1,2]}
//!
//! {"id":2,"ask":"key","owner":"01018f…","version":1}
//! {"id":2,"key":"<32 bytes, base64>"}
//! {"id":3,"error":"missing"}
//! {"id":4,"error":"unavailable","reason":"…"}
//! ```
//!
//! An owner is the 34 hexadecimal digits of [`Owner::to_bytes`]. Answers come in any order. Fields that a reader does not
//! know are passed over, so that later versions can add some. A program writes nothing else to its standard output, and ends
//! when its standard input does.

use std::io;

use schemas::limits::KEYRING_LINE_BYTES_MAX;
use sealing::Key;
use sealing::keyring::{KeyVersion, KeyringError, Owner};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use zeroize::{Zeroize as _, Zeroizing};

use super::super::key_text;

/// What a service asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// A number that no other question of this program's life has.
    pub id: u64,
    /// The question itself.
    #[serde(flatten)]
    pub ask: Ask,
}

/// A question itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase")]
pub enum Ask {
    /// Which versions there are.
    Versions,
    /// An owner's key of one version.
    Key {
        /// Whose.
        #[serde(with = "owner_text")]
        owner: Owner,
        /// Of which version.
        version: u32,
    },
}

impl Question {
    /// The question in a line, with its end.
    pub fn to_line(&self) -> Vec<u8> {
        line_of(self).to_vec()
    }

    /// The question in this line; `None` when there is none.
    pub fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// The id in a line whose question is not known here: a later version's.
    pub fn id_of(line: &[u8]) -> Option<u64> {
        #[derive(Deserialize)]
        struct Id {
            id: u64,
        }
        serde_json::from_slice::<Id>(line).ok().map(|id| id.id)
    }
}

/// What a program answers.
#[derive(Debug)]
pub struct Answer {
    /// The question's id.
    pub id: u64,
    /// The answer itself.
    pub says: Says,
}

/// An answer itself.
#[derive(Debug)]
pub enum Says {
    /// The versions that can open, and which of them wraps new keys.
    Versions {
        /// It is one of them.
        current: KeyVersion,
        /// All.
        versions: Vec<KeyVersion>,
    },
    /// The key.
    Key(Key),
    /// There is no such version any more.
    Missing,
    /// No answer can be had now.
    Unavailable(String),
}

/// An answer as it stands in a line.
#[derive(Serialize, Deserialize)]
struct Line {
    id: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    current: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    versions: Option<Vec<u32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<KeyText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct KeyText(#[serde(with = "key_text")] Key);

impl Answer {
    /// What a keyring said of its versions.
    pub fn versions(id: u64, said: Result<(KeyVersion, Vec<KeyVersion>), KeyringError>) -> Self {
        let says = said.map(|(current, versions)| Says::Versions { current, versions });
        Self { id, says: says.unwrap_or_else(Says::refusal) }
    }

    /// What a keyring said when it was asked for a key.
    pub fn key(id: u64, said: Result<Key, KeyringError>) -> Self {
        Self { id, says: said.map_or_else(Says::refusal, Says::Key) }
    }

    /// The answer in a line, with its end.
    pub fn to_line(&self) -> Zeroizing<Vec<u8>> {
        let mut line = Line { id: self.id, current: None, versions: None, key: None, error: None, reason: None };
        match &self.says {
            Says::Versions { current, versions } => {
                line.current = Some(current.0);
                line.versions = Some(versions.iter().map(|version| version.0).collect());
            }
            Says::Key(key) => line.key = Some(KeyText(key.clone())),
            Says::Missing => line.error = Some("missing".into()),
            Says::Unavailable(reason) => {
                line.error = Some("unavailable".into());
                line.reason = Some(reason.clone());
            }
        }
        line_of(&line)
    }

    /// The answer in this line; `None` when there is none. What is wrong with it is not told: it may hold a key.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let Line { id, current, versions, key, error, reason } = serde_json::from_slice(line).ok()?;
        let says = match (current, versions, key, error) {
            (Some(current), Some(versions), None, None) if versions.contains(&current) => Says::Versions {
                current: KeyVersion(current),
                versions: versions.into_iter().map(KeyVersion).collect(),
            },
            (None, None, Some(KeyText(key)), None) => Says::Key(key),
            (None, None, None, Some(error)) if error == "missing" => Says::Missing,
            // Also a word that is not known here: trying again is what is safe.
            (None, None, None, Some(error)) => Says::Unavailable(printable(&reason.unwrap_or(error))),
            _ => return None,
        };
        Some(Self { id, says })
    }
}

impl Says {
    fn refusal(error: KeyringError) -> Self {
        match error {
            KeyringError::Missing(_) => Self::Missing,
            KeyringError::Unavailable(reason) => Self::Unavailable(printable(&reason)),
        }
    }
}

/// Another program's words as they may stand in a log line: one line of bounded length.
fn printable(words: &str) -> String {
    const CHARS_MAX: usize = 500;
    words.chars().map(|char| if char.is_control() { ' ' } else { char }).take(CHARS_MAX).collect()
}

fn line_of(content: &impl Serialize) -> Zeroizing<Vec<u8>> {
    // Large enough for a key's line from the beginning: a vector that grows leaves copies behind.
    let mut line = Zeroizing::new(Vec::with_capacity(256));
    serde_json::to_writer(&mut *line, content).expect("numbers and texts are written to memory");
    line.push(b'\n');
    line
}

/// Lines of bounded length from a pipe. What was given out is wiped behind it.
#[derive(Debug)]
pub struct Lines<R> {
    from: R,
    buffer: Zeroizing<Vec<u8>>,
    filled: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// The lines of this pipe.
    pub fn new(from: R) -> Self {
        Self { from, buffer: Zeroizing::new(vec![0; KEYRING_LINE_BYTES_MAX + 1]), filled: 0 }
    }

    /// The next line without its end; `None` at the pipe's end, where an unfinished line is not one. Nothing is lost when
    /// the future is dropped.
    pub async fn next(&mut self) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        loop {
            if let Some(len) = self.buffer[..self.filled].iter().position(|byte| *byte == b'\n') {
                let line = Zeroizing::new(self.buffer[..len].to_vec());
                self.buffer.copy_within(len + 1..self.filled, 0);
                let left = self.filled - (len + 1);
                self.buffer[left..self.filled].zeroize();
                self.filled = left;
                return Ok(Some(line));
            }
            if self.filled == self.buffer.len() {
                let bound = format!("a line is longer than {KEYRING_LINE_BYTES_MAX} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, bound));
            }
            let read = self.from.read(&mut self.buffer[self.filled..]).await?;
            if read == 0 {
                return Ok(None);
            }
            self.filled += read;
        }
    }
}

/// An owner as hexadecimal digits.
mod owner_text {
    use sealing::keyring::Owner;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(owner: &Owner, serializer: S) -> Result<S::Ok, S::Error> {
        let digits: String = owner.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&digits)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Owner, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).ok_or_else(|| D::Error::custom("an owner is 34 hexadecimal digits"))
    }

    fn parse(text: &str) -> Option<Owner> {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let mut bytes = [0; 17];
        if pairs.len() != bytes.len() || !rest.is_empty() {
            return None;
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?;
        }
        Owner::from_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use schemas::WorkspaceId;
    use uuid::Uuid;

    use super::*;

    const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

    #[test]
    fn questions_stand_in_lines_as_the_page_has_them() {
        let owner = Owner::Workspace(WorkspaceId(Uuid::from_u128(0x018f_0000_0000_7000_8000_0000_0000_00ab)));
        let lines = [
            (Question { id: 1, ask: Ask::Versions }, r#"{"id":1,"ask":"versions"}"#.to_owned()),
            (
                Question { id: 2, ask: Ask::Key { owner, version: 1 } },
                r#"{"id":2,"ask":"key","owner":"01018f000000007000800000000000 00ab","version":1}"#.replace(' ', ""),
            ),
            (
                Question { id: 3, ask: Ask::Key { owner: Owner::Storage, version: 7 } },
                format!(r#"{{"id":3,"ask":"key","owner":"02{}","version":7}}"#, "0".repeat(32)),
            ),
        ];
        for (question, line) in lines {
            assert_eq!(String::from_utf8(question.to_line()).unwrap(), format!("{line}\n"));
            assert_eq!(Question::parse(line.as_bytes()).unwrap(), question);
        }
        let later = br#"{"id":9,"ask":"weather","where":"here"}"#;
        assert_eq!((Question::parse(later), Question::id_of(later)), (None, Some(9)));
        for wrong in [r#"{"id":1}"#, "[]", "", r#"{"id":2,"ask":"key","owner":"0200","version":1}"#] {
            assert_eq!(Question::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn answers_stand_in_lines_as_the_page_has_them() {
        let unavailable = KeyringError::Unavailable("throttled\nERROR all is lost".into());
        let answers = [
            (
                Answer::versions(1, Ok((KeyVersion(2), vec![KeyVersion(1), KeyVersion(2)]))),
                r#"{"id":1,"current":2,"versions":[1,2]}"#,
            ),
            (Answer::key(2, Ok(Key::new([1; 32]))), &format!(r#"{{"id":2,"key":"{KEY}"}}"#)),
            (Answer::key(3, Err(KeyringError::Missing(KeyVersion(9)))), r#"{"id":3,"error":"missing"}"#),
            (
                Answer::key(4, Err(unavailable)),
                r#"{"id":4,"error":"unavailable","reason":"throttled ERROR all is lost"}"#,
            ),
        ];
        for (answer, line) in answers {
            assert_eq!(str::from_utf8(&answer.to_line()).unwrap(), format!("{line}\n"));
            let read = Answer::parse(line.as_bytes()).unwrap();
            assert_eq!(*read.to_line(), *answer.to_line());
            assert!(!format!("{read:?}").contains("AQEB"), "a key is never shown");
        }
    }

    #[test]
    fn what_is_no_answer_is_none_and_a_word_that_is_not_known_is_for_trying_again() {
        let wrong = [
            "",
            "key",
            r#"{"id":1}"#,
            r#"{"key":"AAAA"}"#,
            r#"{"id":1,"key":"AAAA"}"#,
            r#"{"id":1,"current":1,"versions":[]}"#,
            r#"{"id":1,"current":-1,"versions":[-1]}"#,
            &format!(r#"{{"id":1,"key":"{KEY}","error":"missing"}}"#),
        ];
        for line in wrong {
            assert!(Answer::parse(line.as_bytes()).is_none(), "{line}");
        }
        let later = Answer::parse(br#"{"id":1,"error":"busy","since":3}"#).unwrap();
        assert!(matches!(later.says, Says::Unavailable(reason) if reason == "busy"));
    }

    #[tokio::test]
    async fn lines_are_bounded_and_wiped_behind_their_reader() {
        let mut lines = Lines::new(b"one\ntwo\nunfinished".as_slice());
        assert_eq!(*lines.next().await.unwrap().unwrap(), b"one");
        assert_eq!(*lines.next().await.unwrap().unwrap(), b"two");
        assert!(lines.next().await.unwrap().is_none());
        assert!(!lines.buffer.windows(3).any(|bytes| bytes == b"one" || bytes == b"two"));

        let longest = [vec![b'a'; KEYRING_LINE_BYTES_MAX], vec![b'\n']].concat();
        assert_eq!(Lines::new(longest.as_slice()).next().await.unwrap().unwrap().len(), KEYRING_LINE_BYTES_MAX);
        let longer = vec![b'a'; KEYRING_LINE_BYTES_MAX + 1];
        assert_eq!(Lines::new(longer.as_slice()).next().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
