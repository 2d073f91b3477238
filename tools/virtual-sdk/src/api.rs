//! The control plane's client.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, RANGE};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use schemas::http::{
    DeletionAccepted, DeletionItem, DeletionRequest, ExportItem, ExportRequest, KeyCreated, KeyItem, KeyRequest,
    LinkCreated, LinkItem, LinkRequest, OperatorDeletion, OperatorLink, OperatorPatch, Page, ReadItem, ReceiptItem,
    SessionItem, SessionState, Usage, WorkspaceCreated, WorkspaceItem, WorkspacePatch, WorkspaceRequest,
};
use schemas::{ApiKeyId, DeletionId, ExportId, LinkId, SessionId, WorkspaceId};
use serde::Serialize;

use crate::call::{self, CallError};
use crate::split::Splitter;

/// How long one call may take; a stream of events has this long for each piece.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What a list of sessions is narrowed to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SessionQuery {
    /// Whom their link is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Started at or after this time, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Started before this time, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// A page that was opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Whether there were console errors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub has_errors: Option<bool>,
    /// At least this long, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_duration: Option<u64>,
    /// Whether they still grow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<SessionState>,
    /// The page after this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Items of a page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What the entries of who read what are narrowed to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ReadsQuery {
    /// Of this session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// By this API key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<ApiKeyId>,
    /// Read at or after this time, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Read before this time, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The page after this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Items of a page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// How events are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventsFormat {
    /// One a line.
    Lines,
    /// One JSON array.
    Array,
}

/// A client of a control plane, with an API key. Clones share connections.
#[derive(Debug, Clone)]
pub struct Api {
    client: Client,
    api_url: String,
    api_key: String,
}

impl Api {
    /// A client of the control plane at this address.
    pub fn new(api_url: &str, api_key: &str) -> Result<Self, CallError> {
        let api_url = api_url.trim_end_matches('/').to_owned();
        Ok(Self { client: call::client()?, api_url, api_key: api_key.to_owned() })
    }

    /// Makes a link.
    pub async fn create_link(&self, request: &LinkRequest) -> Result<LinkCreated, CallError> {
        const CALL: &str = "create link";
        let response = self.take(CALL, StatusCode::CREATED, self.call(Method::POST, "/v1/links").json(request)).await?;
        call::json(CALL, response).await
    }

    /// A page of links.
    pub async fn list_links(&self, cursor: Option<&str>) -> Result<Page<LinkItem>, CallError> {
        const CALL: &str = "list links";
        let mut request = self.call(Method::GET, "/v1/links");
        if let Some(cursor) = cursor {
            request = request.query(&[("cursor", cursor)]);
        }
        call::json(CALL, self.take(CALL, StatusCode::OK, request).await?).await
    }

    /// All links, page by page.
    pub async fn all_links(&self) -> Result<Vec<LinkItem>, CallError> {
        let mut links = Vec::new();
        let mut cursor = None;
        loop {
            let page = self.list_links(cursor.as_deref()).await?;
            links.extend(page.items);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(links);
            }
        }
    }

    /// Links of a reference, the first page.
    pub async fn links_of(&self, reference: &str) -> Result<Vec<LinkItem>, CallError> {
        const CALL: &str = "list links";
        let request = self.call(Method::GET, "/v1/links").query(&[("reference", reference)]);
        let page: Page<LinkItem> = call::json(CALL, self.take(CALL, StatusCode::OK, request).await?).await?;
        Ok(page.items)
    }

    /// Revokes a link.
    pub async fn revoke_link(&self, link: LinkId) -> Result<(), CallError> {
        let request = self.call(Method::DELETE, &format!("/v1/links/{link}"));
        self.take("revoke link", StatusCode::NO_CONTENT, request).await.map(drop)
    }

    /// A page of sessions, newest first.
    pub async fn list_sessions(&self, query: &SessionQuery) -> Result<Page<SessionItem>, CallError> {
        const CALL: &str = "list sessions";
        let request = self.call(Method::GET, "/v1/sessions").query(query);
        call::json(CALL, self.take(CALL, StatusCode::OK, request).await?).await
    }

    /// All sessions of a query, page by page.
    pub async fn all_sessions(&self, query: &SessionQuery) -> Result<Vec<SessionItem>, CallError> {
        let mut query = query.clone();
        let mut sessions = Vec::new();
        loop {
            let page = self.list_sessions(&query).await?;
            sessions.extend(page.items);
            if page.next_cursor.is_none() {
                return Ok(sessions);
            }
            query.cursor = page.next_cursor;
        }
    }

    /// A session's metadata.
    pub async fn session(&self, session: SessionId) -> Result<SessionItem, CallError> {
        const CALL: &str = "get session";
        let request = self.call(Method::GET, &format!("/v1/sessions/{session}"));
        call::json(CALL, self.take(CALL, StatusCode::OK, request).await?).await
    }

    /// A session's events, streamed.
    pub async fn events(&self, session: SessionId, format: EventsFormat) -> Result<EventStream, CallError> {
        self.events_between(session, format, None, None).await
    }

    /// A session's events with timestamps from `from` to `to`, in milliseconds, streamed.
    pub async fn events_between(
        &self,
        session: SessionId,
        format: EventsFormat,
        from: Option<i64>,
        to: Option<i64>,
    ) -> Result<EventStream, CallError> {
        let (accept, splitter) = match format {
            EventsFormat::Lines => ("application/x-ndjson", Splitter::lines()),
            EventsFormat::Array => ("application/json", Splitter::array()),
        };
        let mut request = self.call(Method::GET, &format!("/v1/sessions/{session}/events")).header(ACCEPT, accept);
        for (name, bound) in [("from", from), ("to", to)] {
            if let Some(bound) = bound {
                request = request.query(&[(name, bound)]);
            }
        }
        // No bound for the whole: a long session may take longer than any call.
        let answer = tokio::time::timeout(TIMEOUT, request.send()).await;
        let Ok(answer) = answer else {
            return Err(slow());
        };
        let response = call::expect(EVENTS, StatusCode::OK, answer).await?;
        Ok(EventStream { response, splitter, bytes: 0, ended: false })
    }

    /// A page of who read what, newest first.
    pub async fn list_reads(&self, query: &ReadsQuery) -> Result<Page<ReadItem>, CallError> {
        const CALL: &str = "list readings";
        let request = self.call(Method::GET, "/v1/reads").query(query);
        call::json(CALL, self.take(CALL, StatusCode::OK, request).await?).await
    }

    /// All entries of a query, page by page.
    pub async fn all_reads(&self, query: &ReadsQuery) -> Result<Vec<ReadItem>, CallError> {
        let mut query = query.clone();
        let mut reads = Vec::new();
        loop {
            let page = self.list_reads(&query).await?;
            reads.extend(page.items);
            if page.next_cursor.is_none() {
                return Ok(reads);
            }
            query.cursor = page.next_cursor;
        }
    }

    /// An archive of a session, made while it is sent.
    pub async fn export_session(&self, session: SessionId) -> Result<Bytes, CallError> {
        const CALL: &str = "export session";
        let request = self.call(Method::GET, &format!("/v1/sessions/{session}/export"));
        call::bytes(CALL, self.take(CALL, StatusCode::OK, request).await?).await
    }

    /// Asks for an archive that is kept.
    pub async fn ask_export(&self, request: &ExportRequest) -> Result<ExportItem, CallError> {
        const CALL: &str = "ask for export";
        let request = self.call(Method::POST, "/v1/exports").json(request);
        call::json(CALL, self.take(CALL, StatusCode::ACCEPTED, request).await?).await
    }

    /// How far an export is.
    pub async fn export(&self, export: ExportId) -> Result<ExportItem, CallError> {
        const CALL: &str = "get export";
        let request = self.call(Method::GET, &format!("/v1/exports/{export}"));
        call::json(CALL, self.take(CALL, StatusCode::OK, request).await?).await
    }

    /// The newest exports.
    pub async fn exports(&self) -> Result<Page<ExportItem>, CallError> {
        const CALL: &str = "list exports";
        let request = self.call(Method::GET, "/v1/exports");
        call::json(CALL, self.take(CALL, StatusCode::OK, request).await?).await
    }

    /// Ends an export.
    pub async fn end_export(&self, export: ExportId) -> Result<(), CallError> {
        const CALL: &str = "end export";
        let request = self.call(Method::DELETE, &format!("/v1/exports/{export}"));
        self.take(CALL, StatusCode::NO_CONTENT, request).await.map(drop)
    }

    /// An export's archive, or these bytes of it.
    pub async fn archive(&self, export: ExportId, range: Option<(u64, u64)>) -> Result<Bytes, CallError> {
        const CALL: &str = "fetch archive";
        let mut request = self.call(Method::GET, &format!("/v1/exports/{export}/archive"));
        let mut status = StatusCode::OK;
        if let Some((first, last)) = range {
            request = request.header(RANGE, format!("bytes={first}-{last}"));
            status = StatusCode::PARTIAL_CONTENT;
        }
        call::bytes(CALL, self.take(CALL, status, request).await?).await
    }

    /// Deletes a session.
    pub async fn delete_session(&self, session: SessionId) -> Result<DeletionAccepted, CallError> {
        const CALL: &str = "delete session";
        let request = self.call(Method::DELETE, &format!("/v1/sessions/{session}"));
        call::json(CALL, self.take(CALL, StatusCode::ACCEPTED, request).await?).await
    }

    /// Deletes all sessions of a reference.
    pub async fn delete_reference(&self, reference: &str) -> Result<DeletionAccepted, CallError> {
        const CALL: &str = "delete reference";
        let body = DeletionRequest { reference: reference.to_owned() };
        let request = self.call(Method::POST, "/v1/deletions").json(&body);
        call::json(CALL, self.take(CALL, StatusCode::ACCEPTED, request).await?).await
    }

    /// How far a deletion is.
    pub async fn deletion(&self, deletion: DeletionId) -> Result<DeletionItem, CallError> {
        const CALL: &str = "get deletion";
        let request = self.call(Method::GET, &format!("/v1/deletions/{deletion}"));
        call::json(CALL, self.take(CALL, StatusCode::OK, request).await?).await
    }

    /// Receipts of a deletion, the first page.
    pub async fn receipts(&self, deletion: DeletionId) -> Result<Page<ReceiptItem>, CallError> {
        const CALL: &str = "list receipts";
        let request = self.call(Method::GET, &format!("/v1/deletions/{deletion}/receipts"));
        call::json(CALL, self.take(CALL, StatusCode::OK, request).await?).await
    }

    /// Closes the workspace of the key.
    pub async fn close_workspace(&self) -> Result<WorkspaceItem, CallError> {
        const CALL: &str = "close workspace";
        let request = self.call(Method::DELETE, "/v1/workspace");
        call::json(CALL, self.take(CALL, StatusCode::ACCEPTED, request).await?).await
    }

    /// The workspace of the key.
    pub async fn workspace(&self) -> Result<WorkspaceItem, CallError> {
        const CALL: &str = "get workspace";
        let request = self.call(Method::GET, "/v1/workspace");
        call::json(CALL, self.take(CALL, StatusCode::OK, request).await?).await
    }

    /// Changes the workspace of the key.
    pub async fn change_workspace(&self, patch: &WorkspacePatch) -> Result<WorkspaceItem, CallError> {
        const CALL: &str = "change workspace";
        let request = self.call(Method::PATCH, "/v1/workspace").json(patch);
        call::json(CALL, self.take(CALL, StatusCode::OK, request).await?).await
    }

    /// Sessions by day, of the last month.
    pub async fn usage(&self) -> Result<Usage, CallError> {
        const CALL: &str = "get usage";
        let request = self.call(Method::GET, "/v1/usage");
        call::json(CALL, self.take(CALL, StatusCode::OK, request).await?).await
    }

    /// Makes an API key.
    pub async fn create_key(&self, request: &KeyRequest) -> Result<KeyCreated, CallError> {
        const CALL: &str = "create key";
        let request = self.call(Method::POST, "/v1/keys").json(request);
        call::json(CALL, self.take(CALL, StatusCode::CREATED, request).await?).await
    }

    /// API keys, the first page.
    pub async fn list_keys(&self) -> Result<Page<KeyItem>, CallError> {
        const CALL: &str = "list keys";
        let request = self.call(Method::GET, "/v1/keys");
        call::json(CALL, self.take(CALL, StatusCode::OK, request).await?).await
    }

    /// Revokes an API key.
    pub async fn revoke_key(&self, key: ApiKeyId) -> Result<(), CallError> {
        let request = self.call(Method::DELETE, &format!("/v1/keys/{key}"));
        self.take("revoke key", StatusCode::NO_CONTENT, request).await.map(drop)
    }

    /// As an operator: makes a workspace.
    pub async fn create_workspace(&self, request: &WorkspaceRequest) -> Result<WorkspaceCreated, CallError> {
        const CALL: &str = "create workspace";
        let request = self.call(Method::POST, "/v1/operator/workspaces").json(request);
        call::json(CALL, self.take(CALL, StatusCode::CREATED, request).await?).await
    }

    /// As an operator: a page of workspaces, newest first.
    pub async fn list_workspaces(&self, cursor: Option<&str>) -> Result<Page<WorkspaceItem>, CallError> {
        const CALL: &str = "list workspaces";
        let mut request = self.call(Method::GET, "/v1/operator/workspaces");
        if let Some(cursor) = cursor {
            request = request.query(&[("cursor", cursor)]);
        }
        call::json(CALL, self.take(CALL, StatusCode::OK, request).await?).await
    }

    /// As an operator: changes a workspace's plan or state.
    pub async fn operate(&self, workspace: WorkspaceId, patch: &OperatorPatch) -> Result<WorkspaceItem, CallError> {
        const CALL: &str = "change workspace as operator";
        let request = self.call(Method::PATCH, &format!("/v1/operator/workspaces/{workspace}")).json(patch);
        call::json(CALL, self.take(CALL, StatusCode::OK, request).await?).await
    }

    /// As an operator: who sent a link.
    pub async fn link_of_anyone(&self, link: LinkId) -> Result<OperatorLink, CallError> {
        const CALL: &str = "look up link";
        let request = self.call(Method::GET, &format!("/v1/operator/links/{link}"));
        call::json(CALL, self.take(CALL, StatusCode::OK, request).await?).await
    }

    /// As an operator: deletes a session or all of a reference.
    pub async fn operator_delete(&self, request: &OperatorDeletion) -> Result<DeletionAccepted, CallError> {
        const CALL: &str = "delete as operator";
        let request = self.call(Method::POST, "/v1/operator/deletions").json(request);
        call::json(CALL, self.take(CALL, StatusCode::ACCEPTED, request).await?).await
    }

    /// As an operator: how far a deletion is.
    pub async fn deletion_of_anyone(&self, deletion: DeletionId) -> Result<DeletionItem, CallError> {
        const CALL: &str = "get deletion as operator";
        let request = self.call(Method::GET, &format!("/v1/operator/deletions/{deletion}"));
        call::json(CALL, self.take(CALL, StatusCode::OK, request).await?).await
    }

    /// As an operator: receipts of a workspace, the first page.
    pub async fn receipts_of_workspace(&self, workspace: WorkspaceId) -> Result<Page<ReceiptItem>, CallError> {
        const CALL: &str = "list receipts as operator";
        let request = self.call(Method::GET, &format!("/v1/operator/workspaces/{workspace}/receipts"));
        call::json(CALL, self.take(CALL, StatusCode::OK, request).await?).await
    }

    fn call(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.api_url)).bearer_auth(&self.api_key)
    }

    async fn take(
        &self,
        call: &'static str,
        status: StatusCode,
        request: RequestBuilder,
    ) -> Result<Response, CallError> {
        call::expect(call, status, request.timeout(TIMEOUT).send().await).await
    }
}

const EVENTS: &str = "read events";

fn slow() -> CallError {
    let what = format!("nothing came for {} s", TIMEOUT.as_secs());
    CallError::Unexpected { call: EVENTS, status: StatusCode::OK.as_u16(), what }
}

/// Events as they come from the control plane.
#[derive(Debug)]
pub struct EventStream {
    response: Response,
    splitter: Splitter,
    bytes: u64,
    ended: bool,
}

impl EventStream {
    /// The next event's bytes; `None` after the last. An answer that is cut off is an error, never an end.
    pub async fn next_event(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            let status = StatusCode::OK.as_u16();
            let unexpected = |error| CallError::Unexpected { call: EVENTS, status, what: format!("{error}") };
            if let Some(event) = self.splitter.next().map_err(unexpected)? {
                return Ok(Some(event));
            }
            if self.ended {
                self.splitter.finish().map_err(unexpected)?;
                return Ok(None);
            }
            let Ok(piece) = tokio::time::timeout(TIMEOUT, self.response.chunk()).await else {
                return Err(slow());
            };
            match piece.map_err(|error| CallError::transport(EVENTS, error))? {
                Some(piece) => {
                    self.bytes += piece.len() as u64;
                    self.splitter.push(&piece);
                }
                None => self.ended = true,
            }
        }
    }

    /// Bytes of the body that came so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use uuid::Uuid;

    use super::*;

    const SESSION: SessionId = SessionId(Uuid::from_u128(1));

    /// A control plane that gives one answer, byte for byte, and closes.
    async fn answering(answer: &'static str) -> Api {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(socket.read_u8().await.expect("a request"));
            }
            socket.write_all(answer.as_bytes()).await.expect("an answer");
        });
        Api::new(&format!("http://{address}"), "key").expect("a client")
    }

    async fn read(answer: &'static str) -> Result<usize, CallError> {
        let mut events = answering(answer).await.events(SESSION, EventsFormat::Lines).await?;
        let mut count = 0;
        while events.next_event().await?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    #[tokio::test]
    async fn an_answer_that_is_cut_off_is_never_taken_for_the_whole() {
        let whole = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{}\n{\r\n2\r\n}\n\r\n0\r\n\r\n";
        assert_eq!(read(whole).await.expect("a whole answer"), 2);
        for (answer, code) in [
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n", "connection_broken"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}\n", "connection_broken"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{}\n{", "unexpected_answer"),
        ] {
            assert_eq!(read(answer).await.expect_err("a cut").code(), code, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_deleted_session_is_a_refusal_with_its_status() {
        let error = read("HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n").await.expect_err("a refusal");
        assert_eq!((error.status(), error.code()), (Some(410), "no_code"));
    }
}
