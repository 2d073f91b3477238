-- The index: workspaces, links, sessions, the manifest of objects, progress of the log, deletions.

create schema if not exists clairvio;

-- The one clock of retention. Tests move it by `alter database … set clairvio.now = '…'`.
create function clairvio.clock() returns timestamptz
language sql stable as $$
    select coalesce(nullif(current_setting('clairvio.now', true), '')::timestamptz, now())
$$;

create table workspace (
    id uuid primary key,
    name text not null,
    plan text not null check (plan in ('free', 'starter', 'growth', 'scale')),
    origins text[] not null default '{}',
    created_at timestamptz not null default now()
);

-- P7: the promised windows. A session's expiry is computed from the workspace's current plan, never stored.
create function clairvio.retention(plan text) returns interval
language sql immutable as $$
    select case plan
        when 'free' then interval '7 days'
        when 'starter' then interval '30 days'
        when 'growth' then interval '90 days'
        when 'scale' then interval '365 days'
    end
$$;

create table api_key (
    id uuid primary key,
    workspace_id uuid not null references workspace (id),
    -- SHA-256 of the key, which has 256 random bits: nothing to be guessed, so nothing to be stretched.
    hash bytea not null unique check (length(hash) = 32),
    created_at timestamptz not null default now(),
    revoked_at timestamptz
);

create table link (
    workspace_id uuid not null references workspace (id),
    id uuid not null,
    reference text not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    max_sessions integer not null check (max_sessions > 0),
    sessions integer not null default 0,
    redirect_url text,
    masking jsonb,
    primary key (workspace_id, id)
);
create index link_newest on link (workspace_id, created_at desc, id desc);
create index link_reference on link (workspace_id, reference);

-- A session's row is its tombstone too: its state only moves forward.
--   0 live, 1 unreadable, 2 shredded, 3 erased
create table session (
    workspace_id uuid not null,
    id uuid not null,
    state smallint not null default 0 check (state between 0 and 3),
    -- Null only in the tombstone of a session that was deleted before it was ever seen.
    link_id uuid,
    notice_version text,
    consented_at timestamptz,
    receipt_id uuid,
    -- Append times of the log: a client's clock decides nothing here.
    started_at timestamptz not null,
    last_activity_at timestamptz not null,
    -- Partitions that its records came from; a topic may grow.
    partitions integer[] not null default '{}',
    -- What the compactor found, as of its last merge.
    events bigint not null default 0,
    -- Events by kind, as schemas::http::EventCounts names them.
    counts bigint[] not null default '{0,0,0,0,0,0,0,0}',
    pages bigint not null default 0,
    errors bigint not null default 0,
    bytes_received bigint not null default 0,
    bytes_stored bigint not null default 0,
    ts_min bigint,
    ts_max bigint,
    end_seen boolean not null default false,
    -- Set when a compactor merged all parts after the session was over.
    final boolean not null default false,
    -- S1: bytes without consent cannot come to be.
    constraint consent_or_nothing check (
        (link_id is not null and notice_version is not null and consented_at is not null and receipt_id is not null)
        or (state > 0 and events = 0 and bytes_stored = 0)
    ),
    primary key (workspace_id, id)
);
create index session_newest on session (workspace_id, started_at desc, id desc) where state = 0;
create index session_link on session (workspace_id, link_id);
create index session_age on session (started_at) where state = 0;
create index session_open on session (last_activity_at) where state = 0 and not final;

-- The manifest. kind: 0 shared, 1 session, 2 quarantine. state: 0 staged, 1 live, 2 condemned.
create table object (
    id uuid primary key,
    kind smallint not null check (kind between 0 and 2),
    state smallint not null default 0 check (state between 0 and 2),
    -- Where the records of a shared or quarantine object came from.
    topic text,
    partition integer,
    offset_first bigint,
    offset_next bigint,
    -- Whose a session object is.
    workspace_id uuid,
    session_id uuid,
    sessions_filter bytea,
    bytes bigint,
    sha256 bytea check (length(sha256) = 32),
    footer_at bigint,
    footer_len integer,
    staged_at timestamptz not null default now(),
    live_at timestamptz,
    condemned_at timestamptz,
    -- Set when the object was deleted from S3: the row stays until a listing shows it absent.
    deleted_at timestamptz,
    -- A compactor's claim on a run. A lease column, not a held lock: a long transaction would hold back vacuum.
    lease_owner uuid,
    lease_until timestamptz,
    check (state = 0 or (bytes is not null and sha256 is not null and footer_at is not null and footer_len is not null)
        or state = 2),
    check ((kind = 1) = (session_id is not null and workspace_id is not null)),
    check ((kind = 1) = (partition is null))
);
create index object_live_shared on object (topic, partition, offset_first) where kind = 0 and state = 1;
create index object_session on object (workspace_id, session_id) where kind = 1;
create index object_staged on object (staged_at) where state = 0;
create index object_condemned on object (condemned_at) where state = 2;
create index object_partition on object (partition) where kind = 0;

create table partition_progress (
    topic text not null,
    partition integer not null,
    next_offset bigint not null,
    epoch bigint not null,
    updated_at timestamptz not null default now(),
    primary key (topic, partition)
);

-- Offsets that were never stored, and why. An empty table is the healthy state.
create table log_gap (
    topic text not null,
    partition integer not null,
    offset_first bigint not null,
    offset_next bigint not null,
    reason text not null,
    noted_at timestamptz not null default now(),
    primary key (topic, partition, offset_first)
);

-- P2: of a decline only this is kept.
create table decline_count (
    workspace_id uuid not null,
    hour timestamptz not null,
    count bigint not null,
    primary key (workspace_id, hour)
);

create table deletion (
    id uuid primary key,
    workspace_id uuid not null,
    cause text not null check (cause in ('by_hand', 'expired')),
    requested_at timestamptz not null default now(),
    erased_at timestamptz
);
create index deletion_open on deletion (requested_at) where erased_at is null;

create table deletion_session (
    deletion_id uuid not null references deletion (id),
    workspace_id uuid not null,
    session_id uuid not null,
    -- Transactions older than this one may still not know of the tombstone; the worker waits until none is left.
    barrier xid8,
    -- Shared objects that may hold bytes of the session, noted once behind the barrier.
    blockers uuid[],
    erased_at timestamptz,
    primary key (deletion_id, workspace_id, session_id)
);
create index deletion_session_open on deletion_session (deletion_id) where erased_at is null;
create index deletion_session_by_session on deletion_session (workspace_id, session_id);
