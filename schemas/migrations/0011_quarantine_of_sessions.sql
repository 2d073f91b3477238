-- Chunks of a session that cannot be merged lie in quarantine objects of its own, and go with it.

set local statement_timeout = 0;

do $$
declare
    named text;
begin
    select conname into strict named from pg_constraint
    where conrelid = 'object'::regclass and pg_get_constraintdef(oid) like '%session_id IS NOT NULL%';
    execute format('alter table object drop constraint %I', named);
end
$$;
alter table object
    add constraint object_of_session check (case kind
        when 0 then num_nonnulls(workspace_id, session_id) = 0
        when 1 then num_nonnulls(workspace_id, session_id) = 2
        else num_nonnulls(workspace_id, session_id) in (0, 2) end) not valid,
    -- Filters of shared objects that lie in a quarantine object whole: it may hold what they may have held.
    add column source_filters bytea[];
create index object_session_quarantine on object (workspace_id, session_id) where kind = 2 and session_id is not null;
