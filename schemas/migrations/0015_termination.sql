-- Workspaces that are closed go, with all of theirs, after a time in which they can be opened again.

alter table workspace
    -- By the clock of retention.
    add column terminates_at timestamptz,
    -- Whether an operator closed it: then nobody else opens it again.
    add column closed_by_operator boolean not null default false,
    -- What deletes its sessions, once that began: from then on nothing opens it again.
    add column terminated_by uuid;
-- Those that an earlier release closed.
update workspace set terminates_at = clairvio.clock() + interval '7 days', closed_by_operator = true where state = 'terminated';
alter table workspace
    add constraint terminates_when_closed check ((state = 'terminated') = (terminates_at is not null)),
    add constraint terminated_by_whom check (terminated_by is null or terminates_at is not null);
create index workspace_terminates on workspace (terminates_at) where terminates_at is not null;

-- Workspaces that are gone, by their ids alone.
create table workspace_gone (
    id uuid primary key,
    gone_at timestamptz not null default now(),
    -- Entries of the audit are there still: they can go only once the workspace is gone.
    has_reads boolean not null default true
);
create index workspace_gone_reads on workspace_gone (id) where has_reads;
