-- Deletions of all sessions of a reference, of those too that are on their way.

set local statement_timeout = 0;

alter table deletion drop constraint deletion_cause_check;
alter table deletion add constraint deletion_cause_check
    check (cause in ('by_hand', 'by_reference', 'expired', 'withdrawn', 'exhausted', 'revoked'));

alter table deletion
    -- Its sessions are being found still: it is not over when those are erased that it has.
    add column finding boolean not null default false;
create index deletion_finding on deletion (requested_at) where finding;

alter table link
    -- Sessions that began no later are deleted, whenever they come,
    add column begun_before timestamptz,
    -- by this deletion, or one like it should it be over.
    add column deletion_id uuid,
    add constraint begun_before_by_whom check ((begun_before is null) = (deletion_id is null));
create index link_deletion on link (deletion_id) where deletion_id is not null;
-- Those of a link that are to be found: tombstones stay in the other index for long.
create index session_link_live on session (workspace_id, link_id) where state = 0;
