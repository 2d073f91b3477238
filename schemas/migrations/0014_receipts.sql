-- Receipts of deletions that are over.

set local statement_timeout = 0;

alter table deletion_session
    -- Objects of its own that there were, their bytes, and shared ones that may have held some of it. Null where an earlier release did not
    -- note it.
    add column objects integer,
    add column bytes bigint,
    add column shared_objects integer;

alter table deletion
    -- When its receipts were signed.
    add column receipted_at timestamptz;
create index deletion_unreceipted on deletion (erased_at) where erased_at is not null and receipted_at is null;
create index deletion_of_workspace on deletion (workspace_id) where receipted_at is null;

create table receipt (
    deletion_id uuid not null references deletion (id),
    -- A deletion of very many sessions has several, from 1.
    part integer not null check (part > 0),
    workspace_id uuid not null,
    sessions bigint not null,
    signed_at timestamptz not null default now(),
    -- A compact JWS.
    body text not null,
    primary key (deletion_id, part)
);
create index receipt_newest on receipt (workspace_id, signed_at desc, deletion_id desc, part);
