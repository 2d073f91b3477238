//! One pass over a batch's events: finds what the index needs, and what must change.
//!
//! The pass walks the text and notes edits; an event without any stays byte for byte. What the JSON of rrweb cannot look like is
//! not guessed at: of such an event nothing is kept but its time, and nothing of its stream is open any more. rrweb writes what
//! a node is before what is below it; an event that has it the other way round is such a one.

use std::borrow::Cow;

use crate::attributes::{
    BLOCK_ATTRIBUTE, Case, Kind, MASK_ATTRIBUTE, Said, Tag, Verdict, WAS_PASSWORD, is_always_kept, judge, judge_other,
    lower, may_have_query,
};
use crate::found::{Found, Level, is_interaction};
use crate::json::{Cursor, JsonError, Mark, Span, Str, Value, write_string};
use crate::redact;
use crate::rules::Rules;
use crate::selector::Seen;
use crate::state::StreamState;

const TYPE_FULL_SNAPSHOT: u64 = 2;
const TYPE_INCREMENTAL: u64 = 3;
const TYPE_META: u64 = 4;
const TYPE_CUSTOM: u64 = 5;
const TYPE_PLUGIN: u64 = 6;

const SOURCE_MUTATION: u64 = 0;
const SOURCE_MOUSE_INTERACTION: u64 = 2;
const SOURCE_INPUT: u64 = 5;
const SOURCE_STYLE_SHEET_RULE: u64 = 8;
const SOURCE_CANVAS: u64 = 9;
const SOURCE_FONT: u64 = 10;
const SOURCE_LOG: u64 = 11;
const SOURCE_STYLE_DECLARATION: u64 = 13;
const SOURCE_ADOPTED_STYLE_SHEET: u64 = 15;
/// Events of places and sizes, which hold no text: mouse, scroll, viewport, touch, media, drag, selection.
const SOURCES_WITHOUT_TEXT: [u64; 8] = [1, 3, 4, 6, 7, 12, 14, 16];

const NODE_DOCUMENT: u64 = 0;
const NODE_ELEMENT: u64 = 2;
const NODE_TEXT: u64 = 3;
const NODE_CDATA: u64 = 4;
const NODE_COMMENT: u64 = 5;

/// Plugins that tell of requests: rrweb's, which PostHog's recorder has too, and our recorder's.
pub(crate) const NETWORK_PLUGINS: [&str; 2] = ["rrweb/network@1", "clairvio/network@1"];
const CONSOLE_PLUGIN: &str = "rrweb/console@1";

/// The tag of the custom event that stands for one of which nothing could be kept.
pub const DROPPED_TAG: &str = "clairvio/dropped";

/// Steps that selectors may take in a batch: linear in it, whatever the rules.
const SELECTOR_STEPS_PER_BYTE: u64 = 4;
const SELECTOR_STEPS_MIN: u64 = 100_000;

/// What becomes of what nobody knows anything about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// It stays: somebody else who knows more comes later.
    Left,
    /// It is masked.
    Masked,
}

/// Why an event is not walked to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fail {
    /// It is no JSON.
    Json(JsonError),
    /// It is no event.
    NoEvent,
    /// It is nothing that rrweb writes.
    Irregular,
    /// Nodes that were open are not any more.
    Late,
}

impl From<JsonError> for Fail {
    fn from(error: JsonError) -> Self {
        Self::Json(error)
    }
}

type Result<T, E = Fail> = std::result::Result<T, E>;

/// What holds of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Region {
    Open,
    /// Not known, and left to somebody who knows.
    Left,
    Masked,
    Blocked,
}

impl Region {
    fn is_masked(self) -> bool {
        matches!(self, Self::Masked | Self::Blocked)
    }
}

/// What stands in a piece of text's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum With {
    /// Itself, after all.
    Same,
    Fixed(&'static str),
    /// Bytes of [`Pass::made`].
    Made(Span),
}

/// A change of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Edit {
    span: Span,
    with: With,
}

/// A mask as a JSON value.
const MASK_JSON: &str = "\"***\"";

/// What is around a node.
#[derive(Debug, Clone, Copy)]
struct Around {
    region: Region,
    parent: Tag,
}

/// An attribute as it stands in the text.
#[derive(Debug, Clone, Copy)]
struct Attribute {
    kind: Kind,
    name: Str,
    value: Value,
    /// The value, with its quotes.
    span: Span,
}

/// What was decided of an element.
#[derive(Debug, Clone, Copy)]
struct Element {
    tag: Tag,
    /// What holds of what is below it.
    below: Region,
    secret: bool,
    /// Edits that hold only if it was a password's field.
    if_secret: Option<u32>,
}

/// A field of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Type,
    TagName,
    Attributes,
    ChildNodes,
    TextContent,
    Id,
    /// What says something of a node, and shows nothing of it.
    Flag,
    Other,
}

/// How texts of an event are searched that is no page's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hint {
    Text,
    Css,
    MaskedCss,
    Url,
    Headers,
    Body,
    Secret,
}

/// Where in a plugin's event the walk is, as far as the index wants to know something of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Elsewhere,
    Event,
    Payload,
    Requests,
    Request,
}

/// What a plugin tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plugin {
    Console,
    Network,
    /// One of requests that the index learns nothing of.
    NetworkLike,
    Other,
}

/// An event that was walked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Walked {
    pub(crate) kind: u64,
    /// Milliseconds, as the client wrote it.
    pub(crate) timestamp: f64,
    pub(crate) span: Span,
    /// Whether line breaks stand between its tokens.
    pub(crate) broke: bool,
}

/// The walk.
pub(crate) struct Pass<'a, 's> {
    pub(crate) cursor: Cursor<'a>,
    rules: &'s Rules,
    state: &'s mut StreamState,
    /// What becomes of what is unknown, at the start and after a full snapshot.
    default: Unknown,
    unknown: Unknown,
    edits: Vec<Edit>,
    made: Vec<u8>,
    attributes: Vec<Attribute>,
    /// Known elements from the outermost to the one that is walked, where rules have selectors.
    path: Vec<Seen>,
    is_rooted: bool,
    /// Above zero nothing is edited: what is walked will not be there.
    mute: usize,
    plugin: Plugin,
    /// How often an event's source was said.
    sources: u32,
    /// Steps that selectors may take in this batch yet. Where none are left, elements may match.
    steps: u64,
    /// What was found in the event.
    pub(crate) found: Found,
    /// Whether what becomes of something depends on what came before, or may matter for what comes.
    pub(crate) needs_state: bool,
    /// Texts that were masked.
    pub(crate) masked: u32,
    /// Events of which nothing was kept.
    pub(crate) dropped: u32,
}

impl<'a, 's> Pass<'a, 's> {
    pub(crate) fn new(text: &'a str, rules: &'s Rules, state: &'s mut StreamState, unknown: Unknown) -> Self {
        Self {
            cursor: Cursor::new(text),
            rules,
            state,
            default: unknown,
            unknown,
            edits: Vec::new(),
            made: Vec::new(),
            attributes: Vec::new(),
            path: Vec::new(),
            is_rooted: false,
            mute: 0,
            plugin: Plugin::Other,
            sources: 0,
            steps: SELECTOR_STEPS_MIN + SELECTOR_STEPS_PER_BYTE * text.len() as u64,
            found: Found::default(),
            needs_state: false,
            masked: 0,
            dropped: 0,
        }
    }

    /// Walks the next event. Then [`Pass::write`] writes it as it is kept.
    pub(crate) fn event(&mut self) -> Result<Walked> {
        let mark = self.cursor.mark();
        self.restart(mark);
        let mut failed = match self.walk() {
            Err(fail) => fail,
            walked => return walked,
        };
        if failed == Fail::Late {
            // From here on nothing is known any more: also what this event said before it said so.
            self.close();
            self.restart(mark);
            match self.walk() {
                Err(fail) => failed = fail,
                walked => return walked,
            }
        }
        if !matches!(failed, Fail::Irregular | Fail::Late) {
            return Err(failed);
        }
        self.close();
        self.drop_event(mark)
    }

    /// Goes to the start of an event, of which nothing is decided yet.
    fn restart(&mut self, mark: Mark) {
        self.cursor.rewind(mark);
        self.edits.clear();
        self.made.clear();
    }

    /// Nothing is known any more, until the next full snapshot.
    pub(crate) fn close(&mut self) {
        self.state.close();
        self.unknown = Unknown::Masked;
        self.needs_state = true;
    }

    /// Keeps of an event no more than its time.
    fn drop_event(&mut self, mark: Mark) -> Result<Walked> {
        self.restart(mark);
        self.mute = 0;
        self.found = Found::default();
        let mut walked = Walked { kind: 5, timestamp: 0.0, span: self.value_span()?, broke: false };
        let end = self.cursor.mark();
        self.cursor.rewind(mark);
        let mut time = None;
        let mut first = true;
        self.cursor.enter_object()?;
        while self.cursor.next_key(&mut first)? {
            let key = self.cursor.key;
            if self.is_name(key, b"timestamp") {
                time = Some(self.value_span()?);
            } else {
                self.cursor.skip()?;
            }
        }
        self.cursor.rewind(end);
        let time = time.ok_or(Fail::NoEvent)?;
        walked.timestamp = self.number(time).ok_or(Fail::NoEvent)?;
        let start = self.made.len() as u32;
        self.made.extend_from_slice(br#"{"type":5,"data":{"tag":""#);
        self.made.extend_from_slice(DROPPED_TAG.as_bytes());
        self.made.extend_from_slice(br#"","payload":{}},"timestamp":"#);
        self.made.extend_from_slice(self.cursor.bytes(time));
        self.made.push(b'}');
        self.edits.push(Edit { span: walked.span, with: With::Made(Span { start, end: self.made.len() as u32 }) });
        self.dropped += 1;
        Ok(walked)
    }

    /// Whether the event that was walked has to change.
    pub(crate) fn has_changed(&self) -> bool {
        self.edits.iter().any(|edit| edit.with != With::Same)
    }

    /// Writes the event that was walked, as it is kept.
    pub(crate) fn write(&mut self, walked: &Walked, to: &mut Vec<u8>) {
        if !self.edits.is_sorted_by_key(|edit| edit.span.start) {
            self.edits.sort_by_key(|edit| edit.span.start);
        }
        let mut at = walked.span.start;
        for edit in &self.edits {
            let with = match edit.with {
                With::Same => continue,
                With::Fixed(text) => text.as_bytes(),
                With::Made(span) => self.made.get(span.start as usize..span.end as usize).unwrap_or_default(),
            };
            copy(self.cursor.bytes(Span { start: at, end: edit.span.start }), walked.broke, to);
            to.extend_from_slice(with);
            at = edit.span.end;
            self.masked = self.masked.saturating_add(1);
        }
        copy(self.cursor.bytes(Span { start: at, end: walked.span.end }), walked.broke, to);
    }

    fn walk(&mut self) -> Result<Walked> {
        self.found = Found::default();
        self.plugin = Plugin::Other;
        self.path.clear();
        self.mute = 0;
        self.cursor.broke = false;
        let next = self.cursor.peek()?;
        let start = self.cursor.at();
        if next != b'{' {
            self.cursor.skip()?;
            return Err(Fail::NoEvent);
        }
        let (mut kind, mut timestamp, mut data) = (None, None, None);
        let mut first = true;
        self.cursor.enter_object()?;
        while self.cursor.next_key(&mut first)? {
            let key = self.cursor.key;
            match self.name(key)? {
                b"type" => {
                    let value = self.cursor.whole_number()?.ok_or(Fail::NoEvent)?;
                    once(&mut kind, value)?;
                }
                b"timestamp" => {
                    let span = self.value_span()?;
                    once(&mut timestamp, self.number(span).ok_or(Fail::NoEvent)?)?;
                }
                b"data" => {
                    once(&mut data, self.cursor.mark())?;
                    match kind {
                        Some(kind) => self.data(kind)?,
                        None => self.cursor.skip()?,
                    }
                }
                _ => self.scrub(Hint::Text)?,
            }
            // What came before its type is walked once that is known.
            if let (Some(kind), Some(mark), true) = (kind, data, self.is_name(key, b"type")) {
                let here = self.cursor.mark();
                self.cursor.rewind(mark);
                self.data(kind)?;
                self.cursor.rewind(here);
            }
        }
        let (Some(kind), Some(timestamp)) = (kind, timestamp) else { return Err(Fail::NoEvent) };
        Ok(Walked { kind, timestamp, span: Span { start, end: self.cursor.at() }, broke: self.cursor.broke })
    }

    fn data(&mut self, kind: u64) -> Result<()> {
        let is_object = self.cursor.peek()? == b'{';
        match kind {
            TYPE_FULL_SNAPSHOT if is_object => self.full_snapshot(),
            TYPE_INCREMENTAL if is_object => self.incremental(),
            TYPE_META if is_object => self.meta(),
            TYPE_PLUGIN if is_object => self.plugin(),
            TYPE_CUSTOM if is_object => self.custom(),
            _ => self.scrub(Hint::Text),
        }
    }

    fn full_snapshot(&mut self) -> Result<()> {
        self.needs_state = true;
        self.state.begin_snapshot();
        self.unknown = self.default;
        self.is_rooted = true;
        let mut first = true;
        self.cursor.enter_object()?;
        while self.cursor.next_key(&mut first)? {
            let key = self.cursor.key;
            match self.name(key)? {
                b"node" => self.node(Around { region: Region::Open, parent: Tag::Other })?,
                _ => self.scrub(Hint::Text)?,
            }
        }
        self.state.shrink();
        Ok(())
    }

    /// A page begins: rrweb's full snapshot of it comes next, and until then nothing of it is known.
    fn meta(&mut self) -> Result<()> {
        self.close();
        let mut first = true;
        self.cursor.enter_object()?;
        while self.cursor.next_key(&mut first)? {
            let key = self.cursor.key;
            match self.name(key)? {
                b"href" if self.cursor.peek()? == b'"' => {
                    let href = self.cursor.string()?;
                    let text = self.cursor.decode(href);
                    let masked = redact::page_url(&text, &self.rules.names);
                    self.found.page = crate::pages::origin_and_path(masked.as_deref().unwrap_or(&text));
                    self.replace(href, masked);
                }
                _ => self.scrub(Hint::Text)?,
            }
        }
        Ok(())
    }

    fn incremental(&mut self) -> Result<()> {
        let mark = self.cursor.mark();
        let mut first = true;
        self.cursor.enter_object()?;
        let (mut source, mut sources) = (None, 0);
        while self.cursor.next_key(&mut first)? {
            if self.name(self.cursor.key)? == b"source" {
                sources += 1;
                // A player takes the last of several, and a number in whatever form.
                source = match self.cursor.value()? {
                    value @ Value::Number(span) => Some(match value.as_u64(self.cursor.text()) {
                        Some(source) => source,
                        None if self.number(span).is_some_and(|source| source >= 0.0 && source.fract() == 0.0) => {
                            return Err(Fail::Irregular);
                        }
                        // A number that no player knows.
                        None => u64::MAX,
                    }),
                    _ => None,
                };
                if source.is_some() {
                    break;
                }
            } else {
                self.cursor.skip()?;
            }
        }
        self.cursor.rewind(mark);
        if sources > 1 {
            return Err(Fail::Irregular);
        }
        self.sources = 0;
        let Some(source) = source else { return self.scrub(Hint::Text) };
        self.found.interacts = is_interaction(source);
        match source {
            SOURCE_MUTATION => self.mutation(),
            SOURCE_MOUSE_INTERACTION => self.mouse_interaction(),
            SOURCE_INPUT => self.input(),
            SOURCE_STYLE_SHEET_RULE | SOURCE_STYLE_DECLARATION | SOURCE_ADOPTED_STYLE_SHEET => self.styles(),
            SOURCE_CANVAS => self.canvas(),
            // Of places and sizes: where a text is in it all the same, it is taken for a secret. What is nested are places.
            _ if SOURCES_WITHOUT_TEXT.contains(&source) => self.each_field(Hint::Secret, false),
            SOURCE_LOG | SOURCE_FONT => self.each_field(Hint::Text, true),
            // What a later release of rrweb may tell: nobody knows of whom.
            _ => self.each_field(Hint::Secret, true),
        }
    }

    /// Searches the texts of an event's fields but its source, and what is nested in them if that is wanted.
    fn each_field(&mut self, texts: Hint, is_nested_too: bool) -> Result<()> {
        let mut first = true;
        self.cursor.enter_object()?;
        while self.cursor.next_key(&mut first)? {
            let key = self.cursor.key;
            if self.is_source(key)? {
                continue;
            }
            match self.cursor.peek()? {
                b'"' => self.scrub(texts)?,
                b'{' | b'[' if is_nested_too => self.scrub(texts)?,
                _ => self.cursor.skip()?,
            }
        }
        Ok(())
    }

    /// Whether a name is that of an event's source, which is passed over then. It is said once.
    fn is_source(&mut self, key: Str) -> Result<bool> {
        if self.name(key)? != b"source" {
            return Ok(false);
        }
        self.cursor.skip()?;
        self.sources += 1;
        if self.sources > 1 { Err(Fail::Irregular) } else { Ok(true) }
    }

    fn mouse_interaction(&mut self) -> Result<()> {
        let mut first = true;
        self.cursor.enter_object()?;
        while self.cursor.next_key(&mut first)? {
            let key = self.cursor.key;
            if self.is_source(key)? {
                continue;
            }
            let value = self.cursor.value()?;
            if let Value::String(text) = value {
                self.mask(text);
            }
            if self.is_name(key, b"type") {
                self.found.interaction = value.as_u64(self.cursor.text());
            }
        }
        Ok(())
    }

    fn mutation(&mut self) -> Result<()> {
        self.is_rooted = false;
        let mut first = true;
        self.cursor.enter_object()?;
        while self.cursor.next_key(&mut first)? {
            let key = self.cursor.key;
            if self.is_source(key)? {
                continue;
            }
            let each: fn(&mut Self) -> Result<bool> = match self.name(key)? {
                b"texts" => Self::changed_text,
                b"attributes" => Self::changed_attributes,
                b"adds" => Self::added,
                b"removes" => Self::removed,
                _ => {
                    self.scrub(Hint::Text)?;
                    continue;
                }
            };
            if self.cursor.enter_array()? {
                self.entries(each)?;
            } else {
                // Nothing that a player would read.
                self.scrub(Hint::Secret)?;
            }
        }
        self.state.shrink();
        Ok(())
    }

    /// The entries of an array that was entered, as far as they are kept.
    fn entries(&mut self, each: fn(&mut Self) -> Result<bool>) -> Result<()> {
        let start = self.cursor.at();
        // Where the last entry that is kept ends, and whether others came after it.
        let (mut kept_until, mut gap) = (None, false);
        let mut first = true;
        while self.cursor.next_item(&mut first)? {
            self.needs_state = true;
            self.cursor.peek()?;
            let (at, edits, made) = (self.cursor.at(), self.edits.len(), self.made.len());
            if !each(self)? {
                self.edits.truncate(edits);
                self.made.truncate(made);
                gap = true;
                continue;
            }
            if std::mem::take(&mut gap) {
                let with = With::Fixed(if kept_until.is_some() { "," } else { "" });
                self.edit(Span { start: kept_until.unwrap_or(start), end: at }, with);
            }
            kept_until = Some(self.cursor.at());
        }
        if gap {
            let end = self.cursor.at() - 1;
            self.edit(Span { start: kept_until.unwrap_or(start), end }, With::Fixed(""));
        }
        Ok(())
    }

    /// An entry of a mutation's removed nodes. One that is blocked was never there.
    fn removed(&mut self) -> Result<bool> {
        if self.state.blocked.is_empty() {
            self.cursor.skip()?;
            return Ok(true);
        }
        let parent = self.id_of_entry(b"parentId")?;
        Ok(self.region_of(parent) != Region::Blocked || !self.cuts())
    }

    /// An entry of a mutation's texts.
    fn changed_text(&mut self) -> Result<bool> {
        let mut first = true;
        if !self.cursor.enter_object()? {
            return Err(Fail::Irregular);
        }
        let (mut id, mut text) = (None, None);
        while self.cursor.next_key(&mut first)? {
            let key = self.cursor.key;
            match self.name(key)? {
                b"id" => regular(once(&mut id, self.cursor.whole_number()?))?,
                b"value" => regular(once(&mut text, self.value_span()?))?,
                _ => self.scrub(Hint::Secret)?,
            }
        }
        let region = self.region_of(id_of(id));
        if let Some(span) = text
            && (region.is_masked() || self.rules.all_text)
        {
            self.mask_span(span);
        }
        Ok(region != Region::Blocked || !self.cuts())
    }

    /// Whether what is blocked is cut off here. An edge leaves it in its place without its content: who comes later has to know
    /// which nodes are blocked.
    fn cuts(&self) -> bool {
        self.default == Unknown::Masked
    }

    /// Leaves nothing of an object but its braces.
    fn empty_object(&mut self) -> Result<()> {
        let span = self.value_span()?;
        if !matches!(self.cursor.bytes(span), b"{}" | b"null") {
            self.edit(span, With::Fixed("{}"));
        }
        Ok(())
    }

    /// An entry of a mutation's attributes. Of a blocked element the box stays as it was.
    fn changed_attributes(&mut self) -> Result<bool> {
        self.entry(b"id", b"attributes", |pass, id| {
            let region = pass.region_of(id);
            if region == Region::Blocked {
                pass.empty_object()?;
            } else if pass.cursor.peek()? == b'{' {
                pass.change(id, region)?;
            } else {
                pass.scrub(Hint::Secret)?;
            }
            Ok(region != Region::Blocked || !pass.cuts())
        })
    }

    /// An entry that says something of a node: its id under one name, and what is said under another. rrweb writes the id first.
    #[inline(always)]
    fn entry(
        &mut self,
        id_name: &[u8],
        said_name: &[u8],
        hear: impl Fn(&mut Self, Option<u32>) -> Result<bool>,
    ) -> Result<bool> {
        let mut first = true;
        if !self.cursor.enter_object()? {
            return Err(Fail::Irregular);
        }
        let (mut id, mut said, mut late, mut is_kept) = (None, None, None, true);
        while self.cursor.next_key(&mut first)? {
            let name = self.name(self.cursor.key)?;
            if name == id_name {
                regular(once(&mut id, self.cursor.whole_number()?))?;
            } else if name == said_name {
                let mark = self.cursor.mark();
                regular(once(&mut said, mark))?;
                if id.is_some() {
                    is_kept = hear(self, id_of(id))?;
                } else {
                    late = Some(mark);
                    self.cursor.skip()?;
                }
            } else if matches!(self.cursor.peek()?, b'"' | b'{' | b'[') {
                self.scrub(Hint::Secret)?;
            } else {
                self.cursor.skip()?;
            }
        }
        if let Some(mark) = late {
            let here = self.cursor.mark();
            self.cursor.rewind(mark);
            is_kept = hear(self, id_of(id))?;
            self.cursor.rewind(here);
        }
        Ok(is_kept)
    }

    /// The attributes of a node that is there already.
    fn change(&mut self, id: Option<u32>, region: Region) -> Result<()> {
        self.take_attributes()?;
        let said = self.said(Tag::Unseen);
        let is_late = said.masked
            || said.blocked
            || (said.editable && self.rules.all_inputs)
            || (self.rules.has_selectors() && {
                let seen = self.seen(None);
                let steps = &mut self.steps;
                self.rules.mask.may_match_since(&seen, steps) || self.rules.block.may_match_since(&seen, steps)
            });
        if is_late && !region.is_masked() {
            // Nobody knows any more what is below it.
            return Err(Fail::Late);
        }
        if let Some(id) = id.filter(|_| said.secret) {
            self.state.secret.insert(id);
        }
        let is_unsure = (self.state.missed || id.is_none()) && self.unknown == Unknown::Masked;
        let was_secret = is_unsure || id.is_some_and(|id| self.state.secret.contains(id));
        let masked = region.is_masked();
        let case = Case { rules: self.rules, tag: Tag::Unseen, said, masked, was_secret: Some(was_secret) };
        self.judge_attributes(&case)?;
        Ok(())
    }

    /// An entry of a mutation's added nodes. What is put below a blocked element is not there.
    fn added(&mut self) -> Result<bool> {
        self.entry(b"parentId", b"node", |pass, parent| {
            let region = pass.region_of(parent);
            pass.added_node(region)?;
            Ok(region != Region::Blocked || !pass.cuts())
        })
    }

    fn added_node(&mut self, parent: Region) -> Result<()> {
        let mark = self.cursor.mark();
        if parent == Region::Blocked {
            return self.node(Around { region: Region::Blocked, parent: Tag::Other });
        }
        let (edits, made) = (self.edits.len(), self.made.len());
        match self.node(Around { region: parent, parent: Tag::Other }) {
            Err(Fail::Late) => {
                // What was masked stays so, wherever it is put.
                self.cursor.rewind(mark);
                self.edits.truncate(edits);
                self.made.truncate(made);
                self.path.clear();
                self.node(Around { region: Region::Masked, parent: Tag::Other })
            }
            walked => walked,
        }
    }

    /// A node, and all that is below it.
    fn node(&mut self, around: Around) -> Result<()> {
        if !self.cursor.enter_object()? {
            return Err(Fail::Irregular);
        }
        let (mut kind, mut tag, mut id, mut element) = (None, None, None, None);
        let (mut first, mut guess) = (true, Field::Type);
        while let Some(field) = self.next_field(&mut first, guess)? {
            match field {
                Field::Type => {
                    let value = self.cursor.whole_number()?.ok_or(Fail::Irregular)?;
                    regular(once(&mut kind, value))?;
                    guess = match value {
                        NODE_ELEMENT => Field::TagName,
                        NODE_DOCUMENT => Field::ChildNodes,
                        _ => Field::TextContent,
                    };
                }
                Field::TagName => {
                    let Value::String(name) = self.cursor.value()? else { return Err(Fail::Irregular) };
                    regular(once(&mut tag, name))?;
                    guess = Field::Attributes;
                }
                Field::Attributes => {
                    let (Some(NODE_ELEMENT), Some(tag)) = (kind, tag) else { return Err(Fail::Irregular) };
                    if around.region == Region::Blocked {
                        self.empty_object()?;
                        let blocked =
                            Element { tag: Tag::Other, below: Region::Blocked, secret: false, if_secret: None };
                        regular(once(&mut element, blocked))?;
                    } else {
                        let opened = self.open(tag, around.region)?;
                        regular(once(&mut element, opened))?;
                    }
                    guess = Field::ChildNodes;
                }
                Field::ChildNodes => {
                    self.children(kind, element.as_ref(), around)?;
                    guess = Field::Id;
                }
                Field::TextContent => {
                    self.text_content(kind, around)?;
                    guess = Field::Id;
                }
                Field::Id => {
                    let value = self.cursor.whole_number()?.and_then(|id| u32::try_from(id).ok());
                    let value = value.ok_or(Fail::Irregular)?;
                    regular(once(&mut id, value))?;
                }
                Field::Flag if !matches!(self.cursor.peek()?, b'{' | b'[') => self.cursor.skip()?,
                Field::Flag | Field::Other => {
                    self.scrub(if around.region.is_masked() { Hint::Secret } else { Hint::Text })?;
                }
            }
        }
        if element.is_some() && self.rules.has_selectors() && around.region != Region::Blocked {
            self.path.pop();
        }
        let (Some(NODE_DOCUMENT..=NODE_COMMENT), Some(id)) = (kind, id) else { return Err(Fail::Irregular) };
        self.note(id, element.as_ref(), element.map_or(around.region, |element| element.below))
    }

    /// The next field of a node; rrweb writes them in the same order always.
    #[inline(always)]
    fn next_field(&mut self, first: &mut bool, guess: Field) -> Result<Option<Field>> {
        if !self.cursor.has_key(first)? {
            return Ok(None);
        }
        let is_guessed = match guess {
            Field::Type => self.cursor.eat(br#""type":"#),
            Field::TagName => self.cursor.eat(br#""tagName":"#),
            Field::Attributes => self.cursor.eat(br#""attributes":"#),
            Field::ChildNodes => self.cursor.eat(br#""childNodes":"#),
            Field::TextContent => self.cursor.eat(br#""textContent":"#),
            Field::Id | Field::Flag | Field::Other => self.cursor.eat(br#""id":"#),
        };
        if is_guessed {
            return Ok(Some(guess));
        }
        self.cursor.other_key()?;
        Ok(Some(match self.name(self.cursor.key)? {
            b"type" => Field::Type,
            b"tagName" => Field::TagName,
            b"attributes" => Field::Attributes,
            b"childNodes" => Field::ChildNodes,
            b"textContent" => Field::TextContent,
            b"id" => Field::Id,
            b"rootId" | b"isSVG" | b"isShadow" | b"isShadowHost" | b"needBlock" | b"isStyle" | b"isCustom"
            | b"compatMode" | b"name" | b"publicId" | b"systemId" => Field::Flag,
            _ => Field::Other,
        }))
    }

    /// Notes what holds of a node, once its id is known.
    fn note(&mut self, id: u32, element: Option<&Element>, below: Region) -> Result<()> {
        let state = &mut *self.state;
        match below {
            Region::Open | Region::Left if state.masked.contains(id) || state.blocked.contains(id) => {
                // Put here from a masked element, as a part of something else.
                return Err(Fail::Late);
            }
            Region::Open => state.open.insert(id),
            Region::Left => {}
            // What is below it was open, and may not be told again.
            Region::Masked | Region::Blocked if state.open.contains(id) => return Err(Fail::Late),
            Region::Masked | Region::Blocked => {
                let (into, other) = match below {
                    Region::Blocked => (&mut state.blocked, &mut state.masked),
                    _ => (&mut state.masked, &mut state.blocked),
                };
                into.insert(id);
                other.remove(id);
            }
        }
        state.bound();
        let Some(element) = element else { return Ok(()) };
        if element.secret {
            state.secret.insert(id);
        }
        if let Some(index) = element.if_secret
            && !state.secret.contains(id)
            && !state.missed
            && let Some(edit) = self.edits.get_mut(index as usize)
        {
            edit.with = With::Same;
        }
        Ok(())
    }

    fn children(&mut self, kind: Option<u64>, element: Option<&Element>, around: Around) -> Result<()> {
        if !self.cursor.enter_array()? {
            return Err(Fail::Irregular);
        }
        let start = self.cursor.at() - 1;
        let around = match (kind, element) {
            (Some(NODE_ELEMENT), Some(element)) => Around { region: element.below, parent: element.tag },
            // Not yet known what they are children of.
            (None | Some(NODE_ELEMENT), _) => Around { region: Region::Blocked, parent: Tag::Unseen },
            (Some(_), _) => Around { region: around.region, parent: Tag::Other },
        };
        let is_cut = around.region == Region::Blocked && self.cuts();
        self.mute += usize::from(is_cut);
        let (mut first, mut is_empty) = (true, true);
        while self.cursor.next_item(&mut first)? {
            if around.parent == Tag::Unseen {
                return Err(Fail::Irregular);
            }
            is_empty = false;
            self.node(around)?;
        }
        self.mute -= usize::from(is_cut);
        if is_cut && !is_empty {
            self.edit(Span { start, end: self.cursor.at() }, With::Fixed("[]"));
        }
        Ok(())
    }

    fn text_content(&mut self, kind: Option<u64>, around: Around) -> Result<()> {
        let is_string = self.cursor.peek()? == b'"';
        let (true, Some(kind)) = (is_string, kind) else {
            self.scrub(Hint::Secret)?;
            return if kind.is_some() { Ok(()) } else { Err(Fail::Irregular) };
        };
        let text = self.cursor.string()?;
        let masked = around.region.is_masked();
        match (kind, around.parent) {
            (NODE_TEXT | NODE_CDATA, Tag::Style) => {
                let styles = self.cursor.decode(text);
                if masked || may_have_query(&styles) {
                    let styles = redact::css(&styles, masked, &self.rules.names);
                    self.replace(text, styles);
                }
            }
            (NODE_TEXT | NODE_CDATA, Tag::Script) if !masked => {}
            _ if masked || self.rules.all_text => self.mask(text),
            _ => {}
        }
        Ok(())
    }

    /// Reads an element's attributes, and decides what becomes of it.
    fn open(&mut self, tag: Str, around: Region) -> Result<Element> {
        let name = self.cursor.decode(tag);
        let tag = Tag::of(&name);
        let start = self.cursor.peek().map(|_| self.cursor.at())?;
        if !self.take_attributes()? {
            return Err(Fail::Irregular);
        }
        let end = self.cursor.at();
        let mut said = self.said(tag);
        let says_so = said.masked;
        if self.rules.has_selectors() {
            let seen = self.seen(Some(&name));
            self.path.push(seen);
            said.masked |= self.rules.mask.may_match(&self.path, self.is_rooted, &mut self.steps);
            said.blocked |= self.rules.block.may_match(&self.path, self.is_rooted, &mut self.steps);
        }
        if said.blocked {
            self.leave_box(Span { start, end });
            return Ok(Element { tag, below: Region::Blocked, secret: said.secret, if_secret: None });
        }
        let masked = around.is_masked() || said.masked;
        if said.masked && !says_so && !around.is_masked() {
            // So that whoever comes later knows it, also once what the selector looks at is masked.
            self.mark_element(start);
        }
        let was_secret = if self.state.secret.is_empty() && !self.state.missed { Some(false) } else { None };
        if said.secret
            && !self.rules.attributes.is_empty()
            && !self.attributes.iter().any(|attribute| attribute.kind == Kind::WasPassword)
        {
            // What tells it may be masked for whoever comes later.
            self.mark_secret(start);
        }
        let case = Case { rules: self.rules, tag, said, masked, was_secret };
        let if_secret = self.judge_attributes(&case)?;
        let holds_input = self.rules.all_inputs && (said.editable || matches!(tag, Tag::Textarea | Tag::Option));
        let holds_secret = said.secret && matches!(tag, Tag::Textarea | Tag::Select);
        let below = if masked || holds_input || holds_secret { Region::Masked } else { around };
        Ok(Element { tag, below, secret: said.secret, if_secret })
    }

    /// Sets the masking attribute on an element that a selector masks.
    fn mark_element(&mut self, start: u32) {
        self.mark(start, MASK_ATTRIBUTE, "");
    }

    /// Sets on a secret field what rrweb sets on one that was a password's.
    fn mark_secret(&mut self, start: u32) {
        self.mark(start, WAS_PASSWORD, "true");
    }

    fn mark(&mut self, start: u32, name: &str, value: &str) {
        let comma = if self.attributes.is_empty() { "" } else { "," };
        let at = Span { start: start + 1, end: start + 1 };
        self.make(at, |made| made.extend_from_slice(format!("\"{name}\":\"{value}\"{comma}").as_bytes()));
    }

    /// Leaves of a blocked element's attributes what its box needs.
    fn leave_box(&mut self, span: Span) {
        const KEPT: [&str; 3] = ["class", "rr_width", "rr_height"];
        let (mut is_box, mut is_marked) = (true, false);
        let mut kept = format!("{{\"{BLOCK_ATTRIBUTE}\":\"\"").into_bytes();
        for attribute in &self.attributes {
            let name = self.cursor.decode(attribute.name);
            let bytes = self.cursor.bytes(attribute.span);
            if name == BLOCK_ATTRIBUTE && matches!(bytes, b"\"\"" | b"\"true\"") {
                is_marked = true;
            } else if let Some(name) = KEPT.iter().find(|kept| **kept == name)
                && matches!(attribute.value, Value::String(_))
            {
                kept.extend_from_slice(format!(",\"{name}\":").as_bytes());
                kept.extend_from_slice(bytes);
            } else {
                is_box = false;
            }
        }
        kept.push(b'}');
        if !(is_box && is_marked) {
            self.make(span, |made| made.extend_from_slice(&kept));
        }
    }

    /// Takes the attributes of an object into [`Pass::attributes`]; `false` when there is none.
    fn take_attributes(&mut self) -> Result<bool> {
        self.attributes.clear();
        if !self.cursor.enter_object()? {
            return Ok(false);
        }
        let mut first = true;
        while self.cursor.next_key(&mut first)? {
            let name = self.cursor.key;
            self.cursor.peek()?;
            let start = self.cursor.at();
            let value = self.cursor.value()?;
            let kind = self.kind_of(name);
            self.attributes.push(Attribute { kind, name, value, span: Span { start, end: self.cursor.at() } });
        }
        Ok(true)
    }

    fn kind_of(&self, name: Str) -> Kind {
        let text = self.cursor.decode(name);
        match Kind::of(&text) {
            // Browsers take names of HTML in any case.
            Kind::Other if text.bytes().any(|byte| byte.is_ascii_uppercase()) => Kind::of(&text.to_ascii_lowercase()),
            kind => kind,
        }
    }

    /// What the attributes that were taken say of their element.
    fn said(&self, tag: Tag) -> Said {
        let mut said = Said::default();
        for attribute in self.attributes.iter().filter(|attribute| attribute.kind.speaks()) {
            let name = lower(self.cursor.decode(attribute.name));
            let value = match attribute.value {
                Value::String(value) => self.cursor.decode(value),
                Value::Null if tag == Tag::Unseen => continue,
                _ => Cow::Borrowed(""),
            };
            said.hear(tag, attribute.kind, &name, &value, &self.rules.names);
        }
        said
    }

    /// The attributes that were taken, as selectors look at them.
    fn seen(&self, tag: Option<&str>) -> Seen {
        let of = |attribute: &Attribute| {
            let value = match attribute.value {
                Value::String(value) => Some(self.cursor.decode(value).into_owned()),
                Value::Null => None,
                _ => Some(String::new()),
            };
            (lower(self.cursor.decode(attribute.name)).into_owned(), value)
        };
        Seen { tag: tag.map(str::to_ascii_lowercase), attributes: self.attributes.iter().map(of).collect() }
    }

    /// Carries out what is to become of the attributes that were taken. Gives the edit that depends on whether the element was a
    /// password's field.
    fn judge_attributes(&mut self, case: &Case<'_>) -> Result<Option<u32>> {
        let mut if_secret = None;
        for index in 0..self.attributes.len() {
            let Attribute { kind, name, value, span } = self.attributes[index];
            if is_always_kept(case, kind) {
                continue;
            }
            let name = lower(self.cursor.decode(name));
            let verdict = match value {
                Value::Null => continue,
                Value::String(value) if value.span.is_empty() => continue,
                Value::String(value) => judge(case, kind, &name, &self.cursor.decode(value)),
                Value::Bool(_, is_true) => judge_other(case, kind, &name, is_true, false),
                Value::Number(_) if name.starts_with("rr_") => continue,
                Value::Number(_) => judge(case, kind, &name, &String::from_utf8_lossy(self.cursor.bytes(span))),
                Value::Nested(_) => judge_other(case, kind, &name, false, true),
            };
            match verdict {
                Verdict::Keep => {}
                Verdict::Mask => self.mask_value(span),
                Verdict::MaskIfSecret => {
                    if self.mute == 0 && self.cursor.bytes(span) != MASK_JSON.as_bytes() {
                        if_secret = Some(self.edits.len() as u32);
                        self.mask_value(span);
                    }
                }
                Verdict::Unset => self.unset(index),
                Verdict::Become(text) => self.make(span, |made| write_string(made, &text)),
                Verdict::Styles => {
                    let here = self.cursor.mark();
                    self.cursor.rewind(here.moved_to(span.start));
                    self.scrub(if case.masked { Hint::MaskedCss } else { Hint::Css })?;
                    self.cursor.rewind(here);
                }
            }
        }
        Ok(if_secret)
    }

    /// Takes an attribute away: that it stood there tells what was chosen.
    fn unset(&mut self, index: usize) {
        let span = self.attributes[index].span;
        let begins = |attribute: &Attribute| attribute.name.span.quoted().start;
        let first_choice = self.attributes.iter().position(|attribute| attribute.kind == Kind::Choice);
        let around = match (index.checked_sub(1), self.attributes.get(index + 1)) {
            // No browser writes a second one.
            _ if first_choice != Some(index) => return self.edit(span, With::Fixed("null")),
            (Some(before), _) => Span { start: self.attributes[before].span.end, end: span.end },
            (None, Some(next)) => Span { start: begins(&self.attributes[index]), end: begins(next) },
            (None, None) => return self.edit(span, With::Fixed("null")),
        };
        self.edit(around, With::Fixed(""));
    }

    fn input(&mut self) -> Result<()> {
        let id = self.peek_id()?;
        self.found.is_input = true;
        let region = self.region_of(id);
        let was_secret = id.is_some_and(|id| self.state.secret.contains(id))
            || (self.unknown == Unknown::Masked && (self.state.missed || id.is_none()));
        let masks_text = region.is_masked() || self.rules.all_inputs || was_secret;
        // What is typed is decided here where all is masked; a choice depends on where its field is.
        self.needs_state |= !self.rules.all_inputs;
        let mut first = true;
        self.cursor.enter_object()?;
        while self.cursor.next_key(&mut first)? {
            let key = self.cursor.key;
            if self.is_source(key)? {
                continue;
            }
            self.cursor.peek()?;
            let start = self.cursor.at();
            match (self.name(key)?, self.cursor.value()?) {
                (b"isChecked", Value::String(_) | Value::Nested(_) | Value::Number(_)) => {
                    self.mask_value(Span { start, end: self.cursor.at() });
                }
                (b"text", Value::String(text)) if masks_text => self.mask(text),
                (b"text", Value::Number(_) | Value::Nested(_)) if masks_text => {
                    self.mask_value(Span { start, end: self.cursor.at() });
                }
                (b"isChecked", Value::Bool(span, true)) => {
                    self.needs_state = true;
                    if region.is_masked() {
                        self.edit(span, With::Fixed("false"));
                    }
                }
                (b"id" | b"userTriggered" | b"text" | b"isChecked", _) => {}
                (_, Value::String(text)) if masks_text => self.mask(text),
                (_, Value::Nested(span)) if masks_text => self.mask_value(span),
                _ => {}
            }
        }
        Ok(())
    }

    /// A change of styles by the page's scripts.
    fn styles(&mut self) -> Result<()> {
        self.needs_state = true;
        let id = self.peek_id()?;
        // A style sheet of its own has no node: where it is used is not known.
        let region = if id.is_some() { self.region_of(id) } else { Region::Masked };
        self.scrub(if region.is_masked() { Hint::MaskedCss } else { Hint::Css })
    }

    /// What is drawn: among it, texts.
    fn canvas(&mut self) -> Result<()> {
        self.needs_state = true;
        let id = self.peek_id()?;
        let masked = self.region_of(id).is_masked() || self.rules.all_text;
        let mut first = true;
        self.cursor.enter_object()?;
        while self.cursor.next_key(&mut first)? {
            let key = self.cursor.key;
            if self.is_source(key)? {
                continue;
            }
            let span = self.value_span()?;
            match self.cursor.bytes(span) {
                b"[]" => {}
                [b'[' | b'{', ..] if masked => self.edit(span, With::Fixed("[]")),
                _ if masked && self.is_name(key, b"args") => self.edit(span, With::Fixed("[]")),
                [b'"', ..] if masked => self.mask_value(span),
                _ => {}
            }
        }
        Ok(())
    }

    fn custom(&mut self) -> Result<()> {
        let mark = self.cursor.mark();
        let mut first = true;
        self.cursor.enter_object()?;
        while self.cursor.next_key(&mut first)? {
            let key = self.cursor.key;
            let value = self.cursor.value()?;
            if let Value::String(tag) = value
                && self.cursor.decode(key) == "tag"
                && self.cursor.decode(tag) == DROPPED_TAG
            {
                // What an edge could not read may have said anything.
                self.close();
            }
        }
        self.cursor.rewind(mark);
        self.scrub(Hint::Text)
    }

    fn plugin(&mut self) -> Result<()> {
        let mark = self.cursor.mark();
        let mut first = true;
        self.cursor.enter_object()?;
        let mut plugin = None;
        while self.cursor.next_key(&mut first)? {
            let is_plugin = self.name(self.cursor.key)? == b"plugin";
            let value = self.cursor.value()?;
            if is_plugin {
                let name = if let Value::String(name) = value { self.cursor.decode(name) } else { Cow::Borrowed("") };
                regular(once(&mut plugin, name))?;
            }
        }
        let plugin = plugin.unwrap_or_default();
        self.cursor.rewind(mark);
        self.plugin = match &*plugin {
            CONSOLE_PLUGIN => Plugin::Console,
            name if NETWORK_PLUGINS.contains(&name) => Plugin::Network,
            name if name.contains("network") => Plugin::NetworkLike,
            _ => Plugin::Other,
        };
        self.scrub_at(Hint::Text, Place::Event)
    }

    /// Searches a value that is no page's: by the names and shapes of secrets.
    fn scrub(&mut self, hint: Hint) -> Result<()> {
        self.scrub_at(hint, Place::Elsewhere)
    }

    /// Whether nothing of a value is kept, whatever is in it.
    fn is_masked_whole(&self, hint: Hint) -> bool {
        hint == Hint::Secret || (hint == Hint::Body && !self.rules.network_bodies)
    }

    fn scrub_at(&mut self, hint: Hint, place: Place) -> Result<()> {
        match self.cursor.peek()? {
            b'"' => {
                let text = self.cursor.string()?;
                self.scrub_text(text, hint);
            }
            b'{' => {
                if self.is_masked_whole(hint) {
                    let span = self.value_span()?;
                    self.mask_value(span);
                    return Ok(());
                }
                self.scrub_object(hint, if place == Place::Requests { Place::Elsewhere } else { place })?;
            }
            b'[' => {
                // In whatever form headers are listed: pairs, objects, several values of one name.
                let hint = if hint == Hint::Headers { Hint::Secret } else { hint };
                if self.is_masked_whole(hint) {
                    let span = self.value_span()?;
                    if self.cursor.bytes(span) != b"[]" {
                        self.mask_value(span);
                    }
                    return Ok(());
                }
                let place = if place == Place::Requests { Place::Request } else { Place::Elsewhere };
                let mut first = true;
                self.cursor.enter_array()?;
                while self.cursor.next_item(&mut first)? {
                    self.scrub_at(hint, place)?;
                }
            }
            b'-' | b'0'..=b'9' => {
                let span = self.value_span()?;
                if self.is_masked_whole(hint) {
                    self.mask_value(span);
                } else if span.end - span.start >= 13 && !matches!(hint, Hint::Css | Hint::MaskedCss) {
                    // A card's number, maybe.
                    let digits = std::str::from_utf8(self.cursor.bytes(span)).unwrap_or_default();
                    if redact::text(digits, &self.rules.names).is_some() {
                        self.mask_value(span);
                    }
                }
            }
            _ => self.cursor.skip()?,
        }
        Ok(())
    }

    fn scrub_object(&mut self, hint: Hint, place: Place) -> Result<()> {
        let mut has_failed = false;
        let mut first = true;
        self.cursor.enter_object()?;
        while self.cursor.next_key(&mut first)? {
            let key = self.cursor.key;
            let name = self.cursor.decode(key);
            if matches!(hint, Hint::Css | Hint::MaskedCss) {
                self.scrub(hint)?;
                continue;
            }
            // A name may hold a secret itself; whoever comes later goes by what is left of it.
            let masked = redact::text(&name, &self.rules.names);
            let kept = masked.as_deref().unwrap_or(&name);
            let next = self.cursor.peek()?;
            let start = self.cursor.at();
            if hint == Hint::Headers && next == b'"' {
                let value = self.cursor.string()?;
                let masked = redact::header(kept, &self.cursor.decode(value), &self.rules.names);
                self.replace(value, masked);
            } else {
                let below = match self.hint_of(&name, hint) {
                    Hint::Secret => Hint::Secret,
                    // A header with several values, or in another form.
                    Hint::Headers if hint == Hint::Headers => Hint::Secret,
                    below if masked.is_none() => below,
                    _ => self.hint_of(kept, hint),
                };
                self.scrub_at(below, self.place_of(&name, place))?;
            }
            let value = Span { start, end: self.cursor.at() };
            match (place, self.plugin) {
                (Place::Payload, Plugin::Console) if name == "level" && self.found.level.is_none() => {
                    self.found.level = self.string_of(value).map(|level| Level::of(&level));
                }
                (Place::Request, _) => has_failed |= self.tells_failure(&name, value),
                _ => {}
            }
            self.replace(key, masked);
        }
        self.found.failed_requests += u32::from(has_failed);
        Ok(())
    }

    fn place_of(&self, name: &str, around: Place) -> Place {
        match (around, self.plugin, name) {
            (Place::Event, Plugin::Console | Plugin::Network, "payload") => Place::Payload,
            (Place::Payload, Plugin::Network, "requests") => Place::Requests,
            _ => Place::Elsewhere,
        }
    }

    fn string_of(&self, span: Span) -> Option<Cow<'a, str>> {
        let inner = self.cursor.bytes(span).strip_prefix(b"\"")?.strip_suffix(b"\"")?;
        let escaped = inner.contains(&b'\\');
        Some(self.cursor.decode(Str { span: Span { start: span.start + 1, end: span.end - 1 }, escaped }))
    }

    /// Whether a request was answered with a status from 400 on, or not at all: its status is 0 then, or an error is told.
    /// `responseStatus` is the browser's own figure, in which 0 means that another origin does not show it.
    fn tells_failure(&self, name: &str, value: Span) -> bool {
        let number = || Value::Number(value).as_u64(self.cursor.text());
        match name {
            "status" => number().is_some_and(|status| status == 0 || status >= 400),
            "responseStatus" => number().is_some_and(|status| status >= 400),
            "error" => {
                self.cursor.bytes(value) == b"true" || self.string_of(value).is_some_and(|error| !error.is_empty())
            }
            _ => false,
        }
    }

    fn hint_of(&self, name: &str, around: Hint) -> Hint {
        if matches!(around, Hint::Secret | Hint::Headers) {
            return around;
        }
        let is_network = matches!(self.plugin, Plugin::Network | Plugin::NetworkLike);
        let is = |names: &[&str]| {
            names.iter().any(|known| {
                let letters =
                    name.bytes().filter(|byte| *byte != b'_' && *byte != b'-').map(|byte| byte.to_ascii_lowercase());
                letters.eq(known.bytes())
            })
        };
        if is(&["url", "href", "uri", "referrer", "referer", "location", "documenturl", "redirecturl"])
            || (is_network && name == "name")
        {
            Hint::Url
        } else if is(&["headers", "requestheaders", "responseheaders"]) {
            Hint::Headers
        } else if is_network
            && is(&[
                "body",
                "requestbody",
                "responsebody",
                "postdata",
                "requestpayload",
                "responsepayload",
                "request",
                "response",
            ])
        {
            Hint::Body
        } else if self.rules.names.is_secret(name) {
            Hint::Secret
        } else if around == Hint::Url {
            Hint::Text
        } else {
            around
        }
    }

    fn scrub_text(&mut self, text: Str, hint: Hint) {
        let decoded = self.cursor.decode(text);
        let names = &self.rules.names;
        let masked = match hint {
            Hint::Secret => return self.mask(text),
            Hint::Body if !self.rules.network_bodies => return self.mask(text),
            Hint::Text | Hint::Headers => redact::text(&decoded, names),
            Hint::Css if !may_have_query(&decoded) => None,
            Hint::Css => redact::css(&decoded, false, names),
            Hint::MaskedCss => redact::css(&decoded, true, names),
            Hint::Url => redact::page_url(&decoded, names),
            Hint::Body => redact::body(&decoded, names),
        };
        self.replace(text, masked);
    }

    /// The number under a name of the object that comes next, which is walked to its end.
    fn id_of_entry(&mut self, name: &[u8]) -> Result<Option<u32>> {
        let mut id = None;
        let mut first = true;
        if !self.cursor.enter_object()? {
            return Err(Fail::Irregular);
        }
        while self.cursor.next_key(&mut first)? {
            let key = self.cursor.key;
            if self.is_name(key, name) {
                let value = self.cursor.value()?.as_u64(self.cursor.text()).and_then(|id| u32::try_from(id).ok());
                regular(once(&mut id, value))?;
            } else {
                self.cursor.skip()?;
            }
        }
        Ok(id.flatten())
    }

    /// The id in the object that comes next, which is walked afterwards.
    fn peek_id(&mut self) -> Result<Option<u32>> {
        let mark = self.cursor.mark();
        let id = self.id_of_entry(b"id")?;
        self.cursor.rewind(mark);
        Ok(id)
    }

    fn region_of(&self, id: Option<u32>) -> Region {
        let unknown = if self.unknown == Unknown::Left { Region::Left } else { Region::Masked };
        let Some(id) = id else { return unknown };
        if self.state.open.contains(id) {
            Region::Open
        } else if self.state.blocked.contains(id) {
            Region::Blocked
        } else if self.state.masked.contains(id) {
            Region::Masked
        } else {
            unknown
        }
    }

    fn number(&self, span: Span) -> Option<f64> {
        std::str::from_utf8(self.cursor.bytes(span)).ok()?.parse().ok().filter(|_| {
            // Only numbers begin so; others would be parsed too, NaN among them.
            matches!(self.cursor.bytes(span).first(), Some(b'-' | b'0'..=b'9'))
        })
    }

    fn value_span(&mut self) -> Result<Span> {
        self.cursor.peek()?;
        let start = self.cursor.at();
        self.cursor.skip()?;
        Ok(Span { start, end: self.cursor.at() })
    }

    fn is_name(&self, key: Str, name: &[u8]) -> bool {
        self.cursor.bytes(key.span) == name
    }

    /// A name as rrweb writes it: what is written otherwise, with escapes, is none of its names.
    #[inline(always)]
    fn name(&self, key: Str) -> Result<&'a [u8]> {
        if key.escaped { Err(Fail::Irregular) } else { Ok(self.cursor.bytes(key.span)) }
    }

    fn edit(&mut self, span: Span, with: With) {
        if self.mute == 0 {
            self.edits.push(Edit { span, with });
        }
    }

    fn make(&mut self, span: Span, write: impl FnOnce(&mut Vec<u8>)) {
        if self.mute == 0 {
            let start = self.made.len() as u32;
            write(&mut self.made);
            let with = With::Made(Span { start, end: self.made.len() as u32 });
            self.edits.push(Edit { span, with });
        }
    }

    /// Masks a string. What is empty stays so, and what lays out: it tells nothing.
    fn mask(&mut self, text: Str) {
        let bytes = self.cursor.bytes(text.span);
        if bytes != crate::MASK.as_bytes() && !is_blank(bytes) {
            self.edit(text.span.quoted(), With::Fixed(MASK_JSON));
        }
    }

    /// Masks a value if it is a string that tells something, or nested.
    fn mask_span(&mut self, span: Span) {
        match self.cursor.bytes(span) {
            [b'"', text @ .., b'"'] if is_blank(text) => {}
            [b'"' | b'{' | b'[' | b'-' | b'0'..=b'9', ..] => self.mask_value(span),
            _ => {}
        }
    }

    /// Masks a value, with its quotes if it has some.
    fn mask_value(&mut self, span: Span) {
        if self.cursor.bytes(span) != MASK_JSON.as_bytes() {
            self.edit(span, With::Fixed(MASK_JSON));
        }
    }

    fn replace(&mut self, text: Str, with: Option<String>) {
        if let Some(with) = with {
            self.make(text.span.quoted(), |made| write_string(made, &with));
        }
    }
}

/// Whether a string holds white space only, as JSON writes it.
fn is_blank(mut raw: &[u8]) -> bool {
    loop {
        raw = match raw {
            [] => return true,
            [b' ', rest @ ..] | [b'\\', b'n' | b't' | b'r', rest @ ..] => rest,
            _ => return false,
        };
    }
}

fn copy(bytes: &[u8], broke: bool, to: &mut Vec<u8>) {
    if broke {
        // Line breaks stand only between tokens: inside strings JSON wants them escaped.
        to.extend(bytes.iter().filter(|byte| !matches!(byte, b'\n' | b'\r')));
    } else {
        to.extend_from_slice(bytes);
    }
}

/// An id, where there is one that can be.
fn id_of(said: Option<Option<u64>>) -> Option<u32> {
    u32::try_from(said??).ok()
}

/// Sets what may be said once only.
fn once<T>(place: &mut Option<T>, value: T) -> Result<()> {
    if place.replace(value).is_some() { Err(Fail::NoEvent) } else { Ok(()) }
}

fn regular(said: Result<()>) -> Result<()> {
    said.map_err(|_| Fail::Irregular)
}

#[cfg(test)]
mod tests;
