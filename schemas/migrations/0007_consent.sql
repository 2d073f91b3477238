-- Consent, links and keys of the API; what is told to edges.

-- References lie sealed under a key of their workspace, and are found by a keyed hash. The clear text of links that an earlier
-- release made is sealed by the control plane when it starts, and then null.
alter table link
    alter column reference drop not null,
    add column reference_sealed bytea,
    add column reference_hash bytea check (length(reference_hash) = 32),
    add column revoked_at timestamptz,
    add constraint reference_somewhere check (num_nonnulls(reference, reference_sealed) = 1),
    add constraint sealed_and_findable check ((reference_sealed is null) = (reference_hash is null));
drop index link_reference;
create index link_reference on link (workspace_id, reference_hash);
create index link_unsealed on link (workspace_id, id) where reference is not null;
-- An operator looks for a link by its id alone.
create index link_id on link (id);

alter table api_key
    add column name text not null default '',
    add column scopes text[] not null default '{links,read,delete,admin}',
    -- The last characters, by which people know it.
    add column ending text not null default '',
    -- Noted once a minute at most.
    add column last_used_at timestamptz;
create index api_key_workspace on api_key (workspace_id, created_at);

alter table workspace
    add column state text not null default 'active' check (state in ('active', 'suspended', 'terminated')),
    add column notice_versions text[] not null default '{}',
    -- No session begins before this: the day's sessions are used up.
    add column full_until timestamptz,
    -- Counted up with every change that edges have to know of: the version of what is told to them.
    add column rules_version bigint not null default 0;

-- Sessions that began in one day, UTC (P12). Held against the plan's limit.
create table workspace_day (
    workspace_id uuid not null,
    day date not null,
    sessions bigint not null,
    primary key (workspace_id, day)
);

-- A row without a value removes the entry of its key. Entries of one key are told in the order of their rows.
alter table outbox alter column value drop not null;
create index outbox_key on outbox (topic_key, id);

alter table deletion drop constraint deletion_cause_check;
alter table deletion add constraint deletion_cause_check
    check (cause in ('by_hand', 'expired', 'withdrawn', 'exhausted', 'revoked'));
