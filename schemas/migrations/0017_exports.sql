-- Exports: archives of sessions, under keys of their own, that are over soon.

set local statement_timeout = 0;

create table export (
    -- Version 7: its time bounds how long anything of it may lie in the bucket, also when this row is not there.
    id uuid primary key,
    workspace_id uuid not null,
    scope text not null check (scope in ('session', 'reference', 'workspace')),
    session_id uuid,
    -- Links that the reference had: the reference itself does not stand here.
    links uuid[],
    asked_by uuid not null,
    -- Whose readings of the archive are noted.
    read_by uuid[] not null default '{}',
    requested_at timestamptz not null default clairvio.clock(),
    expires_at timestamptz not null,
    -- Null until they were counted.
    sessions_total bigint,
    sessions_left_out bigint,
    -- What of the archive stands, whatever happens: sessions up to this one, in the order of their ids, and parts up to this one.
    after_session uuid,
    parts integer not null default 0,
    sessions bigint not null default 0,
    events bigint not null default 0,
    bytes bigint not null default 0,
    ready_at timestamptz,
    -- A lease column, not a held lock.
    lease_owner uuid,
    lease_until timestamptz,
    worked_at timestamptz,
    ended_at timestamptz,
    ended_because text check (ended_because in ('expired', 'session_deleted', 'by_hand')),
    -- By the server's own clock: key caches run out by no other.
    shredded_at timestamptz,
    gone_at timestamptz,
    check (expires_at <= requested_at + interval '72 hours'),
    check ((scope = 'session') = (session_id is not null)),
    check ((scope = 'reference') = (links is not null)),
    check ((ended_at is null) = (ended_because is null)),
    check (ended_at is not null or (shredded_at is null and gone_at is null))
);
create index export_newest on export (workspace_id, requested_at desc, id desc);
create index export_unbuilt on export (worked_at nulls first, id) where ready_at is null and ended_at is null;
create index export_open on export (expires_at) where ended_at is null;
create index export_ending on export (id) where ended_at is not null and (gone_at is null or shredded_at is null);

-- Sessions that an export has anything of, or is about to. There before their bytes are, and until the export's are gone.
create table export_session (
    export_id uuid not null,
    session_id uuid not null,
    workspace_id uuid not null,
    -- Of the session's own manifest in the archive, once it stands there.
    manifest_sha256 bytea check (length(manifest_sha256) = 32),
    primary key (export_id, session_id)
);
create index export_session_of on export_session (workspace_id, session_id);

create table export_part (
    export_id uuid not null,
    number integer not null check (number > 0),
    object_id uuid not null,
    -- Of the archive, unsealed.
    bytes bigint not null check (bytes > 0),
    primary key (export_id, number)
);

-- Objects of kind 3: parts of exports.
alter table object add column export_id uuid;
do $$
declare
    found record;
begin
    for found in
        select conname from pg_constraint where conrelid = 'object'::regclass and contype = 'c' and (
            pg_get_constraintdef(oid) like '%kind >= 0%'
            or pg_get_constraintdef(oid) like '%(partition IS NULL)%'
            or conname = 'object_of_session')
    loop
        execute format('alter table object drop constraint %I', found.conname);
    end loop;
end
$$;
alter table object
    add constraint object_kind check (kind between 0 and 3) not valid,
    add constraint object_of_partition check ((kind in (1, 3)) = (partition is null)) not valid,
    add constraint object_of_export check ((kind = 3) = (export_id is not null)) not valid,
    add constraint object_of_session check (case kind
        when 0 then num_nonnulls(workspace_id, session_id) = 0
        when 1 then num_nonnulls(workspace_id, session_id) = 2
        when 2 then num_nonnulls(workspace_id, session_id) in (0, 2)
        else workspace_id is not null and session_id is null end) not valid;
