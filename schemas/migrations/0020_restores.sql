-- What an index that is one of a backup has to know of what it never heard of; and tombstones that go.

set local statement_timeout = 0;

-- Marks of links that have no row: the backup is older than they are. As those of links are, they are looked at by whoever sees a session
-- first, and go once none can come any more.
create table link_mark (
    workspace_id uuid not null,
    link_id uuid not null,
    deletion_id uuid not null,
    begun_before timestamptz not null,
    primary key (workspace_id, link_id)
);
create index link_mark_deletion on link_mark (deletion_id);

-- All that is marked. Both halves are found by their deletion.
create view marked_link as
    select workspace_id, id, deletion_id, begun_before from link where deletion_id is not null
    union all
    select workspace_id, link_id, deletion_id, begun_before from link_mark;

alter table deletion
    -- Sessions of it whose tombstones are gone.
    add column forgotten bigint not null default 0,
    -- Whether it may have tombstones still.
    add column has_tombstones boolean not null default true;
create index deletion_tombstones on deletion (receipted_at) where receipted_at is not null and has_tombstones;

-- Entries of the journal that are being removed: they need not be there.
alter table journal_entry add column condemned_at timestamptz;

-- Receipts of a deletion that has many, as they are signed: they become its receipts all at once.
create table receipt_draft (
    -- Whoever signs them.
    draft uuid not null,
    deletion_id uuid not null references deletion (id),
    part integer not null check (part > 0),
    sessions bigint not null,
    body text not null,
    primary key (deletion_id, draft, part)
);
