-- Deletions stand in a journal outside of this database too, so that a backup of it which is restored brings nobody back.

set local statement_timeout = 0;

-- Entries of the journal that this index knows of. One that lies in the bucket and is not here was written after the backup that this
-- index was restored from.
create table journal_entry (
    id uuid primary key,
    deletion_id uuid not null,
    written_at timestamptz not null default now()
);

alter table deletion_session
    -- The entry of the journal that has it. Null until there is one.
    add column entry_id uuid,
    -- When it became unreadable. Null where an earlier release deleted it.
    add column unreadable_at timestamptz;
alter table deletion_session alter column unreadable_at set default clock_timestamp();
create index deletion_session_unjournalled on deletion_session (deletion_id, session_id) where entry_id is null;

alter table deletion
    -- Whether what it says beside its sessions is in the journal: the links that it marked, the workspace that it closed.
    add column begun_journalled boolean not null default true;
create index deletion_begun_unjournalled on deletion (id) where not begun_journalled;

-- Those that are not erased, in the order in which they are led on.
create index deletion_session_leaving on deletion_session (deletion_id, session_id) where erased_at is null;
drop index deletion_session_open;

-- A session stands in one deletion.
create unique index deletion_session_once on deletion_session (workspace_id, session_id);
drop index deletion_session_by_session;

-- How often the key store destroyed keys, as far as this index heard of it. A key store that counts less was restored from a backup:
-- what it destroyed since has to be destroyed again.
create table keystore_seen (
    single boolean primary key default true check (single),
    shreddings bigint not null
);
insert into keystore_seen (shreddings) values (0);

alter table deletion drop constraint deletion_cause_check;
alter table deletion add constraint deletion_cause_check check (cause in
    ('by_hand', 'by_reference', 'expired', 'withdrawn', 'terminated', 'operator', 'exhausted', 'revoked'));
