-- Bucket and index are compared, round by round.

set local statement_timeout = 0;

-- Objects of partitions in the order of their keys: the first has what `object_partition` had. Of those of sessions `object_session`
-- has the beginning of that order, and few of one session are to be sorted.
create index object_shared_place on object (partition, id) where kind = 0;
create index object_quarantine_place on object (partition, id) where kind = 2;
drop index object_partition;

create table reconciliation (
    -- There is one row: one round goes on at a time, whoever goes on with it.
    single boolean primary key default true check (single),
    -- Who does. A lease column, not a held lock: a dead worker's runs out, and another goes on where it was.
    lease_owner uuid,
    lease_until timestamptz,
    -- When the round under way began; null when there is none. How far it has come, and what it found so far.
    began_at timestamptz,
    position text,
    objects bigint not null default 0,
    orphans bigint not null default 0,
    missing bigint not null default 0,
    examples text[] not null default '{}',
    -- When the last round ended, and what it found.
    ended_at timestamptz,
    ended_orphans bigint not null default 0,
    ended_missing bigint not null default 0,
    ended_past_window_sessions bigint not null default 0,
    ended_past_window_bytes bigint not null default 0
);
insert into reconciliation default values;
