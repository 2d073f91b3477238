-- What the edge found out about a session's events, as of the compactor's last merge. Sessions that were merged before have
-- the defaults.
alter table session
    -- Milliseconds.
    add column active_ms bigint not null default 0,
    add column clicks bigint not null default 0,
    add column keypresses bigint not null default 0,
    -- Console messages of level warn, info, log, and of all others but error, which are in `errors`.
    add column console bigint[] not null default '{0,0,0,0}',
    add column failed_requests bigint not null default 0,
    -- Pages by origin and path, never query or fragment, in the order of the first visits. They tell of a person, and stand
    -- here in clear: a tombstone has none.
    add column urls text[] not null default '{}';
