-- Records in quarantine can be found without opening every footer, and are known to be replayed wherever their bytes lie.

alter table object
    -- How many unreadable records lie in it. Null where an earlier release made it live: its footer says.
    add column quarantined integer check (quarantined >= 0),
    -- When the last of them was set aside by a batcher. It goes with them when they are moved.
    add column set_aside_at timestamptz;

create index object_quarantined on object (coalesce(set_aside_at, live_at), id)
    where kind <> 1 and state = 1 and (quarantined is null or quarantined > 0);

-- Records that were produced again. A record is named by its place in the log, which stays the same when its bytes are moved.
create table quarantine_replayed (
    topic text not null,
    partition integer not null,
    record_offset bigint not null,
    replayed_at timestamptz not null default now(),
    primary key (topic, partition, record_offset)
);
