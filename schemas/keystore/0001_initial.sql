-- The key store: data keys of sessions, wrapped. It has a schema, a migration table and connections of its own, and knows
-- nothing of the index: in production it is another database, with backups of its own.

create table session_key (
    workspace_id uuid not null,
    session_id uuid not null,
    -- The keyring's version under which the key is wrapped.
    version integer,
    wrapped bytea check (length(wrapped) = 64),
    created_at timestamptz not null default now(),
    -- A shredded key's row stays without its key: an insert that comes late changes nothing.
    shredded_at timestamptz,
    constraint key_or_shredded check (
        (wrapped is not null and version is not null and shredded_at is null)
        or (wrapped is null and version is null and shredded_at is not null)
    ),
    primary key (workspace_id, session_id)
);
create index session_key_version on session_key (version, workspace_id, session_id) where wrapped is not null;
